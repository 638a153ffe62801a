"""The OpenAPI document as a readable page: plain HTML without external resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { background: #8882; border-radius: 3px; padding: 0 .3em; }
section { border-top: 1px solid #8886; } table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .15em 1.2em .15em 0; } :root { color-scheme: light dark; }
"""


def page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    routes = "".join(
        _route(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>For programs: <a href="openapi.json">openapi.json</a></p>{routes}<h2>Types</h2>{schemas}'
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    answer = operation["responses"]["200"]["content"].get("application/json")
    lines = [("Body", body), ("Answer", answer)]
    return (
        f"<section><h3>{method} <code>{escape(path)}</code></h3><p>{escape(operation['summary'])}</p>"
        + "".join(f"<p>{escape(text)}</p>" for text in [operation.get("description")] if text)
        + "".join(f"<p>{name}: {_kind(found['schema'])}</p>" for name, found in lines if found is not None)
        + ("" if operation["security"] else "<p>Needs no key.</p>")
        + "</section>"
    )


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{_kind(kind)}<td>{_default(kind, field in required)}</tr>"
        for field, kind in schema.get("properties", {}).items()
    )
    text = escape(schema.get("description", ""))
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{text}</p><table>{rows}</table></section>'


def _default(schema: Mapping[str, Any], required: bool) -> str:
    if "default" in schema:
        return f"default <code>{escape(repr(schema['default']))}</code>"
    return "required" if required else ""


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return _joined(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return _joined(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if schema.get("items") else "list"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = "".join(f" {word} {schema[name]}" for name, word in bounds.items() if name in schema)
    return escape(str(schema.get("type", "anything")) + limits)


def _joined(kinds: Iterable[str]) -> str:
    return " or ".join(kinds)
