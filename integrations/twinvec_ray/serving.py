"""The server of ``twinvec.server`` as a Ray Serve application: replicas, and more of them while callers wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec.options import EmbedderOptions
from twinvec_ray.models import Model
from twinvec_ray.workers import Workers, check_room, nodes

if TYPE_CHECKING:
    from ray.serve import Application

    from twinvec import BaseEmbedder, ModelSpec

_QUEUE = 4  # times ``waiting``: what a replica takes while others are started


def embedding_app(
    model: str | ModelSpec | BaseEmbedder,
    *,
    workers: Workers | None = None,
    max_count: int | None = None,
    waiting: int = 16,
    embedder_options: EmbedderOptions | None = None,
    **server: Any,
) -> Application:
    """Return the server's app for ``ray.serve.run``.

    Args:
        model: see ``twinvec_ray.ingest``.
        workers: the replicas: how many at least, and what each takes; without ``pack``.
        max_count: how many replicas at most; None: as many as at least.
        waiting: requests in flight per replica above which another replica is started, after half a minute of them.
        embedder_options: for a model by name.
        server: arguments of ``twinvec.server.create_app``: api_key, limits, hosts ... Without api_key, each replica
            takes TWINVEC_API_KEY from its own environment.

    Raises:
        ConfigurationError: the numbers contradict each other, the cluster has no room for ``workers``, or the model is
            a client of a server.
    """
    from ray import serve

    workers = workers or Workers()
    most = workers.count if max_count is None else max_count
    if most < workers.count:
        raise ConfigurationError(f"max_count={max_count} is less than the {workers.count} replicas of workers=")
    if waiting < 1:
        raise ConfigurationError(f"waiting={waiting!r} must be at least 1")
    if workers.pack:
        raise ConfigurationError("pack=True: replicas outlive this program, in whose memory the folder would be packed")
    check_room(workers, nodes(), reading=False)
    described = Model.of(model, embedder_options, workers)
    if described.spec is None:
        raise ConfigurationError("replicas load a model of their own: pass a hub id, a folder or an Embedder")

    def build() -> Any:
        from twinvec.server import create_app, leave_models_uncollected

        embedder = described.load()
        assert isinstance(embedder, Embedder)
        app = create_app(embedder, **server)
        leave_models_uncollected()
        return app

    deployment: Any = serve.deployment(
        name="twinvec",
        autoscaling_config={
            "min_replicas": workers.count,
            "max_replicas": most,
            "target_ongoing_requests": waiting,
        },
        max_ongoing_requests=_QUEUE * waiting,  # Serve's own default is 5, too few for a batch
        ray_actor_options=workers.remote_options(),
    )(serve.ingress(build)())
    application: Application = deployment.bind()
    return application
