"""``flawline calibrate replay --ray`` on a local cluster: the same result as without, also when a worker is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from calibration import replay as module
from calibration.errors import CalibrationError
from calibration.replay import replay, rows_of
from calibration.replay_ray import on_ray
from calibration.rescoring import Row, Scoring
from calibration.rescoring_pool import Chunk
from flawline import main
from tests.calibration.ray_workers import scoring_pids
from tests.calibration.test_replay import PARTS, bundles, scoring_of, undisturbed
from tests.processes import until

__all__ = ["bundles", "undisturbed"]
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of itself
HAS_RAY = importlib.util.find_spec("ray") is not None


def test_without_ray_it_says_what_to_install(
    bundles: tuple[Path, Path],
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    words = ["calibrate", "replay", str(bundles[1]), "--against", str(bundles[0]), "--archive", str(drawn)]
    assert main([*words, "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert "pip install 'flawline[ray]'" in capsys.readouterr().err


def test_an_address_of_ray_s_client_is_refused_by_name(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "replay", str(bundles[1]), "--against", str(bundles[0]), "--archive", str(drawn)]
    assert main([*words, "--out", str(tmp_path / "out"), "--ray", "ray://head:10001"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--ray 'ray://head:10001': expected HOST:PORT of the cluster's head, such as head:6379" in said
    assert not (tmp_path / "out").exists()


def test_the_help_s_example_is_of_a_kind_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "replay", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--ray head:6379" in said and "ray://" not in said


@pytest.mark.long
def test_a_worker_of_the_cluster_is_killed_and_nothing_is_skipped_or_double(
    bundles: tuple[Path, Path],
    drawn: Path,
    tmp_path: Path,
    undisturbed: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not HAS_RAY:
        pytest.skip("ray is not installed: pip install 'flawline[ray]'")
    monkeypatch.setattr(module, "CHUNK", 4)
    killed: list[int] = []
    came: list[int] = []

    def kill_the_first() -> None:
        killed.append(until(scoring_pids, "a worker of the cluster", 120)[0])
        os.kill(killed[0], signal.SIGKILL)

    def killing(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        helper = threading.Thread(target=kill_the_first)
        helper.start()  # each worker is needed from its beginning on
        for chunk, rows in on_ray("local")(scoring, workers, chunks):
            came.append(chunk.number)
            yield chunk, rows
        helper.join()

    found = replay(scoring_of(bundles, drawn), tmp_path, workers=2, run=killing)
    assert killed and len(came) == len(set(came)), "no chunk came twice"
    assert found.listed == found.compared == PARTS
    assert list(rows_of(tmp_path / "work")) == undisturbed, "bit for bit"


def test_a_cluster_that_is_not_there_is_a_sentence(bundles: tuple[Path, Path], drawn: Path, tmp_path: Path) -> None:
    if not HAS_RAY:
        pytest.skip("ray is not installed: pip install 'flawline[ray]'")
    with pytest.raises(CalibrationError, match="no cluster answers there"):
        replay(scoring_of(bundles, drawn), tmp_path, workers=1, run=on_ray("127.0.0.1:1"))
