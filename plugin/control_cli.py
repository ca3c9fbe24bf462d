"""``flawline host control``: a person at the host asks an edge, through the running host (beside hops 10 and 11)."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO
from urllib.parse import urlencode

import typer

from contract.errors import ConfigError
from plugin.errors import AskError
from plugin.user_cli import PasswordFile, read_password

if TYPE_CHECKING:
    from plugin.settings import HostSettings

TIMEOUTS_S = {"status": 5.0, "stop": 10.0, "start": 10.0, "recipe": 600.0, "trigger": 1.0}
GRACE_S = 10.0
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to bind, none to go to
HELP = """Ask an edge, through the running host: status, another recipe, stop, start, a picture of the part in view.

Without EDGE it lists the edges. What is asked of an edge that is not connected is done when it connects, within
--timeout. Where the review pages need sign-in, so does this, with the role engineer; elsewhere it works for whoever may
read the state folder.

\b
Examples:
  flawline host control host.toml
  flawline host control host.toml edge-1
  flawline host control host.toml edge-1 recipe 2
  flawline host control host.toml edge-1 stop --user eve
  flawline host control host.toml edge-1 start --timeout 60 --json
  flawline host control host.toml edge-1 trigger --part SN-0815 --lot L7 --encoder 120034 --camera top
