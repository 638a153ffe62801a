"""A served model under 200 clients: 50,000 requests in flat memory, SIGTERM in the middle of load, SIGKILL.

PYTHONPATH=tests python tests/soak_server.py --requests 50000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from reference.gte import build_gte

COMMAND = [sys.executable, "-c", "from twinvec_cli.main import run; run()", "serve"]
CLIENTS = 200
_CUT = "cut"  # an answer that ended before its last byte


@dataclass
class Load:
    """What the clients saw: answers by status, and connections that were refused or cut."""

    host: str
    port: int
    left: int
    seen: Counter[str] = field(default_factory=Counter)

    async def client(self, number: int) -> None:
        """Ask on one connection, and on the next one when that is closed."""
        draw = random.Random(number)
        while self.left > 0:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                self.seen["refused"] += 1
                return
            try:
                while self.left > 0:
                    self.left -= 1
                    writer.write(self._request(draw))
                    await self._answer(reader)
            except OSError:
                self.seen["closed"] += 1
            finally:
                writer.close()

    def _request(self, draw: random.Random) -> bytes:
        text = f"вопрос {draw.randrange(10_000)} " + "слово " * draw.randrange(20)
        path, body = draw.choice(
            [
                ("/embed", {"inputs": [text] * draw.randrange(1, 4)}),
                ("/v1/embeddings", {"input": text, "encoding_format": "base64"}),
                ("/embed_sparse", {"inputs": text}),
                ("/v1/twinvec/embed", {"role": "query", "texts": [text]}),
                ("/embed", {"inputs": 1}),
            ]
        )
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self.seen[_CUT if error.partial else "closed"] += 1
            raise ConnectionResetError from None
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        try:
            await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            self.seen[_CUT] += 1
            raise ConnectionResetError from None
        self.seen[head.split()[1].decode()] += 1
        if b"connection: close" in head.lower():
            raise ConnectionResetError

    async def run(self) -> None:
        """Let all clients ask until no request is left or the server is gone."""
        await asyncio.gather(*(self.client(number) for number in range(CLIENTS)))


def start(folder: Path, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen([*COMMAND, str(folder), *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert " at http://127.0.0.1:" in line, line
    return process, int(line.split(" at http://127.0.0.1:")[1].split()[0])


def resident(process: subprocess.Popen[str]) -> int:
    """Return the megabytes that a process holds in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def flat_memory(process: subprocess.Popen[str], port: int, requests: int) -> None:
    """Send them in ten parts; memory after the second part must not grow by a tenth."""
    sizes = []
    begun = time.monotonic()
    for _ in range(10):
        load = Load("127.0.0.1", port, requests // 10)
        asyncio.run(load.run())
        assert set(load.seen) <= {"200", "422"}, load.seen
        sizes.append(resident(process))
        print(f"{dict(load.seen)}, {sizes[-1]} MB", flush=True)
    print(f"{requests} requests in {time.monotonic() - begun:.0f} s, {sizes[1]} to {sizes[-1]} MB")
    assert sizes[-1] < 1.1 * sizes[1], sizes


def told_to_stop(process: subprocess.Popen[str], port: int) -> None:
    """SIGTERM in load: what was begun is answered to its end, and the status is 0 within the drain time."""

    async def scenario() -> tuple[Load, float]:
        load = Load("127.0.0.1", port, 10**9)
        running = asyncio.ensure_future(load.run())
        while load.seen["200"] < 500:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        await running
        return load, told

    load, told = asyncio.run(scenario())
    status, took = process.wait(60), time.monotonic() - told
    print(f"SIGTERM: {dict(load.seen)}, status {status} after {took:.1f} s")
    assert status == 0
    assert took < 30
    assert load.seen[_CUT] == 0
    assert load.seen["refused"] == CLIENTS


def killed(folder: Path) -> None:
    """SIGKILL in load: clients see it at once, and the port can be had again."""
    process, port = start(folder)

    async def scenario() -> Load:
        load = Load("127.0.0.1", port, 10**9)
        running = asyncio.ensure_future(load.run())
        while load.seen["200"] < 500:
            await asyncio.sleep(0.01)
        process.kill()
        await running
        return load

    load = asyncio.run(scenario())
    process.wait(60)
    assert load.seen["refused"] == CLIENTS
    again, same = start(folder, port)
    again.terminate()
    print(f"SIGKILL: {dict(load.seen)}, started again at the same port, status {again.wait(60)}")
    assert (same, again.returncode) == (port, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = build_gte(Path(temporary) / "gte", dtype="float32")
        process, port = start(folder)
        try:
            flat_memory(process, port, arguments.requests)
            told_to_stop(process, port)
            killed(folder)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
