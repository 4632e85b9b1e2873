"""M2: the class as a cause, summed out where the label is missing; semi-supervised learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro.infer import TraceEnum_ELBO

from pyro_mm.batch import Batch
from pyro_mm.guides import ClassExperts, Classifier, Enumerated
from pyro_mm.likelihoods import Categorical
from pyro_mm.modality import Modality
from pyro_mm.models import Classed
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Kingma, Rezende, Mohamed, Welling", "Semi-supervised learning with deep generative models", 2014,
    "arXiv:1406.5298", "joint, weak supervision",
)  # fmt: skip


def nothing(batch: Batch) -> None:
    """The guide of a model without latents."""


@page(PAPER)
def m2(
    modalities: Sequence[Modality],
    dim: int = 50,
    label: str = "label",
    alpha: float = 10.0,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(c) p(z) prod_m p(x_m|z, c), label = c, with q(c|x) q(z|x, c); a missing label is summed over.

    Maximises  sum_labelled L(x, c) + sum_unlabelled [sum_c q(c|x) L(x, c) + H(q(c|x))] + alpha sum_labelled log q(c|x),
    L(x, c) = E_{q(z|x,c)} [log p(x|z, c) + log p(c) + log p(z) - log q(z|x, c)]  (eqs. 6 to 9).  The first two bound
    log p(x, c) and log p(x); the last makes a classifier.  In likelihoods z comes from sum_c q(c|x) q(z|x, c), and the
    model sums over c itself, exactly.

    Args:
        label: the modality that holds the class: `Categorical`.
        alpha: per labelled row.  The paper has 0.1 times rows over labelled rows, and thousands of epochs; 10 times
            rows over labelled rows learns the classes in tens of epochs.

    Raises:
        ValueError: there is no such label, it is not `Categorical`, there is nothing beside it, or it has a weight.
    """
    found = next((m for m in modalities if m.name == label), None)
    others = [m for m in modalities if m.name != label]
    if found is None or not isinstance(found.likelihood, Categorical) or not others:
        raise ValueError(f"m2 needs a Categorical modality '{label}' and at least one other; got {list(modalities)}")
    if label in (weights or {}):
        raise ValueError(f"m2: a weight of '{label}' would do nothing, since the class is known where it is: use alpha")
    classes = found.likelihood.classes
    model = Classed({m.name: m.decoder(dim + classes) for m in others}, dim, classes, label)
    guide = ClassExperts(others, dim, classes, label, width)
    bound = elbo(model, Enumerated(guide), beta=beta, weights=weights, estimator=TraceEnum_ELBO(max_plate_nesting=1))
    return Recipe("m2", model, guide, bound + alpha * elbo(Classifier(guide), nothing))
