"""What a lower precision costs and gains: file size, latency and agreement with FP32, per model, engine and precision.

    python -m benchmarks.precision --json FILE
    python -m benchmarks.precision --json FILE --pair BUNDLE DATA [--pair ...] [--table FILE]

Without --pair ganomaly_d and ganomaly are trained for --minutes on a drawn line below --work; a bundle that is there
is taken. Agreement is with the same engine's FP32 on parts that neither training nor the choice of layers has seen;
latency is the median of interleaved runs of one part on one thread, and its ratio is to FP32 of the same engine in the
same run, by the wall's clock and by processor time: a variant is worth having if it is admitted and both say so. BF16
and FP16 of OpenVINO are its own conversion of the FP32 graph, which the product does not use.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from benchmarks.cells import SYNTHETIC, make_cell, trained
from benchmarks.common import machine, parser, write
from calibration.agreement import Scored, agreement
from calibration.conformal import threshold
from calibration.holdout import pattern_of
from calibration.int8 import MOST_CHOOSING, WORTH, Choice, Parts, choose, read_parts, share_out, spread
from calibration.qdq import measure_ranges, quantize
from contract.bundle import ROLE_GRAPH_FP16, Bundle, Precision, open_bundle
from contract.dataset import Sample, load_dataset
from contract.images import Pixels
from edge_runtime.draw import draw_dataset
from edge_runtime.engines.base import Engine, graph_spec, read_graph
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.openvino import OpenVinoEngine
from training.report import Quiet

MODELS = {"ganomaly_d": {"size": 128}, "ganomaly": {}}
DRAWN = (500, 400, 150)  # good to learn from, good and defective to test with
RATE = 0.05
ROUNDS = 100
WARM = 5
MOST_HELD = 1000
WHOLE = "int8, every layer"


class Bf16(OpenVinoEngine):
    """OpenVINO computing in BF16, as it would by itself."""

    floats = "bf16"


class Fp16(OpenVinoEngine):
    """OpenVINO computing in FP16."""

    floats = "f16"


class Variant(NamedTuple):
    """One row: what runs a graph of so many bytes."""

    engine: str
    precision: str
    run: Engine
    size: int


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--pair", nargs=2, action="append", metavar=("BUNDLE", "DATA"), type=Path, default=[])
    options.add_argument("--work", type=Path, default=Path("runs/precision"), help="where models are trained")
    options.add_argument("--minutes", type=float, default=4.0, help="training of each model")
    options.add_argument("--table", type=Path, help="write the figures as a table in Markdown as well")
    asked = options.parse_args(arguments)
    here = machine()
    rows = [
        row for bundle, data in asked.pair or make_pairs(asked.work, asked.minutes) for row in measure(bundle, data)
    ]
    write(asked.json, {"threads": 1, "false_reject_rate": RATE, "worth": WORTH, "rows": rows}, here)
    if asked.table is not None:
        asked.table.write_text(table(rows))
    return 0


def make_pairs(work: Path, minutes: float) -> list[tuple[Path, Path]]:
    """Bundle and data of each model of MODELS, drawn and trained now where they are not there."""
    data = work / "line"
    if not data.exists():
        draw_dataset(SYNTHETIC, data, *DRAWN)
    cells = [make_cell("line", data, name, 0, {**own, "minutes": minutes}, work) for name, own in MODELS.items()]
    return [(trained(cell, Quiet()).root, data) for cell in cells]


def measure(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Rows of one bundle."""
    bundle = open_bundle(folder)
    parts = share_out(bundle, load_dataset(data, pattern_of(bundle, None)), RATE)
    choosing = read_parts(bundle, spread(parts.choosing, MOST_CHOOSING))
    choice = choose(bundle, choosing)
    model = onnx.load_model_from_string(read_graph(bundle))
    whole = quantize(model, measure_ranges(model, choosing[::2])).SerializeToString()
    variants = all_variants(bundle, choice, whole)
    taken = latencies(variants, choosing[0])
    held = _thinned(parts)
    tiles = read_parts(bundle, held.samples)
    scores = [score(variant, tiles, held) for variant in variants]
    manifest = bundle.manifest
    common = {
        "dataset": data.resolve().name,
        "model": manifest.model.name,
        "tile": [*manifest.recipe.tile_hw, manifest.recipe.channels],
        "tiles_a_part": manifest.recipe.tiles,
        "parameters": manifest.model.parameters,
        "training": {name: manifest.metrics.get(name) for name in ("steps", "minutes")},
        "trained_on_images": manifest.data.fit_images,
    }
    rows = []
    for variant, took, found in zip(variants, taken, scores, strict=True):
        at = next(i for i, other in enumerate(variants) if other.engine == variant.engine and other.precision == "fp32")
        left_out = {"int8": len(choice.left_out), WHOLE: 0}.get(variant.precision)
        agreed = agreement(found, scores[at])
        rows.append(
            common
            | {
                "engine": variant.engine,
                "precision": variant.precision,
                "described": variant.run.describe(),
                "size_bytes": variant.size,
                "latency_ms": round(took.wall, 4),
                "times_fp32": round(taken[at].wall / took.wall, 3),
                "processor_ms": round(took.processor, 4),
                "times_fp32_processor": round(taken[at].processor / took.processor, 3),
                "layers": len(choice.layers),
                "layers_left_fp32": left_out,
                **agreed.fields(),
                "admitted": not agreed.faults(),
                "worth_it": variant.precision != "fp32" and not agreed.faults() and faster(took, taken[at]) >= WORTH,
            }
        )
    return rows


