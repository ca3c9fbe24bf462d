"""``flawline acceptance``: a bundle and an engine proven on the box that will run them, a page to sign (hops 4 and 5).

What it measures it measures here, with the engine that it names; nothing is taken over from another machine.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from contract.errors import BundleError, ConfigError, FlawlineError
from contract.versions import installed

if TYPE_CHECKING:
    from contract.bundle import Bundle, Precision
    from contract.images import Pixels
    from edge_runtime.engines.base import Engine

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

FORMAT = "flawline.acceptance/1"
PACKAGES = (
    "flawline", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_cu13_bindings", "cuda-bindings", "pycuda",
)  # fmt: skip
REFERENCE = "onnxruntime"
SPEED_S = 10.0
FIRST_PARTS = 20  # of a measurement, not counted
WINDOWS = 10
# Limits of the soak. Python and the libraries grow for a while: what counts is growth after the first tenth.
GROWTH_MB, GROWTH_SHARE = 64.0, 0.05
SLOWER = 1.5
TRTEXEC = "trtexec"
TRTEXEC_S = 900.0

Say = Callable[[str], None]
log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """What one acceptance is of: ``engine`` may be ``auto``, ``minutes`` are the soak's."""

    engine: str
    precision: Precision
    threads: int
    minutes: float


@app.command()
def acceptance(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="calibrated bundle", show_default=False)],
    engine: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx, openvino or onnxruntime")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8: which of the bundle's graphs")] = "fp32",
    minutes: Annotated[float, typer.Option(min=0.01, max=10_080, help="how long the soak lasts")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, max=64, help="engine threads, as in edge.toml")] = 1,
    out: Annotated[Path, typer.Option(metavar="FILE", help="the page; FILE with .json is for machines")] = Path(
        "acceptance.html"
    ),
) -> None:
    """Prove a bundle and an engine on this box: agreement, speed, an hour's soak, and a page to print and sign.

    Run it on the box that will stand at the line, with nothing else running. Exit code 1 where a limit is missed; the
    page is written either way.

    \b
    Examples:
      flawline acceptance bundle
      flawline acceptance bundle --engine tensorrt --precision fp16 --minutes 60 --out station-3.html
    """
    from contract.bundle import as_precision, open_bundle
    from edge_runtime.acceptance_page import page

    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.suffix == ".json":
        raise ConfigError(f"--out {out}: is the page's name, such as acceptance.html; the .json is written beside it")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    opened = open_bundle(bundle)
    result = examine(opened, Asked(engine, as_precision(precision), threads, minutes), typer.echo)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    out.write_text(page(result), encoding="utf-8")
    typer.echo(f"{'accepted' if result['accepted'] else 'NOT ACCEPTED'}: {out}, {out.with_suffix('.json')}")
    for fault in result["faults"]:
        typer.echo(f"  {fault}")
    raise typer.Exit(0 if result["accepted"] else 1)


def examine(bundle: Bundle, asked: Asked, say: Say) -> dict[str, Any]:
    """All measurements as JSON types. A step that fails is a fault with its reason, and the next are not made up."""
    from contract.keys import fingerprint
    from contract.release import signed_of

    manifest = bundle.manifest
    result: dict[str, Any] = {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "bundle": {
            "id": manifest.id,
            "name": manifest.name,
            "model": manifest.model.name,
            "digest": manifest.digest,
            "calibration": manifest.calibration_id(),
            "not_inspected": _not_inspected(bundle),
            "thresholds_measured_with": manifest.thresholds.engine if manifest.thresholds else None,
            "state": bundle.state,
            "content": bundle.content,
            "signed": [
                {"state": step.state, "who": step.who, "when": step.when, "key": fingerprint(step.key)}
                for step in signed_of(manifest.history)
                if step.key
            ],
        },
        "asked": asked._asdict(),
        "engine": None,
        "parity": None,
        "speed": None,
        "trtexec": None,
        "soak": None,
        "faults": _unfit(bundle, asked),
    }
    try:
        _measure(bundle, asked, result, say)
    except FlawlineError as error:
        result["faults"].append(str(error))
    result["accepted"] = not result["faults"]
    return result


