"""What an accuracy of the log-likelihood costs: the amortised guide against refined proposals and `target_se`.

    python benchmarks/likelihoods.py RUN [--rows 100] [--rounds 3] [--threads 1]

RUN is the folder of a trained run.  All candidates are timed in one process, in interleaved rounds; seconds are medians
over the rounds, and the ratio to the amortised guide's K = 5,000 is what can be compared between machines.  Errors are
against a reference of refined proposals with K = 20,000.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pyro_mm.evaluation import Evidence, log_marginal
from pyro_mm.runs import open_run
from pyro_mm.tables import aligned

TARGETS = (1.0, 0.5, 0.3, 0.1)


def main() -> None:
    """Print the table."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    run = open_run(arguments.run, arguments.root)
    pair, rows = (run.recipe.model, run.recipe.guide), run.test_rows(arguments.rows)
    candidates: dict[str, Callable[[int], Evidence]] = {
        "guide, K = 1,000": lambda seed: log_marginal(*pair, rows, 1000, seed=seed),
        "guide, K = 5,000": lambda seed: log_marginal(*pair, rows, 5000, seed=seed),
        "refined, K = 200": lambda seed: log_marginal(*pair, rows, 200, refine=True, seed=seed),
        "refined, K = 1,000": lambda seed: log_marginal(*pair, rows, 1000, refine=True, seed=seed),
        **{f"target_se = {t:g}": lambda seed, t=t: log_marginal(*pair, rows, target_se=t, seed=seed) for t in TARGETS},
    }
    log_marginal(*pair, rows[:10], 100)  # imports and caches
    log_marginal(*pair, rows[:10], target_se=0.5)
    found, seconds = _timed(candidates, arguments.rounds)
    reference = log_marginal(*pair, rows, 20_000, refine=True, seed=1000)
    print(
        f"{run.settings.variant} on {run.settings.data}: log p({', '.join(run.splits.names)}), {len(rows)} test rows,"
    )
    print(f"{arguments.threads} thread(s), torch {torch.__version__}; reference {reference.mean:.3f}\n")
    print("\n".join(aligned(_rows(found, seconds, reference))))
    _verdict(found, seconds, reference)


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--root", help="where the run's data are now")
    p.add_argument("--rows", type=int, default=100)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    return p.parse_args()


def _timed(
    candidates: dict[str, Callable[[int], Evidence]], rounds: int
) -> tuple[dict[str, list[Evidence]], dict[str, float]]:
    """Every candidate once per round, each round with its own seed; median seconds."""
    found: dict[str, list[Evidence]] = {name: [] for name in candidates}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for seed in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            found[name].append(run(seed))
            times[name].append(time.perf_counter() - began)
    return found, {name: statistics.median(t) for name, t in times.items()}


def _rows(found: dict[str, list[Evidence]], seconds: dict[str, float], reference: Evidence) -> list[list[str]]:
    out = [["", "mean", "mean error", "rms error", "median ESS", "median K", "seconds", "ratio"]]
    for name, runs in found.items():
        e = runs[0]
        bias, rms = _errors(runs, reference)
        k = e.draws_per_datum.double().median().item()
        ratio = seconds[name] / seconds["guide, K = 5,000"]
        numbers = [f"{e.mean:.2f}", f"{bias:+.3f}", f"{rms:.3f}", f"{e.median_ess:.0f}", f"{k:.0f}"]
        out.append([name, *numbers, f"{seconds[name]:.2f}", f"{ratio:.3f}"])
    return out


def _errors(runs: list[Evidence], reference: Evidence) -> tuple[float, float]:
    """Mean and root mean square error over rows and rounds."""
    error = torch.stack([e.estimate - reference.estimate for e in runs])
    return error.mean().item(), error.square().mean().sqrt().item()


def _verdict(found: dict[str, list[Evidence]], seconds: dict[str, float], reference: Evidence) -> None:
    """The cheapest `target_se` that is at least as accurate as the guide's K = 5,000."""
    base = "guide, K = 5,000"
    wanted = _errors(found[base], reference)[1]
    good = [n for n in found if n.startswith("target_se") and _errors(found[n], reference)[1] <= wanted]
    if not good:
        print(f"\nno target_se of these is as accurate as {base}")
        return
    best = min(good, key=lambda n: seconds[n])
    print(
        f"\nthe accuracy of {base} (rms error {wanted:.3f}) in {seconds[best] / seconds[base]:.3f} of its time: {best}"
    )


if __name__ == "__main__":
    main()
