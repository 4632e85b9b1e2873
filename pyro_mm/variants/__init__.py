"""The catalogue: one short page per published system.

Every variant is a function `(modalities, dim, ...) -> Recipe`.  Each page is model, guide and objective as the paper
has them; any guide goes on any other page's model of the same sites: `z`, and where there are private latents `z_<m>`
(hierarchies) or `w_<m>`.
"""

from pyro_mm.variants.avae import avae, avae_staged, avae_wasserstein
from pyro_mm.variants.cada_vae import cada_vae
from pyro_mm.variants.codevae import codevae
from pyro_mm.variants.crmvae import crmvae
from pyro_mm.variants.cross_modal_vae import cross_modal_vae
from pyro_mm.variants.cvae import cvae
from pyro_mm.variants.dmvae import dmvae
from pyro_mm.variants.global_workspace import global_workspace
from pyro_mm.variants.gpoe import gpoe
from pyro_mm.variants.helvae import helvae
from pyro_mm.variants.hierarchical_baselines import hierarchical_mmvae, hierarchical_mvae
from pyro_mm.variants.jmvae import jmvae, jmvae_kl, jmvae_zero
from pyro_mm.variants.jmvae_gan import jmvae_gan
from pyro_mm.variants.jnf import jnf
from pyro_mm.variants.m2 import m2
from pyro_mm.variants.m2vae import m2vae
from pyro_mm.variants.mcvae import mcvae
from pyro_mm.variants.meme import meme
from pyro_mm.variants.mfm import mfm
from pyro_mm.variants.mhvae import mhvae_2020, mhvae_2023
from pyro_mm.variants.mld import mld
from pyro_mm.variants.mmjsd import mmjsd
from pyro_mm.variants.mmvae import mmvae, mmvae_dreg, mmvae_iwae
from pyro_mm.variants.mmvaeplus import cmvae, mmvaeplus
from pyro_mm.variants.mmvm import mmvm, mmvm_pairwise
from pyro_mm.variants.mopoe import mopoe, mopoe_density
from pyro_mm.variants.muse import muse
from pyro_mm.variants.mvae import mvae, mvae_sampled
from pyro_mm.variants.mvae_cross import mvae_cross
from pyro_mm.variants.mvtcae import mvtcae
from pyro_mm.variants.nexus import nexus, nexus_elbo
from pyro_mm.variants.scan import scan
from pyro_mm.variants.set_attention import set_attention, smvae
from pyro_mm.variants.sum_pooling import sum_pooling
from pyro_mm.variants.svae import svae
from pyro_mm.variants.telbo import telbo
from pyro_mm.variants.vae import vae
from pyro_mm.variants.vaevae import vaevae
from pyro_mm.variants.vcca import bivcca, vcca, vcca_private
from pyro_mm.variants.wbvae import mwbvae, wbvae

__all__ = [
    "avae",
    "avae_staged",
    "avae_wasserstein",
    "bivcca",
    "cada_vae",
    "cmvae",
    "codevae",
    "crmvae",
    "cross_modal_vae",
    "cvae",
    "dmvae",
    "global_workspace",
    "gpoe",
    "helvae",
    "hierarchical_mmvae",
    "hierarchical_mvae",
    "jmvae",
    "jmvae_gan",
    "jmvae_kl",
    "jmvae_zero",
    "jnf",
    "m2",
    "m2vae",
    "mcvae",
    "meme",
    "mfm",
    "mhvae_2020",
    "mhvae_2023",
    "mld",
    "mmjsd",
    "mmvae",
    "mmvae_dreg",
    "mmvae_iwae",
    "mmvaeplus",
    "mmvm",
    "mmvm_pairwise",
    "mopoe",
    "mopoe_density",
    "muse",
    "mvae",
    "mvae_cross",
    "mvae_sampled",
    "mvtcae",
    "mwbvae",
    "nexus",
    "nexus_elbo",
    "scan",
    "set_attention",
    "smvae",
    "sum_pooling",
    "svae",
    "telbo",
    "vae",
    "vaevae",
    "vcca",
    "vcca_private",
    "wbvae",
]
