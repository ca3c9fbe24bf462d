"""A box without any network: the wheelhouse installs there, the doctor is green, parts are inspected."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.needs import lacking
from tests.processes import TOUCHING, free_port

ROOT = Path(__file__).parents[2]

ON_THE_BOX = """
set -eu
ip link set lo up
[ -z "$(ip route show table main)" ] && echo "no route"
! python3 -c 'import socket; socket.create_connection(("192.0.2.1", 80), 2)' 2>/dev/null && echo "nobody to reach"
sh wheelhouse/install.sh --root "$PWD/box" --python "$PYTHON"
flawline="$PWD/box/opt/flawline/bin/flawline"
"$flawline" edge update bundle --config edge.toml
"$flawline" host run host.toml > host.log 2>&1 &
host=$!
while ! "$flawline" host alive host.toml; do kill -0 $host || { cat host.log; exit 1; }; done
"$flawline" doctor --config edge.toml --json > doctor.json
"$flawline" inspect slots/active part.png --out seen
"$flawline" edge run edge.toml
"$flawline" edge slots edge.toml
"$PWD/box/opt/flawline/bin/python" -c 'import json, sys, urllib.request as u
print("summary", json.dumps(json.load(u.urlopen(sys.argv[1]))))' "http://127.0.0.1:$PORT/api/summary"
kill $host
wait $host
"""


def without_network() -> list[str]:
    """The words before a command that must reach nobody."""
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            lacking(f"{tool} is not installed (packages util-linux and iproute2)")
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        lacking("no network namespace may be made here")
    return words


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_box_without_a_network_installs_is_green_and_inspects(
    wheelhouse: Path, bundle: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    namespace = without_network()
    port = free_port()
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "wheelhouse").symlink_to(wheelhouse)
    shutil.copy(next((synthetic_data / "test" / "good").glob("*.png")), tmp_path / "part.png")
    (tmp_path / "edge.toml").write_text(
        'edge_id = "edge-1"\nbundle = "slots/active"\nstate_dir = "edge"\ndeadline_ms = 60000\n[spool]\nmax_mb = 64\n'
        '[[cameras]]\nid = "top"\nurl = "synthetic://line?seed=5&parts=20&fps=20"\n' + TOUCHING
    )
    (tmp_path / "host.toml").write_text(f'state_dir = "host"\n[http]\nport = {port}\n')
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        [*namespace, "sh", "-c", ON_THE_BOX], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**clean, "PYTHON": sys.executable, "PORT": str(port)},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "no route" in done.stdout and "nobody to reach" in done.stdout
    said = next(line for line in done.stdout.splitlines() if line.startswith("summary"))
    summary = json.loads(said.removeprefix("summary"))
    assert summary["parts"] == 20 and summary["states_of_parts"] == {"result": 20}, summary
    assert sum(summary["verdicts"].values()) == 20 and summary["verdicts"]["PASS"] >= 5, summary
    flagged = sum(summary["verdicts"].get(verdict, 0) for verdict in ("REVIEW", "REJECT"))
    assert (summary["duplicates"], summary["holes"], summary["waiting"]) == (0, 0, flagged), summary
    found = {each["name"]: each for each in json.loads((tmp_path / "doctor.json").read_text())}
    assert not [each for each in found.values() if each["status"] == "fail"], found
    for name in ("extra edge", "extra host", "engine auto", "camera top", "host", "bundle", "calibration"):
        assert found[name]["status"] == "ok", found[name]
    assert found["golden images"]["status"] == "ok" and "agrees with training" in found["golden images"]["found"]
    assert [path.name for path in (tmp_path / "seen").iterdir()], "the pictures of the part"
    box = tmp_path / "box"
    for side in ("edge", "host"):
        assert (box / "etc" / "systemd" / "system" / f"flawline-{side}.service").is_file()
    assert 'bundle = "/var/lib/flawline/slots/active"' in (box / "etc" / "flawline" / "edge.toml").read_text()
    host = (box / "etc" / "flawline" / "host.toml").read_text()
    assert 'state_dir = "/var/lib/flawline/host"' in host and "path=/var/lib/flawline/outputs.jsonl" in host


def test_a_wheelhouse_of_which_a_byte_differs_or_a_file_was_added_is_refused(tmp_path: Path) -> None:
    folder = small_wheelhouse(tmp_path / "whole")
    assert "this folder is for Python 2.7" in refusal(folder)
    changed = shutil.copytree(folder, tmp_path / "changed")
    (changed / "wheels" / "one.whl").write_bytes(b"other")
    assert "a file is not as it was made" in refusal(changed)
    added = shutil.copytree(folder, tmp_path / "added")
    (added / "wheels" / "two.whl").write_bytes(b"two")
    assert "5 files here and 4 in SHA256SUMS" in refusal(added)
    assert not (tmp_path / "opt").exists()


def test_what_an_earlier_build_left_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "project" / "part").mkdir(parents=True)
    (tmp_path / "project" / "part" / "__init__.py").touch()
    (tmp_path / "project" / "build" / "lib" / "part").mkdir(parents=True)
    (tmp_path / "project" / "build" / "lib" / "part" / "gone.py").touch()
    (tmp_path / "project" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "part"\nversion = "1"\n[tool.setuptools]\npackages = ["part"]\n'
    )
    try:
        wheel = maker().build(tmp_path / "project", tmp_path / "wheels", tmp_path)
    except maker().WheelhouseError as error:
        lacking(f"no wheel can be made: {error}")
    names = zipfile.ZipFile(wheel).namelist()
    assert "part/__init__.py" in names and "part/gone.py" not in names


def maker() -> ModuleType:
    """deploy/wheelhouse.py, which is in no package."""
    sys.path.insert(0, str(ROOT / "deploy"))
    try:
        return importlib.import_module("wheelhouse")
    finally:
        sys.path.pop(0)


def small_wheelhouse(folder: Path) -> Path:
    """With the real installer and sums, for a Python that nobody has."""
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "one.whl").write_bytes(b"one")
    (folder / "requirements.txt").write_text("flawline[edge]==0.1.0 --hash=sha256:00\n")
    (folder / "made-for").write_text("2.7 x86_64\n")
    shutil.copy(ROOT / "deploy" / "install.sh", folder)
    (folder / "SHA256SUMS").write_text("".join(maker().sums(folder)))
    return folder


def refusal(folder: Path) -> str:
    done = subprocess.run(
        ["sh", str(folder / "install.sh"), "--prefix", str(folder.parent / "opt"), "--python", sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr
