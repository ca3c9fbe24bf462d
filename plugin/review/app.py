"""Puts API, pages, static files and the guard together, and answers mistakes with sentences (hop 11)."""

from __future__ import annotations

import logging
import sqlite3

import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from plugin.database import blames_the_event
from plugin.errors import AccountError, LineError, ReviewError
from plugin.review import (
    account_pages,
    candidate_pages,
    drift_pages,
    figure_pages,
    line_pages,
    look_pages,
    openapi,
    pages,
    stations,
)
from plugin.review.guard import Guard
from plugin.review.host import Host
from plugin.review.signin import FOR_PROGRAMS, undeclared
from plugin.review.texts import texts_of

__all__ = ["Host", "create_app"]
log = logging.getLogger(__name__)


def create_app(host: Host) -> FastAPI:
    """The web application of a host. Every route says who may use it, or there is no application."""
    app = openapi.make_api()
    app.state.host = host
    app.include_router(line_pages.router)
    app.include_router(pages.router)
    app.include_router(stations.router)
    app.include_router(look_pages.router)
    app.include_router(figure_pages.router)
    app.include_router(drift_pages.router)
    app.include_router(candidate_pages.router)
    if host.sign_in is not None:
        app.include_router(account_pages.router)
    app.mount("/static", StaticFiles(directory=pages.FOLDER / "static"), name="static")
    if missing := undeclared(app.routes):
        raise RuntimeError(f"these routes do not say which role they need: {missing}")
    app.add_middleware(Guard, names=host.names)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(ReviewError, _conflict)
    app.add_exception_handler(AccountError, _conflict)
    app.add_exception_handler(LineError, _conflict)
    app.add_exception_handler(TimeoutError, _busy)
    app.add_exception_handler(sqlite3.OperationalError, _disk)
    app.add_exception_handler(sa.exc.DBAPIError, _disk)
    app.add_exception_handler(Exception, _broken)
    return app


def _for_programs(request: Request) -> bool:
    return request.url.path.startswith(FOR_PROGRAMS)


def _answer(request: Request, status: int, text: str) -> Response:
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair in a key that was sent is no text
    if _for_programs(request):
        return JSONResponse({"error": text}, status)
    return pages.page(request, "error.html", status, tab="", text=text)


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    if status == 401 and not _for_programs(request):
        return account_pages.to_sign_in(request)
    return _answer(request, status, texts_of(request)("error.no_page") if detail == "Not Found" else detail)


def _bad_request(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    if problems and problems[0]["loc"][0] == "path":
        return _answer(request, 404, texts_of(request)("error.no_page"))
    text = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems)
    return _answer(request, 422, f"The request is not understood: {text}"[:1000])


def _conflict(request: Request, error: Exception) -> Response:
    return _answer(request, 409, f"{str(error)[:1].upper()}{str(error)[1:]}.")


def _busy(request: Request, _error: Exception) -> Response:
    return _answer(request, 503, "The store does not take the verdict now; nothing was written. Try again.")


def _disk(request: Request, error: Exception) -> Response:
    if isinstance(error, sa.exc.DBAPIError) and blames_the_event(error):  # a NUL, which PostgreSQL's text cannot hold
        return _answer(request, 422, "The request holds what the store cannot.")
    log.warning("accounts, ledger or store: %s", str(getattr(error, "orig", None) or error)[:500])
    text = "The host's files cannot be read or written now; nothing was changed. Try again."
    return JSONResponse({"error": text}, 503) if _for_programs(request) else PlainTextResponse(text, 503)


def _broken(request: Request, _error: Exception) -> Response:
    """What nobody foresaw; the server writes the traceback to the log."""
    text = "The host made a mistake; its log says more."
    return JSONResponse({"error": text}, 500) if _for_programs(request) else PlainTextResponse(text, 500)
