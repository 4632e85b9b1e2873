# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# A multimodal generative model is a Pyro program, its inference is another, a training objective is a sum of ELBO
# terms between programs, and a log-likelihood is a number with an error bar.  This page trains one published model on
# real handwritten digits (image + label), asks it for likelihoods, and draws what it imagines.

# %%
import torch

import pyro_mm as mm
from pyro_mm import data, plots, variants

torch.set_num_threads(1)
digits = data.digits()
print(digits.describe())

# %% [markdown]
# ## A published system
# `variants.mvae` is MVAE (Wu & Goodman 2018): a product of experts, trained on every subset of the modalities.  Its
# objective prints as the formula it is.

# %%
recipe = variants.mvae(digits.modalities, dim=8, weights={"label": 10.0})
recipe

# %%
recipe.objective

# %% [markdown]
# ## Training
# Stochastic variational inference: a short loop over the objective.  Training weights (here 10 on the label) never
# enter the likelihoods below.

# %%
history = mm.fit(
    recipe,
    digits.train,
    epochs=60,
    validation=digits.validation,
    batch_size=64,
    lr=2e-3,
    seed=0,
    progress=False,
)
figure, _ = plots.loss_curves(history.rows)

# %% [markdown]
# ## Likelihoods, in nats, with error bars
# Importance sampling per datum: the joint, a marginal (hide the rest), and a conditional.  `se` is the standard error
# over the test set, `MC` the part of it that more draws would remove.

# %%
test = digits.test
pair = recipe.model, recipe.guide
joint = mm.log_marginal(*pair, test, k=2000, seed=0)
image = mm.log_marginal(*pair, test.only("image"), k=2000, seed=0)
label_given_image = mm.log_conditional(*pair, test, of="label", given="image", k=2000, seed=0)
for evidence in (joint, image, label_given_image):
    print(evidence)

# %% [markdown]
# The chain rule ties them together: log p(image, label) = log p(image) + log p(label | image).

# %%
difference = joint.mean - image.mean - label_given_image.mean
error = sum(e.mean_se_mc**2 for e in (joint, image, label_given_image)) ** 0.5
print(f"chain rule off by {difference:+.3f} nats, Monte Carlo error {error:.3f}")

# %% [markdown]
# That they agree proves little: joint and marginal are too low by the same amount.  k-hat is above its threshold in
# most rows, which says that the error bar is not to be believed: an amortised guide is a poor proposal for 64 pixels.
# With a proposal that is fitted to every row first the joint rises, by far more than MC had promised, and k-hat falls.

# %%
refined = mm.log_marginal(*pair, test, k=2000, refine=True, seed=0)
print(refined)
print(f"higher by {refined.mean - joint.mean:.3f} nats, {(refined.mean - joint.mean) / joint.mean_se_mc:.0f} times MC")

# %% [markdown]
# ## Missing modalities
# Any modality may be missing in any row, in training and in evaluation.  Here the label is hidden and inferred.

# %%
from pyro_mm.evaluation.classify import classify

probabilities = classify(*pair, test, of="label", given=("image",), k=200, seed=0)
accuracy = (probabilities.argmax(-1) == test.x["label"]).double().mean().item()
print(f"label accuracy from the image: {accuracy:.1%}")

# %%
figure, _ = plots.cross_generation(*pair, digits.modalities, test[:4])

# %%
figure, _ = plots.latent_map(recipe.guide, test, test.x["label"])

# %% [markdown]
# ## Your own data
# Arrays, frames or lists; a missing row is NaN (or None for a whole modality).

# %%
import numpy as np

rng = np.random.default_rng(0)
cause = rng.normal(size=(200, 1))  # what five blood values and a diagnosis have in common
blood = cause + 0.6 * rng.normal(size=(200, 5))
sick = (cause[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(float)
sick[::4] = np.nan  # a quarter of the diagnoses is missing

modalities = [
    mm.Modality("blood", (5,), mm.likelihoods.Normal(), mm.networks.MLP((32,))),
    mm.Modality("sick", (), mm.likelihoods.Bernoulli(), mm.networks.MLP((32,))),
]
batch = mm.Batch.of({"blood": blood, "sick": sick}, modalities)
torch.manual_seed(0)
own = variants.mopoe(modalities, dim=2)
train, rest = batch[:150], batch[150:]
mm.fit(own, train, epochs=200, lr=3e-3, seed=0, progress=False)
print(batch)
diagnosis = mm.log_conditional(own.model, own.guide, rest, of="sick", given="blood", k=500, seed=0)
print(diagnosis)  # over the rows that have a diagnosis; a coin has -0.693

# %% [markdown]
# ## Any guide on any model
# Guides and models share the site `z`, so one line swaps the inference of one page for that of another.

# %%
swapped = mm.elbo(recipe.model, variants.mopoe(digits.modalities, dim=8).guide)
swapped

# %%
assert abs(difference) < 0.3
assert accuracy > 0.85
assert joint.mean > -150 and image.mean > joint.mean and refined.mean > joint.mean
assert diagnosis.mean > -0.6
