"""Token sequences: probabilities of all valid sequences sum to 1, draws follow them."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyro_mm.distributions import TokenSequence

D = torch.float64


def valid(length: int, vocabulary: int, pad: int) -> torch.Tensor:
    """Every sequence that holds only padding after its first padding token."""
    rows = []
    for row in itertools.product(range(vocabulary), repeat=length):
        end = row.index(pad) if pad in row else length
        if all(t == pad for t in row[end:]):
            rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("pad", [0, 1, 2])
@pytest.mark.parametrize(("length", "vocabulary"), [(1, 3), (3, 3), (4, 3), (2, 5)])
def test_probabilities_sum_to_one_over_valid_sequences(length, vocabulary, pad):
    p = TokenSequence(2 * torch.randn(length, vocabulary, dtype=D), pad)
    every = valid(length, vocabulary, pad)
    logp = p.expand((len(every),)).log_prob(every)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_density_by_hand():
    logits = torch.randn(4, 3, dtype=D)
    logp = logits.log_softmax(-1)
    p = TokenSequence(logits, pad=0)
    for row, truth in (
        ([2, 1, 0, 0], logp[0, 2] + logp[1, 1] + logp[2, 0]),
        ([0, 0, 0, 0], logp[0, 0]),
        ([1, 2, 2, 1], logp[0, 1] + logp[1, 2] + logp[2, 2] + logp[3, 1]),
        ([1, 2, 2, 0], logp[0, 1] + logp[1, 2] + logp[2, 2] + logp[3, 0]),
    ):
        torch.testing.assert_close(p.log_prob(torch.tensor(row)), truth)


def test_logits_after_the_end_get_no_gradient():
    logits = torch.randn(4, 3, dtype=D, requires_grad=True)
    (gradient,) = torch.autograd.grad(TokenSequence(logits).log_prob(torch.tensor([1, 0, 0, 0])), logits)
    assert (gradient[2:] == 0).all()
    torch.testing.assert_close(gradient[0], torch.eye(3, dtype=D)[1] - logits[0].softmax(-1))


def test_draws_follow_the_density():
    """Chi-square over all valid sequences."""
    p = TokenSequence(torch.randn(3, 3, dtype=D), pad=1)
    every = valid(3, 3, 1)
    n = 30_000
    draws = p.sample((n,))
    match = (draws.unsqueeze(1) == every).all(-1)
    assert (match.sum(-1) == 1).all()
    expected = n * p.expand((len(every),)).log_prob(every).exp()
    chi = ((match.sum(0) - expected) ** 2 / expected).sum().item()
    freedom = len(every) - 1
    assert chi < freedom + 3.5 * (2 * freedom) ** 0.5


def test_the_mode_is_cut_at_its_first_end():
    logits = torch.tensor([[0.0, 2, 1], [3, 0, 0], [0, 0, 5], [1, 0, 0]])
    assert TokenSequence(logits).mode.tolist() == [1, 0, 0, 0]


def test_shapes():
    p = TokenSequence(torch.randn(5, 4, 3)).expand((2, 6, 5))
    assert (p.batch_shape, p.event_shape) == ((2, 6, 5), (4,))
    draws = p.sample()
    assert p.log_prob(draws).shape == (2, 6, 5)
    assert not p.has_rsample
