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
# # Log-likelihoods
#
# A generative model is judged by $\log p(x)$ of data it has not seen, and nobody can compute it: it is an integral over
# the latents.  What is reported is an estimate, and estimates can be wrong without a sign of it.  On this page every
# estimate stands beside the exact value, because the model is linear and Gaussian; only section 7 trains a model whose
# likelihood nobody knows, to show what to do then.
#
# 1. bounds, 2. error bars, 3. mixture proposals, 4. conditionals, 5. a missed mode, 6. certificates, 7. refined
# proposals, 8. calibration, 9. comparing models, 10. exercises

# %%
import os
from dataclasses import replace
from math import log

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_mm as mm
from pyro_mm import data, plots, variants
from pyro_mm import evaluation as ev
from pyro_mm.tables import aligned

torch.set_num_threads(1)
plt.ion()  # every figure appears under its cell
plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
SMOKE = bool(os.environ.get("SMOKE"))  # a short run, for tests
N, K = (50, 200) if SMOKE else (200, 1000)  # rows, and draws of each


def table(*rows):
    """Print rows in columns: words to the left, numbers to the right."""
    print(*aligned([[x if isinstance(x, str) else f"{x:.3f}" for x in r] for r in rows]), sep="\n")


# %% [markdown]
# ## 1. The exact model, and the bounds
# $$z \sim \mathcal N(0, I_4), \qquad x_m \mid z \sim \mathcal N(W_m z + b_m,\ \sigma_m^2 I), \qquad m \in \{a, b, c\}$$
#
# Everything is Gaussian, so every marginal, conditional and posterior is known.  `LinearGaussian` has them, and the
# same model as an ordinary Pyro program, which is all that the estimators see.

# %%
truth = data.LinearGaussian.random({"a": 12, "b": 8, "c": 5}, latent=4, scales={"a": 0.5, "b": 0.7, "c": 0.6})
model = truth.model()
rows = truth.sample(N, seed=1)
exact = truth.log_marginal(rows)
print(rows)
for names in ("abc", "ab", "a", "b", "c"):
    known = truth.log_marginal(rows.only(*names))
    print(f"log p({', '.join(names)}): mean {known.mean():8.3f}, standard deviation over rows {known.std():.2f} nats")

# %% [markdown]
# A guide is a program too.  These three know the posterior's mean; they are mean-field, and deliberately too narrow or
# too wide by a factor.  One more ignores its input.


# %%
class Stretched(nn.Module):
    """z ~ N(m, (factor s)^2), m the posterior's mean, s the widths of its best mean-field fit."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.net, self.factor = truth.joint_posterior_net(), factor

    def posterior(self, batch):
        q = self.net(batch).base_dist
        return dist.Normal(q.loc, self.factor * q.scale).to_event(1)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


class Prior(nn.Module):
    """z ~ N(0, I), whatever the data."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(truth.latent).double(), 1.0).to_event(1))


mean_field, narrow, wide, prior = Stretched(), Stretched(0.5), Stretched(2.0), Prior()

# %% [markdown]
# With weights $w_k = p(x, z_k) / q(z_k \mid x)$, $z_k \sim q$, the mean weight is unbiased: $\mathbb E\, w = p(x)$.
# Its logarithm is not.  By Jensen's inequality
#
# $$\underbrace{\mathbb E \log w}_{\text{ELBO} = L_1} \ \le\ \underbrace{\mathbb E \log \tfrac1K \textstyle\sum_k w_k}
# _{\text{IWAE}_K = L_K}\ \le\ \log \mathbb E\, w = \log p(x),$$
#
# and $L_K$ rises with $K$, since a mean over $K$ is a mean over means of fewer (Burda et al. 2016).  How far the
# curve has to climb is the guide's fault: $\log p(x) - L_1 = \mathrm{KL}(q \,\Vert\, p(z \mid x))$.

# %%
guides = {"mean-field": mean_field, "half as wide": narrow, "twice as wide": wide}
curves = {name: ev.k_curve(model, q, rows, (1, 10, 100, K), defensive=0, seed=0) for name, q in guides.items()}
figure, _ = plots.k_curve(curves, truth=exact)

# %%
posterior = truth.exact_guide().posterior(rows)
lines = []
for name, q in guides.items():
    near = q.posterior(rows).base_dist
    normal = dist.MultivariateNormal(near.loc, scale_tril=near.scale.diag_embed())
    kl = torch.distributions.kl_divergence(normal, posterior).mean().item()
    gaps = (exact.mean() - curves[name].mean).tolist()
    lines.append([name, kl, *gaps])
