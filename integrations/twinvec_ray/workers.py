"""Workers: how many processes hold the model, what each of them takes, and whether a cluster has room for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import ray

from twinvec.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that hold the model, with one Embedder each.

    Attributes:
        count: how many. One for each GPU, or for a few CPUs, is usual.
        cpus: CPUs that Ray reserves for each; torch and the tokenizer get as many threads (at least one).
        gpus: GPUs of each; a fraction lets several share one. 0: the model runs on the CPU.
        pack: send the model's folder to the workers through Ray's object store. Otherwise they find it by itself, as a
            hub id or at the same path.
    """

    count: int = 1
    cpus: float = 1
    gpus: float = 0
    pack: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ConfigurationError(f"count={self.count!r} must be an integer of at least 1")
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name}={value!r} must be a number of at least 0")
        if self.cpus == 0:
            raise ConfigurationError("cpus=0: a worker tokenizes, which takes a CPU or a part of one")

    @property
    def threads(self) -> int:
        """Return the number of threads that a worker's libraries may use."""
        return max(int(self.cpus), 1)

    def remote_options(self) -> dict[str, Any]:
        """Return what Ray is told about each."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        variables = dict.fromkeys(names, str(self.threads))
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "runtime_env": {"env_vars": variables}}


class Node(NamedTuple):
    """A machine of the cluster, and what Ray may use of it."""

    name: str
    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """Return the machines that are alive."""
    return [
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_room(workers: Workers, found: Sequence[Node], *, reading: bool) -> None:
    """Check that a cluster has room for all workers, wherever Ray puts them.

    Args:
        workers: all alike.
        found: its nodes.
        reading: whether Ray Data reads the source meanwhile, with tasks that need one whole CPU of a node.

    Raises:
        ConfigurationError: some would wait for ever; the message has the numbers.
    """
    rooms = [_room(workers, node) for node in found]
    asked = f"{workers.count} workers with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs each"
    if sum(rooms) < workers.count:
        have = ", ".join(
            f"{node.name}: {node.cpus:g} CPUs and {node.gpus:g} GPUs for {room}"
            for node, room in zip(found, rooms, strict=True)
        )
        raise ConfigurationError(
            f"{asked} have no room in this cluster, and would be waited for without end; it has room for {sum(rooms)} "
            f"({have}): pass Workers with a smaller count or share"
        )
    if not reading:
        return
    blocking = [_blocking(workers, node, room) for node, room in zip(found, rooms, strict=True)]
    if any(number is None for number in blocking) or sum(filter(None, blocking)) > workers.count:
        return
    have = ", ".join(f"{node.name}: {node.cpus:g} CPUs, {n} workers" for node, n in zip(found, blocking, strict=True))
    raise ConfigurationError(
        f"{asked} may leave no node with a whole CPU, which Ray Data needs to read the source, and both would wait "
        f"without end (so many workers take a node's last whole CPU: {have}): leave a CPU free on one node, or pass "
        "the source as a path, which is read without one"
    )


def _room(workers: Workers, node: Node) -> int:
    """Return how many workers a node has room for."""
    rooms = [_exact(node.cpus) // _exact(workers.cpus)]
    if workers.gpus:
        rooms.append(_exact(node.gpus) // _exact(workers.gpus))
    return int(min(rooms))


def _blocking(workers: Workers, node: Node, room: int) -> int | None:
    """Return how many workers leave a node without a whole CPU; None: they never do."""
    if node.cpus < 1:
        return 0
    least = (_exact(node.cpus) - 1) // _exact(workers.cpus) + 1
    return int(least) if least <= room else None


def _exact(number: float) -> Fraction:
    return Fraction(round(number * 10_000), 10_000)  # Ray counts in these
