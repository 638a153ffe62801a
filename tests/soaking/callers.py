"""The callers, and what they share."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soaking.chaos import Chaos
from soaking.clients import Call, Client, make_clients
from soaking.ledger import Ledger
from soaking.stores import make_writers
from soaking.texts import N_CLEAN, make_texts
from twinvec import Embedder, Role
from twinvec_stores import EmbeddedStore, MemoryStore, StoreConfig


class Soak:
    """See above; each caller goes on until the soak is stopped."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        self.random = generator
        self.texts = make_texts(generator)
        self.chaos, self.ledger = Chaos(generator), Ledger()
        self.stopped = threading.Event()
        self.clients, self.private = make_clients(folder)
        for client in [*self.clients, self.private]:
            client.compute_truth(self.texts)
        self.embedders = {client.name: client.open() for client in self.clients}
        self.store_folder = folder / "store"
        by_name = {client.name: client for client in self.clients}
        stores: list[tuple[Client, Callable[[Embedder], Any]]] = [
            (by_name["gte int8"], lambda embedder: MemoryStore(StoreConfig.for_embedder(embedder))),
            (
                by_name["gte bm25, cache"],
                lambda embedder: EmbeddedStore(self.store_folder, StoreConfig.for_embedder(embedder)),
            ),
        ]
        self.writers = make_writers(stores, self.embedders, self.texts, self.ledger)

    def start(self, n_threads: int) -> list[threading.Thread]:
        """Return the threads of all callers, which are at work."""
        workers = [*[self.thread] * n_threads, self.loop, self.loop, self.sharer, self.owner, self.loser]
        workers += [functools.partial(writer.work, self.stopped) for writer in self.writers]
        threads = [threading.Thread(target=self._guard, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        return threads

    def _guard(self, worker: Callable[[], None]) -> None:
        try:
            worker()
        except BaseException:
            self.ledger.complain("callers", f"one has ended:\n{traceback.format_exc()}")

    def plan(self, client: Client | None = None) -> Call:
        """Return a call of random client, role, size, poison, halves and timeout."""
        choose = self.random
        client = client or choose.choice(self.clients)
        size = choose.choice((1, 1, 1, 1, 1, choose.randint(2, 20), choose.randint(2, 20), choose.randint(20, 400)))
        rows = choose.choices(range(N_CLEAN), k=size)
        if choose.random() < 0.05:
            rows[choose.randrange(size)] = choose.randrange(N_CLEAN, len(self.texts))
        has_sparse = client.truth[Role.QUERY].sparse is not None
        dense, sparse = choose.choice(((True, True), (True, False), (False, True))) if has_sparse else (True, False)
        timeout = choose.choice((None, None, None, 30.0, 0.03 * choose.random()))
        return Call(client, choose.choice((Role.QUERY, Role.DOCUMENT)), rows, dense, sparse, timeout)

    def ask(self, embedder: Embedder, call: Call) -> None:
        """Run a call on this thread."""
        embed = embedder.embed_queries if call.role is Role.QUERY else embedder.embed_documents
        texts = [self.texts[row] for row in call.rows]
        with self.ledger.watch(call):
            call.verify(embed(texts, dense=call.dense, sparse=call.sparse, timeout=call.timeout))

    async def ask_async(self, embedder: Embedder, call: Call) -> None:
        """Run a call on this event loop, and cancel it now and then."""
        embed = embedder.aembed_queries if call.role is Role.QUERY else embedder.aembed_documents
        texts = [self.texts[row] for row in call.rows]
        with self.ledger.watch(call):
            task = asyncio.ensure_future(embed(texts, dense=call.dense, sparse=call.sparse, timeout=call.timeout))
            if self.random.random() < 0.2:
                await asyncio.sleep(0.02 * self.random.random())
                call.cancelled = task.cancel()
            call.verify(await task)

    def thread(self) -> None:
        """Call from a thread."""
        while not self.stopped.is_set():
            call = self.plan()
            self.ask(self.embedders[call.client.name], call)

    def loop(self) -> None:
        """Call from tasks of an event loop, sometimes many at once."""

        async def task() -> None:
            while not self.stopped.is_set():
                calls = [self.plan() for _ in range(64 if self.random.random() < 0.05 else 1)]
                await asyncio.gather(*(self.ask_async(self.embedders[call.client.name], call) for call in calls))

        async def tasks() -> None:
            await asyncio.gather(*(task() for _ in range(8)))

        asyncio.run(tasks())

    def sharer(self) -> None:
        """Open and close more Embedders of the models in use."""
        while not self.stopped.wait(0.2 * self.random.random()):
            client = self.random.choice(self.clients)
            with client.open() as embedder:
                for _ in range(self.random.randint(0, 3)):
                    self.ask(embedder, self.plan(client))

    def owner(self) -> None:
        """Load a model of its own, and give it up in every way: closed under its callers, or left to the collector."""
        with ThreadPoolExecutor(4) as pool:
            while not self.stopped.wait(0.2 * self.random.random()):
                embedder = self.private.open()
                calls = [self.plan(self.private) for _ in range(self.random.randint(0, 12))]
                futures = [pool.submit(self.ask, embedder, call) for call in calls]
                if self.random.random() < 0.5:
                    time.sleep(0.02 * self.random.random())
                    for call in calls:
                        call.closing = True
                    embedder.close()
                for future in futures:
                    future.result()
                cycle: list[Any] = [embedder]
                cycle.append(cycle)
                del embedder, cycle, futures

    def loser(self) -> None:
        """Lose one device, or all, and restart, from two threads at once."""
        (lossy,) = [client for client in self.clients if client.losing]
        embedder = self.embedders[lossy.name]
        while not self.stopped.wait(1 + 3 * self.random.random()):
            backbone = getattr(embedder._core.model.encoder, "_backbone", None)  # none while it is restarted
            self.chaos.losses[id(backbone)] = self.random.choice((1, 2))
            while embedder.healthy and self.chaos.losses[id(backbone)] > 0 and not self.stopped.wait(0.01):
                pass
            self.chaos.losses.clear()  # the next backbone may have this one's id
            if not embedder.healthy:
                threads = [threading.Thread(target=embedder.restart) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if not embedder.healthy:
                    self.ledger.complain("restart", "the Embedder is not healthy after restart()")
