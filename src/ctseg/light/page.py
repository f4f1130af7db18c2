"""An OpenAPI description as a page of plain HTML: no script, and nothing from other sites, which a hospital may bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from starlette.responses import HTMLResponse

_STYLE = (
    "body{font:1rem/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "th{text-align:left;padding-right:1rem;vertical-align:top}h2{margin:2rem 0 0}"
)


def page(told: Mapping[str, Any]) -> HTMLResponse:
    """Return the page.

    Args:
        told: the OpenAPI description, as FastAPI makes it.
    """
    info = told["info"]
    head = f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
    head += '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f"<style>{_STYLE}</style></head><body>{head}{''.join(_routes(told))}</body></html>"
    )


def _routes(told: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in told["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(route['summary'])}</p>"
            content = route.get("requestBody", {}).get("content", {})
            fields = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
            rows = [*_rows(fields), *_rows(route["responses"])]
            yield f"<table>{''.join(rows)}</table>"


def _rows(described: Mapping[str, Any]) -> Iterator[str]:
    for name, one in described.items():
        yield f"<tr><th><code>{escape(str(name))}</code></th><td>{escape(one.get('description', ''))}</td></tr>"
