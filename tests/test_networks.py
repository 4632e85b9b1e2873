"""Networks see one batch dimension; heads flatten the others. Padding steps of a sequence have no influence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pyro_mm import likelihoods, networks
from pyro_mm.modality import Modality
from pyro_mm.networks import event_flat, flat

D = torch.float64
K, S, N, DIM = 3, 2, 4, 5

CASES = [
    Modality("linear", (2, 3), likelihoods.Normal(1.0), networks.Linear()),
    Modality("mlp", (2, 3), likelihoods.Normal(1.0), networks.MLP((8, 7), nn.Tanh)),
    Modality("number", (), likelihoods.Normal(1.0), networks.MLP((8,))),
    Modality("conv8", (8, 8), likelihoods.Normal(1.0), networks.Conv((4, 6), 16)),
    Modality("conv28", (1, 28, 28), likelihoods.Normal(1.0), networks.Conv((2, 4), 8)),
    Modality("colour", (3, 8, 8), likelihoods.Normal(1.0), networks.Conv((4,), 8)),
    Modality("sequence", (6, 3), likelihoods.Normal(1.0), networks.Recurrent(8)),
    Modality("tokens", (5,), likelihoods.Tokens(4), networks.Recurrent(8)),
    Modality("label", (), likelihoods.Categorical(4), networks.Embedding(8, (7,))),
    Modality("labels", (2,), likelihoods.Categorical(4), networks.Embedding(8, ())),
]


def raw_of(p: object) -> Tensor:
    """The decoder's raw output, up to what its likelihood normalises away."""
    base = getattr(p, "base_dist", p)
    return base.loc if hasattr(base, "loc") else base.logits


def some(modality: Modality, *lead: int) -> Tensor:
    if isinstance(modality.likelihood, likelihoods.Normal):
        return torch.randn(*lead, *modality.shape, dtype=D)
    x = torch.randint(0, 4, (*lead, *modality.shape))
    return x * (x != 0).cumprod(-1) if isinstance(modality.likelihood, likelihoods.Tokens) else x


