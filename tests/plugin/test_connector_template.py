"""The template of a site's own connector, really installed: the kit passes over it, and a host finds it by its URL."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from contract.event import Verdict
from tests.plugin import synthetic as s
from tests.plugin.synthetic import ROOT, Dealer, HostProcess, until

TEMPLATE = ROOT / "docs" / "examples" / "connector"
TEST = "test_flawline_acme.py"


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as pip installs it, from a copy: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("template")
    copy = shutil.copytree(TEMPLATE, folder / "connector")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    words = ["--no-deps", "--no-build-isolation", "--target", str(folder / "installed"), str(copy)]
    done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "installed"


@pytest.fixture
def installed(site_packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this process and those that it starts can import."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{site_packages}")
    monkeypatch.syspath_prepend(str(site_packages))
    return site_packages


def test_only_the_module_and_its_entry_point_are_installed(site_packages: Path) -> None:
    names = {path.name for path in site_packages.iterdir()} - {"__pycache__"}
    assert names == {"flawline_acme.py", "flawline_acme-0.1.0.dist-info"}
    points = (site_packages / "flawline_acme-0.1.0.dist-info" / "entry_points.txt").read_text()
    assert points.split() == ["[flawline.connectors]", "acme", "=", "flawline_acme:Acme"]


def test_its_own_test_passes(installed: Path, tmp_path: Path) -> None:
    """All checks of the kit, as whoever starts from the template runs them."""
    shutil.copy(TEMPLATE / TEST, tmp_path)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:anyio", "-W", "error", TEST]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:]
    assert "skipped" not in done.stdout


def test_a_host_finds_it_by_the_url_in_its_settings(
    installed: Path, make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    controller = _test_module().Controller()
    controller.start()
    try:
        host = make_host(connectors=(controller.url,), deadline_ms=20_000)
        dealer = make_dealer(host.endpoint)
        for seq, verdict in enumerate((Verdict.PASS, Verdict.REJECT), start=1):
            dealer.send(s.frames(s.result(seq, verdict=verdict)))
        dealer.wait_acked(1, 2)
        until(lambda: len(controller.took()) == 2, what="the controller has both parts")
        assert [took.code for took in controller.took()] == [1, 2]
        outputs = until(lambda: [each for each in host.get("/api/line") if each["outcome"] == "published"])
        assert {each["number"] for each in outputs} <= {1, 2}
        assert host.end() == 0
        assert b"Traceback" not in host.log.read_bytes()
    finally:
        controller.close()


def test_without_it_the_host_says_which_connectors_there_are(tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text('state_dir = "state"\n[[connectors]]\nurl = "acme://10.1.0.7:5000"\n')
    words = [sys.executable, "-m", "flawline", "host", "run", str(tmp_path / "host.toml")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "no connector 'acme'; there are:" in done.stderr, done.stderr


def _test_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("template_of_a_connector", TEMPLATE / TEST)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