def _not_inspected(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Share of each masked view that is not inspected, and a picture of it (SVG)."""
    from contract.places import locate
    from edge_runtime.places_picture import picture_of_places

    places = locate(bundle)
    if places is None:
        return {}
    return {
        view: {"share": round(1 - blank.inspected, 4), "svg": picture_of_places(view, blank.fill, places)}
        for view, blank in places.blanks.items()
    }


def _unfit(bundle: Bundle, asked: Asked) -> list[str]:
    """Why no part should be judged with this bundle and these limits on this engine, whatever it measures."""
    from contract.bundle import preprocess_fault
    from contract.release import verify_history
    from edge_runtime.recipes import precision_fault

    try:
        verify_history(bundle.manifest.history, bundle.content, str(bundle.root))
    except BundleError as error:
        return [str(error)]
    if bundle.manifest.thresholds is None:
        return ["the bundle is not calibrated: every part would be NOT_INSPECTED"]
    faults = (precision_fault(bundle, asked.precision), preprocess_fault(bundle.manifest))
    return [fault for fault in faults if fault is not None]


def _measure(bundle: Bundle, asked: Asked, result: dict[str, Any], say: Say) -> None:
    from edge_runtime.engines import choose, open_engine
    from edge_runtime.engines.golden import golden_tiles

    name = choose(asked.engine)
    say(f"opening {name}; where its engine has to be built, this takes minutes")
    started = time.monotonic()
    engine = open_engine(name, bundle, asked.threads, asked.precision)
    try:
        shape = list(engine.spec.input_shape)
        opened_s = round(time.monotonic() - started, 3)
        result["engine"] = {"name": name, "ran": engine.describe(), "opened_s": opened_s, "input_shape": shape}
        say(f"{engine.describe()}: agreement on the golden images")
        parts = list(islice(_batches(golden_tiles(bundle), engine.spec.batch), 64))
        agreement = result["parity"] = parity(engine, bundle, parts)
        for what in ("score", "map"):
            off = agreement[f"{what}_to_reference"]
            if not off <= agreement["tolerance"]:
                result["faults"].append(
                    f"the {what} is off by {off:.2g} from {agreement['reference']}, at most {agreement['tolerance']:g}"
                )
        say(f"speed, {SPEED_S:.0f} s each")
        result["speed"] = speed(engine, parts, SPEED_S)
        result["trtexec"] = trtexec(engine, bundle, asked, result["speed"])
        say(f"soak, {asked.minutes:g} minutes")
        result["soak"] = soak(engine, bundle, parts, asked.minutes, say)
        result["faults"] += soak_faults(result["soak"], engine, bundle)
    finally:
        engine.close()


def machine() -> dict[str, Any]:
    """The box, as far as it matters to what is measured."""
    from edge_runtime.engines.cuda import card
    from edge_runtime.errors import EngineError

    try:
        graphics: dict[str, Any] | str = card()._asdict()
    except EngineError as error:
        graphics = str(error).partition(";")[0]
    return {
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "graphics_card": graphics,
        "load_1min": round(os.getloadavg()[0], 2),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _batches(tiles: Pixels, batch: int) -> Iterator[Pixels]:
    """Parts of ``batch`` tiles, the last one filled up from the first tiles."""
    for start in range(0, len(tiles), batch):
        yield tiles[[index % len(tiles) for index in range(start, start + batch)]]


def parity(engine: Engine, bundle: Bundle, parts: list[Pixels]) -> dict[str, Any]:
    """Agreement with training's golden scores, and with ONNX Runtime's FP32 on the same tiles. Raises ParityError."""
    import numpy as np

    from edge_runtime.engines import open_engine
    from edge_runtime.engines.golden import check_golden, deviations

    golden = bundle.manifest.golden
    worst = check_golden(engine, bundle)
    reference = open_engine(REFERENCE, bundle)
    scores, maps = 0.0, 0.0
    for tiles in parts:
        ours, theirs = engine.infer(tiles), reference.infer(tiles)
        scores = max(scores, *deviations(ours.scores.astype(float).tolist(), theirs.scores.astype(float).tolist()))
        scale = max(float(np.abs(theirs.maps).max()), 1e-6)
        maps = max(maps, float(np.abs(ours.maps - theirs.maps).max()) / scale)
    return {
        "golden_images": len(golden.scores),
        "tolerance": golden.tolerance_of(engine.spec.precision),
        "to_training": worst,
        "reference": reference.describe(),
        "score_to_reference": scores,
        "map_to_reference": maps,
    }


def speed(engine: Engine, parts: list[Pixels], seconds: float) -> dict[str, Any]:
    """Latency of one part after the other, and throughput where nobody waits for each."""
    latencies = sorted(_latencies(engine, parts, seconds))
    done, started = 0, time.perf_counter()
    deadline = started + seconds
    for _ in engine.infer_many(_until(parts, deadline)):
        done += 1
    took = time.perf_counter() - started
    return {
        "parts": len(latencies),
        "tiles_a_part": engine.spec.batch,
        "latency_ms": {"median": _share(latencies, 0.5), "p99": _share(latencies, 0.99), "max": latencies[-1]},
        "parts_per_s": done / took,
        "tiles_per_s": done * engine.spec.batch / took,
    }


def _latencies(engine: Engine, parts: list[Pixels], seconds: float) -> list[float]:
    for tiles in islice(cycle(parts), FIRST_PARTS):
        engine.infer(tiles)
    found = []
    for tiles in _until(parts, time.perf_counter() + seconds):
        started = time.perf_counter()
        engine.infer(tiles)
        found.append(1e3 * (time.perf_counter() - started))
    return found


def _until(parts: list[Pixels], deadline: float) -> Iterator[Pixels]:
    """The parts again and again, at least one, until the clock passes ``deadline``."""
    for tiles in cycle(parts):
        yield tiles
        if time.perf_counter() >= deadline:
            return


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def trtexec(engine: Engine, bundle: Bundle, asked: Asked, speed: dict[str, Any]) -> dict[str, Any]:
    """TensorRT's own measuring program on the same graph and shape; or why it was not run."""
    if engine.name != "tensorrt":
        return {"ran": False, "why": f"{TRTEXEC} measures TensorRT, this is {engine.name}"}
    program = shutil.which(TRTEXEC) or shutil.which(TRTEXEC, path="/usr/src/tensorrt/bin")
    if program is None:
        return {"ran": False, "why": f"{TRTEXEC} is not installed"}
    from edge_runtime.engines.base import INPUT, read_graph

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(read_graph(bundle, asked.precision))
        file.flush()
        shape = "x".join(map(str, engine.spec.input_shape))
        words = [program, f"--onnx={file.name}", f"--shapes={INPUT}:{shape}", "--stronglyTyped", "--noTF32"]
        words += ["--useCudaGraph", f"--duration={SPEED_S:.0f}"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=TRTEXEC_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"ran": False, "why": f"{TRTEXEC} failed: {error}"[:300]}
    figures = read_trtexec(done.stdout)
    if done.returncode or figures is None:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return {"ran": False, "why": f"{TRTEXEC} ended with {done.returncode}: {''.join(last)[:300]}"}
    ratio = speed["parts_per_s"] / figures["parts_per_s"]
    return {"ran": True, "command": " ".join([TRTEXEC, *words[2:]]), **figures, "ours_over_theirs": ratio}


def read_trtexec(text: str) -> dict[str, float] | None:
    """Throughput and latency from what trtexec prints; None where they do not stand there."""
    throughput = re.search(r"Throughput: ([\d.]+) qps", text)
    latency = re.search(r"\] Latency: .*?median = ([\d.]+) ms.*?percentile\(99%\) = ([\d.]+) ms", text)
    if throughput is None or latency is None:
        return None
    return {
        "parts_per_s": float(throughput[1]),
        "latency_median_ms": float(latency[1]),
        "latency_p99_ms": float(latency[2]),
    }


def soak(engine: Engine, bundle: Bundle, parts: list[Pixels], minutes: float, say: Say) -> dict[str, Any]:
    """The golden tiles over and over: whether scores, verdicts, memory and latency stay what they were."""
    import numpy as np

    from contract.decision import decide

    thresholds = bundle.manifest.thresholds
    first = [engine.infer(tiles).scores for tiles in parts]
    verdicts = [[decide(float(score), thresholds)[0] for score in scores] for scores in first]
    scale = max(float(np.abs(scores).max()) for scores in first) or 1.0
    changed, drift, windows = 0, 0.0, []
    interrupted = False
    started = time.monotonic()
    try:
        for window in range(WINDOWS):
            latencies: list[float] = []
            end = started + 60.0 * minutes * (window + 1) / WINDOWS
            for index in cycle(range(len(parts))):
                begun = time.perf_counter()
                scores = engine.infer(parts[index]).scores
                latencies.append(1e3 * (time.perf_counter() - begun))
                drift = max(drift, float(np.abs(scores - first[index]).max()) / scale)
                changed += [decide(float(score), thresholds)[0] for score in scores] != verdicts[index]
                if time.monotonic() >= end:
                    break
            latencies.sort()
            windows.append(
                {
                    "parts": len(latencies),
                    "latency_median_ms": _share(latencies, 0.5),
                    "latency_p99_ms": _share(latencies, 0.99),
                    "memory_mb": _memory_mb(),
                    "card_memory_mb": _card_memory_mb(engine),
                }
            )
            say(f"  {window + 1} of {WINDOWS}: median {windows[-1]['latency_median_ms']:.2f} ms, {changed} changed")
    except KeyboardInterrupt:
        interrupted = True
    return {
        "minutes": round((time.monotonic() - started) / 60.0, 3),
        "asked_minutes": minutes,
        "interrupted": interrupted,
        "parts": sum(window["parts"] for window in windows),
        "verdicts_changed": changed,
        "score_drift": drift,
        "windows": windows,
    }


def soak_faults(soak: dict[str, Any], engine: Engine, bundle: Bundle) -> list[str]:
    """A sentence for each limit of the soak that was missed."""
    golden, windows = bundle.manifest.golden, soak["windows"]
    tolerance = golden.tolerance_of(engine.spec.precision) or 0.0
    faults = []
    if soak["interrupted"] or not windows:
        faults.append(f"the soak was interrupted after {soak['minutes']:g} of {soak['asked_minutes']:g} minutes")
    if soak["verdicts_changed"]:
        faults.append(f"{soak['verdicts_changed']} part(s) got another verdict than the first time")
    if soak["score_drift"] > tolerance:
        faults.append(f"scores moved by {soak['score_drift']:.2g} relative; at most {tolerance:g}")
    if windows:
        before, after = windows[0], windows[-1]
        for what, name in (("process", "memory_mb"), ("card", "card_memory_mb")):
            if before[name] is not None and after[name] is not None:
                growth, most = after[name] - before[name], max(GROWTH_MB, GROWTH_SHARE * before[name])
                if growth > most:
                    faults.append(f"the {what}'s memory grew by {growth:.0f} MB; at most {most:.0f} MB")
        if after["latency_median_ms"] > SLOWER * before["latency_median_ms"]:
            faults.append(
                f"the median latency went from {before['latency_median_ms']:.2f} to {after['latency_median_ms']:.2f} "
                f"ms; at most {SLOWER:g} times"
            )
    return faults


def _memory_mb() -> float | None:
    """Resident memory of this process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def _card_memory_mb(engine: Engine) -> float | None:
    """What is in use on the first card, of all processes; None for engines that use none, and on a Jetson."""
    from edge_runtime.engines import ON_A_CARD

    program = shutil.which("nvidia-smi") if engine.name in ON_A_CARD else None
    if program is None:
        return None
    words = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        return float(done.stdout.strip())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
