"""anomalib's inferencers in turns with ours: run by benchmarks.inference_peer with a Python that has anomalib.

A line on standard input names a way and starts a turn; the answer is a line of JSON, as ``turn`` gives it. An empty
line asks for the names of the ways.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Predict = Callable[[Any], float]
"""A picture as it is in memory, uint8 [H, W], to its score; the map is there then as well."""


def main() -> None:
    from benchmarks.peer_anomalib import declare_operators

    os.environ["TRUST_REMOTE_CODE"] = "1"  # its Torch inferencer asks for it: a model is a pickle, here one just made
    made = argparse.ArgumentParser()
    made.add_argument("--graph", type=Path, required=True)
    made.add_argument("--pictures", type=Path, required=True)
    made.add_argument("--size", type=int, required=True)
    made.add_argument("--seconds", type=float, required=True)
    options = made.parse_args()
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        kept = declare_operators()
        ways = make_ways(options.graph, options.size)
        pictures = np.load(options.pictures)
        for line in sys.stdin:
            name = line.strip()
            answers.write(json.dumps(turn(ways[name], pictures, options.seconds) if name else list(ways)) + "\n")
            answers.flush()
        del kept


def make_ways(graph: Path, size: int) -> dict[str, Predict]:
    import torch
    from anomalib.deploy import OpenVINOInferencer, TorchInferencer
    from anomalib.models import Ganomaly

    torch.set_num_threads(1)
    one = {"INFERENCE_NUM_THREADS": 1}
    fp32 = OpenVINOInferencer(graph, "CPU", one | {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"})
    by_itself = OpenVINOInferencer(graph, "CPU", one)
    prepare = Ganomaly.configure_pre_processor((size, size))
    model = Ganomaly(batch_size=1, n_features=32, pre_processor=prepare, evaluator=False, visualizer=False).eval()
    own = OpenVINOInferencer(model.to_openvino("own", input_size=(size, size)), "CPU", one)
    own_torch = TorchInferencer(model.to_torch("own"), "cpu")

    def grey(picture: Any) -> Any:
        return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)[np.newaxis]

    def colour(picture: Any) -> Any:
        return cv2.cvtColor(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2RGB)

    def by_torch(picture: Any) -> float:
        with torch.inference_mode():
            return score(own_torch.predict(colour(picture)))

    return {
        "openvino_same_graph": lambda picture: score(fp32.predict(grey(picture))),
        "openvino_same_graph_by_itself": lambda picture: score(by_itself.predict(grey(picture))),
        "openvino_own_ganomaly": lambda picture: score(own.predict(colour(picture))),
        "torch_own_ganomaly": by_torch,
    }


def score(found: Any) -> float:
    return float(np.asarray(found.pred_score).reshape(-1)[0])


def turn(predict: Predict, pictures: Any, seconds: float) -> dict[str, float]:
    """One picture after the other for ``seconds``: images per second, milliseconds of a call and of processor time for
    each (all threads, which other programs do not lengthen by much), the first's score."""
    first = predict(pictures[0])
    taken: list[float] = []
    began, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        predict(pictures[len(taken) % len(pictures)])
        taken.append(1e3 * (time.perf_counter() - at))
    rate = len(taken) / (time.perf_counter() - began)
    cpu_ms = 1e3 * (time.process_time() - cpu_s) / len(taken)
    p50, p99 = np.percentile(taken, (50, 99))
    return {"images_per_s": rate, "p50_ms": float(p50), "p99_ms": float(p99), "cpu_ms": cpu_ms, "score": first}


if __name__ == "__main__":
    main()
