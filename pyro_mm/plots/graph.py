"""Graphical models drawn with matplotlib alone: nodes, edges and plates; see `pyro_mm.describe.graph`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro_mm.plots.style import GREY, INK, Place, colours, drawing, finish

if TYPE_CHECKING:
    from pyro_mm.describe import Node

__all__ = ["draw_pair"]

ACROSS, DOWN = 1.6, 1.25  # inches between nodes
TALL = 0.56  # inches, a node's height
PAD = 0.24  # inches from a node to its plate, and from a plate to the one round it
SHADE = "#D9D9D9"
BENDS = (0.0, 0.18, -0.18, 0.32, -0.32, 0.5, -0.5, 0.75, -0.75)
Spot = tuple[float, float]


def draw_pair(
    programs: Mapping[str, Sequence[Node]], modalities: Sequence[str], path: Place
) -> tuple[Any, dict[str, Any]]:
    """One panel per program, `model` and perhaps `guide`, the same site at the same place in both."""
    if not programs["model"]:
        raise ValueError("the model has no sample sites to draw")
    picture = _Picture.of(programs, modalities)
    left, right, bottom, top = picture.extent()
    width, height = right - left, top - bottom
    gap, head = 0.35, 0.9
    with drawing() as plt:
        size = (width * len(programs) + gap * (len(programs) + 1), height + head + 0.1)
        figure = plt.figure(figsize=size)
        axes = {}
        for i, (role, nodes) in enumerate(programs.items()):
            x = gap + i * (width + gap)
            box = (x / size[0], 0.1 / size[1], width / size[0], height / size[1])
            ax = axes[role] = figure.add_axes(box, xlim=(left, right), ylim=(bottom, top))
            ax.set_axis_off()
            picture.draw(ax, nodes, dashed=role == "guide")
            _title(ax, role, nodes, width)
    finish(figure, path)
    return figure, axes


@dataclass
class _Picture:
    """Where every node is, which plates hold it, and what is data."""

    spots: dict[str, Spot]
    plates: dict[str, tuple[int, list[str]]]
    colour: dict[str, str]
    observed: set[str]
    conditions: set[str]

    @staticmethod
    def of(programs: Mapping[str, Sequence[Node]], modalities: Sequence[str]) -> _Picture:
        """Lay out the union of the programs: parents above children, as the first program has them."""
        first, *others = programs.values()
        parents = {n.name: list(n.parents) for n in first}
        used = {p for nodes in programs.values() for n in nodes for p in n.parents}
        inputs = [m for m in modalities if m in used]
        conditions = [m for m in inputs if m not in parents]
        for node in (n for nodes in others for n in nodes):
            parents.setdefault(node.name, [p for p in node.parents if p not in inputs])
        parents |= {m: [] for m in conditions}
        plates = _plates([n for nodes in programs.values() for n in nodes])
        if "data" in plates:  # what is only conditioned on is data all the same
            size, members = plates["data"]
            plates["data"] = size, [*members, *conditions]
        observed = {n.name for n in first if n.observed} | set(inputs)
        return _Picture(_layout(parents, plates), plates, colours(modalities), observed, set(conditions))

    def box(self, plate: str) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of a plate: round its nodes and the plates inside it."""
        members = set(self.plates[plate][1])
        order = list(self.plates)
        inner = [p for p in order if set(self.plates[p][1]) < members]
        inner += [p for p in order[order.index(plate) + 1 :] if set(self.plates[p][1]) == members]
        boxes = [self.box(p) for p in inner] + [self._around(n) for n in members]
        left, right, bottom, top = zip(*boxes, strict=True)
        return min(left) - PAD, max(right) + PAD, min(bottom) - PAD - 0.2, max(top) + PAD

    def _around(self, name: str) -> tuple[float, float, float, float]:
        (x, y), half = self.spots[name], _width(name) / 2
        return x - half, x + half, y - TALL / 2, y + TALL / 2

    def extent(self) -> tuple[float, float, float, float]:
        """What the axes must hold."""
        boxes = [self._around(n) for n in self.spots] + [self.box(p) for p in self.plates]
        left, right, bottom, top = zip(*boxes, strict=True)
        return min(left) - 0.1, max(right) + 0.1, min(bottom) - 0.1, max(top) + 0.1

    def draw(self, ax: Any, nodes: Sequence[Node], dashed: bool) -> None:
        """Plates, edges, then nodes."""
        shown = {n.name for n in nodes} | {p for n in nodes for p in n.parents}
        for plate in self.plates:
            if shown & set(self.plates[plate][1]):
                self._plate(ax, plate)
        for node in nodes:
            for parent in node.parents:
                self._edge(ax, parent, node.name, dashed)
        for name in self.spots:
            if name in shown:
                self._node(ax, name)

    def _plate(self, ax: Any, plate: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        left, right, bottom, top = self.box(plate)
        shape = "round,pad=0,rounding_size=0.14"
        style: Any = {"facecolor": "none", "edgecolor": GREY, "linewidth": 0.9, "gid": f"plate:{plate}"}
        ax.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle=shape, **style))
        text = f"{plate}  ({self.plates[plate][0]})"
        ax.text(right - 0.1, bottom + 0.07, text, ha="right", va="bottom", fontsize=7.5, color=GREY)

    def _node(self, ax: Any, name: str) -> None:
        from matplotlib.patches import Ellipse, Rectangle

        (x, y), width = self.spots[name], _width(name)
        style: dict[str, Any] = {
            "facecolor": SHADE if name in self.observed else "white",
            "edgecolor": self.colour.get(name, INK),
            "linewidth": 1.6,
            "zorder": 3,
            "gid": f"node:{name}",
        }
        if name in self.conditions:
            ax.add_patch(Rectangle((x - width / 2, y - TALL / 2), width, TALL, **style))
        else:
            ax.add_patch(Ellipse((x, y), width, TALL, **style))
        ax.text(x, y, name, ha="center", va="center", fontsize=9, zorder=4)

    def _edge(self, ax: Any, start: str, end: str, dashed: bool) -> None:
        from matplotlib.patches import Ellipse, FancyArrowPatch

        a, b = self.spots[start], self.spots[end]
        obstacles = [(c, _width(n) / 2 + 0.07) for n, c in self.spots.items() if n not in (start, end)]
        heights = [y for _, y in self.spots.values()]
        low, high = min(heights) - TALL / 2, max(heights) + TALL / 2
        rad = min(BENDS, key=lambda bend: _cost(_arc(a, b, bend), obstacles, low, high))  # the first of the best
        ends = [Ellipse(spot, _width(n) + 0.06, TALL + 0.06) for n, spot in ((start, a), (end, b))]
        for patch in ends:
            patch.set_transform(ax.transData)
        ax.add_patch(
            FancyArrowPatch(
                a,
                b,
                arrowstyle="-|>",
                mutation_scale=11,
                connectionstyle=f"arc3,rad={rad}",
                patchA=ends[0],
                patchB=ends[1],
                shrinkA=0,
                shrinkB=0,
                color=INK,
                linewidth=1.1,
                linestyle=(0, (4, 2.5)) if dashed else "-",
                zorder=2,
                gid=f"edge:{start}->{end}",
            )
        )


