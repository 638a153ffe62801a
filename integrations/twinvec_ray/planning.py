"""Planning: how long a corpus takes, where more workers stop to help, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from twinvec.errors import ConfigurationError
from twinvec_ray.worker import PAGES


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured once, on one worker, and what is asked for.

    Attributes:
        documents: of the corpus.
        worker_rate: documents per second of one worker (``WorkerReport``: documents / (seconds * busy)).
        driver_rate: documents per second that the driver can read and hand out (benchmarks/ray_ingest.py).
        workers: how many.
        load_seconds: until a worker has its model.
        batch_size: documents of a page, see ``ingest``.
        price: of a worker and its share of the machine, per hour.
    """

    documents: int
    worker_rate: float
    driver_rate: float
    workers: int = 1
    load_seconds: float = 0.0
    batch_size: int = 256
    price: float = 0.0

    def __post_init__(self) -> None:
        for name in ("documents", "worker_rate", "driver_rate", "workers", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} must be above 0")


@dataclass(frozen=True)
class Forecast:
    """What ``simulate`` expects.

    Attributes:
        seconds: of the whole run, loading included.
        rate: documents per second, loading excluded.
        busy: share of that time in which workers have something to do.
        cost: in the currency of the price.
    """

    seconds: float
    rate: float
    busy: float
    cost: float


def simulate(plan: Plan) -> Forecast:
    """Follow every page of a run: the driver reads it, the worker that is free first has it, results return in order.

    The driver stops reading while ``PAGES`` pages for each worker are on their way, as ``ingest`` does.
    """
    free = [0.0] * plan.workers
    ahead = PAGES * plan.workers
    done: list[float] = []
    driver = finished = 0.0
    pages = -(-plan.documents // plan.batch_size)
    for page in range(pages):
        size = min(plan.batch_size, plan.documents - page * plan.batch_size)
        if page >= ahead:
            driver = max(driver, done[page - ahead])
        driver += size / plan.driver_rate
        worker = min(range(plan.workers), key=free.__getitem__)
        free[worker] = max(free[worker], driver) + size / plan.worker_rate
        finished = max(finished, free[worker])
        done.append(finished)
    seconds = finished + plan.load_seconds
    busy = plan.documents / plan.worker_rate / (finished * plan.workers)
    return Forecast(seconds, plan.documents / finished, busy, plan.workers * plan.price * seconds / 3600)
