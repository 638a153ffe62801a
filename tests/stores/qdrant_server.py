"""A server with the part of Qdrant's REST interface that a QdrantStore uses, in front of the client's own engine.

No Qdrant server can be installed from PyPI. Here a QdrantStore has a URL, and clients in many processes talk HTTP to
one collection; what a real server does with what they say is not shown.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.models import CreateCollection, FilterSelector, PointsList

from stores.conftest import local_clients

Answer = Callable[[QdrantClient, str, Any], Any]


def _retrieve(client: QdrantClient, name: str, body: Any) -> Any:
    asked = models.PointRequest(**body)
    return client.retrieve(name, asked.ids, asked.with_payload or False, asked.with_vector or False)


def _scroll(client: QdrantClient, name: str, body: Any) -> Any:
    asked = models.ScrollRequest(**body)
    points, following = client.scroll(
        name,
        asked.filter,
        asked.limit or 10,
        offset=asked.offset,
        with_payload=asked.with_payload or False,
        with_vectors=asked.with_vector or False,
    )
    return {"points": points, "next_page_offset": following}


def _create(client: QdrantClient, name: str, body: Any) -> bool:
    asked = CreateCollection(**body)
    return client.create_collection(
        name, asked.vectors, sparse_vectors_config=asked.sparse_vectors, metadata=asked.metadata
    )


def _search(client: QdrantClient, name: str, body: Any) -> Any:
    return client.query_batch_points(name, [models.QueryRequest(**asked) for asked in body["searches"]])


ANSWERS: dict[str, Answer] = {
    "GET exists": lambda client, name, body: {"exists": client.collection_exists(name)},
    "GET": lambda client, name, body: client.get_collection(name),
    "PUT": _create,
    "PATCH": lambda client, name, body: client.update_collection(name, metadata=body["metadata"]),
    "PUT index": lambda client, name, body: client.create_payload_index(name, body["field_name"], body["field_schema"]),
    "PUT points": lambda client, name, body: client.upsert(name, PointsList(**body).points),
    "POST points": _retrieve,
    "POST points/delete": lambda client, name, body: client.delete(name, FilterSelector(**body)),
    "POST points/scroll": _scroll,
    "POST points/query/batch": _search,
    "POST points/count": lambda client, name, body: client.count(name, models.CountRequest(**body).filter),
}


class QdrantServer:
    """Runs on this machine, at ``url``, until it is closed."""

    def __init__(self) -> None:
        self._engine, self._one_at_a_time = local_clients()[0], threading.Lock()
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, found = answer(self.command, self.path, json.loads(content) if content else None)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            do_GET = do_PUT = do_POST = do_PATCH = handle_request  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """Return the status and the JSON with which a request is answered."""
        if path == "/":
            return 200, json.dumps({"title": "qdrant", "version": version("qdrant-client")}).encode()
        _, _, name, *rest = path.partition("?")[0].split("/")
        try:
            with self._one_at_a_time:
                result = ANSWERS[" ".join([method, *filter(None, ["/".join(rest)])])](self._engine, name, body)
        except Exception as error:
            return 400, json.dumps({"status": {"error": repr(error)}}).encode()
        return 200, json.dumps({"result": result, "status": "ok", "time": 0}, default=_plain).encode()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json")
