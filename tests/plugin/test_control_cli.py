"""`flawline host control` against a real host: what it prints, whom it refuses, and what it says to do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme
import zmq

from contract.control import Hello, Part, Reply, Request, Status, encode, from_host
from flawline import main
from plugin.accounts import DATABASE
from plugin.control_cli import HELP, TIMEOUTS_S
from tests.plugin import synthetic as s
from tests.plugin.people import PASSWORD, accounts_in
from tests.plugin.synthetic import HostProcess

CONTROL = '[control]\nbind = "tcp://127.0.0.1:*"'
Run = Callable[..., tuple[int, str, str]]


class PaperEdge:
    """Says hello and answers as an edge does; ``mute``: hears and never answers."""

    def __init__(self, host: HostProcess, edge_id: str, mute: bool = False) -> None:
        self.edge_id = edge_id
        self.asked: list[Request] = []
        self._endpoint = (host.folder / "state" / "control").read_text().strip()
        self._mute = mute
        self._status = Status(recipe="washer", bundle_id="b-1", model_sha256="ab" * 32, engine="paper", recipes=(1, 2))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.set(zmq.LINGER, 0)
            dealer.connect(self._endpoint)
            while not self._stopping.is_set():
                dealer.send_multipart(
                    encode(Hello(edge_id=self.edge_id, run_id="r", t_sent_ns=time.monotonic_ns(), status=self._status))
                )
                while dealer.poll(200):
                    self._answer(dealer, from_host(dealer.recv_multipart()))

    def _answer(self, dealer: zmq.Socket[bytes], request: Request) -> None:
        self.asked.append(request)
        if self._mute:
            return
        known = request.number in (None, 1, 2)
        if known and request.what not in ("status", "trigger"):
            changes = {"stop": {"inspecting": False}, "start": {"inspecting": True}}
            changed = changes.get(request.what, {"recipe_number": request.number})
            self._status = self._status.model_copy(update=changed)
        reason = None if known else f"no recipe {request.number}; there are: 1, 2"
        outcome = "ok" if known else "refused"
        part_ids = ("top-r-000001", "side-r-000001") if request.what == "trigger" else ()
        told = {"outcome": outcome, "reason": reason, "status": self._status, "part_ids": part_ids}
        reply = Reply.model_validate({"id": request.id, "edge_id": self.edge_id, **told})
        dealer.send_multipart(encode(reply))

    def end(self) -> None:
        self._stopping.set()
        self._thread.join(10)


@pytest.fixture(scope="module")
def edges() -> list[PaperEdge]:
    return []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, edges: list[PaperEdge]) -> Iterator[HostProcess]:
    made = HostProcess(tmp_path_factory.mktemp("host"), line=f'edges = ["edge-1", "absent"]\n{CONTROL}')
    made.start()
    edges += [PaperEdge(made, "edge-1"), PaperEdge(made, "mute", mute=True)]
    s.until(lambda: len(made.get("/healthz")["control"]["edges"]) == 2)
    yield made
    for edge in edges:
        edge.end()
    assert made.end() == 0


@pytest.fixture
def run(host: HostProcess, capfd: pytest.CaptureFixture[str]) -> Run:
    def control(*words: str, config: Path = host.config) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["host", "control", str(config), *words])
        said = capfd.readouterr()
        return code, said.out, said.err

    return control


def test_the_edges_are_listed(run: Run) -> None:
    code, said, _ = run()
    assert code == 0
    assert said.splitlines()[:2] == ["absent: not connected", "edge-1: starting"]
    rows = {row["edge"]: row for row in json.loads(run("--json")[1])}
    assert (rows["edge-1"]["connected"], rows["absent"]["connected"], rows["absent"]["status"]) == (True, False, None)


def test_an_edge_is_asked_and_its_answer_can_be_read(run: Run) -> None:
    for words, expected in (
        (("status",), "recipe 1 'washer' of 1, 2; bundle b-1, paper"),
        (("recipe", "2"), "recipe 2 'washer'"),
        (("stop",), "stopped by request: NOT_INSPECTED"),
        (("start",), "edge-1: starting\n"),
    ):
        code, said, error = run("edge-1", *words)
        assert (code, error) == (0, ""), words
        assert expected in said
    code, said, _ = run("edge-1", "recipe", "1", "--key", "once", "--json")
    assert (code, json.loads(said)["status"]["recipe_number"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "expected_code", "expected"),
    [
        (("nobody", "stop"), 2, "No edge 'nobody' is known to this host; there are: absent, edge-1, mute"),
        (("absent", "stop", "--timeout", "0.3"), 2, "is not connected to tcp://127.0.0.1:"),
        (("mute", "stop", "--timeout", "0.3"), 1, "may or may not have been done; ask for its status"),
        (("edge-1", "recipe", "7"), 2, "edge-1: recipe 7 was not done: no recipe 7; there are: 1, 2"),
        (("edge-1", "recipe"), 2, "say which recipe"),
        (("edge-1", "stop", "3"), 2, "`stop` takes no number"),
        (("edge-1", "stop", "--part", "SN-1"), 2, "`stop` takes no --part, --lot, --encoder, --camera"),
        (("edge-1", "trigger", "3"), 2, "`trigger` takes no number"),
        (
            ("edge-1", "trigger", "--part", "SN\x1b[2J"),
            2,
            "part.serial: Value error, it has a sign that cannot be printed",
        ),
        (("edge-1", "trigger", "--lot", "l" * 101), 2, "part.lot: String should have at most 100 characters"),
        (("edge-1", "trigger", "--encoder", str(2**53)), 2, "part.encoder: Input should be less than or equal to"),
        (("absent", "trigger", "--timeout", "60"), 2, "absent: trigger was not done: edge 'absent' is not connected"),
        (("mute", "trigger", "--timeout", "0.3"), 1, "may or may not have been done; ask for its status"),
        (("edge-1", "dance"), 2, "expected one of: status, stop, start, recipe"),
        (("edge-1", "recipe", "70000"), 2, "number: Input should be less than or equal to 65535"),
        (("edge-1", "stop", "--key", "k" * 101), 2, "idempotency_key: String should have at most 100 characters"),
    ],
)
def test_what_was_not_done_is_said_with_what_to_do(
    run: Run, words: tuple[str, ...], expected_code: int, expected: str
) -> None:
    code, _, error = run(*words)
    assert (code, expected in error) == (expected_code, True), error
    assert "Traceback" not in error


def test_a_part_is_asked_for_with_what_the_plant_calls_it(run: Run, edges: list[PaperEdge]) -> None:
    words = ["--part", "SN-1", "--lot", "L7", "--encoder", "-3", "--camera", "top", "--camera", "side", "--key", "k"]
    code, said, error = run("edge-1", "trigger", *words)
    assert (code, said, error) == (0, "top-r-000001\nside-r-000001\n", "")
    request = edges[0].asked[-1]
    assert (request.what, request.idempotency_key) == ("trigger", "k")
    assert request.part == Part(serial="SN-1", lot="L7", encoder=-3, cameras=("top", "side"))


def test_a_refusal_is_json_too(run: Run) -> None:
    code, said, _ = run("edge-1", "recipe", "7", "--json")
    assert (code, json.loads(said)["outcome"]) == (2, "refused")


def test_every_question_has_a_time_and_an_example() -> None:
    assert set(TIMEOUTS_S) == {"status", "recipe", "stop", "start", "trigger"}
    assert all(f"edge-1 {what}" in HELP for what in TIMEOUTS_S if what != "status")


def test_without_sign_in_an_edge_is_asked_from_the_terminal_alone(host: HostProcess) -> None:
    token = host.folder / "state" / "terminal.token"
    assert token.stat().st_mode & 0o777 == 0o600
    body = {"edge": "edge-1", "what": "status"}
    with httpx.Client(base_url=host.url) as browser:
        for headers in ({}, {"x-flawline-terminal": ""}, {"x-flawline-terminal": "0" * 64}):
            answer = browser.post("/api/control", json=body, headers=headers)
            assert (answer.status_code, "terminal" in answer.json()["error"]) == (403, True)
        right = {"x-flawline-terminal": token.read_text().strip()}
        assert browser.post("/api/control", json=body, headers=right).json()["outcome"] == "ok"


def test_a_host_that_does_not_run_or_has_no_control_is_said(run: Run, tmp_path: Path, host: HostProcess) -> None:
    config = tmp_path / "host.toml"
    config.write_text('state_dir = "nowhere"\n')
    code, _, error = run(config=config)
    assert (code, "no host runs over" in error, "flawline host run" in error) == (2, True, True)
    plain = HostProcess(tmp_path)
    plain.start()
    try:
        code, _, error = run("edge-1", config=plain.config)
        assert (code, "has no [control]" in error) == (2, True)
    finally:
        plain.end(9)
    code, _, error = run("edge-1", config=plain.config)
    assert (code, "no host answers at 127.0.0.1 port" in error) == (2, True)


def test_where_people_sign_in_the_role_engineer_is_needed(tmp_path: Path, run: Run) -> None:
    accounts_in_state(tmp_path)
    authority = trustme.CA()
    certificate = authority.issue_cert("host.plant.local")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "host.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "host.key")
    (tmp_path / "host.key").chmod(0o600)
    host = HostProcess(tmp_path, line=CONTROL)
    tls = 'port = 0\nsign_in = true\nnames = ["host.plant.local"]\ncertificate = "host.pem"\nkey = "host.key"'
    host.config.write_text(host.config.read_text().replace("port = 0", tls))
    host.start()
    edge = PaperEdge(host, "edge-1")
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    for file, text in ((password, PASSWORD), (wrong, "something else")):
        file.touch(0o600)
        file.write_text(text)

    def asked(user: str, file: Path) -> tuple[int, str, str]:
        return run("edge-1", "stop", "--user", user, "--password-file", str(file), config=host.config)

    try:
        s.until(lambda: "edge edge-1 is there" in host.log.read_text())
        code, said, error = asked("eve", password)
        assert (code, error) == (0, "")
        assert "stopped by request" in said
        code, _, error = asked("ivan", password)
        assert (code, "This needs the role engineer; ivan is inspector" in error) == (2, True)
        code, _, error = asked("eve", wrong)
        assert (code, "name or password is wrong" in error) == (2, True)
        code, _, error = run("edge-1", "stop", config=host.config)
        assert (code, "--user NAME" in error) == (2, True)
        assert len([each for each in edge.asked if each.what == "stop"]) == 1
    finally:
        edge.end()
        host.end()
    accounts = accounts_in(tmp_path / "state")
    rows = [row for row in accounts.audit(50) if row["action"] == "asked an edge"]
    sessions = [row["action"] for row in accounts.audit(50)].count("signed out")
    accounts.close()
    assert [(row["actor"], row["account"], row["detail"]) for row in rows] == [("eve", "edge-1", "stop")]
    assert sessions == 2, "every session is ended"


def accounts_in_state(folder: Path) -> None:
    (folder / "state").mkdir(exist_ok=True)
    accounts = accounts_in(folder / "state")
    assert (folder / "state" / DATABASE).exists()
    accounts.close()
