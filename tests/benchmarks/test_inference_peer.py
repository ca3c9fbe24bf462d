"""Our network as another library's inferencer takes it, and what is said where that library is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks import inference_peer
from contract.bundle import Bundle
from contract.preprocess import prepare
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import read_graph
from edge_runtime.inspector import Inspector
from tests.graphs import write_bundle

PICTURES = np.random.default_rng(5).integers(90, 160, (6, 64, 64), np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", list(PICTURES[:5]))


def test_the_peer_is_given_our_network(bundle: Bundle) -> None:
    recipe = bundle.manifest.recipe
    tiles = prepare(PICTURES[5], recipe).tiles
    graph = inference_peer.float_graph(read_graph(bundle), recipe.tile_hw, recipe.channels)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": tiles.transpose(0, 3, 1, 2) / np.float32(255)}), strict=True))
    engine = open_engine("onnxruntime", bundle, 1)
    ours = engine.infer(tiles)
    assert set(found) == {"pred_score", "anomaly_map"} and ours.scores[0] > 0.1
    np.testing.assert_allclose(found["pred_score"], ours.scores, rtol=1e-4)
    np.testing.assert_allclose(found["anomaly_map"], ours.maps, rtol=1e-3, atol=1e-4)


def test_parts_under_way_end_as_they_began(bundle: Bundle) -> None:
    one = inference_peer.Verdicts(Inspector(bundle, open_engine("onnxruntime", bundle, 1)), 1)
    two = inference_peer.Verdicts(Inspector(bundle, open_engine("onnxruntime", bundle, 1)), 2)
    scores = [one(picture) for picture in PICTURES]
    assert len(set(scores)) == len(PICTURES)
    two(PICTURES[0])
    assert [two(picture) for picture in PICTURES[1:]] == [scores[0], *scores[1:5]]


def test_a_peer_that_is_not_there_is_said_so(bundle: Bundle, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures.npy"
    np.save(pictures, PICTURES)
    assert "--anomalib" in inference_peer.compare(None, bundle, pictures, 1, 0.01)["not_run"]
    found = inference_peer.compare(tmp_path / "nowhere", bundle, pictures, 1, 0.01)
    assert "cannot be started" in found["not_run"]
