"""Training in parts: an objective, for how long, and what moves meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["Alternated", "Stage", "as_stages", "in_turn"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One part of a training run.

    Attributes:
        objective: the loss, `batch -> scalar`.
        epochs: passes over the data.
        train: the module or modules whose parameters move (default: all of the objective's).  The others keep still:
            they get no gradient and run in evaluation mode, so that no batch statistics move either.
        name: how logs call it.
        lr: this stage's learning rate, in place of `fit`'s.
        turns: stages whose optimisers step one after the other at every minibatch (`in_turn`).
        optimiser: parameters -> optimiser, in place of `fit`'s.

    Raises:
        ValueError: fewer than one epoch.
    """

    objective: nn.Module
    epochs: int
    train: nn.Module | Sequence[nn.Module] | None = None
    name: str = ""
    lr: float | None = None
    turns: tuple[Stage, ...] = ()
    optimiser: Callable[..., Optimizer] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"a stage takes at least 1 epoch, got {self.epochs}")

    def __repr__(self) -> str:
        return f"{self.name}: {self.objective!r}" if self.name else repr(self.objective)

    @property
    def chosen(self) -> list[nn.Module]:
        """`train` as a list; the objective itself when all of it moves."""
        if self.train is None:
            return [self.objective]
        return [self.train] if isinstance(self.train, nn.Module) else list(self.train)

    def moving(self) -> list[nn.Parameter]:
        """The parameters that move, each once, in the objective's order.

        Raises:
            ValueError: there are none.
        """
        chosen = {id(p) for module in self.chosen for p in module.parameters()}
        own = list(self.objective.parameters())
        found = [p for p in own if id(p) in chosen and p.requires_grad]
        if not found:
            raise ValueError(
                f"{self.name or 'the objective'} has nothing to train: of its {len(own)} parameters "
                f"{sum(id(p) in chosen for p in own)} are chosen by `train`, and none of these has requires_grad.  "
                "Parameters must belong to modules inside the objective"
            )
        return found

    @contextmanager
    def only_moving(self) -> Iterator[None]:
        """Everything else has no gradient meanwhile."""
        moving = {id(p) for p in self.moving()}
        still = [p for p in self.objective.parameters() if p.requires_grad and id(p) not in moving]
        for p in still:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in still:
                p.requires_grad_(True)

    def set_modes(self) -> None:
        """Training mode for what moves, evaluation mode for the rest."""
        self.objective.train(self.train is None)
        if self.train is not None:
            for module in self.chosen:
                module.train()


def in_turn(
    epochs: int,
    *turns: Stage,
    name: str = "",
    lr: float | None = None,
    optimiser: Callable[..., Optimizer] | None = None,
) -> Stage:
    """A stage with several optimisers: at every minibatch each one steps, in this order, for its own objective.

    Each turn is a `Stage` that says what it minimises and what it moves; its epochs do not count.  What one turn moves
    gets no gradient from another, but is in training mode for all of them, as is usual for GANs: batch statistics move
    in every turn.  Logs and validation have the loss of the first turn, and the terms of all of them; since that says
    nothing of the others, such a stage ends with its last weights, not with those of the best epoch.
    Such a stage trains eagerly and in one process.

    Raises:
        ValueError: fewer than two turns, names that are not distinct, or a parameter that two turns would move.
    """
    named = tuple(
        replace(
            s,
            name=s.name or f"turn {i}",
            lr=lr if s.lr is None else s.lr,
            optimiser=s.optimiser or optimiser,
        )
        for i, s in enumerate(turns, 1)
    )
    if len(named) < 2 or len({s.name for s in named}) < len(named):
        raise ValueError(f"two or more turns with distinct names are needed, got {[s.name for s in named]}")
    owners: dict[int, str] = {}
    for stage in named:
        for p in stage.moving():
            if (other := owners.setdefault(id(p), stage.name)) != stage.name:
                raise ValueError(f"turns '{other}' and '{stage.name}' would both move a parameter of {tuple(p.shape)}")
    return Stage(Alternated(named), epochs, [m for s in named for m in s.chosen], name, lr, named, optimiser)


class Alternated(nn.Module):
    """The objectives of several turns: all are computed, the value is the first one's."""

    def __init__(self, turns: Sequence[Stage]) -> None:
        super().__init__()
        self.names = tuple(s.name for s in turns)
        self.objectives = nn.ModuleList([s.objective for s in turns])

    def forward(self, batch: Any) -> Any:
        first, *_ = [objective(batch) for objective in self.objectives]
        return first

    def set_progress(self, epochs: float) -> None:
        """Move every schedule inside."""
        for objective in self.objectives:
            getattr(objective, "set_progress", lambda epochs: None)(epochs)

    def __repr__(self) -> str:
        return "in turn  " + ";  ".join(f"{n}: {o!r}" for n, o in zip(self.names, self.objectives, strict=True))


def as_stages(
    target: Any, epochs: int | None, modules: Mapping[str, nn.Module] | None
) -> tuple[list[Stage], dict[str, nn.Module]]:
    """Stages, and the named modules of a recipe, from what `fit` was given."""
    if not isinstance(target, nn.Module | Sequence) and hasattr(target, "target"):
        target, modules = target.target, {**target.modules, **(modules or {})}
    if isinstance(target, nn.Module):
        if epochs is None:
            raise ValueError("fit(objective, data, epochs): say for how many epochs")
        target = [Stage(target, epochs, name="training")]
    elif not isinstance(target, Sequence) or not target or not all(isinstance(s, Stage) for s in target):
        raise TypeError(
            f"fit takes an objective (an nn.Module: batch -> loss), a list of Stage or a Recipe; got {target!r:.100}"
        )
    elif epochs is not None:
        target = [replace(s, epochs=epochs) for s in target]
    named = [s if s.name else replace(s, name=f"stage {i}") for i, s in enumerate(target, 1)]
    if len({s.name for s in named}) < len(named):
        raise ValueError(f"stages need distinct names, got {[s.name for s in named]}")
    if clash := {s.name for s in named} & set(modules or {}):
        raise ValueError(f"{sorted(clash)} name both a stage and a module")
    return named, dict(modules or {})
