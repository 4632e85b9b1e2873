"""The variants with latents of their own for every modality, or several levels, by the shape of their programs."""

TWO_FLOORS = {"hierarchical_mmvae", "hierarchical_mvae", "muse", "nexus", "nexus_elbo"}
TRUNKS = {"mhvae_2020", "mhvae_2023"}
PRIVATE = {"cmvae", "dmvae", "mfm", "mmvaeplus", "vcca_private"}
CLASSED = {"m2"}  # test_m2.py
NO_DENSITY = {"cada_vae", "jmvae_gan", "meme", "mld", "mmvm", "mmvm_pairwise"}
# test_cada_vae.py, test_turns.py, test_meme.py, test_mld.py, test_mmvm.py
LAYERED = TWO_FLOORS | TRUNKS | PRIVATE | CLASSED | NO_DENSITY
