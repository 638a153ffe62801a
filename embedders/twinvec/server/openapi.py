"""The OpenAPI document, generated from the request and response types of the routes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from twinvec._version import __version__

if TYPE_CHECKING:
    from twinvec.server.operations import Operation

_REF = "#/components/schemas/{name}"
_REFUSALS = (400, 401, 404, 408, 413, 422, 424, 429, 500, 503, 504)


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes."""
    operations = list(operations)
    types = [t for operation in operations for t in (operation.body, operation.result) if t is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(str, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "TwinVec", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": {"type": "object"}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    text = inspect.getdoc(operation.answer) or ""
    summary, _, rest = text.partition("\n\n")
    media = "application/json" if operation.result is not None else "*/*"
    answer = {"schema": schema_of[str(operation.result)]} if operation.result is not None else {}
    refusals = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
        }
        for status in _REFUSALS
    }
    made: dict[str, Any] = {
        "operationId": f"{operation.answer.__module__.rpartition('.')[2]}_{operation.answer.__name__}"
        + ("_root" if operation.path == "/" else ""),
        "summary": " ".join(summary.split()),
        "responses": {"200": {"description": "OK", "content": {media: answer}}, **refusals},
        "security": [] if operation.open else [{}, {"key": []}],
    }
    if rest:
        made["description"] = " ".join(rest.split())
    if operation.body is not None:
        body = {"application/json": {"schema": schema_of[str(operation.body)]}}
        made["requestBody"] = {"required": True, "content": body}
    if names := re.findall(r"\{(\w+)", operation.path):
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return made
