"""Another prior, or decoder, for a trained system: fitted to what its guide makes of the data, then part of the model.

fit(recipe, data, epochs=50)
better = with_prior(recipe, FlowPrior(dim))
fit(better, data)                                   # moves the prior alone
log_marginal(better.model, better.guide, batch)     # the likelihood under the new prior
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from pyro import poutine
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.guides.backed import backed
from pyro_mm.guides.unconditional import Prior
from pyro_mm.handlers import Verb
from pyro_mm.models import DiffusionDecoder, DiffusionPrior, Joint
from pyro_mm.objectives import denoising, denoising_data, kl
from pyro_mm.recipe import Recipe
from pyro_mm.training.stages import Stage

__all__ = ["with_decoder", "with_prior"]


def with_prior(recipe: Recipe, prior: nn.Module, epochs: int = 20, lr: float | None = None) -> Recipe:
    """The recipe with another p(z), and a `Stage` that fits it to the aggregated posterior.

    The stage minimises the mean over rows of KL(q(z|x) || p(z)) in the prior's own parameters, that is, maximises
    E_x E_q log p(z) ("ex-post density estimation", Ghosh et al. 2020): of all priors q(z) = E_x q(z|x) would have the
    largest ELBO.  A `DiffusionPrior` learns the same by `denoising`.  Decoders and guide are those of `recipe`, shared
    and held still; likelihoods are those of the new model, and so is what a row with nothing present is.  `save` keeps
    its parameters, `load` wants the recipe again.

    Args:
        recipe: of a model with one `prior` of z: `Joint`, `Private`, `Hierarchical`.
        prior: a module that returns p(z): `GaussianMixture`, `FlowPrior`, `VampPrior`, `DiffusionPrior`, yours.
        epochs, lr: of the stage.

    Raises:
        TypeError: the model has no module `prior`.
        ValueError: the prior has no parameters of its own to fit.
    """
    if not isinstance(getattr(recipe.model, "prior", None), nn.Module):
        raise TypeError(f"{type(recipe.model).__name__} has no module `prior` that could be replaced")
    model, guide = _with(recipe.model, prior=prior), backed(recipe.guide, prior)
    fixed = {id(p) for part in (recipe.model, recipe.guide) if isinstance(part, nn.Module) for p in part.parameters()}
    own = nn.ParameterList([p for p in prior.parameters() if id(p) not in fixed])
    if not len(own):
        raise ValueError(f"{type(prior).__name__} has no parameters of its own: there is nothing to fit")
    if isinstance(prior, DiffusionPrior):
        stage = Stage(denoising(Shared(guide), prior.velocity), epochs, prior, "prior fit", lr)
    else:
        stage = Stage(kl(Shared(guide), Prior(prior), analytic=False), epochs, own, "prior fit", lr)
    return _changed(recipe, f"{recipe.name} with {type(prior).__name__}", model, guide, stage)


def with_decoder(recipe: Recipe, decoder: DiffusionDecoder, epochs: int = 20, lr: float | None = None) -> Recipe:
    """The recipe with a diffusion for the decoder of one image modality, and a `Stage` that fits it.

    The stage minimises `denoising_data`, z from the recipe's guide given the whole row; nothing else moves.  What is
    generated is then sharper, at the price of a likelihood: `log_marginal` of the new model raises `NoLikelihood`, that
    of the old one is what it was.  The two share all other networks.

    Args:
        recipe: of a `Joint`, whose one z all decoders read.
        decoder: `DiffusionDecoder(modality, dim)`.
        epochs, lr: of the stage.

    Raises:
        TypeError: the model is another one.
        ValueError: none of them is of this modality.
    """
    if not isinstance(recipe.model, Joint):
        raise TypeError(f"a diffusion decoder reads the z of a Joint, not the latents of {type(recipe.model).__name__}")
    name, decoders = decoder.modality.name, recipe.model.decoders
    if name not in decoders:
        raise ValueError(f"there is no decoder of '{name}' to replace, only of {list(decoders)}")
    model = _with(recipe.model, decoders=nn.ModuleDict({**decoders, name: decoder}))
    model.no_likelihood = f"the decoder of '{name}' is a diffusion, which draws images only"
    stage = Stage(denoising_data(recipe.guide, decoder, name), epochs, decoder, "decoder fit", lr)
    return _changed(recipe, f"{recipe.name} with a diffusion for {name}", model, recipe.guide, stage)


class Shared(Verb):
    """The program's z alone: other latents are drawn, and seen by nobody."""

    def forward(self, batch: Batch) -> Any:
        with poutine.block(expose=["z"]):
            return self.program(batch)


def _with(model: Any, **parts: nn.Module) -> Any:
    """A copy of the model that shares all its modules but these."""
    new = copy.copy(model)
    new._modules = {**model._modules, **parts}
    return new


def _changed(recipe: Recipe, name: str, model: Any, guide: Any, stage: Stage) -> Recipe:
    """The recipe with another model and guide, to be trained by this stage; saved are the model's modules and those of
    the recipe's own guide.
    """
    pair = {"model": model, "guide": recipe.guide}
    modules = {k: v for k, v in pair.items() if isinstance(v, nn.Module)}
    new = {"model": model, "guide": guide, "objective": None, "stages": [stage], "modules": modules}
    return replace(recipe, name=name, **new, sampler=None)