table(["guide", "exact KL", *(f"log p - L_{k}" for k in curves["mean-field"].ks)], *lines)

# %% [markdown]
# The gap of $L_1$ is the KL divergence, as it should be.  At $K = 1000$ two of the three have arrived, and the narrow
# guide, whose ELBO is *better* than the wide one's, has not.  A good ELBO does not make a good proposal: weights need
# tails, and a guide trained on the ELBO tends to have too little of them.

# %% [markdown]
# ## 2. Reading an `Evidence`
# `log_marginal` gives one estimate per row, $\hat\ell = \log \frac1K \sum_k w_k$, and what can be learnt from the
# weights about its error.  With $\tilde w_k = w_k / \sum_j w_j$:
#
# | field | formula | what it says |
# |---|---|---|
# | `se` | $\sqrt v,\quad v = \sum_k \tilde w_k^2 - \frac1K$ | Monte Carlo standard error of $\hat\ell$ |
# | `ess` | $1 / \sum_k \tilde w_k^2$ | how many of the $K$ draws count |
# | `bias` | $-v/2$ | first order of the bias (Jensen again); `corrected` $= \hat\ell + v/2$ is without it |
# | `khat` | shape of a Pareto fit to the largest weights | above $\min(1 - 1/\log_{10} K,\ 0.7)$ trust none of these |
#
# Printed, it has two standard errors.  The large one is over rows: how well this many rows say what the model's mean
# is. `MC` is the part that more draws would remove; once it is the smaller by far, more rows help, not more draws.

# %%
found = mm.log_marginal(model, narrow, rows, K, defensive=0, seed=0)
print(found)
names = ("estimate", "se", "ess", "khat", "bias", "corrected")
table(
    ["row", "exact", *names, "reliable"],
    *(
        [f"{n}", exact[n].item(), *(getattr(found, f)[n].item() for f in names), f"{found.reliable[n].item()}"]
        for n in range(6)
    ),
)

# %% [markdown]
# Row 0 is called reliable, and is several of its standard errors away from the exact value.  Bad luck?  Over all rows,
# the share of `estimate ± 2 se` that covers the exact value ought to be .95.

# %%
tried = {"mean-field": mean_field, "x 1.5": Stretched(1.5), "x 0.7": Stretched(0.7), "x 0.5": narrow, "prior": prior}
lines, seen = [], {}
for name, q in tried.items():
    for defensive in (0.0, 0.1):
        e = mm.log_marginal(model, q, rows, k=400, defensive=defensive, independent=True, seed=0)
        error = e.estimate - exact
        covered = (error.abs() <= 2 * e.se).double()
        kept = f"{covered[e.reliable].mean():.2f}" if e.reliable.any() else "-"
        share = f"{e.unreliable_share:.0%}"
        lines.append([name, f"{defensive:g}", error.mean().item(), e.bias.mean().item(), share, covered.mean(), kept])
        seen.setdefault(name, (error, e))
table(["guide", "prior share", "mean error", "bias says", "k-hat too high", "covered", "where k-hat is fine"], *lines)

# %% [markdown]
# * Error bars are right for matched and for wide proposals, and k-hat says so.
# * For narrow ones they are too small, and the estimated bias is far below the real one: what has not been drawn cannot
#   be corrected for.
# * The last column warns of the warning.  Dropping the rows whose k-hat is too high does **not** leave the good ones:
#   under a bad proposal a low k-hat means that the tail was not met.  The rows that look best are the most biased:

# %%
figure, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
for name in ("x 0.5", "mean-field"):
    error, e = seen[name]
    ax.scatter(e.khat, error, s=10, alpha=0.7, linewidths=0, label=f"mean-field {name}" if "x" in name else name)
ax.axvline(seen["x 0.5"][1].summary()["khat_threshold"], color="#222222", linewidth=1, linestyle="--")
ax.axhline(0, color="#777777", linewidth=0.8)
ax.set(xlabel="Pareto k-hat (dashed: the threshold)", ylabel="estimate - exact, nats")
_ = ax.legend(frameon=False)

