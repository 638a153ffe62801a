"""Bulk work on a Ray cluster: datasets embedded, corpora ingested, models served.

``ingest`` is ``twinvec_stores.ingest`` on many machines; ``embed_dataset`` adds vectors to a Ray Dataset;
``embedding_app`` is the server of ``twinvec.server`` as a Ray Serve application. Importing this package imports Ray,
and nothing else in TwinVec does.
"""

try:
    import ray as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("twinvec_ray needs Ray: pip install 'twinvec[ray]'", name=error.name) from None

from twinvec_ray.datasets import embed_dataset
from twinvec_ray.ingesting import ClusterReport, ingest
from twinvec_ray.planning import Forecast, Plan, simulate
from twinvec_ray.serving import embedding_app
from twinvec_ray.workers import Workers

__all__ = ["ClusterReport", "Forecast", "Plan", "Workers", "embed_dataset", "embedding_app", "ingest", "simulate"]
