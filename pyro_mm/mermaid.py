"""Graphical models as text that pages draw: Mermaid flowcharts, as GitHub and many editors show them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_mm.describe import Node

__all__ = ["flowchart"]

GREY = "fill:#d9d9d9,color:#000"


def flowchart(p: Sequence[Node], q: Sequence[Node]) -> str:
    """The graph of a model and its guide, without the fence around it.

    Latents are round, observations round and grey, modalities that are only conditioned on grey boxes; edges of the
    guide are dashed.  Plates are not drawn.

    Args:
        p, q: sites of model and guide, `nodes_of` each.

    Raises:
        ValueError: the model has no sites.
    """
    if not p:
        raise ValueError("the model has no sample sites to draw")
    sites = dict.fromkeys(n.name for n in (*p, *q))
    latent = {n.name for n in (*p, *q) if not n.observed}
    inputs = dict.fromkeys(m for n in (*p, *q) for m in n.parents if m not in sites)
    lines = ["flowchart TB", *(f'  {_id(m)}(("{m}"))' for m in sites), *(f'  {_id(m)}["{m}"]' for m in inputs)]
    lines += [*_edges(p, "-->"), *_edges(q, "-.->")]
    if seen := [_id(m) for m in (*sites, *inputs) if m not in latent]:
        lines += [f"  classDef seen {GREY}", f"  class {','.join(seen)} seen"]
    return "\n".join(lines)


def _edges(nodes: Sequence[Node], arrow: str) -> list[str]:
    """A line for every set of parents, `z --> a & b`."""
    children: dict[tuple[str, ...], list[str]] = {}
    for node in nodes:
        if node.parents:
            children.setdefault(node.parents, []).append(node.name)
    return [f"  {_all(parents)} {arrow} {_all(names)}" for parents, names in children.items()]


def _all(names: Sequence[str]) -> str:
    return " & ".join(map(_id, names))


def _id(name: str) -> str:
    """A name that Mermaid takes for nothing else, such as its word `end`."""
    return "v_" + re.sub(r"\W", "_", name)