# %% [markdown]
# So judge a proposal by its k-hats over *all* rows (`unreliable_share`, `plots.khat_histogram`).  A few high ones may
# be chance; half of them high condemns the proposal, for the other rows too.
#
# A tenth of the draws from the prior ("defensive", Hesterberg 1995) is the default:
#
# $$q_\text{mix} = 0.9\, q(z \mid x) + 0.1\, p(z) \quad\Rightarrow\quad w \le 10\, p(x \mid z).$$
#
# It bounds the weights and costs a good guide next to nothing.  Above it helps little, since prior draws seldom meet a
# posterior this concentrated; its moment comes in section 5.
#
# **Pareto smoothing** (PSIS; Vehtari et al. 2024) replaces the largest weights by quantiles of the Pareto distribution
# fitted to them.  The result is no bound any more.  Does it help?


# %%
def errors(q, k, repeats=2 if SMOKE else 6):
    """Of the plain, the corrected and the smoothed estimate, `(3, repeats, N)`."""
    found = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        with torch.no_grad():
            log_w = mm.log_weights(model, q, rows, k)
        plain = log_w.logsumexp(0) - log(k)
        v = log_w.softmax(0).square().sum(0) - 1 / k
        found.append(torch.stack([plain, plain + v / 2, ev.psis_estimate(log_w)]) - exact)
    return torch.stack(found, 1)


lines = []
for name, q in {"x 2": wide, "x 0.5": narrow}.items():
    for k in (30, 300):
        e = errors(q, k).flatten(1)
        lines.append([name, f"{k}", *(f"{x.mean():+.3f} ± {x.std():.3f}" for x in e), *e.square().mean(1).sqrt()])
kinds = ("plain", "corrected", "PSIS")
table(["guide", "K", *kinds, *(f"rmse {kind}" for kind in kinds)], *lines)

# %% [markdown]
# (Mean ± standard deviation of the error, and its root mean square, nats.)  Where the weights have a variance, the
# first-order correction removes most of the bias, and smoothing has little to add.  Where they have none, smoothing
# trades noise for bias: a smaller spread about a number that is further off.  The remedy is a better proposal
# (section 7), not a better average.

# %% [markdown]
# ## 3. Mixture proposals, right and wrong
# A mixture-of-experts guide is $q(z \mid x) = \frac1M \sum_m q_m(z \mid x_m)$.  Published code has weighted its draws
# in at least three ways.  The rule is short: **the density in the weight must be that of the mechanism that drew
# $z$**.
#
# * Right: draw from the mixture, divide by the mixture's density.
# * One expert $j$ for all $K$ draws, divided by the mixture's density.  This converges to
#   $\log p(x) + \log \mathbb E_{p(z \mid x)}\!\left[ q_j(z) / q(z) \right]$, up to $\log M$ too high.
# * The component index as a site of its own: $w = p(x, z) / (\frac1M q_j(z))$ and $\mathbb E\, w = M\, p(x)$: too
#   high by exactly $\log M$.
#
# The second mistake needs a distribution whose sampler and density disagree.  From outside it looks like any other.


