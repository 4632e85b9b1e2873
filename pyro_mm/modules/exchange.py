"""The loops in which modules talk: classes among themselves, and a VAE with classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.beliefs import ClassMessage, NormalMessage, believe, informed
from pyro_mm.evaluation import encode
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program
from pyro_mm.modules.classes import ClassMixture, k_means, likelihood_message, log_responsibilities
from pyro_mm.modules.parts import Gaussians, UnitGaussians
from pyro_mm.modules.resumption import Reached, fit_folder, keep, reached
from pyro_mm.objectives import elbo
from pyro_mm.training import Stage, fit

__all__ = ["Exchange", "agree", "exchange"]

HEARD = "c_heard"
Send = Callable[[ClassMixture, Batch], Tensor]


def agree(
    modules: Sequence[ClassMixture], batch: Batch, r: Tensor, steps: int = 50, *, send: Send = likelihood_message
) -> Tensor:
    """Modules that share their class exchange messages and learn; the first one's responsibilities at the end.

    The first module has p(c): it is `informed` by the others.  To the others what is said takes the place of their
    p(c) (`believe`):

        1st:    r proportional to p(c) p(x_1 | c) prod_{j>1} b_j(c)
        j-th:   r proportional to [p(c) p(x_1 | c) prod_{i not 1, j} b_i(c)] p(x_j | c)

    With b_j = p(x_j | c) (`likelihood_message`) these are equal, and every step is one of expectation maximisation of
    the single model p(c) prod_j p(x_j | c).  `posterior_message` is SERKET's b, with which they are not.

    Args:
        r: responsibilities `(N, C)` to start from.
        send: what modules after the first say.

    Raises:
        ValueError: numbers of classes differ.
    """
    if len({m.classes for m in modules} | {r.shape[-1]}) != 1:
        raise ValueError(f"modules have {[m.classes for m in modules]} classes, responsibilities {r.shape[-1]}")
    for module in modules:
        module.maximise(batch, r)
    for _ in range(steps):
        for module, mine in zip(modules, _opinions(modules, batch, send), strict=True):
            module.maximise(batch, mine.exp())
    return _opinions(modules, batch, send)[0].exp()


def _opinions(modules: Sequence[ClassMixture], batch: Batch, send: Send) -> list[Tensor]:
    """Every module's log-responsibilities `(N, C)`, all messages sent before any is heard."""
    first, *others = modules
    said = [log_responsibilities(first, batch), *(send(m, batch) for m in others)]
    out = []
    for j, module in enumerate(modules):
        heard = sum((s for i, s in enumerate(said) if i != j), torch.zeros_like(said[0]))
        told = informed(module, "c", HEARD) if module is first else believe(module, "c", ClassMessage(HEARD))
        out.append(log_responsibilities(told, with_entry(batch, HEARD, heard)))
    return out


def with_entry(batch: Batch, name: str, value: Tensor, rows: Tensor | None = None) -> Batch:
    """The batch with one more entry, present in these rows `(N,)`; default all."""
    mask = {m: k for m, k in batch.mask.items() if m != name}
    return Batch({**batch.x, name: value}, mask if rows is None else {**mask, name: rows})


@dataclass(frozen=True)
class Exchange:
    """What an outer loop ends with.

    Attributes:
        responsibilities: p(c | everything) `(N, C)`.
        codes: what the VAE sent last, `(N, D)`.
        means: what it was told last, `(N, D)`.
        losses: the VAE's loss at the end of every round, in nats per row.
    """

    responsibilities: Tensor
    codes: Tensor
    means: Tensor
    losses: list[float] = field(default_factory=list)

    @property
    def classes(self) -> Tensor:
        """The likeliest class of every row `(N,)`."""
        return self.responsibilities.argmax(-1)


