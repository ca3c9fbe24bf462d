"""The soak in small: every part accounted for, a curve that is kept, and growth that is told from noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak, transport, watching


def test_a_short_soak_accounts_for_every_part(bundle: Path, synthetic_data: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "soak.json"
    work.mkdir()
    (work / "bundle").symlink_to(bundle)
    (work / "data").symlink_to(synthetic_data)
    words = ["--parts", "400", "--rate", "60", "--probe", "0", "--idle", "0", "--work", str(work), "--json", str(out)]
    assert soak.main(words) == 0
    found = json.loads(out.read_text())
    counts = found["counts"]
    assert counts["offered"] == 400 and (counts["unaccounted"], counts["duplicates"]) == (0, 0)
    assert counts["results"] + counts["missed"] + counts["deadline"] == counts["triggers"] == counts["in_store"]
    assert sum(phase["parts"] for phase in found["latency_ms"].values()) == counts["triggers"]
    assert {"queue", "inference", "wire and ledger"} <= set(found["stages_ms"]["before"])
    assert found["growth"]["edge.anon"]["verdict"] == "too short" and not found["interrupted"]
    curve = found["curve"]
    assert {"host.anon_kb", "edge.rss_kb", "edge.shmem_kb", "capture0.threads", "ledger_log_mb"} <= set(curve)
    assert {len(values) for values in curve.values()} == {len(curve["parts"])} and len(curve["parts"]) > 5
    assert max(curve["edge.shared_memory_mb"]) > 0


@pytest.mark.parametrize(("leak_kb", "verdict"), [(0.0, "flat"), (2.0, "flat"), (9.0, "grows")])
def test_growth_is_told_from_noise_and_from_what_happens_at_the_start(leak_kb: float, verdict: str) -> None:
    parts, kb = memory(leak_kb)
    found = watching.growth(parts, kb)
    assert found["verdict"] == verdict
    assert found["phases"][0]["slope_kb_per_1000_parts"] == pytest.approx(leak_kb, abs=1.0)
    assert watching.growth(parts[:25], kb[:25])["verdict"] == "too short"


def test_a_new_load_s_queues_are_no_growth_and_a_leak_that_it_brings_is() -> None:
    parts, kb = memory(0.0)
    fuller = [value + 3_000 * (at > 100_000) for at, value in zip(parts, kb, strict=True)]
    assert watching.growth(parts, fuller, 100_000)["verdict"] == "flat"
    leaking = [value + 9e-3 * max(0.0, at - 100_000) for at, value in zip(parts, kb, strict=True)]
    found = watching.growth(parts, leaking, 100_000)
    assert [phase["verdict"] for phase in found["phases"]] == ["flat", "grows"] and found["verdict"] == "grows"
    assert watching.growth(parts, leaking, 195_000)["verdict"] == "grows", "whenever the phase changed"
    assert watching.growth(parts, kb, 195_000)["verdict"] == "too short"


def memory(leak_kb: float) -> tuple[list[float], list[float]]:
    """Parts and kB of a run that warms up, is noisy, jumps now and then, and leaks so much in 1000 parts."""
    random = np.random.default_rng(1)
    parts = np.linspace(0, 200_000, 400)
    kb = 90_000 + leak_kb * parts / 1000 + random.normal(0, 60, 400) - 30_000 * np.exp(-parts / 8000)
    kb[random.integers(0, 400, 40)] += 5_000
    return parts.tolist(), kb.tolist()


LEAK = """
import sys
held = []
for line in sys.stdin:
    held.append(bytearray(4_000_000))
    print(len(held), flush=True)
"""


def test_a_process_that_grows_is_seen(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", LEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    (tmp_path / "file").write_bytes(b"x" * 2_000_000)
    passed = iter(range(0, 100_000, 1000))
    sampler = watching.Sampler(1.0, lambda: {"leak": child.pid}, {"file": tmp_path / "file"}, lambda: next(passed))
    for _ in range(50):
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        sampler._sample()
    child.kill()
    child.communicate()
    sampler._sample()
    curve = sampler.curve()
    assert len(curve["parts"]) == 50, "one that has ended is not sampled"
    assert curve["file_mb"][0] == 2.0 and curve["leak.open_files"][0] >= 3 and curve["leak.threads"][0] == 1
    found = sampler.growth()["leak.anon"]
    assert found["verdict"] == "grows" and 3500 < found["phases"][0]["slope_kb_per_1000_parts"] < 4500


IN_CHUNKS = (600, 640)


@pytest.mark.parametrize(
    ("name", "hw"), [("ring", (48, 64)), ("spool", (48, 64)), ("spool", IN_CHUNKS), ("pickle_pipe", (48, 64))]
)
def test_every_way_brings_frames_across(name: str, hw: tuple[int, int]) -> None:
    found = transport.measure(name, hw, 0.2)
    assert found["frames_per_s"] > 0 and found["lost"] == 0 and 0 < found["latency_p50_ms"] <= found["latency_p99_ms"]
    assert found["cpu_ms_per_frame"] > 0


def test_what_is_spooled_outlives_a_receiver_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transport.SIZES, "640x480", (48, 64))
    assert transport.kill("spool") == {"sent": transport.KILL_FRAMES, "lost": 0, "sender_hangs": False}


def test_every_way_says_what_it_guarantees() -> None:
    assert set(transport.GUARANTEES) == set(transport.WAYS)
