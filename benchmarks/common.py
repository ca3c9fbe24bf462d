"""What every benchmark writes beside its figures: the machine, the date, the versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parser(module_doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with --json."""
    made = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, required=True, help="file to write the figures to")
    return made


def write(path: Path, figures: dict[str, Any], machine_before: dict[str, Any]) -> None:
    """Write figures with machine and date, and print them."""
    text = json.dumps(
        {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine_before} | figures, indent=1
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    sys.stdout.write(text + "\n")
