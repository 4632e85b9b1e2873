"""Guides built from experts, from one joint network, and from surrogates of it."""

from __future__ import annotations

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.guides import (
    Concatenation,
    Experts,
    JointEncoder,
    Surrogate,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint, LearntScale
from pyro_mm.weights import log_weights, run
from tests.helpers.oracle import PATTERNS, gradients

D = torch.float64
DIM = 3
MODALITIES = [
    Modality("image", (4,), likelihoods.Normal(0.5), networks.MLP((8,))),
    Modality("label", (), likelihoods.Categorical(3), networks.MLP((8,))),
    Modality("sound", (2,), likelihoods.Normal(0.5), networks.MLP((8,))),
]


@pytest.fixture
def batch() -> Batch:
    x = {
        "image": torch.randn(5, 4, dtype=D),
        "label": torch.tensor([0, 2, 1, 1, 0]),
        "sound": torch.randn(5, 2, dtype=D),
    }
    return Batch(x, {m.name: PATTERNS[:, i] for i, m in enumerate(MODALITIES)})


def experts(fuse=product_of_experts, **kwargs) -> Experts:
    return Experts(encoders(MODALITIES, DIM), fuse, **kwargs).double()


def joint() -> JointEncoder:
    return JointEncoder(Concatenation(MODALITIES, DIM, 16), DIM).double()


def moments(q: dist.TorchDistribution) -> tuple[Tensor, Tensor]:
    return q.base_dist.loc, q.base_dist.scale


def same(q: dist.TorchDistribution, p: dist.TorchDistribution, rows: slice | Tensor = slice(None)) -> None:
    for a, b in zip(moments(q), moments(p), strict=True):
        assert torch.equal(a[rows], b[rows])


def test_experts_are_the_fusion_of_their_encoders(batch):
    guide = experts()
    each = [encoder(batch.x[m]) for m, encoder in guide.encoders.items()]
    loc, scale = (torch.stack([moments(q)[i] for q in each], -2) for i in (0, 1))
    same(guide.posterior(batch), product_of_experts(loc, scale, PATTERNS))
    site = run(guide, batch)["z"]
    assert [(f.name, f.dim, f.size) for f in site.frames] == [("data", -1, 5)]
    torch.testing.assert_close(site.log_prob(), guide.posterior(batch).log_prob(site.value))
    assert guide.names == ("image", "label", "sound")


class Counting(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        self.calls += 1
        return self.net(x)


def test_encoders_of_hidden_modalities_are_not_run_and_change_nothing(batch):
    guide = Experts({m: Counting(e) for m, e in encoders(MODALITIES, DIM).items()}, product_of_experts).double()
    view = batch.only("label")
    hidden = guide.posterior(view)
    assert {m: e.calls for m, e in guide.encoders.items()} == {"image": 0, "label": 1, "sound": 0}
    run_all = guide.posterior(Batch._view(view.x, view.mask))
    same(hidden, run_all)


def test_a_modality_without_encoder_is_never_seen_and_one_the_batch_lacks_is_missing(batch):
    guide = experts()
    two = Experts({m: guide.encoders[m] for m in ("image", "sound")}, product_of_experts)
    same(two.posterior(batch), guide.posterior(batch.without("label")))
    less = Batch({m: batch.x[m] for m in ("image", "label")}, {m: batch.mask[m] for m in ("image", "label")})
    same(guide.posterior(less), guide.posterior(batch.without("sound")))
    other = Batch({"smell": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"the guide reads \['image', 'label', 'sound'\], the batch holds \['smell'\]"):
        guide.posterior(other)


@pytest.mark.parametrize("fuse", [product_of_experts, mixture_of_experts, mixture_of_products, product_of_posteriors])
def test_everything_hidden_is_the_prior(batch, fuse):
    guide = experts(fuse)
    nothing = Batch(batch.x, {m: torch.zeros(5, dtype=torch.bool) for m in batch.x})
    z = torch.randn(5, DIM, dtype=D)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    for view in (nothing, nothing.only("image"), nothing.without("image", "sound", "label")):
        assert torch.equal(guide.posterior(view).log_prob(z), truth)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_a_learnt_prior_is_the_posterior_of_a_row_with_nothing(batch, family):
    """Its log-weight is 0, and no gradient reaches the prior from it."""
    prior = LearntScale(DIM, family).double()
    with torch.no_grad():
        prior.raw.copy_(torch.tensor([0.3, -0.5, 0.1]))
    model = Joint(decoders(MODALITIES, DIM), prior).double()
    guide = experts(partial(mixture_of_experts, family=family), prior=prior)
    log_w = log_weights(model, guide, batch, 50)
    assert log_w[:, 3].abs().max().item() < 1e-13  # row 3 has nothing present
    assert gradients(log_w[:, 3].sum(), model)["prior.raw"].abs().max().item() < 1e-12
    assert log_w[:, :3].abs().min().item() > 1e-6


def test_a_rule_without_a_prior_argument_cannot_have_another_prior():
    def rule(loc, scale, mask):
        return product_of_experts(loc, scale, mask)

    with pytest.raises(TypeError, match="takes no `prior`"):
        experts(rule, prior=LearntScale(DIM))
    assert experts(rule, prior=None).prior is None


def test_a_joint_encoder_sees_zeros_where_something_is_missing(batch):
    guide = joint()
    net = guide.net
    parts = []
    for m, body in net.bodies.items():
        features = {"image": batch.x["image"], "sound": batch.x["sound"]}.get(m)
        features = torch.eye(3, dtype=D)[batch.x["label"]] if features is None else features
        parts.append(body(features * batch.mask[m].unsqueeze(-1)))
    loc, raw = net.out(net.head(torch.cat(parts, -1))).chunk(2, -1)
    scale = nn.functional.softplus(raw) + 1e-4
    some = PATTERNS.any(-1)
    q = guide.posterior(batch)
    torch.testing.assert_close(q.base_dist.loc[some], loc[some])
    torch.testing.assert_close(q.base_dist.scale[some], scale[some])
    assert torch.equal(q.base_dist.loc[~some], torch.zeros(1, DIM, dtype=D))
    assert torch.equal(q.base_dist.scale[~some], torch.ones(1, DIM, dtype=D))


def test_stacked_views_of_every_guide_are_the_single_views(batch):
    groups = [("image", "label", "sound"), ("label",), ("image", "sound"), ()]
    views = batch.subsets(groups)
    surrogate = Surrogate(joint(), encoders(MODALITIES, DIM)).double()
    for guide in (experts(), joint(), surrogate):
        loc, scale = moments(guide.posterior(views))
        assert loc.shape == (4, 5, DIM)
        for s, group in enumerate(groups):
            alone = moments(guide.posterior(batch.only(*group)))
            torch.testing.assert_close(loc[s], alone[0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(scale[s], alone[1], rtol=1e-10, atol=1e-12)


def test_a_surrogate_is_joint_for_complete_rows_and_a_product_for_the_rest(batch):
    guide = Surrogate(joint(), encoders(MODALITIES, DIM)).double()
    q = guide.posterior(batch)
    full = PATTERNS.all(-1)
    same(q, guide.joint.posterior(batch), full)
    product = Experts(guide.unimodal.encoders, product_of_posteriors).posterior(batch)
    same(q, product, ~full)
    one = guide.unimodal.encoders["label"](batch.x["label"])  # row 2 has the label alone
    same(q, one, slice(2, 3))
    assert torch.equal(q.base_dist.loc[3], torch.zeros(DIM, dtype=D))
    assert torch.equal(q.base_dist.scale[3], torch.ones(DIM, dtype=D))


def test_given_one_modality_a_surrogate_is_that_encoder(batch):
    guide = Surrogate(joint(), encoders(MODALITIES, DIM)).double()
    seen = batch.mask["image"]
    site = run(given(guide, "image"), batch)["z"]
    alone = guide.unimodal.encoders["image"](batch.x["image"])
    z = site.value
    torch.testing.assert_close(site.log_prob()[seen], alone.log_prob(z)[seen])
    complete = Batch(batch.x)
    same(guide.posterior(complete), guide.joint.posterior(complete))


def test_gradients_reach_the_part_that_answered(batch):
    guide = Surrogate(joint(), encoders(MODALITIES, DIM)).double()
    for row, parts in ((0, {"joint"}), (2, {"label"}), (3, set()), (4, {"label", "sound"})):
        loc, scale = moments(guide.posterior(batch))
        found = gradients(loc[row].sum() + scale[row].log().sum(), guide)
        moved = {n.split(".")[0] if "joint" in n else n.split(".")[2] for n, g in found.items() if bool((g != 0).any())}
        assert moved == parts, row


def test_a_surrogate_ignores_modalities_that_are_not_its_own(batch):
    """A fourth modality, present or not, does not decide what counts as complete."""
    guide = Surrogate(joint(), encoders(MODALITIES, DIM)).double()
    more = Batch(batch.x | {"smell": torch.zeros(5, dtype=D)}, batch.mask | {"smell": torch.zeros(5, dtype=torch.bool)})
    same(guide.posterior(more), guide.posterior(batch))
    same(guide.posterior(more.without("smell")), guide.posterior(batch))


@pytest.mark.parametrize("make", [experts, joint, lambda: Surrogate(joint(), encoders(MODALITIES, DIM)).double()])
def test_values_under_a_mask_change_no_bit(batch, make):
    guide = make()
    dirty = Batch._view(
        {m: torch.where(batch.mask[m].view(-1, *[1] * (v.dim() - 1)), v, 1) for m, v in batch.x.items()}, batch.mask
    )
    same(guide.posterior(dirty), guide.posterior(batch))
