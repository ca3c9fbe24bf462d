"""The ONNX graph in ONNX Runtime: what it takes and gives, and that a wrong one is never kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from training import export as export_module
from training.errors import ExportError
from training.export import OPSET, export, open_session, refuse_batch_dependence, run_graph, write_graph
from training.graph import Inspection, Inspector
from training.models.base import Judgement
from training.models.ganomaly import Ganomaly


def _inspector(channels: int = 1) -> Inspector:
    torch.manual_seed(0)
    return Inspector(Ganomaly(64, channels, 4, 8).deployed().eval(), 64, "residual")


def _images(count: int, channels: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 64, 64, channels), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "colour.onnx"
    export(_inspector(3), path, _images(3, 3))
    return path


def test_any_batch_goes_in_and_the_three_outputs_come_back(graph: Path) -> None:
    session = open_session(graph)
    assert [value.name for value in session.get_inputs()] == ["image"]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for count in (1, 2, 7):
        found = run_graph(session, _images(count, 3).numpy())
        assert found.score.shape == (count,) and found.score.dtype == np.float32
        assert found.map.shape == (count, 64, 64) and found.map.dtype == np.float32
        assert found.reconstruction.shape == (count, 64, 64, 3) and found.reconstruction.dtype == np.uint8
        assert [value.name for value in session.get_outputs()] == ["score", "map", "reconstruction"]


def test_the_graph_says_what_pytorch_says(graph: Path) -> None:
    images = _images(6, 3)
    found, expected = run_graph(open_session(graph), images.numpy()), _inspector(3).inspect(images)
    np.testing.assert_allclose(found.score, expected.score.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.map, expected.map.numpy(), atol=1e-4 * float(expected.map.max()))


def test_bytes_are_cast_before_they_are_moved_and_moved_before_they_are_cast(graph: Path) -> None:
    model = onnx.load(str(graph))
    inner = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inner.value_info, *inner.input, *inner.output)}
    for node in inner.node:
        if any(kinds.get(name) == onnx.TensorProto.UINT8 for name in (*node.input, *node.output)):
            assert node.op_type == "Cast"
    assert model.opset_import[0].version == OPSET
    assert "BatchNormalization" not in {node.op_type for node in inner.node}
    batch = inner.input[0].type.tensor_type.shape.dim
    assert batch[0].dim_param
    assert [side.dim_value for side in batch[1:]] == [64, 64, 3]


def test_the_graph_names_no_folder_of_this_machine(graph: Path) -> None:
    content = graph.read_bytes()
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode(), b'File "'):
        assert trace not in content


def test_a_network_in_training_mode_is_brought_to_evaluation(tmp_path: Path) -> None:
    inspector = _inspector()
    inspector.train()
    with pytest.raises(ExportError, match=r"training mode.*eval\(\)"):
        export_module.refuse_training_mode(inspector)
    export(inspector, tmp_path / "graph.onnx", _images(2))
    assert not any(module.training for module in inspector.modules())


class AgainstTheBatch(nn.Module):
    """Judges an image by its distance from the mean of its batch, as BatchNorm in training mode does in effect."""

    def forward(self, tile: Tensor) -> Judgement:
        mean = tile.mean(dim=0, keepdim=True)
        return Judgement(tile, (tile - mean).abs(), {})


def test_a_score_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    with pytest.raises(ExportError, match="alone and in a batch"):
        export(Inspector(AgainstTheBatch(), 64, "residual"), path, _images(3))
    assert not path.exists()
    write_graph(Inspector(AgainstTheBatch(), 64, "residual"), path, _images(2))
    session = open_session(path)
    tiles = _images(3).numpy()
    with pytest.raises(ExportError, match="image 0"):
        refuse_batch_dependence(session, tiles, run_graph(session, tiles).score)


def test_a_graph_that_disagrees_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = write_graph

    def of_another_network(inspector: Inspector, path: Path, example: Tensor) -> None:
        other = _inspector()
        other.typical.mul_(1.001)
        write(other, path, example)

    monkeypatch.setattr(export_module, "write_graph", of_another_network)
    path = tmp_path / "graph.onnx"
    with pytest.raises(ExportError, match=r"ONNX Runtime and PyTorch differ by .*no bundle is written"):
        export(_inspector(), path, _images(2))
    assert not path.exists()


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    inspector = _inspector()
    with torch.no_grad():
        next(inspector.judge.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match="not all values are numbers"):
        export(inspector, tmp_path / "graph.onnx", _images(2))


def test_inspection_in_chunks_is_inspection_at_once() -> None:
    inspector = _inspector()
    images = _images(70)
    found: Inspection = inspector.inspect(images)
    torch.testing.assert_close(found.score[66:], inspector.inspect(images[66:]).score, rtol=1e-4, atol=0)
