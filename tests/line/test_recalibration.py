"""From the line back to the bundle: passes drawn on a real edge, judged at a real host, read over HTTPS and a file."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from calibration.conformal import threshold
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.methods import Rates
from calibration.verdicts import recalibrate
from contract.bundle import open_bundle
from tests.plugin.people import TEST, accounts_in, certificate
from tests.processes import TOUCHING, Line


def flawline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flawline", *words], capture_output=True, text=True, timeout=120)


def refused(words: str, bundle: Path, url: str, token: Path | None = None, ca: Path | None = None) -> None:
    with pytest.raises(CalibrationError, match=words):
        recalibrate(bundle, Source(url, token, ca), Rates(0.2))


def judge(address: str, part: dict[str, Any], said: str) -> None:
    body = json.dumps({"decision": said, "inspector": "Ada"}).encode()
    headers = {"content-type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{address}/api/parts/{part['id']}/verdict", body, headers), timeout=10
    ).close()


@pytest.mark.timeout(200)
def test_inspectors_verdicts_reach_the_bundle(tmp_path: Path, bundle: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = open_bundle(own).manifest.thresholds
    assert before is not None
    line = Line(tmp_path, own, "synthetic://line?seed=8&parts=40&fps=50", edge="audit_share = 0.5", camera=TOUCHING)
    calibrate = ("calibrate", "thresholds", str(own), "--false-reject-rate", "0.2", "--from-verdicts")
    try:
        line.start_host()
        edge = line.start_edge()
        assert edge.wait(150) == 0, edge.text()[-3000:]
        parts = line.parts()
        drawn = [part for part in parts if part["audited"]]
        flagged = [part for part in parts if part["verdict"] == "REJECT"]
        passes = [part for part in parts if part["verdict"] == "PASS"]
        assert {part["audit_share"] for part in parts if part["state"] == "result"} == {0.5}
        assert 6 <= len(drawn) < len(passes)
        for part in flagged:
            judge(line.address, part, "defect")
        refused("no audited pass has an inspector's verdict", own, line.address)
        for part in drawn:
            judge(line.address, part, "good")
        online = recalibrate(own, Source(line.address), Rates(0.2)).thresholds
        file = tmp_path / "verdicts.jsonl"
        assert flawline("host", "export", str(tmp_path / "host.toml"), str(file)).returncode == 0
    finally:
        line.close()
    assert open_bundle(own).manifest.thresholds == before
    offline = flawline(*calibrate, f"file:{file}")
    assert offline.returncode == 0, offline.stderr
    assert f"{len(drawn)} of {len(drawn)}, for {len(passes)} that passed" in offline.stdout
    after = open_bundle(own).manifest.thresholds
    # Among parts of one weight the limit is split-conformal's; what this line's edge runs is what it was measured with.
    scores = [part["score"] for part in drawn]
    assert after == online and after.reject == threshold(scores, [str(n) for n in range(len(scores))], 0.2)
    assert (after.engine, after.map) == (before.engine, before.map)
    whole = file.read_text()
    file.write_text(whole[:-20])
    refused("not a page of verdicts", own, f"file:{file}")
    file.write_text(whole + whole)
    refused("behind its last page", own, f"file:{file}")
    file.write_text("")
    refused("ends before its last page", own, f"file:{file}")


@pytest.mark.timeout(120)
def test_over_https_with_a_token(tmp_path: Path, bundle: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    certificate(tmp_path, "127.0.0.1")
    http = 'sign_in = true\ncertificate = "host.pem"\nkey = "host.key"\nport = 0'
    (tmp_path / "host.toml").write_text(f'state_dir = "state"\n[events]\nbind = "tcp://127.0.0.1:*"\n[http]\n{http}\n')
    accounts = accounts_in(tmp_path / "state")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(accounts.make_token("eve", 1, TEST))
    accounts.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "flawline", "host", "run", str(tmp_path / "host.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None and b"ready" in process.stdout.readline()
        address = json.loads((tmp_path / "state" / "http.json").read_text())["url"].rstrip("/")
        authority = tmp_path / "ca.pem"
        authority.write_text(ssl.get_server_certificate(("127.0.0.1", int(address.rpartition(":")[2]))))

        refused("is not trusted", own, address, token)
        refused("refused .401: Sign in first.*Give --token-file", own, address, None, authority)
        # With both, the host answers: nothing has been inspected there.
        refused("the export has no part of this bundle's model", own, address, token, authority)
        refused("is not trusted", own, address.replace("127.0.0.1", "localhost"), token, authority)
        refused("needs neither --token-file", own, "file:x", token)
        authority.write_text("nothing")
        refused("not certificates in PEM", own, address, token, authority)
        token.chmod(0o644)
        refused("others may read it", own, address, token)
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://10.1.2.3:8765", "travel in clear"),
        ("http://evil.example", "travel in clear"),
        ("http://eve:secret@127.0.0.1:1", "who asks is said by --token-file"),
        ("http://127.0.0.1:1", "does a host run there"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("ftp://host", "expected https://HOST:PORT"),
        ("verdicts.jsonl", "expected https://HOST:PORT"),
        ("file:none.jsonl", "cannot be read"),
    ],
)
def test_addresses_that_will_not_do(bundle: Path, url: str, words: str) -> None:
    refused(words, bundle, url)
