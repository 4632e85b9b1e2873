"""A traversal moves one coordinate and nothing that does not hang on it: all against means worked out by hand."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian
from pyro_mm.evaluation import encode
from pyro_mm.modality import Modality
from pyro_mm.plots.traversals import latents_of, traversal

VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
NAMES = ("a", "b")
PAIR = [Modality("a", (3,), likelihoods.Normal(0.1)), Modality("b", (4,), likelihoods.Normal(0.1))]
A = {"a": torch.tensor([[1.0, 2], [0, 1], [3, -1]]), "b": torch.tensor([[2.0, 0], [1, 1], [0, -2], [1, 4]])}
B = {m: w.flip(1) * 0.5 for m, w in A.items()}
PRIOR, OWN = ((0.5, -1.0), (2.0, 1.0)), ((1.0, 0.0), (0.5, 3.0))  # loc and scale, of z and of w_m
LINK = {"a": torch.tensor([[1.0, 0.5], [0, 2]]), "b": torch.tensor([[-1.0, 1], [1, 1]])}
SHIFT = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([0.0, -2])}


def normal(loc: Any, scale: Any = 1.0) -> dist.TorchDistribution:
    return dist.Normal(torch.as_tensor(loc), torch.as_tensor(scale)).to_event(1)


class Apart(nn.Module):
    """z ~ p(z);  w_m ~ p(w_m);  x_m ~ N(A_m z + B_m w_m, 0.1)."""

    names = NAMES

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", normal(*PRIOR))
            for m in NAMES:
                with poutine.mask(mask=batch.mask[m]):
                    w = pyro.sample(f"w_{m}", normal(*OWN))
                    pyro.sample(m, normal(z @ A[m].T + w @ B[m].T, 0.1), obs=batch.x[m])


class Above(nn.Module):
    """z ~ p(z);  z_m_2 ~ N(C_m z + b_m, 0.5);  z_m ~ N(2 z_m_2, 0.25);  x_m ~ N(A_m z_m, 0.1)."""

    names = NAMES

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", normal(*PRIOR))
            for m in NAMES:
                with poutine.mask(mask=batch.mask[m]):
                    upper = pyro.sample(f"z_{m}_2", normal(z @ LINK[m].T + SHIFT[m], 0.5))
                    lower = pyro.sample(f"z_{m}", normal(2 * upper, 0.25))
                    pyro.sample(m, normal(lower @ A[m].T, 0.1), obs=batch.x[m])


class Seen(nn.Module):
    """q(z | x) with the mean of what is seen in both coordinates; latents of m have the first two elements of x_m."""

    names = NAMES

    def __init__(self, *sites: str, scale: tuple[float, float] = (1.0, 0.5)) -> None:
        super().__init__()
        self.sites, self.scale = sites, scale

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            seen = torch.stack([batch.mask[m].float() for m in NAMES]).unsqueeze(-1)
            total = (torch.stack([batch.x[m][:, :2] for m in NAMES]) * seen).sum(0)
            pyro.sample("z", normal(torch.where(seen.any(0), total, torch.tensor(PRIOR[0])), self.scale))
            for site in self.sites:
                with poutine.mask(mask=batch.mask[site[2]]):
                    pyro.sample(site, normal(batch.x[site[2]][:, :2], 0.3))


@pytest.fixture
def rows() -> Batch:
    noise = torch.Generator().manual_seed(3)
    return Batch({"a": torch.randn(4, 3, generator=noise), "b": torch.randn(4, 4, generator=noise)})


def lines(axes: dict[Any, Any], d: int, m: str, count: int = len(VALUES)) -> np.ndarray:
    """What the cells of one line show, `(values, *event)`."""
    return np.stack([axes[d, m, i].lines[0].get_ydata() for i in range(count)])


def path_of(start: Tensor, d: int, prior: Any) -> Tensor:
    """A latent `(values, 2)` whose coordinate d moves in prior standard deviations."""
    found = start.repeat(len(VALUES), 1)
    found[:, d] = prior[0][d] + prior[1][d] * torch.tensor(VALUES)
    return found


def test_z_moves_all_modalities_and_leaves_private_latents_at_the_posterior(rows: Batch) -> None:
    _, axes = traversal(Apart(), Seen("w_a", "w_b"), PAIR, rows, row=1, dims=[1, 0])
    assert set(axes) == {(d, m, i) for d in (0, 1) for m in NAMES for i in range(7)}
    z = rows.x["a"][1, :2] + rows.x["b"][1, :2]
    for d in (0, 1):
        for m in NAMES:
            want = path_of(z, d, PRIOR) @ A[m].T + rows.x[m][1, :2] @ B[m].T
            assert np.allclose(lines(axes, d, m), want, atol=1e-5)


def test_a_private_coordinate_moves_its_own_modality_alone(rows: Batch) -> None:
    _, axes = traversal(Apart(), Seen("w_a", "w_b"), PAIR, rows, site="w_b", dims=[0, 1])
    z = rows.x["a"][0, :2] + rows.x["b"][0, :2]
    for d in (0, 1):
        moved = z @ A["b"].T + path_of(rows.x["b"][0, :2], d, OWN) @ B["b"].T
        assert np.allclose(lines(axes, d, "b"), moved, atol=1e-5)
        still = z @ A["a"].T + rows.x["a"][0, :2] @ B["a"].T
        assert np.allclose(lines(axes, d, "a"), still, atol=1e-5)


def test_latents_below_z_are_at_their_conditional_means(rows: Batch) -> None:
    """However many links there are, and although the guide has means of its own for them."""
    _, axes = traversal(Above(), Seen("z_a", "z_b", "z_a_2", "z_b_2"), PAIR, rows, row=2, dims=[0])
    z = path_of(rows.x["a"][2, :2] + rows.x["b"][2, :2], 0, PRIOR)
    for m in NAMES:
        assert np.allclose(lines(axes, 0, m), 2 * (z @ LINK[m].T + SHIFT[m]) @ A[m].T, atol=1e-4)


def test_a_latent_of_a_branch_moves_about_its_conditional_mean(rows: Batch) -> None:
    """In standard deviations of p(z_a_2 | z); z_a follows, and the other branch stays where the guide puts it."""
    _, axes = traversal(Above(), Seen("z_a", "z_b", "z_a_2", "z_b_2"), PAIR, rows, site="z_a_2", dims=[1])
    z = rows.x["a"][0, :2] + rows.x["b"][0, :2]
    above = z @ LINK["a"].T + SHIFT["a"]
    upper = path_of(rows.x["a"][0, :2], 1, (above, torch.tensor([0.5, 0.5])))
    assert np.allclose(lines(axes, 1, "a"), 2 * upper @ A["a"].T, atol=1e-4)
    assert np.allclose(lines(axes, 1, "b"), rows.x["b"][0, :2] @ A["b"].T, atol=1e-5)


def test_what_the_row_lacks_and_what_the_guide_lacks_is_the_models(rows: Batch) -> None:
    absent = Batch(rows.x, {"b": torch.tensor([False, True, True, True])})
    _, axes = traversal(Apart(), Seen("w_b"), PAIR, absent, dims=[0])  # b is missing; no guide of w_a
    for m in NAMES:
        want = path_of(rows.x["a"][0, :2], 0, PRIOR) @ A[m].T + torch.tensor(OWN[0]) @ B[m].T
        assert np.allclose(lines(axes, 0, m), want, atol=1e-5)


def test_without_a_row_all_else_is_at_the_priors_means(rows: Batch) -> None:
    _, axes = traversal(Apart(), Seen("w_a", "w_b"), PAIR, rows, row=None, dims=[1])
    z = path_of(torch.tensor(PRIOR[0]), 1, PRIOR)
    for m in NAMES:
        assert np.allclose(lines(axes, 1, m), z @ A[m].T + torch.tensor(OWN[0]) @ B[m].T, atol=1e-5)


def test_a_dependence_through_the_scale_alone_counts(rows: Batch) -> None:
    class Loud(Apart):
        """w_a ~ N(0, exp z): its mean is 0 wherever z is, and no posterior mean would be right."""

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", normal(*PRIOR))
                w = pyro.sample("w_a", normal(torch.zeros(2), z.exp()))
                pyro.sample("a", normal(w @ A["a"].T, 0.1), obs=batch.x["a"])
                pyro.sample("b", normal(z @ A["b"].T, 0.1), obs=batch.x["b"])

    _, axes = traversal(Loud(), Seen("w_a"), PAIR, rows, dims=[0])
    assert np.allclose(lines(axes, 0, "a"), 0.0)


def test_the_flat_model_agrees_with_its_oracle() -> None:
    oracle = LinearGaussian.random({"a": 3, "b": 2}, 3)
    model, guide, data = oracle.model(), oracle.exact_guide(), oracle.sample(5)
    _, axes = traversal(model, guide, oracle.modalities, data, row=-1, dims=[2], values=[-1.5, 0.25])
    z = encode(guide, data).mean["z"][-1].repeat(2, 1)
    z[:, 2] = torch.tensor([-1.5, 0.25])
    for m in NAMES:
        want = z @ oracle.weights[m].T + oracle.offsets[m]
        assert np.allclose(lines(axes, 2, m, 2), want, atol=1e-6)


def test_default_dimensions_are_those_furthest_from_the_prior(rows: Batch) -> None:
    """KL per dimension by hand: a narrow posterior makes the second the larger, a wide one the first."""
    for scale, narrow in (((2.0, 1e-3), 1), ((2e-3, 1.0), 0)):
        _, axes = traversal(Apart(), Seen(scale=scale), PAIR, rows, dims=1)
        assert {key[0] for key in axes} == {narrow}
    _, axes = traversal(Apart(), Seen(scale=(2.0, 1e-3)), PAIR, rows)
    assert list(dict.fromkeys(key[0] for key in axes)) == [1, 0], "all of them, the largest first"
    _, axes = traversal(Apart(), Seen(), PAIR, rows, site="w_a", dims=1)
    assert {key[0] for key in axes} == {0}, "in order where the guide has none"


def test_layers_and_private_latents_of_the_library() -> None:
    """The published systems: a coordinate of one modality's latent changes that modality alone, one of z all."""
    shapes = {"a": Modality("a", (3,), likelihoods.Normal(0.1)), "b": Modality("b", (4,), likelihoods.Normal(0.1))}
    rows = Batch({m: torch.randn(6, *s.shape) for m, s in shapes.items()})
    for build, letter in ((variants.nexus_elbo, "z"), (variants.dmvae, "w")):
        recipe = build(list(shapes.values()), 2)
        assert latents_of(recipe.model, rows[0]) == ["z", f"{letter}_a", f"{letter}_b"]
        for site, moving in (("z", {"a", "b"}), (f"{letter}_a", {"a"}), (f"{letter}_b", {"b"})):
            _, axes = traversal(recipe, rows, site=site, dims=[0], values=[-30.0, 30.0])
            still = {m: np.allclose(*lines(axes, 0, m, 2), atol=1e-6) for m in NAMES}
            assert still == {m: m not in moving for m in NAMES}, (recipe.name, site)


