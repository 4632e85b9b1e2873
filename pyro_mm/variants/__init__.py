"""The catalogue: one short page per published system.

Every variant is a function `(modalities, dim, ...) -> Recipe`.  Each page is model, guide and objective as the paper
has them; any guide goes on any other page's model, since all share the site `z`.
"""

from pyro_mm.variants.cvae import cvae
from pyro_mm.variants.jmvae import jmvae, jmvae_kl, jmvae_zero
from pyro_mm.variants.mmvae import mmvae, mmvae_dreg, mmvae_iwae
from pyro_mm.variants.mopoe import mopoe, mopoe_density
from pyro_mm.variants.mvae import mvae, mvae_sampled
from pyro_mm.variants.vae import vae

__all__ = [
    "cvae",
    "jmvae",
    "jmvae_kl",
    "jmvae_zero",
    "mmvae",
    "mmvae_dreg",
    "mmvae_iwae",
    "mopoe",
    "mopoe_density",
    "mvae",
    "mvae_sampled",
    "vae",
]
