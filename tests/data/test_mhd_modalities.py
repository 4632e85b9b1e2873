"""MHD's modalities: a NEXUS squared error is the Normal's negative log-density, up to a constant."""

import torch

from pyro_mm.data.mhd_modalities import mhd_modalities

WEIGHTS = {"image": 1, "trajectory": 50, "sound": 1}


def test_names_and_shapes():
    assert {m.name: m.shape for m in mhd_modalities()} == {
        "image": (1, 28, 28),
        "trajectory": (200,),
        "sound": (1, 32, 128),
        "label": (),
    }


def test_densities_are_the_papers_weighted_squared_errors():
    for m in mhd_modalities()[:3]:
        raw, x, y = (
            torch.randn(2, *m.shape).double(),
            torch.rand(2, *m.shape).double(),
            torch.rand(2, *m.shape).double(),
        )
        p = m.likelihood(raw, m.shape)

        less = ((y - raw.sigmoid()).square() - (x - raw.sigmoid()).square()).flatten(1).sum(1)
        assert torch.allclose(p.log_prob(x) - p.log_prob(y), WEIGHTS[m.name] * less, rtol=1e-6, atol=1e-4)


def test_networks_take_and_give_the_shapes():
    for m in mhd_modalities():
        decoder, encoder = m.decoder(5).eval(), m.encoder(5).eval()
        x = decoder(torch.randn(3, 5)).sample()
        assert x.shape == (3, *m.shape)
        alone = encoder(x[:1]).mean
        assert torch.allclose(encoder(x).mean[:1], alone, atol=1e-4)