@pytest.mark.parametrize("modality", CASES, ids=lambda m: m.name)
def test_encoders_on_particle_subset_and_datum_dimensions_equal_a_loop(modality):
    encoder = modality.encoder(DIM).double()
    x = some(modality, K, S, N)
    q = encoder(x)
    assert q.batch_shape == (K, S, N)
    assert q.event_shape == (DIM,)
    for i in itertools.product(range(K), range(S), range(N)):
        alone = encoder(x[i].unsqueeze(0))
        torch.testing.assert_close(q.base_dist.loc[i], alone.base_dist.loc[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(q.base_dist.scale[i], alone.base_dist.scale[0], rtol=1e-10, atol=1e-12)
    no_lead = encoder(x[0, 0, 0])
    torch.testing.assert_close(no_lead.base_dist.loc, q.base_dist.loc[0, 0, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("modality", CASES, ids=lambda m: m.name)
def test_decoders_on_particle_subset_and_datum_dimensions_equal_a_loop(modality):
    decoder = modality.decoder(DIM).double()
    z = torch.randn(K, S, N, DIM, dtype=D)
    p = decoder(z)
    assert p.batch_shape == (K, S, N)
    assert p.event_shape == modality.shape
    logp = p.log_prob(some(modality, N).expand(K, S, N, *modality.shape))
    assert logp.shape == (K, S, N)
    for i in itertools.product(range(K), range(S), range(N)):
        torch.testing.assert_close(raw_of(p)[i], raw_of(decoder(z[i].unsqueeze(0)))[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("modality", CASES, ids=lambda m: m.name)
def test_every_parameter_gets_a_gradient(modality):
    encoder, decoder = modality.encoder(DIM).double(), modality.decoder(DIM).double()
    x = some(modality, 6)
    q = encoder(x)
    (q.base_dist.loc.sum() + q.base_dist.scale.log().sum()).backward()
    decoder(torch.randn(6, DIM, dtype=D)).log_prob(x).sum().backward()
    named = [*encoder.named_parameters("encoder"), *decoder.named_parameters("decoder")]
    assert [n for n, p in named if p.grad is None or not bool((p.grad != 0).any())] == []


def test_an_mlp_is_the_composition_it_describes():
    net = networks.MLP((4,), nn.Tanh).encoder((2, 3), 5).double()
    (w1, b1), (w2, b2) = [(m.weight, m.bias) for m in net if isinstance(m, nn.Linear)]
    x = torch.randn(7, 2, 3, dtype=D)
    torch.testing.assert_close(net(x), torch.tanh(x.reshape(7, 6) @ w1.T + b1) @ w2.T + b2)


def test_an_embedding_of_labels_is_a_table():
    modality = Modality("y", (), likelihoods.Categorical(3), networks.Embedding(4, ()))
    encoder = modality.encoder(2)
    table = next(m for m in encoder.net if isinstance(m, nn.Linear))
    head = [m for m in encoder.net if isinstance(m, nn.Linear)][-1]
    y = torch.tensor([2, 0, 1, 2])
    row = torch.relu(table.weight.T[y]) @ head.weight.T + head.bias
    torch.testing.assert_close(encoder(y).base_dist.loc, row[:, :2])


@pytest.mark.parametrize("bad", [(7, 8), (1, 10, 8), (8,), (1, 1, 8, 8)])
def test_images_that_cannot_be_halved_are_refused(bad):
    for build in (lambda: networks.Conv().encoder(bad, 4), lambda: networks.Conv().decoder(4, bad)):
        with pytest.raises(ValueError, match=r"Conv\(32, 64\) needs an image"):
            build()


def test_a_sequence_needs_two_dimensions():
    with pytest.raises(ValueError, match=r"Recurrent needs a sequence \(T, F\); got \(3,\)"):
        networks.Recurrent().encoder((3,), 4)


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_padding_has_no_influence_on_a_sequence(length):
    """A sequence read alone, without its padding, gives what it gives in a batch of longer ones."""
    encoder = networks.Recurrent(8).encoder((5, 3), 2).double()
    x = torch.randn(4, 5, 3, dtype=D)
    x[1, length:] = 0
    alone = encoder(x[1:2, : max(length, 1)])
    torch.testing.assert_close(encoder(x)[1:2], alone, rtol=1e-10, atol=1e-12)
    padded = torch.cat([x, torch.zeros(4, 3, 3, dtype=D)], 1)
    torch.testing.assert_close(encoder(padded), encoder(x), rtol=1e-10, atol=1e-12)


def test_the_encoder_of_a_sequence_is_two_recurrences_by_hand():
    encoder = networks.Recurrent(4).encoder((5, 3), 2).double()
    x = torch.randn(1, 5, 3, dtype=D)
    x[:, 3:] = 0
    forward, backward = [m for m in encoder.modules() if isinstance(m, nn.GRU)]
    states = []
    for rnn, order in ((forward, (0, 1, 2)), (backward, (2, 1, 0))):
        h = torch.zeros(4, dtype=D)
        for t in order:
            i = rnn.weight_ih_l0 @ (encoder.embed.weight @ x[0, t]) + rnn.bias_ih_l0
            g = rnn.weight_hh_l0 @ h + rnn.bias_hh_l0
            reset, update = torch.sigmoid(i[:4] + g[:4]), torch.sigmoid(i[4:8] + g[4:8])
            new = torch.tanh(i[8:] + reset * g[8:])
            h = (1 - update) * new + update * h
        states.append(h)
    torch.testing.assert_close(encoder(x)[0], encoder.head(torch.cat(states)))


def test_a_zero_step_inside_a_sequence_is_data():
    """Only zeros at the end are padding: what follows a silent step still counts."""
    encoder = networks.Recurrent(8).encoder((5, 3), 2).double()
    x = torch.randn(1, 5, 3, dtype=D)
    x[:, 2] = 0
    other = x.clone()
    other[:, 4] += 1
    assert (encoder(x) - encoder(other)).abs().max().item() > 1e-3


def test_custom_builders_and_what_a_blueprint_lacks():
    net = networks.Custom(lambda shape, out: nn.Sequential(nn.Flatten(), nn.Linear(shape[0], out)))
    x = torch.randn(2, 3)
    encoder = Modality("x", (3,), likelihoods.Normal(), net).encoder(2)
    layer = encoder.net[1]
    torch.testing.assert_close(encoder(x).base_dist.loc, (x @ layer.weight.T + layer.bias)[:, :2])
    with pytest.raises(NotImplementedError, match="Custom builds no decoder"):
        net.decoder(2, (3,))


def test_a_users_own_network_is_flattened_too():
    net = nn.Conv1d(2, 3, 1).double()  # accepts exactly (B, 2, L)
    x = torch.randn(K, S, N, 2, 5, dtype=D)
    out = flat(net, event_dim=2)(x)
    torch.testing.assert_close(out, torch.einsum("oi,ksnil->ksnol", net.weight[..., 0], x) + net.bias.view(3, 1))
    torch.testing.assert_close(event_flat(net, x[0, 0], 2), out[0, 0])
    assert dict(flat(net, 2).named_parameters())["net.weight"] is net.weight


def test_a_spectrogram_is_convolved_as_in_the_paper() -> None:
    """The published network has (4, 1) convolutions over a width of 1: ours, over a sequence, are the same function."""
    torch.manual_seed(0)
    net, shape, x, z = networks.Spectrogram((6, 5, 4), 7), (1, 8, 16), torch.rand(3, 1, 8, 16), torch.rand(3, 2)
    strided = ((4, 1), (2, 1), (1, 0))
    body = [nn.Conv2d(1, 6, (1, 16)), nn.BatchNorm2d(6), nn.ReLU()]
    body += [nn.Conv2d(6, 5, *strided), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, *strided), nn.BatchNorm2d(4)]
    encode = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    dense = [nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Unflatten(-1, (4, 2, 1))]
    body = [nn.ConvTranspose2d(4, 5, *strided), nn.BatchNorm2d(5), nn.ReLU()]
    body += [nn.ConvTranspose2d(5, 6, *strided), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 1, (1, 16))]
    for published, ours, v in (
        (encode, net.encoder(shape, 3), x),
        (nn.Sequential(*dense, *body), net.decoder(2, shape), z),
    ):
        of_ours = ours.state_dict().values()
        weights = zip(published.state_dict().items(), of_ours, strict=True)
        published.load_state_dict({n: w.reshape(was.shape) for (n, was), w in weights})
        torch.testing.assert_close(ours(v), published(v))
        assert ours(v).shape == published(v).shape
