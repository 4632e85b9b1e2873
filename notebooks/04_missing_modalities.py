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
# # Missing modalities
#
# Real rows lack things: an image without its label, a patient without a scan.  A generative model of all modalities
# needs no trick for that.  What is missing is integrated out, in the likelihood exactly and in the training objective
# by the bound of what is there.  This page shows what follows from it, and what does not.
#
# 1. masks, 2. training on incomplete rows, 3. filling in, 4. why it is missing matters, 5. few labels, 6. a modality
# that lies, 7. exercises

# %%
import os

import matplotlib.pyplot as plt
import torch

import pyro_mm as mm
from pyro_mm import data, evaluation, plots, variants
from pyro_mm.guides import Classifier
from pyro_mm.tables import aligned
from pyro_mm.variants.m2 import nothing

torch.set_num_threads(1)
plt.ion()  # every figure appears under its cell
plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
SMOKE = bool(os.environ.get("SMOKE"))  # a short run, for tests
EPOCHS, K, ROWS = (2, 100, 30) if SMOKE else (60, 500, 200)


def table(*rows):
    """Print rows in columns: words to the left, numbers to the right."""
    print(*aligned([[x if isinstance(x, str) else f"{x:.3f}" for x in r] for r in rows]), sep="\n")


# %% [markdown]
# ## 1. Masks
# A `Batch` has one tensor and one presence mask per modality.  Where the mask is False the tensor holds a filler, and
# no program looks at it: a model's factor $p(x_m \mid z)$ is left out, a guide has one expert less, and one call gives
#
# $$\log p(x_{S_n}), \qquad S_n = \text{what row } n \text{ has},$$
#
# another set for every row.  In a linear-Gaussian model every one of these marginals is known:

# %%
truth = data.LinearGaussian.random({"a": 6, "b": 4, "c": 3}, latent=3, scales={"a": 0.5, "b": 0.7, "c": 0.6})
rows = data.mcar(truth.sample(ROWS, seed=1), 0.4, seed=0)
print(rows)
found = mm.log_marginal(truth.model(), truth.exact_guide(), rows, k=K, defensive=0, seed=0)
exact = truth.log_marginal(rows)
patterns = torch.stack([rows.mask[m] for m in rows.names], 1)
for pattern in patterns.unique(dim=0):
    mine = (patterns == pattern).all(1)
    has = ", ".join(m for m, there in zip(rows.names, pattern.tolist(), strict=True) if there)
    error = (found.estimate - exact)[mine].abs().max()
    print(f"{int(mine.sum()):4d} rows with {has:8s} log p = {exact[mine].mean():8.3f}, largest error {error:.1e}")

# %% [markdown]
# ## 2. Training on incomplete rows
# Real digits, with their labels.  A training row loses its image with probability .3 and its label with .6; one that
# would lose both keeps one of them, so that 21 % and 51 % are gone in expectation.  Three runs of MVAE: on the complete
# rows before anything was lost (what one would like to have), on the rows that are still complete (what is often
# done), and on all rows as they are.

# %%
digits = data.digits()
full = digits.train[:400] if SMOKE else digits.train
partial = data.mcar(full, {"image": 0.3, "label": 0.6}, seed=0)
complete = partial[partial.mask["image"] & partial.mask["label"]]
print(partial)


def trained(rows, seed=0):
    """MVAE on these rows, as many steps whatever their number."""
    torch.manual_seed(seed)
    recipe = variants.mvae(digits.modalities, dim=8, weights={"label": 10.0})
    epochs = max(1, round(EPOCHS * len(full) / len(rows)))
    mm.fit(recipe, rows, epochs=epochs, batch_size=64, lr=2e-3, seed=seed, progress=False)
    return recipe


test = digits.test[:ROWS]
recipes = {"nothing lost": trained(full), "complete rows": trained(complete), "all rows": trained(partial)}
scores = {name: mm.log_marginal(r.model, r.guide, test, k=K, refine=True, seed=0) for name, r in recipes.items()}
for name, e in scores.items():
    r = recipes[name]
    label = evaluation.classify(r.model, r.guide, test, "label", "image", k=K, seed=0).argmax(-1)
    right = (label == test.x["label"]).double().mean()
    print(f"{name:14s} log p(image, label) {e.mean:8.2f} +- {e.mean_se:.2f}, label told in {right:.1%}")

