"""A running edge's live preview, seen with its own command; no part is lost by it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from flawline import main
from tests.processes import TOUCHING, Line, free_port, until


def test_a_running_edge_shows_what_its_camera_sees(
    tmp_path: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "synthetic://line?seed=4&parts=400&fps=20"
    preview = f'[preview]\nlisten = "tcp://127.0.0.1:{free_port()}"\nfps = 10'
    line = Line(tmp_path, bundle, url, camera=TOUCHING, edge=preview)
    try:
        line.start_host()
        edge = line.start_edge()
        until(lambda: line.results() >= 1, "a part was inspected")
        picture = tmp_path / "top.jpg"
        config = str(tmp_path / "edge.toml")
        assert main(["edge", "preview", "--config", config, "--camera", "top", "--save", str(picture)]) == 0
        said = capfd.readouterr().out
        assert "camera top, frame" in said and "not shown" in said and "last " in said
        shown = cv2.imread(str(picture))
        assert shown is not None and shown.std() > 1
        assert main(["edge", "preview", "--config", config, "--camera", "none", "--save", str(picture)]) == 2
        assert edge.running()
        edge.stop()
    finally:
        line.close()
