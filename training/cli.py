"""``flawline train``: options and help; torch is imported only once there is work to do (before hop 1)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from contract.config import validate
from contract.errors import ConfigError
from training.errors import InterruptedBeforeTrainingError
from training.models import MODELS
from training.settings import DEFAULT_MODEL, TrainSettings

EXAMPLES = """
Learn what good parts look like from images of good parts, and write a bundle.

DIR holds train/good/*.png (test/ is never learnt from), or just images. With --conditional it holds a folder of that
kind for each product type, and BUNDLE gets a bundle for each.

Examples:

\b
  flawline train --data parts --out bundle                         40 minutes at 256 px
  flawline train --data parts --out bundle --minutes 75            longer is better
  flawline train --data parts --out bundle --size 128 --tiles 2x3  small defects on large parts
  flawline train --data parts --out bundle --resume                go on after Ctrl-C
  flawline train --data parts --out few --minutes 30 --few-shot    are there enough good images?
  flawline train --data products --out bundles --conditional       one model of several types, a bundle for each
  flawline train --data parts --out bundle --defects known         learn from a few labelled defects as well
  flawline train --data parts --out bundle --model dcgan --loss wasserstein
  torchrun --nproc-per-node 4 -m flawline train --data parts ...   on four graphics cards

"""


def models_help() -> str:
    """The table of models with what ``--score`` and ``--loss`` can be for each; * is what it takes unless asked."""
    lines = ["Models, their scores and losses; * is what is taken unless asked:", "", "\b"]
    for name, model in MODELS.items():
        lines.append(f"  {name + ('*' if name == DEFAULT_MODEL else ''):14} {model.summary}")
        for option, names in (("score", model.scores), ("loss", model.losses)):
            taken = model.preset.get(option, "residual")
            if names:
                lines.append(f"  {'':14} --{option} " + ", ".join(n + "*" if n == taken else n for n in names))
    return "\n".join(lines)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def parse_tiles(text: str) -> tuple[int, int] | Literal["auto"]:
    """``2x3`` -> (2, 3), rows by columns; ``auto``; raises ConfigError."""
    if text.strip().lower() == "auto":
        return "auto"
    match = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", text.strip())
    if match is None:
        raise ConfigError(f"--tiles {text!r}: expected ROWSxCOLUMNS such as 2x3, or auto")
    return int(match.group(1)), int(match.group(2))


@app.command(help=EXAMPLES, epilog=models_help())
def train(
    data: Annotated[Path, typer.Option(metavar="DIR", help="folder of good images (MVTec AD layout)")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="folder to write the bundle to")],
    model: Annotated[str, typer.Option(help="one of the models below")] = DEFAULT_MODEL,
    minutes: Annotated[float | None, typer.Option(help="time to train; 40 unless --steps is given")] = None,
    steps: Annotated[int | None, typer.Option(help="steps to train")] = None,
    name: Annotated[str | None, typer.Option(help="product name; default: the data folder's")] = None,
    size: Annotated[int | None, typer.Option(help="side of a tile in pixels: 64, 128, 256 (multiples of 16)")] = None,
    channels: Annotated[str, typer.Option(help="grey, rgb, or auto (grey where all images are)")] = "auto",
    tiles: Annotated[
        str | None,
        typer.Option(metavar="RxC", help="cut each part into rows x columns of tiles, or auto; default: the model's"),
    ] = None,
    overlap: Annotated[int, typer.Option(metavar="PX", help="pixels that neighbouring tiles share")] = 0,
    width: Annotated[int | None, typer.Option(metavar="NGF", help="channels of the first convolution")] = None,
    latent: Annotated[int | None, typer.Option(help="length of the code")] = None,
    batch: Annotated[int | None, typer.Option(help="tiles in one step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of all optimizers")] = None,
    seed: Annotated[int, typer.Option(help="of weights, split and augmentation")] = 0,
    holdout: Annotated[float, typer.Option(help="share of the parts kept unseen for calibration")] = 0.3,
    validation: Annotated[float, typer.Option(help="share of the parts that select the weights")] = 0.1,
    score: Annotated[
        str | None, typer.Option(help="residual (of the map) or another that the model has; default: the model's")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="adversarial loss, of a model that has several; default: the model's")
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(metavar="RE", help=r"names the part in a file name: 'part(\d+)_'")
    ] = None,
    flips: Annotated[
        str,
        typer.Option(help="mirror good images: none, horizontal, vertical, both, auto (what looks alike)"),
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="go on with a stopped training")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in BUNDLE")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[
        str, typer.Option(help="bf16-mixed, 32-true, or auto (BF16 where the hardware multiplies it)")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="losses and pictures under BUNDLE/.training/tensorboard")
    ] = False,
    fp16: Annotated[bool, typer.Option(help="export an FP16 graph for TensorRT beside the FP32 one")] = True,
    preprocess: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="correct the pictures by it: what flawline calibrate camera wrote"),
    ] = None,
    few_shot: Annotated[
        bool, typer.Option("--few-shot", help="no bundle: a page on what 10, 30 and 100 good images give")
    ] = False,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="one model of the product types DIR/TYPE; writes BUNDLE/TYPE for each")
    ] = False,
    defects: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="labelled defects to learn from, DIR/<class>, masks in DIR/ground_truth"),
    ] = None,
) -> None:
    settings = make_settings({**locals(), "tiles": None if tiles is None else parse_tiles(tiles)})
    try:
        _run(settings)
    except KeyboardInterrupt as stop:
        raise InterruptedBeforeTrainingError(
            "interrupted; a checkpoint, if one was written, is in BUNDLE/.training: the same command with --resume"
        ) from stop


def _run(settings: TrainSettings) -> None:
    """Load torch, now that there is work to do, and train."""
    _look_before_waiting(settings)
    # Spinning OpenMP threads make a step three times slower on a machine that is also doing something else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.build import train as run
    from training.few_shot import few_shot
    from training.report import Quiet, Terminal
    from training.world import is_first

    if settings.few_shot:
        with Terminal(Console()) as terminal:
            few_shot(settings, terminal)
        return
    if not is_first():
        run(settings, Quiet())
        return
    with Terminal(Console()) as terminal:
        run(settings, terminal)


def _look_before_waiting(settings: TrainSettings) -> None:
    """Meet a mistaken folder or pattern at once, not after the seconds that torch takes to load."""
    from contract.dataset import load_dataset
    from training.defect_files import defects_of_types, find_defects
    from training.product_types import type_folders

    folders = type_folders(settings.data) if settings.conditional else [settings.data]
    for folder in folders:
        load_dataset(folder, settings.group_pattern)
    if settings.defects is not None:
        known = defects_of_types(settings.defects, [folder.name for folder in folders]) if settings.conditional else {}
        for root in known.values() or [settings.defects]:
            find_defects(root)


def make_settings(values: dict[str, Any]) -> TrainSettings:
    """Checked settings; raises ConfigError that names the option."""
    try:
        return validate(TrainSettings, values, "flawline train")
    except ConfigError as error:
        text = str(error).replace("flawline train: ", "")  # said in front of every error of the command
        named = re.sub(r"at `(\w+)[.\w]*`", lambda found: f"--{found.group(1).replace('_', '-')}", text)
        raise ConfigError(named.replace("at `(top level)`: Value error, ", "")) from error
