"""The HTTP API's own description: what docs/openapi.json says, from the routes themselves (hop 11)."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from plugin.review import api, control_api, line_api, v1
from plugin.review.signin import READING, flat, needs

TITLE = "Flawline host"
ABOUT = (
    "Events, parts, images, decisions, exports and alarms of a Flawline host. A program sends a token as "
    "`Authorization: Bearer TOKEN`; a browser its session's cookie, and with whatever it writes `X-CSRF-Token` as "
    '`/api/session` says. Every mistake is answered with `{"error": "a sentence"}`. What is marked as deprecated '
    "stays for programs that use it; new ones use /api/v1."
)
OLD = "/api/v1/"


def make_api() -> FastAPI:
    """An application with the routes for programs, and the description of them."""
    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
    for router in (v1.router, api.router, control_api.router, line_api.router):
        app.include_router(router)
    described: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        described.update(described or _description(app))
        return described

    app.openapi = describe  # type: ignore[method-assign]
    return app


def _description(app: FastAPI) -> dict[str, Any]:
    routes = [route for route in flat(app.routes) if isinstance(route, APIRoute)]
    found = get_openapi(title=TITLE, version="1", description=ABOUT, routes=routes)
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "of `flawline host user token`"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "flawline",
            "description": "over https `__Host-flawline`",
        },
    }
    for route in routes:
        if route.include_in_schema:
            for method in route.methods or ():
                _say_who(found["paths"][route.path][method.lower()], route, method)
    for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)
    return found


def _say_who(operation: dict[str, Any], route: APIRoute, method: str) -> None:
    """The role and the scope that a route needs, and the one shape of every refusal."""
    declared = needs(route)[0]
    operation["x-role"] = declared.role
    if declared.role is not None:
        operation["x-scope"] = "read" if method in READING else declared.writes
        operation["security"] = [{"token": []}, {"session": []}]
    if not route.path.startswith(OLD):
        operation["deprecated"] = route.path.startswith("/api/") and route.path not in ("/api/control", "/api/session")
    problem = {"$ref": "#/components/schemas/Problem"}
    for status, text in v1.WORDS.items():
        answer = {"description": text, "content": {"application/json": {"schema": problem}}}
        if operation["responses"].get(str(status)) is None or status == 422:
            operation["responses"][str(status)] = answer


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(make_api().openapi(), indent=1, ensure_ascii=False) + "\n")