# %%
class DrawnFrom(dist.TorchDistribution):
    """Draws from one distribution, scores by another."""

    arg_constraints, support = {}, dist.constraints.real_vector

    def __init__(self, sampler, density):
        self.sampler, self.density = sampler, density
        super().__init__(density.batch_shape, density.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return DrawnFrom(self.sampler.expand(batch_shape), self.density.expand(batch_shape))

    def sample(self, sample_shape=torch.Size()):
        return self.sampler.sample(sample_shape)

    def log_prob(self, value):
        return self.density.log_prob(value)


class OneExpert(nn.Module):
    """Draws from the expert `name` alone, weighted by the mixture."""

    def __init__(self, guide, name):
        super().__init__()
        self.guide, self.name = guide, name

    def forward(self, batch):
        q = DrawnFrom(self.guide.posterior(batch.only(self.name)), self.guide.posterior(batch))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", q)


moe = mm.Experts(truth.unimodal_posteriors(), mm.guides.mixture_of_experts)
draws = posterior.sample((2000,))
results, lines = {}, []
for name, q in {"right: the mixture": moe, **{f"wrong: {m} for all": OneExpert(moe, m) for m in truth.names}}.items():
    e = results[name] = mm.log_marginal(model, q, rows, K // 2, defensive=0, independent=True, seed=0)
    with torch.no_grad():
        drawn_by = moe.posterior(rows if q is moe else rows.only(q.name))
        ratio = drawn_by.log_prob(draws) - moe.posterior(rows).log_prob(draws)
    limit = (ratio.logsumexp(0) - log(len(draws))).mean()
    lines.append([name, (e.estimate - exact).mean(), limit, e.mean_se_mc, e.ess.median(), f"{e.unreliable_share:.0%}"])
table(["draws", "mean error", "its limit", "MC se", "median ESS", "k-hat too high"], *lines)
print(f"log M = {log(3):.3f}")

# %%
figure, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
for name, e in list(results.items())[:3]:  # the last is far to the left
    ax.scatter(e.estimate - exact, e.khat, s=10, alpha=0.7, linewidths=0, label=name)
ax.axvline(log(3), color="#777777", linewidth=0.8, linestyle=":")
ax.axhline(e.summary()["khat_threshold"], color="#222222", linewidth=1, linestyle="--")
ax.set(xlabel="estimate - exact, nats (dotted: log M)", ylabel="Pareto k-hat")
_ = figure.legend(loc="outside upper center", ncols=3, frameon=False)

# %% [markdown]
# Expert `a` knows most, so drawing from it alone gives the *best-looking* diagnostics of all, twice the effective draws
# of the right way, and a log-likelihood that is 0.7 nats too good.  Draw the expert at random, once per evaluation, and
# the reported number depends on the seed.  ESS and k-hat see the spread of weights, never their meaning.  What does see
# it is a test that draws follow their density, and `check_pair` makes it:

# %%
report = mm.check_pair(model, OneExpert(moe, "a"), rows[:32], k=200, raise_on_failure=False)
for check in report.failures:
    print(check.name, check.measured.replace("; ", "\n    ").replace(" for ", " for\n    "), sep=": ")

# %% [markdown]
# The third mistake cannot be made by accident here.  A guide-only site has no counterpart in the model, so its density
# would enter the weight with nothing against it:


# %%
def with_index(batch):
    """j ~ uniform over experts, then z ~ q_j: the marginal density of z is right, the trace's is not."""
    experts = moe.posterior(batch).components().base_dist
    with pyro.plate("data", len(batch), dim=-1):
        j = pyro.sample("j", dist.Categorical(torch.ones(3)))[..., None, None]
        pick = j.expand(*j.shape[:-1], truth.latent)
        loc, scale = (t.expand(*j.shape[:-2], *t.shape[-2:]).gather(-2, pick) for t in (experts.loc, experts.scale))
        pyro.sample("z", dist.Normal(loc.squeeze(-2), scale.squeeze(-2)).to_event(1))


try:
    mm.log_marginal(model, with_index, rows, k=10)
except ValueError as refusal:
    print(refusal)


# %% [markdown]
# ## 4. Three things called "conditional likelihood"
# | name here | quantity | is it $\log p(x_a \mid x_b)$? |
# |---|---|---|
# | `log_conditional` | $\log p(x_a, x_b) - \log p(x_b)$ | yes; a property of the model |
# | `plug_in` | $\log \mathbb E_{q(z \mid x_b)}\, p(x_a \mid z)$ | only if $q$ is the posterior |
# | `log_marginal`, cross guide | $\log \mathbb E_{q(z \mid x_b)}\, [p(x_a, z) / q(z \mid x_b)]$ | no: $\log p(x_a)$ |
#
# The first has two good estimators.  The difference of two marginals, and the default, which takes numerator and
# denominator from one set of draws,
#
# $$\hat\ell = \log \frac{\sum_k w_k\, p(x_a \mid z_k)}{\sum_k w_k}, \qquad w_k = \frac{p(x_b, z_k)}{q_\text{mix}(z_k)},
# \qquad q_\text{mix} = .45\, q(z \mid x_a, x_b) + .45\, q(z \mid x_b) + .1\, p(z),$$
#
# and a bad one: a difference whose denominator $\log p(x_b)$ comes from draws of the prior.  That one is too low for
# any affordable $K$, and the conditional too *high* by as much.  None of them is a bound.

# %%
few = rows[:100]
target = truth.log_conditional(few, "a", "b")


def prior_denominator(k):
    """log p(a, b) by the guide minus log p(b) by prior draws."""
    top = mm.log_marginal(model, mean_field, few.only("a", "b"), k, seed=0)
    low = mm.log_marginal(model, prior, few.only("b"), k, defensive=0, seed=1)
    return replace(top, estimate=top.estimate - low.estimate, se=(top.se**2 + low.se**2).sqrt())


def cross(k):
    """log p(a), by a guide that has only seen b."""
    return mm.log_marginal(mm.given(model, "a"), mm.given(mean_field, "b"), few.only("a", "b"), k, seed=0)


ask = {"batch": few, "of": "a", "given": "b", "seed": 0}
estimators = {
    "log_conditional": lambda k: mm.log_conditional(model, mean_field, k=k, **ask),
    "difference of marginals": lambda k: mm.log_conditional_difference(model, mean_field, k=k, **ask),
    "plug_in, exact posterior": lambda k: mm.plug_in(model, truth.exact_guide(), k=k, **ask),
    "plug_in, mean-field": lambda k: mm.plug_in(model, mean_field, k=k, **ask),
    "marginal, cross proposal": cross,
    "denominator from the prior": prior_denominator,
}
limits = dict.fromkeys(estimators, target)
limits["plug_in, mean-field"] = truth.plug_in(few, "a", mean_field.posterior(few.only("b")))
limits["marginal, cross proposal"] = truth.log_marginal(few.only("a"))
sizes = (10, 100, K)
off, last = {}, {}
for name, estimator in estimators.items():
    series = [estimator(k) for k in sizes]
    off[name] = torch.stack([(e.estimate - target).mean() for e in series])
    error, se = series[-1].estimate - target, series[-1].se
    last[name] = error.square().mean().sqrt(), f"{(error.abs() <= 2 * se).double().mean():.2f}"
print(f"exact mean log p(a | b) = {target.mean():.3f} nats")
table(
    ["mean error, nats", *(f"K={k}" for k in sizes), "K=infinity", f"rmse, K={sizes[-1]}", "covered"],
    *([name, *off[name], (limits[name] - target).mean(), *last[name]] for name in estimators),
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.0), layout="constrained")
for ax, reach in zip(panels, (7, 0.7), strict=True):
    for i, (name, error) in enumerate(off.items()):
        ax.plot(sizes, error, marker="o", markersize=3.5, color=f"C{i}", label=name)
        ax.axhline((limits[name] - target).mean(), color=f"C{i}", linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="K", ylim=(-reach, reach), title="the same, near 0" if reach < 1 else "")
panels[0].set_ylabel("mean error, nats (dotted: limit)")
_ = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)

