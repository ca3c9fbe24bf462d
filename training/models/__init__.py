"""The table of models, each imported when it is asked for (before hop 1)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from contract.errors import ConfigError

if TYPE_CHECKING:
    from training.models.base import Trainable


class Model(NamedTuple):
    """Where a model lives, its line in the help, the settings it is trained with unless others are asked for, and the
    scores that there are to choose from: ``residual`` is made of the map, the others are its judge's own. Then the
    adversarial losses, where there is a choice, and why no graph is made of the model, where none can be; whether one
    model learns several product types (``training.models.conditional``), and whether labelled defects. ``renamed``: a
    score's name in bundles from before -> its name today."""

    target: str
    summary: str
    preset: dict[str, Any]
    scores: tuple[str, ...] = ("residual",)
    losses: tuple[str, ...] = ()
    not_exported: str = ""
    conditional: bool = False
    defects: bool = False
    renamed: Mapping[str, str] = MappingProxyType({})


MODELS = {
    "ganomaly_d": Model(
        "training.models.ganomaly_d:GanomalyD",
        "GANomaly with a dense discriminator that marks pixels",
        {"size": 256, "width": 16, "latent": 64, "batch": 16, "learning_rate": 3e-3},
        ("residual", "latent"),
        conditional=True,
        defects=True,
    ),
    "f_anogan": Model(
        "training.models.f_anogan:FAnogan",
        "WGAN-GP, then an encoder: a part is what its generator cannot draw",
        {
            "size": 64,
            "tiles": (1, 1),
            "width": 16,
            "latent": 128,
            "batch": 32,
            "learning_rate": 1e-4,
            "score": "features",
        },
        ("residual", "features"),
        renamed={"latent": "features"},
    ),
    "egbad": Model(
        "training.models.egbad:Egbad",
        "BiGAN: tile and code judged as a pair",
        {
            "size": 64,
            "tiles": (1, 1),
            "width": 32,
            "latent": 200,
            "batch": 100,
            "learning_rate": 1e-5,
            "score": "features",
            "loss": "cross_entropy",
        },
        ("residual", "discriminator", "features"),
        ("cross_entropy", "features"),
    ),
    "skip_ganomaly": Model(
        "training.models.skip_ganomaly:SkipGanomaly",
        "U-shaped generator, judged by the discriminator's features as well",
        {
            "size": 64,
            "tiles": (1, 1),
            "width": 32,
            "latent": 100,
            "batch": 32,
            "learning_rate": 2e-4,
            "score": "features",
        },
        ("residual", "features"),
    ),
    "dcgan": Model(
        "training.models.dcgan:Dcgan",
        "plain GAN: a part is what the discriminator doubts",
        {
            "size": 64,
            "tiles": (1, 1),
            "width": 32,
            "latent": 100,
            "batch": 64,
            "learning_rate": 2e-4,
            "score": "discriminator",
            "loss": "non_saturating",
        },
        ("residual", "discriminator"),
        ("non_saturating", "minimax", "wasserstein", "frozen_generator"),
    ),
    "anogan": Model(
        "training.models.anogan:Anogan",
        "plain GAN, and a search for each tile's code; not exported",
        {
            "size": 64,
            "tiles": (1, 1),
            "width": 16,
            "latent": 100,
            "batch": 64,
            "learning_rate": 2e-4,
            "score": "features",
            "loss": "non_saturating",
        },
        ("residual", "features"),
        ("non_saturating", "minimax", "wasserstein", "frozen_generator"),
        "anogan looks for the code of every image by hundreds of gradients, which no graph can hold: it is evaluated "
        "(python -m benchmarks.models), not exported. f_anogan finds the code in one pass: --model f_anogan",
    ),
    "wgan_gp_l1": Model(
        "training.models.wgan_gp_l1:WganGpL1",
        "autoencoder against a WGAN-GP critic, with the L1 distance",
        {"size": 64, "tiles": (1, 1), "width": 16, "latent": 100, "batch": 32, "learning_rate": 1e-4},
        ("residual", "hidden", "latent"),
    ),
    "dec": Model(
        "training.models.dec:Dec",
        "deep embedded clustering: codes drawn to their centres",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent", "cluster"),
    ),
    "dcn": Model(
        "training.models.dcn:Dcn",
        "autoencoder whose codes are kept near k-means' centres",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent", "cluster"),
    ),
    "ganomaly": Model(
        "training.models.ganomaly:Ganomaly",
        "encoder, decoder, encoder as published",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "latent"),
        conditional=True,
    ),
    "ae": Model(
        "training.models.ae:Ae",
        "autoencoder: coded in few numbers and drawn again",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent"),
        conditional=True,
    ),
    "dae": Model(
        "training.models.dae:Dae",
        "denoising autoencoder: learns from damaged tiles",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent"),
        conditional=True,
    ),
    "vae": Model(
        "training.models.vae:Vae",
        "variational autoencoder, judged at the mean of its codes",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent"),
        conditional=True,
    ),
    "aae": Model(
        "training.models.aae:Aae",
        "adversarial autoencoder: codes that pass for normal noise",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 100, "batch": 32, "learning_rate": 2e-4},
        ("residual", "hidden", "latent", "discriminator"),
        conditional=True,
    ),
    "vae_gan": Model(
        "training.models.vae_gan:VaeGan",
        "VAE/GAN: likeness as a discriminator sees it",
        {"size": 64, "tiles": (1, 1), "width": 32, "latent": 128, "batch": 64, "learning_rate": 3e-4},
        ("residual", "hidden", "latent", "features", "discriminator"),
        conditional=True,
    ),
}


def model_entry(name: str) -> Model:
    """The table's line for ``name``; raises ConfigError naming those that there are."""
    entry = MODELS.get(name)
    if entry is None:
        raise ConfigError(f"--model {name!r}: no such model; there are: {', '.join(sorted(MODELS))}")
    return entry


def score_of(name: str, score: str) -> str:
    """Today's name of the ``score`` that a bundle says it was trained for."""
    return model_entry(name).renamed.get(score, score)


def model_class(name: str) -> type[Trainable]:
    """The class that the table gives for ``name``; raises ConfigError naming those that there are."""
    module, _, attribute = model_entry(name).target.partition(":")
    return cast("type[Trainable]", getattr(importlib.import_module(module), attribute))
