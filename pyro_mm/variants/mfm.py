"""MFM: a discriminative factor that predicts the label, and generative factors of the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Concatenation, JointEncoder, PrivateExperts
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Private
from pyro_mm.objectives import mmd, nll
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality

PAPER = Paper(
    "Tsai, Liang, Zadeh, Morency, Salakhutdinov", "Learning factorized multimodal representations", 2019,
    "arXiv:1806.06176", "joint, modality-specific latents",
)  # fmt: skip


@page(PAPER)
def mfm(
    modalities: Sequence[Modality],
    dim: int = 32,
    private: Mapping[str, int] | int | None = None,
    label: str | None = "label",
    penalty: float = 10.0,
    weights: Mapping[str, float] | None = None,
    width: int = 512,
) -> Recipe:
    """p(z) prod_m p(w_m) p(x_m|z, w_m), the label from z alone: z is the factor for prediction, w_m for generation.

    q(z|x) and q(w_m|x_m) see all modalities but the label, as in the authors' code: z has to predict it.  A row with
    nothing but a label has a z of the prior's, and trains no decoder.

    Minimises  sum_m lambda_m [-log p(x_m|z, w_m)] + penalty [MMD(q(z), p(z)) + sum_m MMD(q(w_m), p(w_m))],  a
    Wasserstein autoencoder's objective (eq. 4), latent by latent as in the authors' code, so that nothing keeps z and w
    independent: the latents of a batch together are drawn towards the prior, no row's own KL is.  The paper's
    encoders are deterministic and its two parts take turns; here encoders are Gaussian and both parts go together.  No
    bound, and the encoders have no density of their own to weigh draws with: `log_marginal` raises `NoLikelihood`.

    Args:
        dim: of z; private: of w_m, one size for all or by modality (default: `dim`).
        label: the modality that has no private latent and no encoder, if there is one of that name beside others.
        penalty: lambda of the MMD.
    """
    seen = [m for m in modalities if m.name != label] or list(modalities)
    sizes = by_modality(modalities, private, {}, dim)
    own = {m.name: sizes[m.name] for m in seen}
    model = Private(decoders(modalities, {m.name: dim + own.get(m.name, 0) for m in modalities}), own, dim)
    model.no_likelihood = "MFM is trained to match latents in distribution only; its guide bounds no log p(x)"
    guide = PrivateExperts(JointEncoder(Concatenation(seen, dim, width), dim), encoders(seen, own))
    shown = given(guide, *guide.names)
    return Recipe("mfm", model, guide, nll(model, shown, weights=weights) + penalty * mmd(model, shown))
