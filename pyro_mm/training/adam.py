"""Adam's update written out, for graphs that hold a whole step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

__all__ = ["AdamUpdate"]

State = tuple[list[Tensor], list[Tensor], Tensor, Tensor]
RARE = ("amsgrad", "maximize", "differentiable", "capturable")
SETTINGS = ("betas", "eps", "weight_decay", "decoupled_weight_decay", *RARE)


class AdamUpdate:
    """The update of a `torch.optim.Adam` or `AdamW`, in a graph; moments and step counts are the optimiser's own.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
    (Kingma & Ba 2015, algorithm 1).  Nothing moves in a step whose loss or gradient is not finite.

    The graph counts steps in one tensor, torch in one per parameter: `release` before the optimiser is used, saved or
    loaded.
    """

    def __init__(self, optimiser: Optimizer, clip_norm: float | None) -> None:
        self.optimiser, self.clip_norm = optimiser, clip_norm
        self.settings = self._settings()
        self.parameters: list[nn.Parameter] = []  # those that have gradients
        self.held = False

    @staticmethod
    def suits(optimiser: Optimizer) -> bool:
        """Is it an Adam or AdamW with one group of parameters, and none of the rarer options or hooks?"""
        if type(optimiser) not in (Adam, AdamW) or len(optimiser.param_groups) != 1:
            return False
        rare = any(optimiser.param_groups[0].get(name) for name in RARE)
        hooks = getattr(optimiser, "_optimizer_step_pre_hooks", {}) or getattr(
            optimiser, "_optimizer_step_post_hooks", {}
        )
        return not rare and not hooks

    def start(self, parameters: Sequence[nn.Parameter]) -> None:
        """The moments of these parameters, zero where the optimiser has not stepped yet."""
        self.parameters = list(parameters)
        device = self.parameters[0].device
        self.count = torch.zeros((), device=device)
        self.lr = torch.zeros((), device=device)
        self.last_lr = 0.0
        self._fill()

    def _fill(self) -> None:
        for p in self.parameters:
            state = self.optimiser.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device if self.group["fused"] else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)

    @property
    def group(self) -> dict[str, Any]:
        """The optimiser's only group; `load_state_dict` puts another one in its place."""
        group: dict[str, Any] = self.optimiser.param_groups[0]
        return group

    @property
    def impossible(self) -> str:
        """Why the graph's update is not the optimiser's; "": it is."""
        if len(self.optimiser.param_groups) != 1 or self._settings() != self.settings:
            return "the optimiser has other settings than the graph"
        if not self.held and len({float(self.optimiser.state[p].get("step", 0.0)) for p in self.parameters}) > 1:
            return "the optimiser's parameters have made different numbers of steps"
        return ""

    def inputs(self) -> State:
        """Moments, number of steps, learning rate: what the graph reads and, but for the last, writes."""
        if not self.held:
            self._fill()
            self.count.fill_(float(self.optimiser.state[self.parameters[0]]["step"]))
            self.first = [self.optimiser.state[p]["exp_avg"] for p in self.parameters]
            self.second = [self.optimiser.state[p]["exp_avg_sq"] for p in self.parameters]
            self.held = True
        if (lr := float(self.group["lr"])) != self.last_lr:
            self.lr.fill_(lr)
            self.last_lr = lr
        return self.first, self.second, self.count, self.lr

    def release(self) -> None:
        """Write the number of steps into the optimiser."""
        if self.held:
            count = float(self.count)
            for p in self.parameters:
                self.optimiser.state[p]["step"].fill_(count)
            self.held = False

    def __call__(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: State, loss: Tensor, norm: Tensor
    ) -> None:
        """Move the parameters, in the graph; `norm` is the gradient's, before it is clipped."""
        (beta1, beta2), eps, decay = self.group["betas"], self.group["eps"], self.group["weight_decay"]
        first, second, count, lr = state
        good = torch.isfinite(loss) & torch.isfinite(norm)
        if self.clip_norm is not None:
            shrink = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
            grads = [g * shrink for g in grads]
        decoupled = self.group.get("decoupled_weight_decay", type(self.optimiser) is AdamW)
        count.add_(good.to(count.dtype))
        size, root = lr / (1 - beta1**count), (1 - beta2**count).sqrt()
        for p, g, m, v in zip(params, grads, first, second, strict=True):
            if decay and not decoupled:
                g = g + decay * p
            decayed = p * (1 - lr * decay) if decay and decoupled else p
            new_m, new_v = torch.lerp(m, g, 1 - beta1), beta2 * v + (1 - beta2) * g * g
            new_p = decayed - size * new_m / (new_v.sqrt() / root + eps)
            for old, new in ((p, new_p), (m, new_m), (v, new_v)):
                old.copy_(torch.where(good, new, old))

    def _settings(self) -> tuple[Any, ...]:
        return tuple(self.group.get(name) for name in SETTINGS)
