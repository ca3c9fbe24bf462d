"""Gathers all that a box without a network needs: every wheel pinned and hashed, the units, the installer.

Run it on a machine of the box's kind (same Python and processor) that reaches a package index:

    python deploy/wheelhouse.py --extras edge,host --out wheelhouse
    make wheelhouse EXTRAS=edge,host

Carry the folder to the box and run `sh wheelhouse/install.sh` there. It holds `wheels/`, `requirements.txt` (every
package by version and sha256), `deploy/`, `docs/` and `SHA256SUMS` of all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ["deploy/flawline-edge.service", "deploy/flawline-host.service"]
CARRIED += ["deploy/Containerfile.edge", "deploy/Containerfile.host"]
EXTRAS = ("edge", "host", "modbus", "opcua", "gentl", "tensorrt", "tensorrt-rtx", "calibrate", "train")
SUMS = "SHA256SUMS"


class WheelhouseError(Exception):
    """What cannot be gathered, and the way out."""


def gather(extras: list[str], out: Path) -> None:
    """Fill ``out``, which appears in one piece when all is there. Raises WheelhouseError."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SUMS).exists())):
        raise WheelhouseError(f"{out} exists and is no wheelhouse; give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        draft = Path(place) / "draft"
        wheels = draft / "wheels"
        wheels.mkdir(parents=True)
        say(1, "building the wheel of Flawline")
        own = build(ROOT, wheels, Path(place))
        say(2, f"gathering what {', '.join(extras)} need, as constraints.txt pins it; this takes some minutes")
        target = f"flawline[{','.join(extras)}] @ {own.as_uri()}"
        pip("wheel", "--progress-bar", "on", "--find-links", str(wheels), "--wheel-dir", str(wheels),
            "-c", str(ROOT / "constraints.txt"), target, quiet=False)  # fmt: skip
        say(3, "hashing")
        (draft / "requirements.txt").write_text("".join(requirements(wheels, extras)))
        carry(draft)
        (draft / SUMS).write_text("".join(sums(draft)))
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)


def build(project: Path, wheels: Path, place: Path) -> Path:
    """Its wheel, from its sources alone: what an earlier build left in ``build/`` would be packed as well."""
    apart = place / "apart.cfg"
    apart.write_text(f"[build]\nbuild_base = {place / 'build'}\n")
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(project), DIST_EXTRA_CONFIG=str(apart))
    return next(wheels.glob("*.whl"))


def carry(draft: Path) -> None:
    """What goes along with the wheels: units, container files, pages, the installer, and what the box has to be."""
    (draft / "deploy").mkdir()
    for name in CARRIED:
        shutil.copy(ROOT / name, draft / "deploy")
    shutil.copytree(ROOT / "docs", draft / "docs", ignore=shutil.ignore_patterns("pictures", "decisions"))
    shutil.copy(ROOT / "deploy" / "install.sh", draft)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    (draft / "made-for").write_text(f"{python} {platform.machine()}\n")


def requirements(wheels: Path, extras: list[str]) -> Iterator[str]:
    """A line for each wheel: name, version, sha256; ours with its extras."""
    yield f"# Made by deploy/wheelhouse.py for {', '.join(extras)}; installed by install.sh\n"
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        what = re.sub(r"[-_.]+", "-", name).lower()
        what += f"[{','.join(extras)}]" if what == "flawline" else ""
        yield f"{what}=={version} --hash=sha256:{sha256(wheel)}\n"


def sums(folder: Path) -> Iterator[str]:
    """The lines of `sha256sum` for every file below ``folder``."""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        yield f"{sha256(path)}  {path.relative_to(folder)}\n"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip(*words: str, quiet: bool = True, **environment: str) -> None:
    """Raises WheelhouseError with what pip says."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *(["--quiet"] if quiet else []), *words]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    if done.returncode != 0:
        raise WheelhouseError(f"pip {words[0]} failed:\n{done.stderr[-2000:]}")


def say(step: int, what: str) -> None:
    sys.stdout.write(f"[{step}/3] {what} ...\n")
    sys.stdout.flush()


def main() -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extras", default="edge", help=f"of {', '.join(EXTRAS)}; separated by commas")
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"), metavar="DIR", help="folder to write")
    words = parser.parse_args()
    extras = [each.strip() for each in words.extras.split(",") if each.strip()]
    if unknown := sorted(set(extras) - set(EXTRAS)):
        parser.error(f"no extra {', '.join(unknown)}; there are: {', '.join(EXTRAS)}")
    try:
        gather(extras, words.out.resolve())
    except WheelhouseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    files = list(words.out.rglob("*"))
    size = sum(each.stat().st_size for each in files if each.is_file())
    count = sum(each.suffix == ".whl" for each in files)
    sys.stdout.write(f"{words.out}: {count} wheels, {size / 1e6:.0f} MB. On the box: sh {words.out.name}/install.sh\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
