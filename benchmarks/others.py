"""The step of `benchmarks/plain.py` in other libraries, where they are installed: NumPyro and MultiVae."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import plain
import torch
from measuring import ABSENT, Missing, one_core
from torch import nn

__all__ = ["installed", "multivae_step", "numpyro_step"]

Step = Callable[[], object]


def installed(*names: str) -> bool:
    """Can all of these be imported?"""
    return all(importlib.util.find_spec(name) is not None for name in names)


def numpyro_step(width: int, rows: int) -> Step:
    """The same programs in NumPyro, the KL in closed form, Adam, jitted and run once.

    XLA does not heed OMP_NUM_THREADS.  To have one thread older ones must be told by a flag; newer ones ignore it and
    have as many as there are cores for them when they start.
    """
    if not installed("jax", "numpyro"):
        raise Missing(ABSENT)
    if torch.get_num_threads() == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    with one_core():
        step = _numpyro_step(width, rows)
        step()
    return step


def _numpyro_step(width: int, rows: int) -> Step:
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from numpyro.infer import SVI, TraceMeanField_ELBO

    nets = dict(zip(("encoder", "image", "label"), plain.networks(width), strict=True))
    start = {name: [(jnp.asarray(w), jnp.asarray(b)) for w, b in arrays(net)] for name, net in nets.items()}

    def mlp(name: str, x: Any) -> Any:
        layers = numpyro.param(f"{name}_net", start[name])
        for w, b in layers[:-1]:
            x = jax.nn.relu(x @ w.T + b)
        return x @ layers[-1][0].T + layers[-1][1]

    def model(x: Any, y: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(plain.LATENT), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=mlp("image", z)).to_event(1), obs=x)
            numpyro.sample("label", dist.Categorical(logits=mlp("label", z)), obs=y)

    def guide(x: Any, y: Any) -> None:
        loc, raw = jnp.split(mlp("encoder", jnp.concatenate([x, jax.nn.one_hot(y, plain.CLASSES)], -1)), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-5).to_event(1))

    batch = plain.data(rows)
    x, y = jnp.asarray(batch.x["x"].numpy()), jnp.asarray(batch.x["label"].numpy())
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    held = [svi.init(jax.random.PRNGKey(0), x, y)]
    update = jax.jit(svi.update)

    def step() -> None:
        held[0], loss = update(held[0], x, y)
        float(loss)

    return step


def arrays(net: nn.Module) -> list[tuple[Any, Any]]:
    """Weights and biases of its layers."""
    return [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net.modules() if isinstance(m, nn.Linear)]


def multivae_step(name: str, sizes: dict[str, int], width: int, rows: int) -> Step:
    """A step of MultiVae's model of this name on Bernoulli modalities of these sizes, with Adam."""
    if not installed("multivae", "pythae"):
        raise Missing(ABSENT)
    from multivae import models
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models.base import ModelOutput
    from multivae.models.nn.base_architectures import BaseJointEncoder
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encode(BaseEncoder):  # type: ignore[misc]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.latent_dim = net, plain.LATENT

        def forward(self, x: torch.Tensor) -> Any:
            loc, log_var = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Joint(BaseJointEncoder):  # type: ignore[misc]
        """The layers of `guides.Concatenation`."""

        def __init__(self) -> None:
            super().__init__()
            self.bodies = nn.ModuleDict({m: plain.mlp(size, width, width) for m, size in sizes.items()})
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(width * len(sizes), width), nn.ReLU())
            self.out, self.latent_dim = nn.Linear(width, 2 * plain.LATENT), plain.LATENT

        def forward(self, x: dict[str, torch.Tensor]) -> Any:
            hidden = self.head(torch.cat([body(x[m]) for m, body in self.bodies.items()], -1))
            loc, log_var = self.out(hidden).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Decode(BaseDecoder):  # type: ignore[misc]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z))

    encoders = {m: Encode(plain.mlp(size, width, 2 * plain.LATENT)) for m, size in sizes.items()}
    decoders = {m: Decode(plain.mlp(plain.LATENT, width, size)) for m, size in sizes.items()}
    config = getattr(models, f"{name}Config")(
        n_modalities=len(sizes),
        latent_dim=plain.LATENT,
        input_dims={m: (size,) for m, size in sizes.items()},
        decoders_dist=dict.fromkeys(sizes, "bernoulli"),
        **PEERS[name],
    )
    joint = [Joint()] if name == "JMVAE" else []
    model = getattr(models, name)(config, encoders, decoders, *joint)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    inputs = MultimodalBaseDataset(data=plain.pixels(sizes, rows))[torch.arange(rows)]

    def step() -> None:
        optimiser.zero_grad()
        loss = model(inputs, epoch=2).loss
        loss.backward()
        optimiser.step()
        float(loss.detach())

    return step


PEERS: dict[str, dict[str, Any]] = {
    "JMVAE": {"alpha": 0.1, "warmup": 1},
    "MVAE": {"use_subsampling": True, "k": 0, "warmup": 1},
    "MMVAE": {"K": 1, "prior_and_posterior_dist": "normal", "learn_prior": False},
    "MoPoE": {},
}
