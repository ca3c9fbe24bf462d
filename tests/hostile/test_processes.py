"""Bad input to real processes: a clear sentence each; they live on or refuse to start, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import zmq

from contract.event import MAGIC
from edge_runtime.account import account, read_truth
from edge_runtime.draw import line_of, write_truth
from tests.processes import TOUCHING, Line, until

URL = "synthetic://line?seed=11&parts=12&fps=50"


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "one byte changed": (flip_a_byte, "sha256"),
    "a file is gone": (lambda folder: (folder / "golden.npy").unlink(), "golden.npy"),
    "no manifest": (lambda folder: (folder / "bundle.json").unlink(), "not a bundle"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_edge_refuses_a_bundle_that_is_not_whole(case: str, bundle: Path, tmp_path: Path) -> None:
    spoil, expected = REFUSALS[case]
    copy = copied(bundle, tmp_path)
    spoil(copy)
    edge = Line(tmp_path, copy, URL).start_edge()
    assert edge.wait(60) == 2
    assert expected in edge.text()
    assert "Traceback" not in edge.text()


@pytest.mark.parametrize(
    ("url", "edge", "expected"),
    [
        (URL, "treads = 2", "did you mean `threads`?"),
        (URL, 'engine = "tensorflow"', "at `engine`"),
        ("ftp://camera", "", "has no known scheme"),
        ("file:///no/such/video.avi", "", "no such file"),
    ],
)
def test_an_edge_refuses_a_configuration_that_it_does_not_understand(
    url: str, edge: str, expected: str, bundle: Path, tmp_path: Path
) -> None:
    process = Line(tmp_path, bundle, url, edge=edge).start_edge()
    assert process.wait(60) == 2
    assert expected in process.text()
    assert "Traceback" not in process.text()


def test_two_edges_never_share_a_spool(bundle: Path, tmp_path: Path) -> None:
    line = Line(tmp_path, bundle, "synthetic://line?seed=1&parts=500")
    try:
        first = line.start_edge()
        until(lambda: "openvino" in first.text() or "onnxruntime" in first.text(), "the first edge has started")
        second = line.start_edge()
        assert second.wait(60) == 2
        assert "another edge runs on this state_dir" in second.text()
        assert first.running()
    finally:
        line.close()


def test_a_truncated_video_gives_what_it_holds_and_says_where_it_ended(bundle: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.avi", tmp_path / "cut.avi"
    drawn = line_of("synthetic://line?seed=11&parts=6")
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (640, 480), False)
    for frame in range(drawn.frames):
        writer.write(drawn.render(frame))
    writer.release()
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    line = Line(tmp_path, bundle, f"file://{cut}", camera=TOUCHING)
    try:
        line.start_host()
        edge = line.start_edge()
        until(lambda: line.results() >= 2, "parts of the readable half are inspected")
        until(lambda: not edge.running() or "of" in camera_detail(line), "the end is said")
        edge.stop()
        rows = line.parts()
        assert rows
        assert all(row["state"] in ("result", "missed") for row in rows)
        assert len({row["part_id"] for row in rows}) == len(rows) <= 6
    finally:
        line.close()


def camera_detail(line: Line) -> str:
    edges = line.summary().get("edges") or []
    return " ".join(str(camera.get("detail", "")) for edge in edges for camera in edge.get("cameras", []))


def test_garbage_on_the_wire_beside_a_running_edge_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    write_truth(URL, tmp_path / "line_frames.csv")
    line = Line(tmp_path, bundle, URL, camera=TOUCHING)
    try:
        host = line.start_host()
        edge = line.start_edge()
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.set(zmq.LINGER, 0)
            stranger.connect(line.endpoint)
            part = b'{"role":"map","codec":"raw","shape":[1],"size":2147483648}'
            claim = b'{"kind":"result","spool_id":"x","seq":1,"parts":[' + part + b"]}"
            for _ in range(50):
                for frames in (
                    [b""],
                    [b"GET / HTTP/1.1"],
                    [MAGIC],
                    [MAGIC, b"{}", b"\xff" * 1000],
                    [MAGIC, b"{}", claim],
                ):
                    stranger.send_multipart(frames)
            assert edge.wait(90) == 0, edge.text()[-3000:]
        assert host.running()
        found = account(line.parts(), line.gaps(), read_truth(tmp_path / "line_frames.csv"))
        assert (found.parts, found.results, found.lost, found.duplicates, found.unmatched) == (12, 12, 0, 0, 0)
    finally:
        line.close()
