"""The pages to sign in and out, one's own account, and everybody's for administrators (beside hop 11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from plugin.accounts import ROLES, Actor, Role
from plugin.errors import AccountError
from plugin.review.api import host_of
from plugin.review.pages import HOME, page, within
from plugin.review.signin import (
    ADMINISTRATOR,
    INSPECTOR,
    OPEN,
    READING,
    Refused,
    SignIn,
    address_of,
    viewer_of,
)

AUDIT_LENGTH = 100
NOTES = ("ended", "unsaved", "out", "changed")
Text = Annotated[str, Form()]

router = APIRouter(include_in_schema=False)


def to_sign_in(request: Request) -> Response:
    """Send a browser to the sign-in page; it comes back to where it was."""
    reading = request.method in READING
    came_from = urlsplit(request.headers.get("referer", ""))
    target = request.url if reading else came_from
    path = within(f"{target.path}?{target.query}" if target.query else target.path)
    if request.url.path == "/sign-out":
        return RedirectResponse("/sign-in?why=out", 303)
    why = "unsaved" if not reading else "ended" if _sign_in(request).cookie in request.cookies else ""
    return RedirectResponse(f"/sign-in?next={quote(path, safe='')}{f'&why={why}' if why else ''}", 303)


@router.get("/sign-in", dependencies=[OPEN])
def ask(request: Request, next: str = HOME, why: str = "") -> Response:
    if viewer_of(request) is not None:
        return RedirectResponse(within(next), 303)
    return page(
        request, "signin.html", tab="", next=within(next), note=why if why in NOTES else None, typed="", problem=None
    )


@router.post("/sign-in", dependencies=[OPEN])
def sign_in(request: Request, name: Text, password: Text, next: Text = HOME) -> Response:
    signs = _sign_in(request)
    done = signs.sign_in(name.strip(), password, address_of(request), request.cookies.get(signs.cookie))
    if isinstance(done, Refused):
        return _refused(request, "signin.html", done, next=within(next), note=None, typed=name[:80])
    response = RedirectResponse(within(next), 303)
    response.set_cookie(signs.cookie, done.token, httponly=True, samesite="strict", secure=signs.secure, path="/")
    return response


@router.post("/sign-out", dependencies=[INSPECTOR])
def sign_out(request: Request) -> Response:
    signs = _sign_in(request)
    signs.sign_out(request)
    response = RedirectResponse("/sign-in?why=out", 303)
    response.delete_cookie(signs.cookie, path="/", secure=signs.secure, httponly=True, samesite="strict")
    return response


@router.get("/account", dependencies=[INSPECTOR])
def account(request: Request) -> Response:
    return page(request, "account.html", tab="account", problem=None)


@router.post("/account/password", dependencies=[INSPECTOR])
def change_password(request: Request, old: Text, new: Text, again: Text) -> Response:
    signs, viewer = _sign_in(request), viewer_of(request)
    if viewer is None:
        return to_sign_in(request)
    try:
        if new != again:
            raise AccountError("the two new passwords differ; nothing was changed")
        problem = signs.change_password(viewer.name, old, new, address_of(request))
    except AccountError as error:
        problem = Refused(409, _sentence(error))
    if problem is not None:
        return _refused(request, "account.html", problem, tab="account")
    return RedirectResponse("/sign-in?why=changed", 303)


@router.get("/accounts", dependencies=[ADMINISTRATOR])
def accounts(request: Request) -> Response:
    return _accounts_page(request)


@router.post("/accounts", dependencies=[ADMINISTRATOR])
def add(request: Request, name: Text, password: Text, role: Annotated[Role, Form()]) -> Response:
    return _change(request, lambda signs, by: signs.accounts.add(name.strip(), password, role, by), hashes=True)


@router.post("/accounts/{name}/role", dependencies=[ADMINISTRATOR])
def set_role(request: Request, name: str, role: Annotated[Role, Form()]) -> Response:
    return _change(request, lambda signs, by: signs.accounts.set_role(name, role, by))


@router.post("/accounts/{name}/password", dependencies=[ADMINISTRATOR])
def set_password(request: Request, name: str, password: Text) -> Response:
    return _change(request, lambda signs, by: signs.accounts.set_password(name, password, by), hashes=True)


@router.post("/accounts/{name}/disable", dependencies=[ADMINISTRATOR])
def disable(request: Request, name: str) -> Response:
    return _change(request, lambda signs, by: signs.accounts.set_enabled(name, False, by))


@router.post("/accounts/{name}/enable", dependencies=[ADMINISTRATOR])
def enable(request: Request, name: str) -> Response:
    return _change(request, lambda signs, by: signs.accounts.set_enabled(name, True, by))


def _change(request: Request, job: Callable[[SignIn, Actor], None], hashes: bool = False) -> Response:
    """Run an administrator's change; what is wrong with it is said on the page."""
    signs, viewer = _sign_in(request), viewer_of(request)
    if viewer is None:
        return to_sign_in(request)
    by = Actor(viewer.name, address_of(request))
    try:
        if not hashes:
            job(signs, by)
        else:
            with signs.hashing() as room:
                if not room:
                    raise AccountError("too many people sign in at this moment; try again in a few seconds")
                job(signs, by)
    except AccountError as error:
        return _accounts_page(request, Refused(409, _sentence(error)))
    return RedirectResponse("/accounts", 303)


def _accounts_page(request: Request, problem: Refused | None = None) -> Response:
    accounts = _sign_in(request).accounts
    return page(
        request,
        "accounts.html",
        200 if problem is None else problem.status,
        tab="accounts",
        accounts=accounts.all(),
        roles=ROLES,
        audit=accounts.audit(AUDIT_LENGTH),
        problem=problem,
        limit=AUDIT_LENGTH,
    )


def _refused(request: Request, template: str, problem: Refused, **values: Any) -> Response:
    response = page(request, template, problem.status, problem=problem, **{"tab": "", **values})
    if problem.wait_s:
        response.headers["retry-after"] = str(math.ceil(problem.wait_s))
    return response


def _sign_in(request: Request) -> SignIn:
    found = host_of(request).sign_in
    if found is None:  # these routes exist with sign-in only
        raise HTTPException(404, "Not Found")
    return found


def _sentence(error: AccountError) -> str:
    return f"{str(error)[:1].upper()}{str(error)[1:]}."
