"""One modality: names, shapes, encoder and decoder heads."""

from __future__ import annotations

import pickle

import pyro.distributions as dist
import pytest
import torch

from pyro_mm import likelihoods, networks
from pyro_mm.modality import Modality, decoders, encoders, expect_shape, names_of, positive

D = torch.float64
IMAGE = Modality("image", (2, 3), likelihoods.Normal(0.5), networks.MLP((8,)))
LABEL = Modality("label", (), likelihoods.Categorical(3), networks.MLP((8,)))


@pytest.mark.parametrize(
    "name", ["z", "z_image", "w_image", "data", "subset", "particles", "two words", "1st", "", "a.b"]
)
def test_names_that_clash_with_sites_or_plates_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a modality"):
        Modality(name, (2,), likelihoods.Normal())


@pytest.mark.parametrize("name", ["keys", "items", "training", "type", "forward", "pop"])
def test_names_that_torch_uses_are_refused_and_not_by_torch(name):
    with pytest.raises(ValueError, match="ModuleDict uses that word"):
        Modality(name, (2,), likelihoods.Normal())


@pytest.mark.parametrize("name", ["image", "wav", "zebra", "x1", "label"])
def test_other_names_can_key_a_module_dict(name):
    made = decoders([Modality(name, (2,), likelihoods.Normal(), networks.Linear())], 2)
    assert name in torch.nn.ModuleDict(made)


def test_names_are_distinct_and_at_least_one():
    assert names_of([LABEL, IMAGE]) == ("label", "image")
    for bad in ([], [IMAGE, IMAGE]):
        with pytest.raises(ValueError, match="distinct names, and at least one"):
            names_of(bad)


def test_a_wrong_tensor_is_refused_with_both_shapes():
    with pytest.raises(
        ValueError, match=r"modality 'image': got a tensor of shape \(4, 3, 2\), expected \(..., \(2, 3\)\)"
    ):
        expect_shape(IMAGE, torch.zeros(4, 3, 2))
    with pytest.raises(ValueError, match="modality 'image'"):
        IMAGE.encoder(2)(torch.zeros(3))
    expect_shape(IMAGE, torch.zeros(5, 4, 2, 3))
    expect_shape(LABEL, torch.zeros(4))


def test_an_encoder_is_loc_and_softplus_scale_of_its_network():
    encoder = IMAGE.encoder(4).double()
    x = torch.randn(5, 2, 3, dtype=D)
    out = encoder.net(x)
    q = encoder(x)
    torch.testing.assert_close(q.base_dist.loc, out[:, :4])
    torch.testing.assert_close(q.base_dist.scale, (1 + out[:, 4:].exp()).log() + 1e-4)
    value = torch.randn(5, 4, dtype=D)
    by_hand = torch.distributions.Normal(out[:, :4], q.base_dist.scale).log_prob(value).sum(-1)
    torch.testing.assert_close(q.log_prob(value), by_hand)


def test_an_encoder_of_another_family():
    q = IMAGE.encoder(4, dist.Laplace)(torch.randn(5, 2, 3))
    assert isinstance(q.base_dist, dist.Laplace)
    value = torch.randn(5, 4)
    truth = torch.distributions.Laplace(q.base_dist.loc, q.base_dist.scale).log_prob(value).sum(-1)
    torch.testing.assert_close(q.log_prob(value), truth)


@pytest.mark.parametrize("raw", [-1e4, -80.0, 0.0, 80.0, 1e4])
def test_scales_stay_positive_and_finite_with_finite_gradients(raw):
    x = torch.tensor(raw, requires_grad=True)
    scale = positive(x)
    assert scale.item() == pytest.approx(max(raw, 0) + 1e-4 if raw else 0.69324718, rel=1e-6)
    scale.log().backward()
    assert torch.isfinite(x.grad)


def test_a_decoder_is_the_likelihood_of_its_network():
    decoder = IMAGE.decoder(4).double()
    z = torch.randn(5, 4, dtype=D)
    x = torch.randn(5, 2, 3, dtype=D)
    truth = torch.distributions.Normal(decoder.net(z), 0.5).log_prob(x).sum((-1, -2))
    torch.testing.assert_close(decoder(z).log_prob(x), truth)
    other = Modality("image", (2, 3), likelihoods.Normal(), networks.MLP((8,)), networks.Linear())
    assert len(list(other.decoder(4).net.parameters())) == 2
    assert len(list(other.encoder(4).net.parameters())) == 4
    assert [n for n, _ in other.decoder(4).learnt.named_parameters()] == ["log_scale"]


def test_features_of_missing_rows_are_zero_for_any_view():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(4, 2, 3, dtype=D)
    mask = torch.tensor([[True, False, True, True], [False, False, True, False]])
    out = IMAGE.apply_net(net, x, mask)
    plain = IMAGE.apply_net(net, x)
    torch.testing.assert_close(out, plain.expand(2, 4, 2) * mask.unsqueeze(-1))
    assert IMAGE.apply_net(net, x.float()).dtype is D  # features follow the network's precision


def test_an_encoder_reads_labels_one_hot():
    encoder = LABEL.encoder(2).double()
    eye = torch.eye(3, dtype=D)
    torch.testing.assert_close(encoder(torch.tensor([2, 0])).base_dist.loc, encoder.net(eye[[2, 0]])[:, :2])


def test_heads_by_name():
    assert list(encoders([IMAGE, LABEL], 2)) == ["image", "label"]
    assert list(decoders([LABEL, IMAGE], 2)) == ["label", "image"]


def test_a_modality_is_a_value():
    again = pickle.loads(pickle.dumps(IMAGE))
    assert again == IMAGE
    assert Modality("image", [2, 3], likelihoods.Normal(0.5), networks.MLP((8,))) == IMAGE
    assert hash(again) == hash(IMAGE)
