"""Attention over sets, and the workspace, against torch's own attention run on the present tokens alone."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from pyro_mm.guides import Messages, SetAttention, Workspace
from pyro_mm.guides.messages import Sender
from pyro_mm.guides.set_attention import MaskedAttention
from tests.helpers.oracle import LG

D, WIDTH = torch.float64, 8


def torchs(ours: MaskedAttention) -> nn.MultiheadAttention:
    """The same parameters in torch's module."""
    theirs = nn.MultiheadAttention(WIDTH, ours.heads, batch_first=True).to(D)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.queries.weight, ours.keys.weight, ours.values.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.queries.bias, torch.zeros(WIDTH, dtype=D), ours.values.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


def attend(theirs: nn.MultiheadAttention, queries: Tensor, tokens: Tensor) -> Tensor:
    return theirs(queries.unsqueeze(0), tokens.unsqueeze(0), tokens.unsqueeze(0))[0][0]


def drawn(n: int = 5, m: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.rand(n, m) < 0.6
    mask[0], mask[1] = True, torch.arange(m) == 2
    return torch.randn(n, m, WIDTH, dtype=D), mask


def test_attention_is_torchs_over_the_present_tokens():
    torch.manual_seed(0)
    ours = MaskedAttention(WIDTH, 2).to(D)
    tokens, mask = drawn()
    queries = torch.randn(3, WIDTH, dtype=D)
    out = ours(queries.expand(5, 3, WIDTH), tokens, mask)
    for i in range(5):
        torch.testing.assert_close(out[i], attend(torchs(ours), queries, tokens[i, mask[i]]))
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        MaskedAttention(WIDTH, 3)
    with pytest.raises(ValueError, match="at least 1 token must win"):
        MaskedAttention(WIDTH, 2, top=0)


def test_the_highest_scores_share_the_attention():
    """With one head: torch's attention over the `top` tokens of the highest scores, chosen for every query."""
    torch.manual_seed(0)
    ours = MaskedAttention(WIDTH, 1, top=2).to(D)
    tokens, mask = drawn()
    queries = torch.randn(3, WIDTH, dtype=D)
    out = ours(queries.expand(5, 3, WIDTH), tokens, mask)
    for i in range(5):
        present = tokens[i, mask[i]]
        score = ours.queries(queries) @ ours.keys(present).mT
        for j in range(3):
            winners = score[j].topk(min(2, len(present))).indices
            torch.testing.assert_close(out[i, j], attend(torchs(ours), queries[j : j + 1], present[winners])[0])


def test_set_attention_is_a_transformer_of_the_present_tokens():
    torch.manual_seed(0)
    combine = SetAttention(WIDTH, 2, layers=2).to(D)
    tokens, mask = drawn()
    out = combine(tokens, mask)
    for i in range(5):
        h = tokens[i, mask[i]]
        for layer in combine.layers:
            inside = layer.before(h)
            h = h + attend(torchs(layer.attention), inside, inside)
            h = h + layer.net(layer.after(h))
        torch.testing.assert_close(out[i], combine.chi(h).sum(0))
    with pytest.raises(ValueError, match="at least 1 layer"):
        SetAttention(WIDTH, 2, layers=0)


def test_the_workspace_is_written_heard_and_written_again():
    torch.manual_seed(0)
    combine = Workspace(WIDTH, slots=3, top=None, rounds=2, heads=2).to(D)
    tokens, mask = drawn()
    out = combine(tokens, mask)
    for i in range(5):
        h = tokens[i, mask[i]]
        space = attend(torchs(combine.write), combine.space(combine.slots), combine.tokens(h))
        h = h + attend(torchs(combine.broadcast), combine.tokens(h), combine.space(space))
        space = attend(torchs(combine.write), combine.space(space), combine.tokens(h))
        torch.testing.assert_close(out[i], combine.read(space.flatten()))
    with pytest.raises(ValueError, match="at least 1 slot and 1 round, got 0 and 2"):
        Workspace(WIDTH, slots=0)


COMBINERS = [lambda: SetAttention(WIDTH, 2), lambda: Workspace(WIDTH, 3, 2, 2, 2), lambda: Workspace(WIDTH, 2, 1, 1, 1)]


@pytest.mark.parametrize("make", COMBINERS)
def test_neither_order_nor_what_is_absent_matters(make):
    torch.manual_seed(0)
    combine = make().to(D)
    tokens, mask = drawn()
    out = combine(tokens, mask)
    for order in permutations(range(4)):
        torch.testing.assert_close(combine(tokens[:, order], mask[:, order]), out)
    wild = torch.where(mask.unsqueeze(-1), tokens, torch.tensor(float("nan"), dtype=D)).requires_grad_()
    other = combine(wild, mask)
    assert torch.equal(other, out)
    (gradient,) = torch.autograd.grad(other.square().sum(), wild)
    assert bool(torch.isfinite(gradient).all()) and not bool(gradient[~mask].any())


@pytest.mark.parametrize("make", COMBINERS)
def test_views_under_a_plate_are_those_of_single_batches(make):
    """And a row with nothing present has the prior."""
    lg = LG()
    torch.manual_seed(0)
    senders = {m.name: Sender(m, WIDTH) for m in lg.modalities()}
    guide = Messages(senders, 2, WIDTH, combine=make()).to(D)
    batch = lg.data(10, missing=True)
    groups = [("a", "b"), ("c",), ("a", "b", "c")]
    stacked = guide.posterior(batch.subsets(groups)).base_dist
    for i, group in enumerate(groups):
        shown = batch.only(*group)
        plain = guide.posterior(shown).base_dist
        torch.testing.assert_close(stacked.loc[i], plain.loc)
        torch.testing.assert_close(stacked.scale[i], plain.scale)
        nothing = ~shown.present()
        assert bool((plain.loc[nothing] == 0).all()) and bool((plain.scale[nothing] == 1).all())