# %% [markdown]
# More draws bring each curve to *its* dotted line, and only some of those lines are at 0.  Of the good two, the
# shared draws have the error bars that cover, and the difference has the smaller error.  A paper's table of
# "conditional log-likelihoods" can mean any of these; two such tables cannot be compared without knowing which, with
# which $K$ and by which guide.  An `Evidence` says so:

# %%
for e in (mm.log_conditional(model, mean_field, **ask), mm.plug_in(model, mean_field, **ask), cross(K)):
    print(e)

# %% [markdown]
# ## 5. A missed mode
# $z \sim \mathcal N(0, 8^2)$, $x \sim \mathcal N(|z|, 1)$: the posterior has two modes, alike by symmetry, and this
# guide knows one.  Its weights are nearly constant where it draws, so nothing in them tells that half of the
# posterior is missing.


# %%
class Folded(nn.Module):
    """z ~ N(0, 8^2);  x ~ N(|z|, 1)."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 8.0))
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=batch.x["x"])

    @staticmethod
    def exact(x):
        """log p(x) = log 2 N(x; 0, 65) Phi(sqrt(64/65) x)."""
        both = 2 * dist.Normal(torch.zeros(()).double(), 1.0).cdf((64 / 65) ** 0.5 * x)
        return dist.Normal(0.0, 65**0.5).log_prob(x) + both.log()


class OneMode(nn.Module):
    """A little wider than the posterior if z were positive."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"] * 64 / 65, 1.1))


folded, one_mode = Folded(), OneMode()
eights = mm.Batch({"x": torch.full((40,), 8.0).double()})  # one row, forty independent estimates
z = torch.linspace(-14, 14, 400).double()
joint = dist.Normal(0.0, 8.0).log_prob(z) + dist.Normal(z.abs(), 1.0).log_prob(torch.tensor(8.0))
guide = dist.Normal(8.0 * 64 / 65, 1.1).log_prob(z).exp()
figure, ax = plt.subplots(figsize=(5.6, 2.3), layout="constrained")
ax.fill_between(z, (joint - Folded.exact(torch.tensor(8.0).double())).exp(), color="#DDDDDD", label="posterior")
ax.plot(z, guide, label="guide")
ax.plot(z, 0.9 * guide + 0.1 * dist.Normal(0.0, 8.0).log_prob(z).exp(), linestyle="--", label="0.9 guide + 0.1 prior")
ax.set(xlabel="z", yticks=[])
_ = ax.legend(frameon=False, fontsize=8)

