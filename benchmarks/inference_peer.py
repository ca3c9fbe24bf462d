"""A picture in memory until its score and map: anomalib's inferencers against ours, one thread each, in turns.

ours                           preprocessing, quality gate, engine in FP32 and decision, one part after the other
ours_two_under_way             the same as a station has it: the next part is prepared while one infers (a call's
                               milliseconds are then the time from one verdict to the next)
openvino_same_graph            anomalib's OpenVINOInferencer on our own network, FP32 and latency asked for; the graph
                               takes float32 NCHW of 0 to 1, as that inferencer gives it, and has no reconstruction
openvino_same_graph_by_itself  the same as it computes where nothing is asked for (BF16 where the processor has it)
openvino_own_ganomaly          the same inferencer with anomalib's GANomaly of that size, which gives a score, no map
torch_own_ganomaly             its TorchInferencer with that model

Its pictures are brought to the graph's size by one cv2.resize, since that inferencer leaves it to its caller; it has
no gate and no verdict. Ratios are ours over theirs, of images per second, in the same round; cpu_ms
is processor time for a picture, which other programs do not lengthen by much.

The peer lives in an environment of its own: see benchmarks.training. Part of benchmarks.pipeline (--anomalib PYTHON);
alone, with a calibrated bundle and pictures as uint8 [N, H, W] that pass its gate:

    python -m benchmarks.inference_peer --anomalib PYTHON --bundle DIR --pictures FILE.npy \\
        --json benchmarks/results/inference_peer.json
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.common import Peer, machine, parser, write
from benchmarks.peer_inferencer import turn
from contract.bundle import Bundle, open_bundle
from contract.images import Pixels
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import SLOTS, read_graph
from edge_runtime.inspector import Begun, Inspector, Outcome

SAME = "openvino_same_graph"
MAX_OFF = 1e-3
"""Of a score, relative: ours and theirs come from the same network, but for how a picture is shrunk."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--anomalib", type=Path, metavar="PYTHON", required=True)
    made.add_argument("--bundle", type=Path, required=True)
    made.add_argument("--pictures", type=Path, required=True)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--seconds", type=float, default=2.0, help="length of each turn")
    options = made.parse_args()
    before = machine()
    bundle = open_bundle(options.bundle)
    write(options.json, compare(options.anomalib, bundle, options.pictures, options.rounds, options.seconds), before)


def compare(python: Path | None, bundle: Bundle, pictures: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over ``rounds`` in which all ways take turns; ``not_run`` says why there are none."""
    if python is None:
        return {"not_run": "no Python with anomalib was named (--anomalib PYTHON)"}
    recipe = bundle.manifest.recipe
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "same.onnx"
        graph.write_bytes(float_graph(read_graph(bundle), recipe.tile_hw, recipe.channels))
        words = ["--graph", graph, "--pictures", pictures.absolute(), "--size", recipe.tile_hw[0], "--seconds", seconds]
        try:
            with Peer(python, "benchmarks.peer_inferencer", [str(word) for word in words], Path(folder)) as peer:
                names = peer.ask()
                return measure(peer, names, bundle, np.load(pictures), rounds, seconds)
        except OSError as error:
            return {"not_run": f"the Python that was named cannot be started: {error.strerror}"}
        except subprocess.CalledProcessError:
            return {"not_run": "the Python that was named has no anomalib"}
        except RuntimeError as error:
            return {"not_run": str(error)}


def measure(peer: Peer, names: list[str], bundle: Bundle, pictures: Any, rounds: int, seconds: float) -> dict[str, Any]:
    inspector = Inspector(bundle, open_engine("openvino", bundle, 1))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", "ours_two_under_way", *names)}
    for _ in range(rounds):
        for depth, name in ((1, "ours"), (SLOTS, "ours_two_under_way")):
            found[name].append(turn(Verdicts(inspector, depth), pictures, seconds))
            inspector.engine.discard()
        for name in names:
            found[name].append(peer.ask(name))
    off = abs(found["ours"][0]["score"] / found[SAME][0]["score"] - 1)
    if off > MAX_OFF:
        raise SystemExit(f"{SAME} is not the same: scores are off by {off:.2g} relative")
    ratios = {
        f"{ours} / {theirs}": [
            mine["images_per_s"] / other["images_per_s"] for mine, other in zip(found[ours], found[theirs], strict=True)
        ]
        for ours in ("ours", "ours_two_under_way")
        for theirs in (SAME, f"{SAME}_by_itself")
    }
    return {
        "question": (__doc__ or "").splitlines()[0],
        "graph": {"model": bundle.manifest.model.name, "size_px": bundle.manifest.recipe.tile_hw[0], "threads": 1},
        "peer": peer.version,
        "rounds": rounds,
        "ways": {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
        },
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        "score_off": off,
    }


class Verdicts:
    """A part's score, with up to ``depth`` parts under way: the one begun first, as a station ends them."""

    def __init__(self, inspector: Inspector, depth: int) -> None:
        self._inspector, self._depth = inspector, depth
        self._begun: deque[Begun | Outcome] = deque()

    def __call__(self, picture: Pixels) -> float:
        while len(self._begun) < self._depth:
            self._begun.append(self._inspector.begin(picture))
        step = self._begun.popleft()
        outcome = self._inspector.end(step) if isinstance(step, Begun) else step
        if outcome.score is None:
            raise SystemExit(f"a picture was not scored: {outcome.reason}")
        return outcome.score


def float_graph(graph: bytes, tile_hw: tuple[int, int], channels: int) -> bytes:
    """Our network behind the input that anomalib's inferencer gives, its outputs named as it hands them on."""
    model = onnx.load_from_string(graph)
    cast, transpose, *rest = model.graph.node
    if (cast.op_type, transpose.op_type) != ("Cast", "Transpose") or list(cast.input) != ["image"]:
        raise SystemExit("the graph does not begin with a cast and a transpose of its image")
    names = {"score": "pred_score", "map": "anomaly_map"}
    for node in rest:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    scale = helper.make_node("Mul", ["image", "levels"], [transpose.output[0]])
    model.graph.initializer.append(helper.make_tensor("levels", TensorProto.FLOAT, [], [255.0]))
    made = {
        "input": [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, *tile_hw])],
        "output": [
            helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, None, None]),
        ],
        "node": [scale, *rest],
    }
    for field, values in made.items():
        model.graph.ClearField(field)  # type: ignore[arg-type]
        getattr(model.graph, field).extend(values)
    return model.SerializeToString()


if __name__ == "__main__":
    main()