# %% [markdown]
# The rows' own difficulty is common to all three, so *paired* differences say more than the standard errors above.
# Incomplete rows give back most of the nats that dropping them costs.  (Not the label's accuracy: a row without a label
# teaches what digits look like, not what they are called.)

# %%
comparison = evaluation.compare(scores)
print(comparison)

# %% [markdown]
# ## 3. Filling in
# Given part of a row the model has a whole distribution over the rest, $p(x_a \mid x_b) = \int p(x_a \mid z)\, p(z \mid
# x_b)\, dz$.  A guide's draws of $z$ given $x_b$, decoded, look like it:

# %%
chosen = recipes["all rows"]
figure, _ = plots.cross_generation(chosen, digits.test[:4])

# %% [markdown]
# Is the distribution right?  A picture cannot tell.  `log_conditional` can: it is the log-density of what was really
# there.  Three numbers that are often taken for one another:
#
# * $\log p(x_a \mid x_b)$, the conditional likelihood,
# * `plug_in`: $\log \mathbb E_{q(z \mid x_b)}\, p(x_a \mid z)$, with the guide in place of the posterior,
# * the accuracy of the most likely class, by the model (Bayes' rule) or by the guide.

# %%
pair = chosen.model, chosen.guide
conditional = mm.log_conditional(*pair, test, of="label", given="image", k=K, seed=0)
plugged = evaluation.plug_in(*pair, test, of="label", given="image", k=K, seed=0)
bayes = evaluation.classify(*pair, test, "label", "image", k=K, seed=0)
guided = evaluation.classify_plug_in(*pair, test, "label", "image", k=K, seed=0)
right = [(p.argmax(-1) == test.x["label"]).double().mean().item() for p in (bayes, guided)]
table(
    ["label given image", "log-density", "accuracy"],
    ["the model", conditional.mean, right[0]],
    ["the guide", plugged.mean, right[1]],
)

# %% [markdown]
# To *use* a row that lacks something, do not fill in one best value and go on as if it had been seen.  Draw several
# completions, do the analysis on each, and let their spread tell how little is known (multiple imputation):

# %%
unlabelled = test[:6].only("image")
draws = mm.generate(*pair, unlabelled, k=200, seed=0)["label"].sample()
for n in range(6):
    counts = torch.bincount(draws[:, n].long(), minlength=10)
    shares = ", ".join(f"{c}: {v / 200:.0%}" for c, v in enumerate(counts.tolist()) if v > 4)
    print(f"row {n}, really a {test.x['label'][n]}: {shares}")

# %% [markdown]
# ## 4. Why it is missing matters
# *Missing completely at random* (MCAR): by the throw of a die.  *At random* (MAR): by something that is observed.
# *Not at random* (MNAR): by the very value that is lost.  A likelihood of what is observed is enough for the first two,
# and only there may the mechanism be ignored.  The exact model again; wanted is the mean of the first element of `b`.

# %%
many = truth.sample(20_000, seed=2)
target = many.x["b"][:, 0].mean()


def steep(values):
    """The larger the sum of the first two elements, the more often it is lost."""
    return torch.sigmoid(2.0 * values[:, :2].sum(1))


mechanisms = {
    "MCAR": data.mcar(many, {"b": 0.5}, seed=0),
    "MAR, by a": data.mar(many, "b", by="a", share=steep, seed=0),
    "MNAR, by b itself": data.mnar(many, "b", share=steep, seed=0),
}
lines = []
for name, part in mechanisms.items():
    seen = part.mask["b"]
    average = part.x["b"][seen, 0].mean()
    # With the true model each missing value is replaced by its mean given all that the row still has.
    z = truth.exact_guide().posterior(part).mean
    expected = (z @ truth.weights["b"].T + truth.offsets["b"])[:, 0]
    model_based = torch.where(seen, part.x["b"][:, 0], expected).mean()
    lines.append([name, f"{1 - seen.double().mean():.0%}", (average - target).item(), (model_based - target).item()])
table(["b is lost", "how often", "error of the mean of what is seen", "error of the model's mean"], *lines)

# %% [markdown]
# The average of what is left is wrong as soon as the loss depends on anything that goes along with `b`.  The model is
# right as long as that is observed.  Under MNAR even the true model is wrong, if it does not model the loss: nothing in
# the data can warn of it.

# %% [markdown]
# ## 5. Few labels
# A label is a modality, and one that is dear.  Here 40 training rows keep theirs.  Compared: a classifier trained on
# these 40; MVAE on all rows; and M2 (Kingma et al. 2014), in which the class is a *cause* of the image and is summed
# out, exactly, where it is missing:
#
# $$\log p(x) = \log \sum_c p(c) \int p(z)\, p(x \mid z, c)\, dz.$$


