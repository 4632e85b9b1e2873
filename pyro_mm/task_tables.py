"""What `evaluate --tasks` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro_mm.metrics import judges_lines
from pyro_mm.tables import aligned

__all__ = ["WORDS", "interval", "tasks_table"]

WORDS = {
    "by_cosine": "by cosine of posterior means",
    "by_kl": "by Kullback-Leibler divergence of posteriors, query's to row's",
    "by_sampled_kl": "by Kullback-Leibler divergence of posteriors, query's to row's, sampled",
    "by_wasserstein": "by Wasserstein distance of posteriors",
    "by_likelihood": "by log p(row | query)",
}
"""Scores of retrieval in words."""


def tasks_table(found: dict[str, Any]) -> str:
    """What `evaluate_tasks` found, as text."""
    parts = []
    if "classification" in found:
        kind = found.get("kind", "noise")
        how = "noise (in standard deviations)" if kind == "noise" else f"share of {kind.replace('_', ' ')}"
        parts.append("\n".join([f"accuracy of the label, by {how}", "", *_accuracies(found)]))
    if "generation" in found:
        head = ["made from the prior", "Frechet", "(halves)", "kernel", "precision", "recall"]
        rows = [
            [
                m,
                f"{e['frechet']:.2f} +- {e['frechet_se']:.2f}",
                f"{e['frechet_halves']:.2f}",
                f"{e['kernel']:.4f} +- {e['kernel_se']:.4f}",
                *_shares(e),
            ]
            for m, e in found["generation"].items()
        ]
        parts += ["\n".join(judges_lines(found["judges"])), "\n".join(aligned([head, *rows]))]
    if "retrieval" in found:
        parts += [
            "\n".join([f"retrieval {what}", "", *_retrieved(e for e in found["retrieval"] if e["score"] == name)])
            for name, what in WORDS.items()
            if any(e["score"] == name for e in found["retrieval"])
        ]
    return "\n\n".join(parts)


def _accuracies(found: dict[str, Any]) -> list[str]:
    entries = found["classification"]
    levels = list(dict.fromkeys(e["noise"] for e in entries))
    sets = list(dict.fromkeys(tuple(e["given"]) for e in entries))
    at = {(tuple(e["given"]), e["noise"]): e for e in entries}
    rows = [
        [
            ", ".join(given),
            *(f"{100 * at[given, x]['accuracy']:.1f} % +- {100 * at[given, x]['se']:.1f}" for x in levels),
        ]
        for given in sets
    ]
    return aligned([["given", *(f"{x:g}" for x in levels)], *rows])


def _retrieved(entries: Iterable[dict[str, Any]]) -> list[str]:
    rows = [["query -> found", "R@1", "R@5", "R@10", "median rank", "mAP", "gallery"]]
    for e in entries:
        recall = [interval(e["recall"].get(k)) for k in ("1", "5", "10")]
        rank = e["median_rank"]
        shown = "-" if rank is None else f"{rank['value']:.0f}"
        direction = f"{', '.join(e['given'])} -> {', '.join(e['of'])}"
        rows.append([direction, *recall, shown, interval(e["mean_precision"]), f"{e['gallery']:,}"])
    return aligned(rows)


def interval(m: dict[str, float] | None) -> str:
    """A share, and the ends of its interval."""
    return "-" if m is None else f"{100 * m['value']:.1f} % ({100 * m['low']:.1f} to {100 * m['high']:.1f})"


def _shares(e: dict[str, float]) -> list[str]:
    return [f"{100 * e[k]:.1f} % +- {100 * e[k + '_se']:.1f}" for k in ("precision", "recall")]
