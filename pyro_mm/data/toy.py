"""The linear-Gaussian model: everything this library estimates, in closed form.

    z ~ N(0, I_D);   x_m | z ~ N(W_m z + b_m, s_m^2 I)   for every modality m.

With S the modalities present in a row, the posterior is Gaussian with precision P = I + sum_S W_m' W_m / s_m^2 and
mean P^-1 sum_S W_m' (x_m - b_m) / s_m^2, and x_S is Gaussian too.  A row with nothing present has the prior as its
posterior and density 1 (0 nats).  It is how the tests know the truth, and a good place to try a new guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log, pi
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch, as_names
from pyro_mm.likelihoods import Normal
from pyro_mm.modality import Modality, decoders
from pyro_mm.models import Joint
from pyro_mm.networks import Linear

if TYPE_CHECKING:
    from pyro_mm.data.exact import ExactGuide, JointPosterior, UnimodalPosterior

__all__ = ["LinearGaussian"]

Names = str | Sequence[str]


class LinearGaussian:
    """z ~ N(0, I_D);  x_m | z ~ N(W_m z + b_m, s_m^2 I), with exact posteriors and densities.

    Every method that takes a batch honours each row's mask, `(N,)` or `(S, N)`, ignores modalities it does not know
    and treats those the batch lacks as missing.  Results are in the weights' dtype.

    Args:
        weights: W_m `(d_m, D)` per modality.
        offsets: b_m `(d_m,)`; default 0.
        scales: s_m > 0 per modality, or one for all.

    Raises:
        ValueError: naming the modality, for shapes or dtypes that do not fit or a scale that is not positive.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        offsets: Mapping[str, Tensor] | None = None,
        scales: Mapping[str, float] | float = 1.0,
    ) -> None:
        if not weights:
            raise ValueError("a linear-Gaussian model needs at least one modality")
        self.weights = dict(weights)
        first = next(iter(self.weights.values()))
        self.latent, self.dtype = first.shape[-1], first.dtype
        self.offsets = {m: w.new_zeros(len(w)) for m, w in self.weights.items()} if offsets is None else dict(offsets)
        self.scales = {m: scales for m in self.weights} if isinstance(scales, float | int) else dict(scales)
        for what, given in (("offsets", self.offsets), ("scales", self.scales)):
            if set(given) != set(self.weights):
                raise ValueError(f"{what} are given for {list(given)}, weights for {list(self.weights)}")
        for m, w in self.weights.items():
            b = self.offsets[m]
            if (
                w.dim() != 2
                or w.shape[-1] != self.latent
                or b.shape != w.shape[:1]
                or {w.dtype, b.dtype} != {self.dtype}
            ):
                raise ValueError(
                    f"modality '{m}': weights {tuple(w.shape)} {w.dtype} and offsets {tuple(b.shape)} {b.dtype} "
                    f"do not fit (d, {self.latent}) and (d,) of {self.dtype}"
                )
            if not self.scales[m] > 0:
                raise ValueError(f"modality '{m}': the scale must be positive, got {self.scales[m]}")

    @classmethod
    def random(
        cls,
        dims: Mapping[str, int],
        latent: int,
        seed: int = 0,
        scales: Mapping[str, float] | float = 0.6,
        dtype: torch.dtype = torch.float64,
    ) -> LinearGaussian:
        """W_m = 0.8 N(0, I) of `dims[m]` rows, then b_m = N(0, I), all from a generator of this seed."""
        source = torch.Generator().manual_seed(seed)
        weights = {m: 0.8 * torch.randn(d, latent, generator=source, dtype=dtype) for m, d in dims.items()}
        offsets = {m: torch.randn(d, generator=source, dtype=dtype) for m, d in dims.items()}
        return cls(weights, offsets, scales)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in order."""
        return tuple(self.weights)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Normal likelihoods of known scale, and networks of one affine map."""
        return tuple(Modality(m, (len(w),), Normal(self.scales[m]), Linear()) for m, w in self.weights.items())

    def simulate(self, n: int, seed: int = 0) -> tuple[Batch, Tensor]:
        """n complete rows and the latents `(n, D)` they came from: exact draws from their posteriors."""
        source = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.latent, generator=source, dtype=self.dtype)
        x = {}
        for m, w in self.weights.items():
            noise = torch.randn(n, len(w), generator=source, dtype=self.dtype)
            x[m] = z @ w.T + self.offsets[m] + self.scales[m] * noise
        return Batch(x), z

    def sample(self, n: int, seed: int = 0) -> Batch:
        """n complete rows; `simulate` gives their latents too."""
        return self.simulate(n, seed)[0]

    def model(self) -> Joint:
        """A new `Joint` whose decoders are this model, in its dtype."""
        model = Joint(decoders(self.modalities, self.latent), self.latent).to(self.dtype)
        with torch.no_grad():
            for m, decoder in model.decoders.items():
                affine = next(layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
                affine.weight.copy_(self.weights[m])
                affine.bias.copy_(self.offsets[m])
        return model

    def precision(self, batch: Batch) -> Tensor:
        """Precision `(N, D, D)` of p(z | what each row has): I + sum_S W_m' W_m / s_m^2."""
        gain, _, _ = self._evidence(batch, self.names)
        return _identity(gain) + gain

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean `(N, D)` and covariance `(N, D, D)` of p(z | what each row has); `(S, N, ...)` under such masks."""
        gain, moment, _ = self._evidence(batch, self.names)
        root = torch.linalg.cholesky(_identity(gain) + gain)
        return torch.cholesky_solve(moment.unsqueeze(-1), root).squeeze(-1), torch.cholesky_inverse(root)

    def predictive(self, batch: Batch, of: str) -> dist.TorchDistribution:
        """p(x_of | what each row has, as a new observation): a MultivariateNormal with event shape `(d_of,)`."""
        mean, covariance = self.posterior(batch)
        (name,) = self._known(of)
        w, b = self.weights[name].to(mean.device), self.offsets[name].to(mean.device)
        noise = self.scales[name] ** 2 * torch.eye(len(w)).to(mean)
        return dist.MultivariateNormal(mean @ w.T + b, w @ covariance @ w.T + noise, validate_args=False)

    def log_marginal(self, batch: Batch) -> Tensor:
        """log p(x_S) `(N,)` in nats, S the modalities present in each row; 0 where nothing is."""
        return self._log_density(batch, self.names)

    def log_conditional(self, batch: Batch, of: Names, given: Names) -> Tensor:
        """log p(x_A | x_B) `(N,)` in nats: A and B are what each row has of `of` and of `given`.

        A row without A gives 0, one without B log p(x_A).

        Raises:
            ValueError: `of` and `given` overlap or name an unknown modality.
        """
        a, b = self._known(of), self._known(given)
        if both := set(a) & set(b):
            raise ValueError(f"{sorted(both)} cannot be predicted and given at once")
        return self._log_density(batch, (*a, *b)) - self._log_density(batch, b)

    def plug_in(self, batch: Batch, of: Names, q: dist.TorchDistribution) -> Tensor:
        """log E_{q(z)} p(x_A | z) `(N,)` in nats, A what each row has of `of`, q any Gaussian: not a conditional.

        Args:
            q: `Normal(...).to_event(1)` or `MultivariateNormal` with batch shape `(N,)` or `(S, N)`, event `(D,)`.

        Raises:
            TypeError: q is neither.
            ValueError: `of` names an unknown modality.
        """
        return self._log_density(batch, self._known(of), *_loc_and_root(q))

    def unimodal_posteriors(self) -> dict[str, UnimodalPosterior]:
        """Encoders x_m -> mean-field p(z | x_m), by name: the exact mean, and the variances 1 / diag(precision).

        Their parameters are new with every call, so that training moves no other's.
        """
        from pyro_mm.data.exact import UnimodalPosterior

        return {m: UnimodalPosterior(w, self.offsets[m], self.scales[m]) for m, w in self.weights.items()}

    def joint_posterior_net(self) -> JointPosterior:
        """A module batch -> mean-field p(z | what each row has), as a net for `JointEncoder`."""
        from pyro_mm.data.exact import JointPosterior

        return JointPosterior(self)

    def exact_guide(self) -> ExactGuide:
        """The guide z ~ p(z | what each row has), with its full covariance: every importance weight is p(x)."""
        from pyro_mm.data.exact import ExactGuide

        return ExactGuide(self)

    def _known(self, names: Names) -> tuple[str, ...]:
        chosen = as_names(names)
        if unknown := [m for m in chosen if m not in self.weights]:
            raise ValueError(f"unknown modality {unknown}; this model has {list(self.weights)}")
        return chosen

    def _evidence(self, batch: Batch, names: Iterable[str], loc: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the present ones of `names` say about z near `loc` (default 0).

        The precision they add `(..., N, D, D)`, their pull W'(x - W loc - b)/s^2 `(..., N, D)`, and their
        log-density at z = loc `(..., N)`.
        """
        first = next(iter(self.weights.values())).to(batch.device)
        gain, moment = first.new_zeros(len(batch), self.latent, self.latent), first.new_zeros(len(batch), self.latent)
        logp = first.new_zeros(len(batch))
        for m in names:
            if m not in batch.x:
                continue
            w, b, s = self.weights[m].to(first), self.offsets[m].to(first), self.scales[m]
            residual = batch.x[m].to(w) - b - (0.0 if loc is None else loc @ w.T)
            seen = batch.mask[m]
            residual = torch.where(seen.unsqueeze(-1), residual / s, 0.0)
            gain = gain + seen[..., None, None] * (w.T @ w / s**2)
            moment = moment + residual @ w / s
            logp = logp - 0.5 * (residual**2).sum(-1) - seen.to(w) * len(w) * (log(s) + 0.5 * log(2 * pi))
        return gain, moment, logp

    def _log_density(
        self, batch: Batch, names: Iterable[str], loc: Tensor | None = None, root: Tensor | None = None
    ) -> Tensor:
        """log integral N(z; loc, root root') prod_m p(x_m | z) dz over the present ones of `names`."""
        gain, moment, logp = self._evidence(batch, names, loc)
        if root is not None:
            gain, moment = root.mT @ gain @ root, (root.mT @ moment.unsqueeze(-1)).squeeze(-1)
        chol = torch.linalg.cholesky(_identity(gain) + gain)
        pull = torch.linalg.solve_triangular(chol, moment.unsqueeze(-1), upper=False).squeeze(-1)
        return logp + 0.5 * (pull**2).sum(-1) - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1]).to(like)


def _loc_and_root(q: dist.TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean `(..., D)` and a square root of the covariance `(..., D, D)`."""
    if isinstance(q, torch.distributions.MultivariateNormal):
        return q.loc, q.scale_tril
    base = getattr(q, "base_dist", None)
    if isinstance(base, torch.distributions.Normal) and q.event_shape == base.batch_shape[-1:]:
        return base.loc, base.scale.diag_embed()
    raise TypeError(f"plug_in needs a Gaussian q: Normal(...).to_event(1) or MultivariateNormal; got {q!r}")
