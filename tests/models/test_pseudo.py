"""Priors of pseudo-samples: mixtures of what an encoder says, and the fall-back of guides on them."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.modality import Modality
from pyro_mm.models import PseudoSamples, VampPrior

MODALITIES = [
    Modality("image", (1, 4, 4), likelihoods.Binomial(16), networks.MLP((8,))),
    Modality("label", (), likelihoods.Categorical(3), networks.MLP((8,))),
]


def test_the_density_is_the_mixture_of_what_the_encoders_say() -> None:
    torch.manual_seed(0)
    encoders = {m.name: m.encoder(2) for m in MODALITIES}
    pool = VampPrior(encoders, mixture_of_experts, 5)
    priors = pool.inputs
    z, parts = torch.randn(7, 2), {}
    for m, prior in priors.items():
        assert prior.u.shape == (5, *prior.encoder.modality.likelihood.feature_shape(prior.encoder.modality.shape))
        loc, raw = encoders[m].net(prior.u).chunk(2, -1)
        scale = torch.nn.functional.softplus(raw) + 1e-4
        normal = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
        parts[m] = MixtureSameFamily(Categorical(torch.ones(5)), normal).log_prob(z)
        torch.testing.assert_close(prior().log_prob(z), parts[m])
    both = torch.stack(list(parts.values())).logsumexp(0) - torch.tensor(2.0).log()
    torch.testing.assert_close(pool().log_prob(z), both)
    batch = Batch({"label": torch.tensor([0, 2])}, {"label": torch.tensor([False, True])})
    guide = Experts(encoders, mixture_of_experts, pool)
    torch.testing.assert_close(guide.posterior(batch).log_prob(z[:2])[0], both[0])
    torch.testing.assert_close(
        guide.posterior(batch).log_prob(z[:2])[1], encoders["label"](batch.x["label"]).log_prob(z[:2])[1]
    )
    gradient = torch.autograd.grad(pool().log_prob(z).sum(), [p.u for p in priors.values()])
    assert all(bool((g.flatten(1) != 0).any(1).all()) for g in gradient)
    rows = Batch({"image": torch.randint(0, 17, (7, 1, 4, 4)).float(), "label": torch.tensor([0, 1, 2, 1, 0, 2, 1])})
    holed = Batch(rows.x, {"image": torch.arange(7) != 1, "label": torch.ones(7, dtype=torch.bool)})
    assert pool.start_at(holed) is pool
    at = torch.tensor([0, 2, 3, 4, 5])  # the first five that are complete
    each = Experts(encoders, mixture_of_experts).posterior(rows[at]).expand((7, 5))
    expected = each.log_prob(z.unsqueeze(1).expand(7, 5, 2)).logsumexp(-1) - torch.tensor(5.0).log()
    torch.testing.assert_close(pool().log_prob(z), expected)
    with pytest.raises(ValueError, match="5 pseudo-samples of 'image' cannot start at 4"):
        pool.start_at(rows[:4])
    with pytest.raises(ValueError, match="at least 1 pseudo-sample, got 0"):
        PseudoSamples(encoders["image"], 0)
