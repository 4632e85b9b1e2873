"""Published tables of log-likelihoods: their systems with the paper's networks, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pyro_mm import variants
from pyro_mm.data import Splits
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Embedding, Net
from pyro_mm.recipe import Recipe

__all__ = ["ALPHA", "LABEL_WEIGHT", "QUANTITIES", "TABLES", "PublishedTable", "jmvae_networks", "mvae_networks"]

QUANTITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "log p(image)": (("image",), ()),
    "log p(image, label)": (("image", "label"), ()),
    "log p(image | label)": (("image",), ("label",)),
    "log p(label | image)": (("label",), ("image",)),
}
ALPHA, LABEL_WEIGHT = 0.1, 50.0
IMAGE, JOINT, CONDITIONAL, LABEL = QUANTITIES
WITHOUT_FIGURES: dict[str, dict[tuple[str, str], float]] = {
    n: {} for n in ("mnist_grey", "fashion_mnist", "fashion_mnist_grey")
}
ALPHAS = {f"jmvae_kl_{alpha:g}": alpha for alpha in (0.01, 0.1, 1.0)}


@dataclass(frozen=True)
class PublishedTable:
    """What a paper compares.

    Attributes:
        story: what it is, in a few lines.
        systems: the quantities that each defines, in the order of their measuring.
        published: the paper's figures in nats per row, by data set and then `(system, quantity)`.  A data set that has
            none can be run all the same.
        build: `(system, modalities, dim, options) -> Recipe`; options are `beta`, `alpha` and `label_weight`.
        networks: the data's modalities with the paper's networks.
    """

    story: str
    systems: Mapping[str, tuple[str, ...]]
    published: Mapping[str, Mapping[tuple[str, str], float]]
    build: Callable[[str, list[Modality], int, dict[str, Any]], Recipe] = field(repr=False)
    networks: Callable[[Splits], list[Modality]] = field(repr=False)


def mvae_networks(splits: Splits) -> list[Modality]:
    """Wu & Goodman's: encoders of two layers of 512, decoders of three, the label embedded in 512."""
    decoder = MLP((512, 512, 512), nn.SiLU)
    return _with(splits, MLP((512, 512), nn.SiLU), Embedding(512, (512,), nn.SiLU), decoder)


def jmvae_networks(splits: Splits) -> list[Modality]:
    """Suzuki et al.'s: two layers of 512 in encoders and decoders, and one more where the joint encoder concatenates.

    (Below that the paper's joint encoder has one layer per modality; here they are those of the single encoders.)
    """
    return _with(splits, MLP((512, 512)), Embedding(512, (512,)), MLP((512, 512)))


def _with(splits: Splits, image: Net, label: Net, decoder: Net) -> list[Modality]:
    nets = {"image": image, "label": label}
    return [replace(m, net=nets[m.name], decoder_net=decoder) for m in splits.modalities]


def _of_mvae(system: str, modalities: list[Modality], dim: int, options: dict[str, Any]) -> Recipe:
    asked = {"beta": options["beta"]}
    if system == "mvae":
        asked["weights"] = {"label": options["label_weight"]}
    if system == "jmvae_kl":
        asked["alpha"] = options["alpha"]
    recipe: Recipe = getattr(variants, system)(modalities, dim, **asked)
    return recipe


def _of_jmvae(system: str, modalities: list[Modality], dim: int, options: dict[str, Any]) -> Recipe:
    if system == "jmvae_zero":
        return variants.jmvae_zero(modalities, dim, beta=options["beta"])
    return variants.jmvae_kl(modalities, dim, ALPHAS[system], beta=options["beta"])


TABLES: dict[str, PublishedTable] = {
    "mvae_table": PublishedTable(
        "Table 2 of Wu & Goodman (2018): VAE, CVAE, JMVAE-kl and MVAE. Neither K nor the estimator is stated ('using "
        "q(z|x1)'). Its columns for grey pixels are cross-entropies of grey values, which are no densities.",
        {
            "vae": (IMAGE,),
            "cvae": (CONDITIONAL,),
            "jmvae_kl": (JOINT, CONDITIONAL, IMAGE),
            "mvae": (JOINT, CONDITIONAL, IMAGE),
        },
        {
            "mnist": {
                ("vae", IMAGE): -86.313,
                ("jmvae_kl", IMAGE): -86.305,
                ("mvae", IMAGE): -86.026,
                ("jmvae_kl", JOINT): -86.371,
                ("mvae", JOINT): -86.255,
                ("cvae", CONDITIONAL): -83.448,
                ("jmvae_kl", CONDITIONAL): -83.985,
                ("mvae", CONDITIONAL): -83.970,
            },
            **WITHOUT_FIGURES,
        },
        _of_mvae,
        mvae_networks,
    ),
    "jmvae_table": PublishedTable(
        "Table 3 of Suzuki et al. (2016): JMVAE with zeros for what is missing, and JMVAE-kl by alpha. The paper has "
        "bounds on log p(image, label) with K = 1,000.",
        dict.fromkeys(["jmvae_zero", *ALPHAS], tuple(QUANTITIES)),
        {
            "mnist": {
                ("jmvae_zero", JOINT): -86.96,
                ("jmvae_kl_0.01", JOINT): -86.94,
                ("jmvae_kl_0.1", JOINT): -86.93,
                ("jmvae_kl_1", JOINT): -89.28,
            },
            **WITHOUT_FIGURES,
        },
        _of_jmvae,
        jmvae_networks,
    ),
}
"""By name."""
