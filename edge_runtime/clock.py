"""Names this boot of the machine, so that monotonic times of another one are never compared (hops 1 and 6)."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