def test_only_the_modalities_asked_for_are_drawn_and_values_stand_over_columns(rows: Batch) -> None:
    figure, axes = traversal(Apart(), Seen(), PAIR, rows, of=["b"], values=[-1.5, 0, 2], dims=2)
    assert {key[1] for key in axes} == {"b"}
    figure.canvas.draw()
    texts = {t.get_text(): t.get_window_extent() for t in figure.texts}
    assert set(texts) == {"prior sd", "−1.5", "0", "+2", "b", "z[0]", "z[1]"}
    for place, head in enumerate(("−1.5", "0", "+2")):
        cell = axes[0, "b", place].get_window_extent()
        assert texts[head].x0 + texts[head].x1 == pytest.approx(cell.x0 + cell.x1, abs=2)
    boxes = [*texts.values(), *(ax.get_window_extent() for ax in axes.values())]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_nothing_of_the_callers_is_touched(rows: Batch) -> None:
    recipe = variants.mvae(PAIR, 2)
    recipe.model.train()
    before = torch.get_rng_state()
    traversal(recipe, rows)
    assert torch.equal(before, torch.get_rng_state()) and recipe.model.training
    assert all(p.grad is None for p in recipe.model.parameters()) and rows.mask["a"].all()


def test_wrong_input_is_refused_by_name(rows: Batch) -> None:
    pair = Apart(), Seen("w_a"), PAIR, rows
    with pytest.raises(TypeError, match="traversal takes"):
        traversal(*pair[:3])
    with pytest.raises(ValueError, match=r"no latent 'w_c' that can be moved; it has \['z', 'w_a', 'w_b'\]"):
        traversal(*pair, site="w_c")
    with pytest.raises(ValueError, match=r"no latent 'a' that can be moved"):
        traversal(*pair, site="a")
    with pytest.raises(ValueError, match=r"'z' has dimensions 0 to 1, each at most once; got dims=\[2, -1\]"):
        traversal(*pair, dims=[0, 2, -1])
    with pytest.raises(ValueError, match=r"each at most once; got dims=\[1, 1\]"):
        traversal(*pair, dims=[1, 1])
    with pytest.raises(ValueError, match="got dims=0"):
        traversal(*pair, dims=0)
    with pytest.raises(ValueError, match="there is no row 4: the batch has 4"):
        traversal(*pair, row=4)
    with pytest.raises(ValueError, match="there is no row 0: the batch has 0"):
        traversal(*pair[:3], rows[[]])
    with pytest.raises(ValueError, match="1 to 12 values, got 0"):
        traversal(*pair, values=[])
    with pytest.raises(ValueError, match=r"of= names \['c'\]"):
        traversal(*pair, of=["c"])
