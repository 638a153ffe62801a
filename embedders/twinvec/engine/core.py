"""The inference core: one model in memory, and the threads that carry messages between callers, hosts and devices.

The dispatcher makes all decisions. Whoever has an event steps it, under one lock, and executes the resulting commands:
a single query is tokenised on its caller's thread, goes to the device thread, and back. Host threads do longer
tokenisation and read and write persistent caches.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

from twinvec.cache.rows import Key, Namespaces, Row, find_rows, keep_rows
from twinvec.compute.encoder import Encoder, Finish, is_device_lost
from twinvec.compute.out_of_memory import Budget, free_memory, is_out_of_memory
from twinvec.engine.dispatcher import Dispatcher
from twinvec.engine.job import Job
from twinvec.engine.loading import Model
from twinvec.engine.waiting import tell
from twinvec.engine.work import Answer, Batch, Command, Device, Event, Keep, Run, Stop, Tokenise, Wake
from twinvec.errors import ConfigurationError, DeviceLostError
from twinvec.text.tokenizer import TokenizedText
from twinvec.workers import Workers

logger = logging.getLogger(__name__)

_LIGHT = 2048  # characters; tokenising these is faster than waking another thread


class InferenceCore:
    """One loaded model and the threads that serve it.

    Attributes:
        model: the loaded model.
        state: the dispatcher; only its counters may be read from outside.
    """

    def __init__(self, model: Model, namespaces: Namespaces) -> None:
        self.model = model
        self.state = Dispatcher()
        self._namespaces = namespaces
        self._pid = os.getpid()
        self._abandoned = False
        self._lock, self._restarting = threading.Lock(), threading.Lock()
        self._inboxes: dict[Device, SimpleQueue[Command]] = {}
        # queries are tokenised in parallel with bulk windows, not after them
        self._hosts = {True: Workers("twinvec-query"), False: Workers("twinvec-bulk")}
        self._start_devices(model)

    @property
    def healthy(self) -> bool:
        """Return whether new work is accepted and a device works."""
        return self.state.error is None

    @property
    def token_budget(self) -> int:
        """Return the current token limit of a batch."""
        return next((device.budget.tokens for device in self.state.devices), self.model.encoder.token_budget)

    def submit(self, job: Job) -> None:
        """Queue a job; its bell rings once it is over. Never blocks.

        Raises:
            ConfigurationError: called in a process that was forked after the model was loaded.
        """
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this Embedder was created before the process forked, and its threads do not exist here: create it in "
                'the child, or start workers with the "spawn" method'
            )
        self._step(partial(self.state.submitted, job))

    def cancel(self, job: Job) -> None:
        """Cancel a job's work, except for what others are waiting for."""
        if os.getpid() == self._pid:
            self._step(partial(self.state.cancelled, job))

    def limit_memo(self, max_bytes: int) -> None:
        """Limit the memory used for recent rows."""
        with self._lock:
            self.state.memo.limit(max_bytes)

    def clear_memo(self) -> None:
        """Forget recent rows."""
        with self._lock:
            self.state.memo.clear()

    def restart(self) -> None:
        """Build the model again after ``DeviceLostError``."""
        with self._restarting:
            if isinstance(self.state.error, DeviceLostError):
                self._join_devices()  # the memory of what is lost is free then
                self._start_devices(self.model.rebuild())

    def close(self, *, drain: bool = False) -> None:
        """Stop: finish pending work (``drain``) or reject it; release the model."""
        if os.getpid() == self._pid:
            self._stop(partial(self.state.closed, drain=drain))

    def abandon(self) -> None:
        """Stop when the interpreter exits: daemon threads in the middle of a call end silently with it."""
        self._abandoned = True
        self._stop(self.state.abandoned)

    def _stop(self, event: Event) -> None:
        self._step(event)
        with self._restarting:  # whatever a restart is just starting is stopped, too
            self._join_devices()
        for host in self._hosts.values():
            host.join()

    def _start_devices(self, model: Model) -> None:
        devices = {
            Device(str(e.device), Budget(e.token_budget), e.small_budget, e.asynchronous): e for e in model.encoders
        }
        self._inboxes.update((device, SimpleQueue()) for device in devices)
        self._threads = [
            threading.Thread(target=self._serve, args=item, name="twinvec-device", daemon=True)
            for item in devices.items()
        ]
        self.model = model
        for thread in self._threads:
            thread.start()
        self._step(partial(self.state.restarted, list(devices)))

    def _join_devices(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # --- messages

    def _step(self, event: Event) -> None:
        commands = deque(self._decide(event))
        try:
            self._carry_out(commands)
        except BaseException:  # Ctrl-C: the interrupted command is repeated, which does no harm
            self._carry_out(commands)
            raise

    def _decide(self, event: Event) -> list[Command]:
        with self._lock:
            return self.state.step(time.monotonic(), event)

    def _carry_out(self, commands: deque[Command]) -> None:
        while commands:
            match commands[0]:
                case Tokenise(batch) if batch.cache is None and batch.characters <= _LIGHT:
                    commands += self._decide(self._tokenise(batch))
                case Tokenise(batch):
                    self._hosts[batch.entries[0].urgent].run(partial(self._tokenise_later, batch))
                case Run(Batch(device=device)) | Wake(device) | Stop(device) if device:
                    if (inbox := self._inboxes.get(device)) is not None:
                        inbox.put(commands[0])
                case Keep() as command:
                    self._hosts[False].run(partial(self._keep, command))
                case Answer(jobs) if not (self._abandoned and threading.current_thread().daemon):
                    tell(jobs)
                case Stop():
                    for host in self._hosts.values():
                        host.close()
            commands.popleft()

    # --- host threads

    def _tokenise_later(self, batch: Batch) -> None:
        if self.state.expects(batch):
            self._step(self._tokenise(batch))

    def _tokenise(self, batch: Batch) -> Event:
        try:
            rows = self._look_up(batch)
            tokens = iter(self._encode([e.key for e, row in zip(batch.entries, rows, strict=True) if row is None]))
            return partial(self.state.tokenised, batch, [next(tokens) if row is None else row for row in rows])
        except KeyboardInterrupt:  # other callers may be waiting for the same text
            raise
        except BaseException as error:
            return partial(self.state.failed, batch, error)

    def _encode(self, keys: Sequence[Key]) -> list[TokenizedText]:
        """Tokenise what one job asks for, so with one prompt and one limit, and with spans or without."""
        if not keys:
            return []
        first, tokenizer, texts = keys[0], self.model.tokenizer, [key.text for key in keys]
        if first.spans:
            return tokenizer.encode_spans(texts, [key.spans for key in keys], first.prompt, first.max_length)
        encoded = tokenizer.encode(texts, first.prompt, first.max_length)
        return [replace(text, multi=first.multi) for text in encoded] if first.multi else encoded

    def _look_up(self, batch: Batch) -> list[Row | None]:
        """Return the rows found in a persistent cache; None for texts that are missing or lack a required half."""
        nothing: list[Row | None] = [None] * len(batch.entries)
        if batch.cache is None:
            return nothing
        (job, _), *_ = batch.entries[0].waiters
        try:
            rows = find_rows(batch.cache, self._namespaces, [entry.key for entry in batch.entries], **job.halves)
        except Exception:
            logger.exception("the persistent cache failed; the texts are computed")
            return nothing
        return rows if len(rows) == len(nothing) else nothing

    def _keep(self, keep: Keep) -> None:
        try:
            keep_rows(keep.cache, self._namespaces, keep.rows)
        except Exception:
            logger.exception("the persistent cache failed; callers still got their vectors")

    # --- device threads

    def _serve(self, device: Device, encoder: Encoder) -> None:
        try:
            self._serve_until_stopped(device, encoder)
        except BaseException as error:  # lost, or a bug: its batches continue elsewhere
            if not is_device_lost(error):
                logger.exception("the thread of %s ended", device.name)
            error.__traceback__ = None  # its frames hold the model, and each other
            self._step(partial(self.state.lost, device, error))
        finally:
            del self._inboxes[device]
            encoder.release()

    def _serve_until_stopped(self, device: Device, encoder: Encoder) -> None:
        """Keep one batch on the device and, if the device works asynchronously, the next one right behind it."""
        inbox = self._inboxes[device]
        launched: deque[tuple[Batch, Finish]] = deque()
        wake: float | None = None
        while True:
            try:
                command = inbox.get(not launched, None if wake is None else max(wake - time.monotonic(), 0))
            except Empty:
                command = None
            if isinstance(command, Stop):
                return
            wake = command.time if isinstance(command, Wake) else None
            if isinstance(command, Run):
                self._start(device, encoder, command.batch, launched)
            elif command is None and not launched:
                self._step(partial(self.state.woken, device))
            if launched and (command is None or len(launched) > device.ahead):
                self._finish(encoder, *launched.popleft())
            del command  # keeping it while waiting for the next would keep calls and their rows alive

    def _start(self, device: Device, encoder: Encoder, batch: Batch, launched: deque[tuple[Batch, Finish]]) -> None:
        try:
            finish = encoder.start([entry.tokens for entry in batch.entries if entry.tokens is not None])
        except BaseException as error:
            self._report(encoder, batch, error)
            return
        launched.append((batch, finish))
        if device.ahead:
            self._step(partial(self.state.started, device))

    def _finish(self, encoder: Encoder, batch: Batch, finish: Finish) -> None:
        try:
            rows = finish()
        except BaseException as error:
            self._report(encoder, batch, error)
        else:
            self._step(partial(self.state.ran, batch, rows))

    def _report(self, encoder: Encoder, batch: Batch, error: BaseException) -> None:
        if is_device_lost(error):
            raise error
        if is_out_of_memory(error):
            reason = str(error).partition("\n")[0]
            error.__traceback__ = None  # it keeps the tensors of the pass alive
            free_memory(encoder.device)
            self._step(partial(self.state.ran_out, batch, reason))
        else:
            self._step(partial(self.state.failed, batch, error))