# %%
lines = []
for defensive in (0.0, 0.1):
    e = mm.log_marginal(folded, one_mode, eights, k=10_000, defensive=defensive, independent=True, seed=0)
    error = e.estimate - Folded.exact(eights.x["x"])
    shown = (error.mean(), error.std(), e.se.mean(), e.ess.median() / e.k, e.khat.median())
    lines.append([f"{defensive:g}", *shown, f"{e.unreliable_share:.0%}"])
table(["prior share", "mean error", "its spread", "se says", "ESS / K", "k-hat", "too high"], *lines)
print(f"log 1/2 = {log(0.5):.3f}")

# %% [markdown]
# Without the defensive part: half of the likelihood is missing, an error of exactly $\log \frac12$, and the
# diagnostics are as good as they get.  With it a few prior draws find the other mode, with large weights: the
# estimate is right, and k-hat now says how few draws it rests on.  **An honest alarm is an improvement on a silent
# error.**
#
# The prior finds a mode in one dimension; in fifty it will not.  The sandwich of the next section needs no luck.

# %%
blind = mm.sandwich(folded, one_mode, eights, k=1000, defensive=0, seed=0)
print(blind)
print(mm.sandwich(folded, one_mode, eights, k=1000, seed=0))
print(f"exact mean: {Folded.exact(blind.data.x['x']).mean():.3f} nats")

# %% [markdown]
# ## 6. Certificates
# Draw $z_0 \sim p(z)$ and $x \sim p(x \mid z_0)$.  Then $z_0$ is an exact draw of $p(z \mid x)$, which no algorithm
# could give us for real data, and with it the same weights bound $\log p(x)$ from above:
#
# $$\mathbb E \log \frac{w_1 + w_2 + \dots + w_K}{K} \ \le\ \mathbb E \log p(x) \ \le\
# \mathbb E \log \frac{w_0 + w_2 + \dots + w_K}{K}, \qquad w_0 = \frac{p(x, z_0)}{q(z_0 \mid x)}.$$
#
# A guide that misses a mode misses $z_0$ half of the time, and then $w_0$ is huge.  The two ends are the `sandwich`;
# here is how it closes as $K$ grows, and whether it really encloses.

# %%
made = {"mean-field": mean_field, "half as wide": narrow, "prior": prior}
closing = {name: [mm.sandwich(model, q, rows, k, seed=0) for k in (10, 100, K)] for name, q in made.items()}
lines = []
for name, group in closing.items():
    for c in group:
        inside = truth.log_marginal(c.data)
        below, above = (c.lower - inside).mean(), (c.upper - inside).mean()
        each = ((c.lower <= inside) & (inside <= c.upper)).double().mean()
        lines.append([name, f"{c.k}", below, above, c.gap, c.gap_se, f"{each:.0%}"])
table(["guide", "K", "lower - exact", "upper - exact", "gap", "its SE", "rows enclosed"], *lines)
figure, _ = plots.certificates(closing)

# %% [markdown]
# The last column is why a certificate speaks of means: for a single row the ends may be on the wrong sides.
#
# Where the guide is poor, no affordable $K$ closes the gap.  **Annealing** (AIS) walks from the guide to the
# posterior through $T$ intermediate densities $q^{1-b}\, p(x, z)^b$ with Hamiltonian Monte Carlo, and back from
# $z_0$: BDMC (Grosse et al. 2015).  Each end also has a tail bound, $P(\text{lower} > \log p(x) + c) \le e^{-c}$.

# %%
part = rows[:10] if SMOKE else rows[:40]
walks = [ev.ais(model, prior, part, temperatures=t, seed=0) for t in ((5, 20) if SMOKE else (10, 100))]
for c in walks:
    inside = truth.log_marginal(c.data).mean()
    print(f"{c}\n    exact {inside:.3f}")

# %% [markdown]
# From the *prior*, annealing does with a hundred steps what a thousand draws did not.  (From a decent guide it needs
# fewer.)  Conditionals have certificates too, from those of the two parts, $[\,L_{ab} - U_b,\ U_{ab} - L_b\,]$.  They
# cost both gaps, since none of the error is assumed to cancel.