def all_variants(bundle: Bundle, choice: Choice, whole: bytes) -> list[Variant]:
    """Every precision that the two CPU engines offer for the bundle; FP32 of each engine among them."""
    full = read_graph(bundle)
    half = half_graph(bundle)
    plans: list[tuple[str, type[Engine], bytes, Precision]] = [
        ("fp32", OpenVinoEngine, full, "fp32"),
        ("bf16", Bf16, full, "fp32"),
        ("fp16", Fp16, full, "fp32"),
        ("int8", OpenVinoEngine, choice.graph, "int8"),
        (WHOLE, OpenVinoEngine, whole, "int8"),
        ("fp32", OnnxRuntimeEngine, full, "fp32"),
        ("fp16", OnnxRuntimeEngine, half, "fp16"),
        ("int8", OnnxRuntimeEngine, choice.graph, "int8"),
        (WHOLE, OnnxRuntimeEngine, whole, "int8"),
    ]
    return [
        Variant(kind.name, name, kind(graph, graph_spec(bundle, precision)), len(graph))
        for name, kind, graph, precision in plans
    ]


def half_graph(bundle: Bundle) -> bytes:
    """The bundle's FP16 graph; exported from its weights where it was trained without one."""
    if ROLE_GRAPH_FP16 in bundle.manifest.files:
        return read_graph(bundle, "fp16")
    import torch
    from safetensors.torch import load_file

    from training.export import write_graph
    from training.graph import Inspector
    from training.half import halve
    from training.models import model_class, score_of

    manifest = bundle.manifest
    kind, settings = model_class(manifest.model.name), manifest.training["settings"]
    sizes = {name: settings[name] for name in ("size", "width", "latent")}
    judge = kind.build(channels=manifest.recipe.channels, **sizes).eval().deployed()
    inspector = Inspector(judge, settings["size"], score_of(manifest.model.name, settings["score"]), kind.pooling)
    inspector.load_state_dict(load_file(bundle.path("weights")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.onnx"
        write_graph(halve(inspector), path, torch.zeros(2, *manifest.recipe.tile_hw, manifest.recipe.channels).byte())
        return path.read_bytes()


class Took(NamedTuple):
    """Median milliseconds of one part: by the wall's clock, and processor time, which other programs hardly touch."""

    wall: float
    processor: float


def latencies(variants: Sequence[Variant], tiles: Pixels) -> list[Took]:
    """How long each variant takes; they take turns in a new order each round."""
    for variant in variants:
        for _ in range(WARM):
            variant.run.infer(tiles)
    wall: list[list[float]] = [[] for _ in variants]
    processor: list[list[float]] = [[] for _ in variants]
    order = list(range(len(variants)))
    shuffle = random.Random(0)
    for _ in range(ROUNDS):
        shuffle.shuffle(order)
        for at in order:
            variants[at].run.infer(tiles)  # brings its weights back into the cache
            began, busy = time.perf_counter(), time.process_time()
            variants[at].run.infer(tiles)
            processor[at].append(1e3 * (time.process_time() - busy))
            wall[at].append(1e3 * (time.perf_counter() - began))
    return [Took(statistics.median(wall[at]), statistics.median(processor[at])) for at in range(len(variants))]


def faster(took: Took, reference: Took) -> float:
    """How many times as fast, by the clock that says less."""
    return min(reference.wall / took.wall, reference.processor / took.processor)


class Held(NamedTuple):
    """Held-out parts, good ones first: the first ``limiting`` of them set the limit."""

    samples: list[Sample]
    good: int
    limiting: int


def _thinned(parts: Parts) -> Held:
    """At most MOST_HELD parts; those that set the limit all stay."""
    room = max(0, MOST_HELD - parts.limiting)
    tested = spread(parts.good[parts.limiting :], room)
    defective = spread(parts.defective, room)
    good = [*parts.good[: parts.limiting], *tested]
    return Held([*good, *defective], len(good), parts.limiting)


def score(variant: Variant, parts: Sequence[Pixels], held: Held) -> Scored:
    """Scores of the held-out parts, which ``parts`` are the tiles of: of each its worst tile's."""
    found = np.array([variant.run.infer(tiles).scores.max() for tiles in parts], np.float64)
    groups = [sample.group for sample in held.samples[: held.limiting]]
    limit = threshold(found[: held.limiting].tolist(), groups, RATE)
    return Scored(found[: held.good], found[held.good :], limit)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    names = ("data, model", "engine", "precision", "MB", "ms", "× FP32", "× by CPU time", "rank", "flips", "AUROC")
    lines = [f"| {' | '.join(names)} | admitted, worth it |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        apart, reference = row["auroc_difference"], row["precision"] == "fp32"
        kept = f" ({row['layers_left_fp32']} of {row['layers']} layers FP32)" if row["precision"] == "int8" else ""
        verdict = ", ".join("yes" if row[name] else "no" for name in ("admitted", "worth_it"))
        cells = (
            f"{row['dataset']}, `{row['model']}`",
            row["engine"],
            row["precision"] + kept,
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['latency_ms']:.2f}",
            f"{row['times_fp32']:.2f}",
            f"{row['times_fp32_processor']:.2f}",
            f"{row['rank_correlation']:.4f}",
            f"{row['flips']} of {row['images']}",
            "—" if apart is None else f"{apart:+.4f}",
            "reference" if reference else verdict,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