"""


def control(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)],
    edge: Annotated[str | None, typer.Argument(metavar="[EDGE]", help="edge id", show_default=False)] = None,
    what: Annotated[str, typer.Argument(metavar="[WHAT]", help="status, recipe, stop, start or trigger")] = "status",
    number: Annotated[
        int | None, typer.Argument(metavar="[NUMBER]", help="of the recipe to select", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=600, help="seconds in which it may be done [default: 5; stop, start 10; recipe 600; trigger 1]"
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="asked again with the same key, the edge does it once", show_default=False)
    ] = None,
    part: Annotated[str | None, typer.Option(help="trigger: what the plant calls the part", show_default=False)] = None,
    lot: Annotated[str | None, typer.Option(help="trigger: its lot", show_default=False)] = None,
    encoder: Annotated[int | None, typer.Option(help="trigger: the line's encoder", show_default=False)] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="trigger: a camera that takes it [default: each that can]")
    ] = None,
    user: Annotated[str | None, typer.Option(help="account with the role engineer", show_default=False)] = None,
    password_file: PasswordFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the answer as JSON")] = False,
) -> None:
    """Ask and print the answer; ends with 2 where it was refused, 1 where nobody knows."""
    from plugin.settings import load_settings

    if what not in TIMEOUTS_S:
        raise ConfigError(f"{what!r} cannot be asked; expected one of: {', '.join(TIMEOUTS_S)}")
    if (what == "recipe") != (number is not None):
        wanted = "say which recipe: flawline host control CONFIG EDGE recipe NUMBER"
        raise ConfigError(wanted if number is None else f"`{what}` takes no number")
    about = {"serial": part, "lot": lot, "encoder": encoder, "cameras": camera or []}
    if what != "trigger" and any(value not in (None, []) for value in about.values()):
        raise ConfigError(f"`{what}` takes no --part, --lot, --encoder, --camera: those belong to `trigger`")
    settings = load_settings(config)
    wait_s = TIMEOUTS_S[what] if timeout is None else timeout
    with connected(settings, user, password_file) as host:
        known = host.ask("GET", "/api/control")
        if known["endpoint"] is None:
            raise ConfigError(f"{config}: this host has no [control]; add it, and `control` under [host] of each edge")
        if edge is None:
            _print(known["edges"], as_json, "\n".join(map(_line, known["edges"])) or "No edge has connected yet.")
            return
        if (
            not as_json
            and what != "trigger"
            and any(row["edge"] == edge and not row["connected"] for row in known["edges"])
        ):
            typer.echo(f"{edge} is not connected; it is asked as soon as it is, within {wait_s:g} s.", err=True)
        body: dict[str, Any] = {
            "edge": edge,
            "what": what,
            "number": number,
            "timeout_s": wait_s,
            "idempotency_key": key,
        }
        if what == "trigger":
            body["part"] = about
        reply = host.ask("POST", "/api/control", body, wait_s + GRACE_S)
    done = "\n".join(reply["part_ids"]) if what == "trigger" else _line({**reply, "connected": True})
    _print(reply, as_json, done if reply["outcome"] == "ok" else "")
    if reply["outcome"] != "ok":
        raise AskError(_said(reply), 2 if reply["outcome"] == "refused" else 1)


class Running:
    """A conversation with the running host; signed in where that is needed."""

    def __init__(self, connection: http.client.HTTPConnection, where: str, headers: dict[str, str]) -> None:
        self._connection = connection
        self._where = where
        self._headers = headers

    def sign_in(self, name: str, password: str) -> None:
        """Take a session. Raises AskError."""
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer, _ = self._exchange("POST", "/sign-in", urlencode({"name": name, "password": password}), form)
        if answer.status != HTTPStatus.SEE_OTHER:
            why = {
                401: "name or password is wrong",
                429: f"too many failures; wait {answer.getheader('retry-after')} s",
            }
            raise AskError(f"{name} is not signed in: {why.get(answer.status, f'the host answered {answer.status}')}")
        self._headers["cookie"] = (answer.getheader("set-cookie") or "").partition(";")[0]
        self._headers["x-csrf-token"] = self.ask("GET", "/api/session")["csrf"]

    def sign_out(self) -> None:
        if "cookie" in self._headers:
            self._exchange("POST", "/sign-out", "", {})

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = GRACE_S) -> Any:
        """The answer's JSON. Raises AskError with the host's own sentence where it refuses."""
        text = "" if body is None else json.dumps(body)
        answer, data = self._exchange(method, path, text, {"content-type": "application/json"}, timeout_s)
        try:
            found = json.loads(data)
        except ValueError as error:
            raise AskError(f"{self._where} answered {answer.status} and no JSON; is this a Flawline host?") from error
        if answer.status != HTTPStatus.OK:
            raise AskError(str(found.get("error", f"the host answered {answer.status}")).rstrip("."))
        return found

    def download(self, path: str, file: BinaryIO, timeout_s: float) -> None:
        """Write a file of the host's, as it comes. Raises AskError."""
        answer = self._request("GET", path, "", {}, timeout_s)
        if answer.status != HTTPStatus.OK:
            raise AskError(f"the host answered {answer.status} for {path}")
        more = True
        while more:
            with self._spoken(timeout_s):
                data = answer.read(1 << 20)
            more = file.write(data) > 0

    def _exchange(
        self, method: str, path: str, body: str, headers: dict[str, str], timeout_s: float = GRACE_S
    ) -> tuple[http.client.HTTPResponse, bytes]:
        answer = self._request(method, path, body, headers, timeout_s)
        with self._spoken(timeout_s):
            return answer, answer.read(1 << 22)

    def _request(
        self, method: str, path: str, body: str, headers: dict[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        with self._spoken(timeout_s):
            self._connection.request(method, path, body.encode(), {**headers, **self._headers})
            return self._connection.getresponse()

    @contextmanager
    def _spoken(self, timeout_s: float) -> Iterator[None]:
        """What goes wrong on the way, as AskError."""
        try:
            yield
        except TimeoutError as error:
            raise AskError(f"the host at {self._where} did not answer within {timeout_s:g} s", 1) from error
        except ConnectionRefusedError as error:
            raise AskError(f"no host answers at {self._where}; start it: flawline host run CONFIG") from error
        except (OSError, http.client.HTTPException) as error:
            raise AskError(
                f"the host at {self._where} ended the conversation: {error or type(error).__name__}"
            ) from error


@contextmanager
def connected(settings: HostSettings, user: str | None, password_file: str | None) -> Iterator[Running]:
    """A conversation with the running host of these settings, signed in where that is needed."""
    address, token = _address(settings)
    connection = _connection(settings, address["host"], address["port"])
    host = Running(connection, f"{address['host']} port {address['port']}", {"x-flawline-terminal": token})
    try:
        if settings.http.needs_sign_in:
            if user is None:
                raise ConfigError(
                    "this host asks people to sign in: give --user NAME, an account with the role engineer"
                )
            host.sign_in(user, read_password(user, password_file, new=False))
        yield host
    finally:
        with suppress(AskError):  # the session ends by itself
            host.sign_out()
        connection.close()


def _address(settings: HostSettings) -> tuple[dict[str, Any], str]:
    """Where the running host listens, and what proves that we may read its state folder."""
    folder = settings.state_dir
    try:
        address = json.loads((folder / "http.json").read_text(encoding="utf-8"))
        token = folder / "terminal.token"
        secret = "" if settings.http.needs_sign_in or not token.exists() else token.read_text(encoding="utf-8")
        return {**address, "host": WILDCARDS.get(address["host"], address["host"])}, secret.strip()
    except FileNotFoundError as error:
        raise AskError(f"no host runs over {folder}; start it: flawline host run CONFIG") from error
    except PermissionError as error:
        raise AskError(f"{error.filename}: not yours to read; run this as the user that runs the host") from error
    except (OSError, ValueError, KeyError) as error:
        raise AskError(f"{folder / 'http.json'}: cannot be read ({error}); start the host anew") from error


def _connection(settings: HostSettings, host: str, port: int) -> http.client.HTTPConnection:
    if settings.http.certificate is None:
        return http.client.HTTPConnection(host, port)
    context = ssl.create_default_context(cadata=_first_certificate(settings.http.certificate))
    context.check_hostname = False  # it is held against the host's own file, whatever names stand in it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, port, context=context)


def _first_certificate(path: Path) -> str:
    """The host's own, without its chain: whoever has another one of that authority is not this host."""
    end = "-----END CERTIFICATE-----"
    try:
        return path.read_text(encoding="ascii").partition(end)[0].partition("-----BEGIN")[2].join(["-----BEGIN", end])
    except (OSError, UnicodeError) as error:
        raise AskError(f"{path}: the host's certificate cannot be read ({error})") from error


def _print(found: Any, as_json: bool, text: str) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif text:
        typer.echo(text)


def _said(reply: dict[str, Any]) -> str:
    asked = f"{reply['edge']}: {reply['what']} {reply['number'] or ''}".rstrip()
    reason = reply["reason"] or "no reason was given"
    if reply["outcome"] == "unknown":
        return f"{asked}: {reason}; ask for its status: flawline host control CONFIG {reply['edge']}"
    hint = " within the time; is it running, and does its [host] control say so? --timeout waits for longer"
    return f"{asked} was not done: {reason}{hint if 'is not connected' in reason else ''}"


def _line(row: dict[str, Any]) -> str:
    """One edge in words."""
    status = row["status"]
    if status is None:
        return f"{row['edge']}: {'connected' if row['connected'] else 'not connected'}"
    doing = status["state"] if status["inspecting"] else f"{status['state']}, stopped by request: NOT_INSPECTED"
    there = "" if row["connected"] else f" (not connected; this was said {row['age_s']:.0f} s ago)"
    loading = "" if status["loading"] is None else f", loading recipe {status['loading']}"
    return (
        f"{row['edge']}: {doing}{there}\n"
        f"  recipe {status['recipe_number']} {status['recipe']!r} of {_numbers(status['recipes'])}{loading}; "
        f"bundle {status['bundle_id']}, {status['engine']}\n"
        f"  parts {status['parts']}, not inspected {status['not_inspected']}, events that wait {status['spool_rows']}"
    )


def _numbers(recipes: list[int]) -> str:
    return ", ".join(map(str, recipes)) or "1"