# %%
LABELS = 40
few = data.few_labels(full, LABELS, seed=0)
print(few)
torch.manual_seed(0)
m2 = variants.m2(digits.modalities, dim=8, alpha=10 * len(few) / LABELS, width=64)
mm.fit(m2.objective, few, epochs=EPOCHS, batch_size=64, lr=2e-3, progress=False)
torch.manual_seed(0)
alone = variants.m2(digits.modalities, dim=8, width=64)  # of which only the classifier is trained
supervised = mm.elbo(Classifier(alone.guide), nothing)
mm.fit(supervised, few[few.mask["label"]], epochs=max(1, EPOCHS * 10), batch_size=20, lr=2e-3, progress=False)
mvae = trained(few)

whole, guess = digits.test, {}
with torch.no_grad():
    guess["classifier on the labelled rows"] = alone.guide.logits(whole).argmax(-1)
    guess["M2, q(c | x)"] = m2.guide.logits(whole).argmax(-1)
guess["MVAE, by its guide"] = evaluation.classify_plug_in(
    mvae.model, mvae.guide, whole, "label", "image", k=100
).argmax(-1)
share = {name: (g == whole.x["label"]).double().mean().item() for name, g in guess.items()}
table(["label from image", "accuracy"], *([name, v] for name, v in share.items()))

# %% [markdown]
# The images without labels say how digits vary, and that is most of what there is to learn.
# `benchmarks/weak_supervision.py` draws the curve from 0.1 % of MNIST's labels to all of them.

# %% [markdown]
# ## 6. A modality that lies
# Sometimes what is there is wrong: a label of another picture, a sensor of another patient.  A model of the joint knows
# what goes together.  Half of these rows get another row's image:

# %%
mixed = data.swapped(whole[:ROWS], "image", 0.5, seed=0, label="label")
liar = (mixed.x["image"] != whole.x["image"][:ROWS]).flatten(1).any(1)
pair = recipes["nothing lost"].model, recipes["nothing lost"].guide
together = mm.log_conditional(*pair, mixed, of="label", given="image", k=K, seed=0).estimate
single = mm.log_marginal(*pair, mixed.only("image"), k=K, seed=0).estimate


def area(score):
    """The chance that a swapped row has the higher score: area under the ROC curve."""
    return (score[liar][:, None] > score[~liar]).double().mean().item()


table(
    ["told by", "area under ROC"],
    ["- log p(label | image)", area(-together)],
    ["- log p(image)", area(-single)],
)
figure, ax = plt.subplots(figsize=(5.6, 2.6), layout="constrained")
edges = torch.linspace(float(together.min()), 0, 40).tolist()
ax.hist(together[~liar].tolist(), edges, alpha=0.6, label="as they were")
ax.hist(together[liar].tolist(), edges, alpha=0.6, label="image of another class")
ax.set(xlabel="log p(label | image), nats", ylabel="rows")
_ = ax.legend(frameon=False)

# %% [markdown]
# A swapped image is a perfectly good image: its own likelihood says nothing.  Only the *conditional* notices.

# %% [markdown]
# ## 7. Exercises
# 1. **A loss of your own.**  Hide `a` where `c` is large.  For which of the three mechanisms of section 4 must `c` be
#    in the model?
# 2. **Model the loss.**  Add a modality `lost` (Bernoulli) to section 4's model whose probability depends on $z$.  How
#    much of the bias goes?
# 3. **Complete rows.**  In section 2 raise the share of lost labels until training on the complete rows breaks down.
#    At which number of complete rows does it?
# 4. **Labels without images.**  In section 5 give M2 the labels of all rows but the images of 10 % of them.  What does
#    it learn of the labels' own distribution?
# 5. **Two liars.**  Swap labels instead of images.  Is it the same problem?  With three modalities: can you tell
#    *which* one is wrong?

# %%
assert (found.estimate - exact).abs().max() < 1e-9
assert abs(lines[1][3]) < 0.03 < abs(lines[2][3]) and abs(lines[1][2]) > 0.1
if not SMOKE:
    assert comparison.best == "nothing lost" and comparison.difference("all rows", "complete rows").mean > 0
    assert share["M2, q(c | x)"] > share["classifier on the labelled rows"] + 0.02
    assert area(-together) > 0.9 > 0.6 > area(-single)
