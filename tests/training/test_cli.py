"""The command: help at once, mistakes explained before torch is loaded, progress in plain lines off a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from contract.bundle import ROLE_GRAPH, ROLE_GRAPH_FP16, open_bundle
from contract.errors import ConfigError, DatasetError
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from flawline import main
from tests.bundles import draw_data
from training.cli import app, make_settings, parse_tiles
from training.models import MODELS
from training.report import Progress, Terminal, line


def _fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_is_quick_and_loads_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, flawline\n"
        "flawline.main(['train', '--help'])\n"
        "print([name for name in ('torch', 'cv2') if name in sys.modules])"
    )
    began = time.perf_counter()
    done = _fresh(code)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert "flawline train --data parts --out bundle --resume" in done.stdout
    for name, model in MODELS.items():
        assert re.search(rf"^ +{name}\*? +{re.escape(model.summary)}$", done.stdout, re.MULTILINE), name
        for option, names in (("score", model.scores), ("loss", model.losses)):
            assert not names or f"--{option} {', '.join(names)}\n" in done.stdout.replace("*", ""), name
    assert "--loss non_saturating*, minimax, wasserstein" in done.stdout  # what dcgan takes
    assert "--model dcgan --loss wasserstein" in done.stdout
    assert seconds < 5  # half a second on an idle machine; the modules above are what decides


def test_a_missing_folder_is_met_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, flawline\n"
        f"code = flawline.main(['train', '--data', {str(tmp_path / 'none')!r}, '--out', {str(tmp_path / 'b')!r}])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = _fresh(code)
    assert done.stdout.strip() == "2 False"
    assert "no such folder; expected images in" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["2", "2x", "x3", "2x3x4", "two by three", ""])
def test_tiles_are_rows_by_columns(text: str) -> None:
    with pytest.raises(ConfigError, match="ROWSxCOLUMNS"):
        parse_tiles(text)
    assert parse_tiles(" 2x3") == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 70}, "^--size 70 is not a multiple of 16"),
        ({"size": 512}, r"--size: Input should be less than or equal to 256 \(found 512\)"),
        ({"minutes": -1}, "--minutes: Input should be greater than 0"),
        ({"channels": "cmyk"}, "--channels: Input should be 'grey', 'rgb' or 'auto'"),
        ({"learning_rate": 0}, "--learning-rate: Input should be greater than 0"),
        ({"size": 64, "tiles": (2, 2), "overlap": 64}, "^--overlap 64 px is not below the tile's 64 px"),
        ({"tiles": (0, 3)}, "^--tiles 0x3: expected 1x1 to 16x16"),
        ({"holdout": 0.8, "validation": 0.5}, "leave under 10 % to learn from"),
        ({"score": "features"}, "^--score 'features': ganomaly_d has residual, latent$"),
        ({"loss": "hinge"}, "^--loss 'hinge': ganomaly_d has no choice of losses$"),
        ({"model": "dec", "conditional": True}, "^--conditional: dec learns one"),
        ({"model": "dec", "defects": Path("known")}, "^--defects: dec has no"),
        ({"few_shot": True, "resume": True}, "^--few-shot trains several"),
        ({"epochs": 3}, "unknown key"),
    ],
)
def test_a_mistaken_option_is_named_with_what_was_expected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        make_settings({"data": Path("d"), "out": Path("o"), **changes})
    assert "flawline train" not in str(refused.value) and "PosixPath" not in str(refused.value)


def test_the_default_budget_is_forty_minutes_unless_steps_are_given() -> None:
    assert make_settings({"data": Path("d"), "out": Path("o")}).minutes == 40
    assert make_settings({"data": Path("d"), "out": Path("o"), "steps": 5}).minutes is None


def test_an_unknown_model_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gan': no such model; there are: .*ganomaly"):
        app(["--data", str(parts), "--out", str(tmp_path / "b"), "--model", "gan"])


def test_a_group_pattern_that_fits_nothing_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="finds no group in"):
        app(["--data", str(parts), "--out", str(tmp_path / "b"), "--group-pattern", r"tile(\d+)"])


def test_the_command_trains_and_says_where_it_is(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "--model": "ganomaly",
        "--steps": 30,
        "--width": 4,
        "--latent": 16,
        "--batch": 8,
        "--learning-rate": 0.004,
        "--name": "plate",
    }
    words = [str(word) for option in small.items() for word in option]
    assert main(["train", "--data", str(parts), "--out", str(tmp_path / "b"), *words]) == 0
    said = capsys.readouterr().out
    assert "fit 24 images of 24 parts" in said
    assert "100%  step 30" in said
    assert "validation 0." in said
    assert "bundle written and verified" in said
    assert "FP16 graph exported as well; engines have to agree with FP32 within" in said
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.name == "plate"
    assert {ROLE_GRAPH, ROLE_GRAPH_FP16} <= set(bundle.manifest.files)
    engine = open_engine("onnxruntime", bundle, precision="fp16")
    assert 0.0 < check_golden(engine, bundle) <= (bundle.manifest.golden.tolerance_fp16 or 0.0) <= 0.04


def test_ending_up_with_three_images_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_data(tmp_path / "d", good=3, test_good=0, defective=0)
    assert main(["train", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "b")]) == 2
    assert "found 3 good image(s)" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_a_file_gets_lines() -> None:
    numbers = {"contextual": 0.04123, "validation": 0.039}
    there = Progress(120, 0.5, 80.0, 84.4, numbers)
    assert line(there) == "step 120  contextual 0.0412  validation 0.0390  84 images/s  1:20 left"
    for terminal in (True, False):
        out = io.StringIO()
        with Terminal(Console(file=out, force_terminal=terminal, width=160)) as shown:
            shown.step(there._replace(step=119))
            shown.milestone(there)
        assert "step 120" in out.getvalue()
        assert ("\x1b[" in out.getvalue()) is terminal
        assert ("50%" in out.getvalue()) is not terminal


def test_an_interrupt_before_the_loop_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("contract.dataset.load_dataset", interrupted)
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "bundle")]) == 130
    assert "the same command with --resume" in capsys.readouterr().err