def _title(ax: Any, role: str, nodes: Sequence[Node], width: float) -> None:
    """The role, and the factorisation that the picture shows."""
    from pyro_mm.describe import factorisation, folded

    lines = folded(factorisation("q" if role == "guide" else "p", nodes), max(20, int(width / 0.072)))
    lines = lines[:2] + ["…"] * (len(lines) > 2)
    ax.text(0.5, 1.0, "\n".join(lines), transform=ax.transAxes, ha="center", va="bottom", fontsize=8.5, color=GREY)
    ax.set_title(role, fontweight="bold", fontsize=11, pad=8 + 12 * len(lines))


def _width(name: str) -> float:
    """Of a node in inches, so that its name fits."""
    return max(0.8, 0.3 + 0.088 * len(name))


def _layout(parents: Mapping[str, Sequence[str]], plates: Mapping[str, tuple[int, list[str]]]) -> dict[str, Spot]:
    """Layers from the roots down, columns by what descends from a node; what has no plate stands to the left."""
    depth = _depths(parents)
    column = {n: _column(n, parents) for n in parents}
    inside = {n for _, members in plates.values() for n in members}
    across = max(ACROSS, *(_width(n) + 0.4 for n in parents))
    spots: dict[str, Spot] = {}
    for layer in sorted(set(depth.values())):
        names = [n for n in parents if depth[n] == layer and (n in inside or not inside)]
        names.sort(key=lambda n: column[n])
        for i, n in enumerate(names):
            spots[n] = ((i - (len(names) - 1) / 2) * across, -layer * DOWN)
    edge = min((x for x, _ in spots.values()), default=0.0)
    outside = [n for n in parents if n not in spots]
    for i, n in enumerate(outside):
        twins = sum(depth[o] == depth[n] for o in outside[:i])
        spots[n] = (edge - (1.25 + twins) * across, -depth[n] * DOWN)
    return spots


def _depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """A layer for every node below those of its parents, and as close to its children as that allows."""
    depth: dict[str, int] = {}

    def deep(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((deep(p) for p in parents[name]), default=-1)
        return depth[name]

    for name in sorted(parents, key=deep, reverse=True):
        below = [depth[child] for child, above in parents.items() if name in above]
        depth[name] = min(below) - 1 if below else depth[name]
    return depth


def _column(name: str, parents: Mapping[str, Sequence[str]]) -> float:
    """Mean place of the leaves under a node, so that what belongs to a modality stands above it."""
    order = list(parents)
    leaves = [n for n in order if not any(n in above for above in parents.values())]

    def under(node: str) -> list[int]:
        children = [child for child, above in parents.items() if node in above]
        return [place for child in children for place in under(child)] if children else [leaves.index(node)]

    return sum(places := set(under(name))) / len(places)


def _plates(nodes: Sequence[Node]) -> dict[str, tuple[int, list[str]]]:
    """name -> size and members, outermost first."""
    plates: dict[str, tuple[int, list[str]]] = {}
    for node in nodes:
        for plate, size in node.plates.items():
            members = plates.setdefault(plate, (size, []))[1]
            if node.name not in members:
                members.append(node.name)
    return plates


def _arc(a: Spot, b: Spot, bend: float) -> list[Spot]:
    """Points on the edge from a to b as matplotlib's `arc3` bends it."""
    middle = (a[0] + b[0]) / 2 + bend * (b[1] - a[1]), (a[1] + b[1]) / 2 - bend * (b[0] - a[0])
    points = []
    for t in (i / 24 for i in range(25)):
        s, m, e = (1 - t) ** 2, 2 * t * (1 - t), t**2
        points.append((s * a[0] + m * middle[0] + e * b[0], s * a[1] + m * middle[1] + e * b[1]))
    return points


def _cost(arc: Sequence[Spot], obstacles: Sequence[tuple[Spot, float]], low: float, high: float) -> float:
    """How many nodes an edge runs into, and a half for leaving the picture."""
    tall = TALL / 2 + 0.07
    hits = sum(any(((x - c[0]) / half) ** 2 + ((y - c[1]) / tall) ** 2 < 1 for x, y in arc) for c, half in obstacles)
    return hits + 0.5 * any(not low <= y <= high for _, y in arc)
