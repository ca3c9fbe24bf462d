"""The installed wheel, extra by extra: each side imports with its own packages alone."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"contract", "training", "calibration", "edge_runtime", "plugin"}
PIXELS = {
    "contract.correction",
    "contract.dataset",
    "contract.fixture",
    "contract.images",
    "contract.preprocess",
    "contract.decision",
    "contract.locate",
    "contract.part_pictures",
    "contract.places",
    "contract.shrink",
    "contract.template",
}
CONNECTORS = {  # what needs an extra of its own
    "modbus": {"plugin.connectors.modbus", "plugin.connectors.modbus_io"},
    "mqtt": {"plugin.connectors.mqtt"},
    "webhook": {"plugin.connectors.webhook"},
    "opcua": {"plugin.connectors.opcua_guard", "plugin.connectors.opcua_model", "plugin.opcua_certificates"},
}
LIBRARIES = {"modbus": "pymodbus", "mqtt": "paho", "opcua": "asyncua", "webhook": "httpx"}
OTHERS = set(LIBRARIES.values())

# extra: (packages of its side, commands that must work, modules that must not be there)
SIDES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "": ({"contract"}, {"keys"}, {"cv2", "torch", "onnxruntime", "fastapi"}),
    "vision": ({"contract"}, set(), {"torch", "onnxruntime", "openvino", "fastapi"}),
    "edge": (
        {"contract", "edge_runtime"},
        {"edge", "inspect", "bundle", "fixture", "acceptance", "doctor", "demo", "keys"},
        {"torch", "lightning", "fastapi"},
    ),
    "host": (
        {"contract", "plugin"},
        {"host", "keys"},
        {"torch", "cv2", "onnxruntime", "openvino", "nvidia", "tensorrt"},
    ),
    **{
        connector: (
            {"contract", "plugin"},
            {"host", "keys"},
            {"torch", "cv2", "onnxruntime", "openvino", "nvidia", "tensorrt"} | OTHERS - {library},
        )
        for connector, library in LIBRARIES.items()
    },
    "train": ({"contract", "training"}, {"train", "data"}, {"fastapi", "openvino"}),
    "calibrate": ({"contract", "edge_runtime", "calibration"}, {"calibrate", "inspect"}, {"torch", "fastapi"}),
}

IMPORT_ALL = """
import importlib, pkgutil, sys
packages, skipped = set(sys.argv[1].split(",")), set(sys.argv[2].split(","))
def broken(name):
    raise ImportError(name)
names = []
for package in packages:
    root = importlib.import_module(package)
    assert "site-packages" in root.__file__, root.__file__
    names += [package, *(m.name for m in pkgutil.walk_packages(root.__path__, package + ".", onerror=broken))]
for name in names:
    if name not in skipped and ".migrations." not in name:
        importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(out), str(ROOT))
    return next(out.glob("flawline-*.whl"))


def pip(python: str | Path, *words: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "10", *words],
        capture_output=True, text=True, check=False, cwd=ROOT.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_wheel_s_top_level_is_ours_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES | {"flawline.py"}
    sources = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sources <= set(names), "modules that the wheel forgot"
    data = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in {".html", ".css", ".js", ".svg", ".mako", ".ini"}
    }
    assert data <= set(names), "pages that the wheel forgot"


# Each takes in the one before it, so that one environment grows: each extra is looked at before the next is installed.
CHAINS = [["", "vision", "edge", "calibrate"], ["host", "modbus"], ["mqtt"], ["opcua"], ["webhook"], ["train"]]


def test_every_extra_of_a_chain_takes_in_the_one_before_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(extra for chain in CHAINS for extra in chain) == sorted(SIDES)
    for smaller, larger in (pair for chain in CHAINS for pair in itertools.pairwise(chain) if pair[0]):
        assert f"flawline[{smaller}]" in extras[larger]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_each_extra_carries_its_side(chain: list[str], wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    for extra in chain:
        install(extra, python, wheel)
        check_side(extra, python)


def install(extra: str, python: Path, wheel: Path) -> None:
    # Compiled when first imported: most of what is installed never is.
    words = ("--python", str(python), "install", "--quiet", "--no-compile")
    if extra == "train":
        pip(sys.executable, *words, next(line for line in constraints() if line.startswith("torch==")))
    target = f"flawline[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    pip(sys.executable, *words, "-c", str(ROOT / "constraints.txt"), target)


def check_side(extra: str, python: Path) -> None:
    packages, commands, absent = SIDES[extra]
    skipped = PIXELS if extra in ("", "host", *CONNECTORS) else {""}
    if "plugin" in packages:
        skipped = skipped.union(*(modules for other, modules in CONNECTORS.items() if other != extra))
    run(python, "-W", "error::ImportWarning", "-c", IMPORT_ALL, ",".join(packages), ",".join(skipped))
    run(
        python,
        "-c",
        f"import importlib.util as u; found = [m for m in {absent!r} if u.find_spec(m)]; assert not found, found",
    )
    check_commands(python, commands)


SUB_COMMANDS = """
import importlib, sys
import flawline, typer
from typer.testing import CliRunner
for name in sys.argv[1].split(","):
    module, _, attribute = flawline.COMMANDS[name].target.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    for sub in getattr(typer.main.get_command(app), "commands", {}):
        done = CliRunner().invoke(app, [sub, "--help"])
        assert done.exit_code == 0, (name, sub, done.output)
"""


def check_commands(python: Path, commands: set[str]) -> None:
    """Commands of this side and all below them help; every other one is listed, and says what to install."""
    everything = run(python, "-c", "import flawline; print(*flawline.COMMANDS)").split()
    assert commands <= set(everything)
    for name in everything:
        done = subprocess.run(
            [str(python.with_name("flawline")), name, "--help"], capture_output=True, text=True, check=False
        )
        if name in commands:
            assert done.returncode == 0, (name, done.stderr[-500:])
        else:
            assert done.returncode == 0 or "pip install 'flawline[" in done.stderr, (name, done.stderr[-500:])
    if commands:
        run(python, "-c", SUB_COMMANDS, ",".join(commands))


def constraints() -> list[str]:
    return (ROOT / "constraints.txt").read_text().splitlines()


def run(python: Path, *words: str) -> str:
    done = subprocess.run([str(python), *words], capture_output=True, text=True, check=False, cwd=python.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints() if "==" in line}
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {requirement_name(r) for r in wanted} - {"flawline"}
    pinned.add("setuptools")  # comes with the environment, not with us
    assert names <= pinned
    for name in sorted(names):
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        direct = {requirement_name(r) for r in needs if "extra ==" not in r and ";" not in r}
        assert direct <= pinned, f"{name} needs {sorted(direct - pinned)}, which constraints.txt does not pin"


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match is not None, requirement
    return match[0].lower().replace("_", "-").replace(".", "-")