# %%
for name, q in {"mean-field": mean_field, "half as wide": narrow}.items():
    c = mm.sandwich(model, q, few, K, of="a", given="b", seed=0)
    below = c.lower - truth.log_conditional(c.data, "a", "b")
    print(f"{name}: {c}\n    lower - exact {below.mean():+.4f} +- {below.std() / len(below) ** 0.5:.4f}")
print(ev.ais(model, mean_field, part, 5 if SMOKE else 10, of="a", given="b", seed=0))

# %% [markdown]
# (Where the gap is small beside the Monte Carlo error, which both ends share, the exact value may lie just outside.
# The gap's SE is that of its width.)  What has been certified?

# %%
print(ev.certificate.MEANING)

# %% [markdown]
# ## 7. Refined proposals
# Now a model whose likelihood nobody knows: MVAE on real digits.  An encoder shares its weights among all rows
# (*amortised* inference), so that for a given row its answer is not the best.  `refine` fits a Gaussian to each row's
# own posterior first, and then estimates with fresh draws from it: still a bound, and by a better proposal.

# %%
digits = data.digits()
recipe = variants.mvae(digits.modalities, dim=8)
train, epochs = (digits.train[:400], 3) if SMOKE else (digits.train, 12)
mm.fit(recipe, train, epochs=epochs, batch_size=64, lr=2e-3, seed=0, progress=False)
pair, test = (recipe.model, recipe.guide), digits.test[: 30 if SMOKE else 100]
amortised = mm.log_marginal(*pair, test, k=1000, seed=0)
refined = mm.log_marginal(*pair, test, k=200, refine=True, seed=0)
print(amortised, refined, sep="\n")
paired = refined.estimate - amortised.estimate
print(f"refined - amortised: {paired.mean():+.3f} nats a row, higher in {(paired > 0).double().mean():.0%} of the rows")

# %% [markdown]
# Both are lower bounds in expectation, so the higher is nearer the truth.  The thousand amortised draws are not off by
# their Monte Carlo error, nor by their estimated bias, but by a multiple of both, and k-hat is the only number in that
# line that says so:

# %%
figure, _ = plots.khat_over_data({"amortised": amortised, "refined": refined})

# %%
print(
    f"amortised: bias says {amortised.bias.mean():.3f}, k-hat too high in {amortised.unreliable_share:.0%} of the rows"
)
print("on data from the model:")
print(mm.sandwich(*pair, test, k=1000, seed=0))
print(mm.sandwich(*pair, test, k=200, refine=True, seed=0))

# %% [markdown]
# Without exact values the sandwich is the judge, and it confirms: the amortised estimator is off by whole nats, the
# refined one is not.
#
# Rows differ in difficulty, so one $K$ for all is too much for most and too little for some.  `target_se` gives every
# row the draws it needs, and refines where that is cheaper.

# %%
some = test[:5] if SMOKE else test[:40]
aimed = mm.log_marginal(*pair, some, k=5 * K, target_se=0.1, seed=0)
print(aimed)
spent = aimed.draws.double()
table(
    ["", "least", "median", "most", "together"],
    ["draws of a row", *(f"{v:,.0f}" for v in (spent.min(), spent.median(), spent.max(), spent.sum()))],
)
print(f"reached in {aimed.reached.double().mean():.0%}; one K for all would be {len(some) * spent.max():,.0f} draws")

# %% [markdown]
# ## 8. Calibration
# Likelihoods only need a proposal that covers.  Whoever *uses* $q(z \mid x)$, to impute, to generate, to explain,
# needs it to be right.  Simulation-based calibration again simulates $(z_0, x)$: if $q$ is the posterior, $z_0$ is
# one more draw of it, and the rank of $f(z_0, x)$ among $f(z_1, x), \dots, f(z_L, x)$ is uniform, for **any**
# function $f$.

# %%
subsets = ("b", ("a", "b", "c"))
simulated = truth.sample(200 if SMOKE else 500, seed=2)
judged = {
    name: ev.sbc(model, q, simulated, draws=100, subsets=subsets, seed=0)
    for name, q in {"exact": truth.exact_guide(), "mean-field": mean_field, "prior": prior}.items()
}
for name, c in judged.items():
    print(f"{name}: {c}", end="\n\n")

# %% [markdown]
# With everything seen the posterior has little correlation left, and mean-field is wrong by little.  Given `b` alone
# it is too narrow, in one direction most of all: the truth is beyond the draws too often, at either end, and the
# curve is high first and low then.

