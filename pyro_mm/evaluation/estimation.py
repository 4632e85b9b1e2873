"""From a quantity, a batch and an effort to an `Evidence`, block by block of rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation.adaptive import PILOT, adaptive
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.effort import Effort, Quantity, fit, fit_all, gradients, latents_of, proposal_of, refinable
from pyro_mm.evaluation.evidence import Evidence, those_scored, told_by
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.half import Rounding

__all__ = ["estimated", "planned", "resolved"]

STEP = 8  # particles in one pass over a block of rows
COMPARED, MOST = 16, 1000  # rows and draws that tell what lower precision changes


def estimated(quantity: Quantity, batch: Batch, effort: Effort) -> Evidence:
    """The quantity of every row of the batch, with the effort asked for.

    Raises:
        ValueError: an effort that makes no sense, or a pair that breaks a convention.
    """
    effort = resolved(quantity, batch, effort)
    with evaluating(quantity.model, quantity.guide, seed=effort.seed):
        plan = planned(quantity, batch, effort)
        solve = _fixed if effort.target_se is None else adaptive
        found = Evidence.join([solve(quantity, block, effort, plan) for block in plan.blocks(batch)])
        rounding = change_by_half(quantity, batch, effort, plan) if effort.bf16 else None
    scored = those_scored(quantity.asks(batch))
    # Parts of the model say so where their densities are computed numerically.
    told = "; ".join([found.proposal, *told_by(quantity.model, "density_note")])
    return replace(found, target_se=effort.target_se, scored=scored, rounding=rounding, proposal=told)


def resolved(quantity: Quantity, batch: Batch, effort: Effort) -> Effort:
    """With `refine` decided where it was left open: yes for a guide of several latents, if it can be refined at all.

    In a hierarchy the amortised guide is a poor proposal: plain importance sampling can be a nat off, and say so only
    by its k-hat.
    """
    if effort.refine is not None or effort.target_se is not None or not len(batch):
        return effort
    several = latents_of(quantity.guide, batch) > 1 and refinable(quantity.model, quantity.guide, batch)
    return replace(effort, refine=True) if several else effort


def planned(quantity: Quantity, batch: Batch, effort: Effort) -> Plan:
    """Passes that keep to the memory budget, as measured on one row."""
    k = effort.draws if effort.target_se is None else min(PILOT, effort.draws)
    if k < 1 or not len(batch) or effort.chunk is not None:
        return Plan.for_batch(batch, k, effort.chunk)
    one = batch[:1]
    probe = proposal_of(quantity, one, effort)

    def one_pass(n: int) -> None:
        probe.draw(one, probe.assign(n))
        if effort.refiners:
            with suppress(ValueError):  # what cannot be refined says so when it is
                gradients(quantity, one, n)

    plan = Plan.for_batch(batch, k, None, effort.memory, one_pass)
    # Refining takes many steps of few particles: it wants many rows in each.
    return plan.regrouped(min(len(batch), max(1, plan.units // STEP))) if effort.refiners else plan


def change_by_half(quantity: Quantity, batch: Batch, effort: Effort, plan: Plan) -> Rounding:
    """What layers in bfloat16 change: the first rows' estimates beside those in full precision, by the same noise."""
    block = batch[quantity.asks(batch).nonzero().flatten()[:COMPARED]]
    if not len(block):
        return 0.0, 0.0, 0
    k, found, refined = min(effort.draws, MOST), [], []
    if effort.refiners:
        with suppress(ValueError):  # where they cannot be refined, and nobody asked for it, the estimate did without
            refined = fit(quantity, block, effort.refiners[0], chunk=plan.units)
    for bf16 in (True, False):
        proposal = proposal_of(quantity, block, replace(effort, bf16=bf16), refined)
        devices = [block.device] if block.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            found.append(quantity.measured(proposal, block, plan.regrouped(len(block)), k).estimate)
    change = found[0] - found[1]
    return change.mean().item(), change.abs().max().item(), len(block)


def _fixed(quantity: Quantity, block: Batch, effort: Effort, plan: Plan) -> Evidence:
    """The same K for every row."""
    refined = fit_all(quantity, block, effort, plan.units)
    return quantity.measured(proposal_of(quantity, block, effort, refined), block, plan, effort.draws)