def exchange(
    model: Program,
    guide: Program,
    modules: Sequence[ClassMixture],
    batch: Batch,
    *,
    rounds: int = 5,
    epochs: int = 20,
    steps: int = 20,
    code: str = "code",
    message: str = "mu",
    site: str = "z",
    alpha: float = 1.0,
    send: Send = likelihood_message,
    start: Tensor | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    **options: Any,
) -> Exchange:
    """Rounds of: train the VAE under the prior N(mu_i, I); send it z_i; let the classes agree; send back mu_i.

        VAE:      max E_q[log p(x | z)] - alpha KL(q(z | x) || N(mu_i, I)), mu = 0 at first   (`fit`)
        to it:    mu_i = sum_k r_ik m_k,  m_k the mean of class k's codes
        from it:  z_i = the mean of q(z | x_i)
        classes:  `agree`, from the last round's responsibilities

    With alpha = 1, `UnitGaussians` for the codes, `likelihood_message` and a guide that hears mu as well (`tilted`),
    every part is a coordinate of one bound of p(c) N(z; m_c, I) p(x | z) prod_j p(x_j | c), under q(z | x) q(c).
    The papers send a draw of z and the mean of the likeliest class instead, and their guide does not see mu.  Of a
    row in which the guide sees nothing there is nothing to send: to the classes its code is missing.

    Args:
        model, guide: the VAE, e.g. `models.Joint` and `guides.Experts`; a guide that is told of mu is
            `tilted(guide, site, message)`.
        modules: the first has a part called `code` with a `loc` for every class.
        epochs: of the VAE in a round; 0 leaves it as it is.
        steps: of `agree` in a round.
        code, message: entries of the batch in which z_i and mu_i travel.
        start: responsibilities of the first round (default: k-means of the codes).
        folder: what every round reaches is kept there, and the VAE's training within one as `fit` keeps it: the same
            call goes on where an interrupted one stood, to the bit, and one with more rounds adds the rest.
        options: for `fit`.

    Raises:
        ValueError: the first module knows nothing of `code`, there is no round, or `folder` is about other modules or
            rows.
        KeyboardInterrupt: training was interrupted; with a folder nothing is lost.
        BadFile: the folder's file is damaged.
    """
    part = dict(modules[0].parts.items()).get(code)
    if not isinstance(part, Gaussians | UnitGaussians):
        raise ValueError(f"the first module needs Gaussians called '{code}'; it has {list(modules[0].parts)}")
    mu = part.loc.new_zeros(len(batch), part.loc.shape[-1])
    rows = batch.present(getattr(guide, "names", None) or getattr(model, "names", None))
    objective = elbo(believe(model, site, NormalMessage(message)), guide, beta=alpha)
    where, everyone = None if folder is None else Path(folder), _named(model, guide, modules)
    now = Reached(0, start, mu, mu)
    now = now if where is None else reached(where, everyone, now)
    for t in range(now.rounds, rounds):
        told = with_entry(batch, message, now.mu)
        if epochs:
            own = None if where is None else fit_folder(where, t + 1)
            _train(Stage(objective, epochs, name=f"round_{t + 1}"), told, seed + t, own, options)
        with evaluating(model, guide, seed=seed + t):
            now.losses.append(float(objective(told)))
        codes = encode(guide, told, seed=seed + t).mean[site]
        before = _clusters(codes, rows, modules[0].classes, seed) if now.r is None else now.r
        r = agree(modules, with_entry(batch, code, codes, rows), before, steps, send=send)
        now = Reached(t + 1, r, r @ part.loc.detach(), codes, now.losses)
        if where is not None:
            keep(where, everyone, now)
    if now.r is None or not now.rounds:
        raise ValueError(f"an exchange has at least one round, got {rounds}")
    return Exchange(now.r, now.codes, now.mu, now.losses)


def _named(model: Program, guide: Program, modules: Sequence[ClassMixture]) -> dict[str, nn.Module]:
    """Whatever has parameters, by name."""
    every = {"model": model, "guide": guide, **{f"module_{i}": m for i, m in enumerate(modules, 1)}}
    return {n: m for n, m in every.items() if isinstance(m, nn.Module)}


def _train(stage: Stage, batch: Batch, seed: int, folder: Path | None, options: dict[str, Any]) -> None:
    """One round of the VAE's, which goes on from the folder's checkpoint if it has one."""
    more = {"progress": False, **options, "folder": folder, "resume": folder is not None}
    if fit([stage], batch, seed=seed, **more).interrupted:
        raise KeyboardInterrupt


def _clusters(codes: Tensor, rows: Tensor, classes: int, seed: int) -> Tensor:
    """k-means of the codes of these rows; the others may be anything, `(N, C)`."""
    r = codes.new_full((len(codes), classes), 1 / classes)
    r[rows] = k_means(codes[rows], classes, seed)
    return r
