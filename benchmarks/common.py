"""What every benchmark writes beside its figures (machine, date, versions), and peers in a Python of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from contract.versions import installed

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "torch", "openvino", "onnxruntime", "opencv-python-headless", "pyzmq")


def machine() -> dict[str, Any]:
    """Processor, cores, graphics cards, load before the run and package versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": graphics_card(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def graphics_card() -> str | None:
    """What ``nvidia-smi -L`` lists, a line a card; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    cards = [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return "\n".join(cards) if done.returncode == 0 and cards else None


def parser(module_doc: str | None, default: Path | None = None) -> argparse.ArgumentParser:
    """An argument parser with --json, which has to be given where there is no ``default``."""
    made = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--json", type=Path, default=default, required=default is None, help="file to write the figures to"
    )
    return made


def write(path: Path, figures: dict[str, Any], machine_before: dict[str, Any]) -> None:
    """Write figures with machine and date, and print them."""
    text = json.dumps(
        {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine_before} | figures, indent=1
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    sys.stdout.write(text + "\n")


def half_interval(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of the mean; None of a single value, which says nothing of the spread."""
    return half_of(statistics.stdev(values), len(values)) if len(values) > 1 else None


def half_of(deviation: float, count: int) -> float:
    """The same of ``count`` values, two at least, of that sample standard deviation."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * deviation / float(count**0.5)


class Peer:
    """A module of ours run by another Python, that answers each line with a line of JSON and idles between."""

    def __init__(self, python: Path, module: str, words: list[str], folder: Path | None = None) -> None:
        """``folder``: where it stands and may leave files. Raises OSError or CalledProcessError without anomalib."""
        # The path as it was given: resolved, a virtual environment's Python is the system's.
        interpreter = str(python.absolute())
        asked = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('anomalib', 'torch')))"
        self.version = subprocess.check_output([interpreter, "-c", asked], text=True).strip()
        self._process = subprocess.Popen(
            [interpreter, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def ask(self, line: str = "") -> Any:
        """The answer to a line; raises RuntimeError where the peer has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer ended with code {self._process.wait()}; what it said stands above")
        return json.loads(answer)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
