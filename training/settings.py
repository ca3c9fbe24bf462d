"""What one training run is asked to do: checked before torch is imported (before hop 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from contract.config import Strict
from training.models import MODELS, model_entry

DEFAULT_MINUTES = 40.0
DEFAULT_MODEL = "ganomaly_d"
# What may differ between a run and the one that resumes it: where, how long and on which hardware, not what is learnt.
FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
        "minutes",
        "steps",
        "resume",
        "overwrite",
        "threads",
        "device",
        "fp16",
        "tensorboard",
        "few_shot",
        "defects",
        "preprocess",  # its content is held against that of before, wherever it lies
    }
)


class TrainSettings(Strict):
    """One training run: ``minutes``, ``steps``, or the first reached of both; 40 minutes where neither is given."""

    data: Path
    out: Path
    name: str | None = Field(None, min_length=1, max_length=100, description="product name; default: the data folder's")
    model: str = DEFAULT_MODEL
    minutes: float | None = Field(None, gt=0, le=60 * 24 * 14)
    steps: int | None = Field(None, ge=1, le=100_000_000)
    size: int = Field(ge=64, le=256, description="side of a tile in pixels")
    channels: Literal["grey", "rgb", "auto"] = "auto"
    tiles: tuple[int, int] | Literal["auto"] = Field("auto", description="rows, columns; auto: training.tiling")
    overlap: int = Field(0, ge=0, description="pixels shared by neighbouring tiles")
    width: int = Field(ge=4, le=256, description="channels of the first convolution")
    latent: int = Field(ge=4, le=1024)
    batch: int = Field(ge=2, le=4096)
    learning_rate: float = Field(gt=0, le=1.0)
    seed: int = Field(0, ge=0, lt=2**31)
    holdout: float = Field(0.3, ge=0.0, le=0.8, description="share of the parts kept for calibration")
    validation: float = Field(0.1, gt=0.0, le=0.5, description="share of the parts that select the weights")
    score: str = Field("residual", description="one of those that the table of models gives for the model")
    loss: str | None = Field(None, description="adversarial loss; one of the model's, where it has a choice")
    group_pattern: str | None = None
    flips: Literal["auto", "none", "horizontal", "vertical", "both"] = "auto"
    resume: bool = False
    overwrite: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    threads: int | None = Field(None, ge=1, le=256)
    fp16: bool = Field(True, description="export an FP16 graph beside the FP32 one")
    tensorboard: bool = False
    few_shot: bool = False
    defects: Path | None = Field(None, description="folder of labelled defective images to learn from")
    conditional: bool = Field(False, description="one model of several product types, a folder of data each")
    preprocess: Path | None = Field(None, description="corrects the pictures: flawline calibrate camera")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """40 minutes where no budget is given, and the model's own preset for whatever is not asked for."""
        if not isinstance(values, dict):
            return values
        budgetless = values.get("minutes") is None and values.get("steps") is None
        budget = {"minutes": DEFAULT_MINUTES} if budgetless else {}
        preset = model_entry(str(values.get("model", DEFAULT_MODEL))).preset
        return {**preset, **{name: value for name, value in values.items() if value is not None}, **budget}

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        scores, losses = model_entry(self.model).scores, model_entry(self.model).losses
        if self.score not in scores:
            raise ValueError(f"--score {self.score!r}: {self.model} has {', '.join(scores)}")
        if self.loss is not None and self.loss not in losses:
            raise ValueError(f"--loss {self.loss!r}: {self.model} has {', '.join(losses) or 'no choice of losses'}")
        if self.size % 16:
            raise ValueError(
                f"--size {self.size} is not a multiple of 16; expected 64, 80, ... 256 (64, 128 or 256 fit best)"
            )
        if self.tiles != "auto" and not all(1 <= count <= 16 for count in self.tiles):
            raise ValueError(f"--tiles {self.tiles[0]}x{self.tiles[1]}: expected 1x1 to 16x16 (rows x columns)")
        if self.tiles == "auto" and self.overlap:
            raise ValueError(f"--overlap {self.overlap} px: give --tiles as well, such as 2x3; auto chooses both")
        if self.overlap >= self.size:
            raise ValueError(f"--overlap {self.overlap} px is not below the tile's {self.size} px")
        if self.few_shot and self.resume:
            raise ValueError("--few-shot trains several times from the start: it cannot be resumed")
        if self.conditional:
            self._conditional()
        if self.defects is not None:
            self._with_defects()
        if self.holdout + self.validation > 0.9:
            raise ValueError(
                f"--holdout {self.holdout} and --validation {self.validation} leave under 10 % to learn from"
            )
        return self

    def _conditional(self) -> None:
        if not model_entry(self.model).conditional:
            able = ", ".join(sorted(name for name, model in MODELS.items() if model.conditional))
            raise ValueError(f"--conditional: {self.model} learns one product type; several are learnt by {able}")
        if self.few_shot:
            raise ValueError("--few-shot tries one product type at a time: give --data DIR/TYPE without --conditional")
        if self.name is not None:
            raise ValueError(f"--name {self.name!r}: with --conditional each bundle is named after its type's folder")

    def _with_defects(self) -> None:
        if not model_entry(self.model).defects:
            able = ", ".join(sorted(name for name, model in MODELS.items() if model.defects))
            raise ValueError(
                f"--defects: {self.model} has no discriminator that learns where a defect is; labelled ones are learnt "
                f"by {able}"
            )
        if self.few_shot:
            raise ValueError("--few-shot is about good images: train it without --defects")

    def learnt(self) -> dict[str, Any]:
        """The settings that decide what is learnt, as JSON types: equal for a run and its resumption."""
        return self.model_dump(mode="json", exclude=set(FREE_ON_RESUME))