# %%
figure, _ = plots.calibration_ecdf(judged["mean-field"])

# %% [markdown]
# The prior as a guide deserves a look of its own.  Averaged over data, draws of $p(z)$ and true $z_0$ have the same
# distribution: every coordinate and every linear combination passes, however useless the guide.  Only an $f$ that looks
# at $x$ can tell, such as the log-joint (Modrak et al. 2023).

# %%
lines = []
for name, c in judged.items():
    p = c.p["a", "b", "c"]
    lines.append([name, *(f"{v:.1e}" for v in (min(v for q, v in p.items() if "log" not in q), p["log p(x, z)"]))])
table(["guide", "smallest p of coordinates and directions", "p of log p(x, z)"], *lines)
figure, _ = plots.calibration_ecdf(judged["prior"], ("a", "b", "c"))

# %% [markdown]
# ## 9. Is A better than B?
# Two models, the same rows: the true one, and one that believes `b` to be noisier than it is.  The rows' common
# difficulty cancels in the difference, so what counts is the **paired** standard error,
# $\mathrm{sd}_n\!\left(\ell_n^A - \ell_n^B\right) / \sqrt N$, not the errors of the two means.

# %%
other = data.LinearGaussian(truth.weights, truth.offsets, {**truth.scales, "b": 0.85})
scores = {
    "true": mm.log_marginal(model, mean_field, rows, k=300, seed=0),
    "b noisier": mm.log_marginal(other.model(), mean_field, rows, k=300, seed=1),
}
comparison = ev.compare(scores)
print(comparison)
difference = comparison.difference("true", "b noisier")
unpaired = sum(e.mean_se**2 for e in scores.values()) ** 0.5
print(f"\nexact difference on these rows: {(exact - other.log_marginal(rows)).mean():+.3f}")
print(f"paired SE {difference.se:.3f}; from the two means it would be {unpaired:.3f}: nothing could be said")

# %% [markdown]
# Pairing removes the rows' noise, not the estimators' bias.  Give the better model the worse proposal and few draws,
# and it loses, with a $z$ that would convince anybody:

# %%
unfair = ev.compare(scores | {"true": mm.log_marginal(model, narrow, rows, k=30, seed=0)})
print(unfair)
left = unfair.difference("true", "b noisier")
print(f"\nrows with both k-hats below their thresholds: {left.reliable_mean:+.3f} +- {left.reliable_se:.3f}")

# %% [markdown]
# The alarm is the column `unreliable`.  To keep only the reliable rows would not help: they are the most biased
# (section 2).  So: one estimator and one effort for both, k-hat low for both, a certificate for each, and then the
# paired difference.

# %% [markdown]
# ## 10. Exercises
# 1. **Jensen, twice.**  Explain why $L_K$ is a lower bound but the difference of two of them is not.  For which
#    guides does `log_conditional_difference` err upwards?  Find one by stretching the two parts differently, and
#    check it against `truth.log_conditional`.
# 2. **The worst expert.**  In section 3 the limit for expert `c` was far below 0 and the estimate had not reached it.
#    Derive the limit, and say why it can be at most $\log M$.  What does the *mean of the three weights* converge to?
# 3. **More dimensions.**  Repeat the coverage table for latents of dimension 2, 4, 8 and 16.  How narrow may a guide
#    be in each before its error bars fail?  (For a Gaussian of relative width $s$, when is $\mathbb E\, w^2$ finite?)
# 4. **A mode in ten dimensions.**  Extend `Folded` to $z \in \mathbb R^{10}$, folded along the first axis.  From which
#    dimension on does the defensive part fall silent?  Does the sandwich?  Does AIS from the guide close it?
# 5. **Your own fusion.**  Write a rule `(loc, scale, mask) -> Distribution` that takes each coordinate from the expert
#    with the smallest scale.  Put the guide through `check_pair`, `sbc`, `sandwich` and `k_curve`, and predict each
#    result first.

# %%
assert abs(off["log_conditional"][-1]) < 0.1 < off["denominator from the prior"][-1]
assert (results["wrong: a for all"].estimate - exact).mean() > 0.5 and report.failures
assert blind.gap > 1 and closing["mean-field"][-1].gap < 0.05
assert paired.mean() > 0
assert judged["exact"].ok() and not judged["prior"].ok() and comparison.best == "true"
