"""Networks that judge what a model generates: a classifier and an autoencoder for every modality of a data set.

They are trained on the real training rows, kept under the fingerprint of the data, and report their own accuracy on the
test rows: beyond that, nothing that they say of generated data can be trusted.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_mm.batch import Batch
from pyro_mm.data import Splits
from pyro_mm.data.fetch import cache_folder
from pyro_mm.evaluation.coherence import Proportion
from pyro_mm.files import BadFile, read_json, write_atomic, write_json
from pyro_mm.modality import Modality

__all__ = ["Judges", "train_judges"]

FORMAT = 1
FACTS, WEIGHTS = "judges.json", "judges.pt"
BOTTLENECK = 128
CHUNK = 512  # rows in one pass
LEAST, MOST = 1, 30  # epochs of one network
CLASSIFYING, RECODING = 0.35e12, 0.7e12  # operations of one classifier, and of one autoencoder, on all training rows
log = logging.getLogger(__name__)

Rows = tuple[Tensor, Tensor]  # values and classes
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """How judges are trained; part of what tells saved ones apart.  `epochs=None`: as many as the work allows."""

    epochs: int | None = None
    seed: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    patience: int = 5


class Judges(nn.Module):
    """For every modality but the label a classifier, and an autoencoder with 128 units in its middle.

    Attributes:
        label: the modality that holds the classes.
        classes: how many there are.
        accuracy: of every classifier, on the test rows.
    """

    def __init__(self, modalities: Sequence[Modality], label: str, classes: int) -> None:
        super().__init__()
        judged = [replace(m, noise=None) for m in modalities if m.name != label]
        self.label, self.classes, self.modalities = label, classes, {m.name: m for m in judged}
        self.classifiers = nn.ModuleDict({m.name: _encoder(m, classes) for m in judged})
        self.bottlenecks = nn.ModuleDict({m.name: _encoder(m, BOTTLENECK) for m in judged})
        self.decoders = nn.ModuleDict({m.name: m.decoder(BOTTLENECK) for m in judged})
        self.accuracy: dict[str, Proportion] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that are judged."""
        return tuple(self.modalities)

    def classify(self, name: str, x: Tensor) -> Tensor:
        """Class probabilities `(N, C)` of values `(N, *shape)`."""
        return self._judged(self.classifiers, name, x).softmax(-1)

    def features(self, name: str, x: Tensor) -> Tensor:
        """Activations in the middle of the autoencoder, `(N, 128)`."""
        return self._judged(self.bottlenecks, name, x)

    @torch.no_grad()
    def _judged(self, nets: nn.ModuleDict, name: str, x: Tensor) -> Tensor:
        if name not in nets:
            raise ValueError(f"there is no judge of '{name}', only of {list(nets)}")
        self.eval()  # what other rows are judged with must not matter
        x = x.to(next(self.parameters()).device)
        return torch.cat([self.modalities[name].apply_net(nets[name], part) for part in x.split(CHUNK)])

    def _classifier(self, name: str) -> tuple[nn.Module, Loss]:
        net, m = self.classifiers[name], self.modalities[name]
        return net, lambda x, y: cross_entropy(m.apply_net(net, x), y)

    def _autoencoder(self, name: str) -> tuple[nn.Module, Loss]:
        net, decode, m = self.bottlenecks[name], self.decoders[name], self.modalities[name]
        return nn.ModuleList([net, decode]), lambda x, y: -decode(m.apply_net(net, x)).log_prob(x).mean()


def train_judges(
    splits: Splits,
    epochs: int | None = None,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    tell: Callable[[str], object] = lambda text: None,
) -> Judges:
    """Judges of a data set: trained, or as they were kept, in which case nothing is trained.

    Networks are those of the modalities' blueprints.  The epoch of the least validation loss counts.  The caller's
    random state is left alone.

    Args:
        epochs: at most; by default 1 to 30, as many as a fixed number of operations allows each network: about a
            minute on one core for 7,000 rows of image, trajectory and sound.  That makes good classifiers, but leaves
            large autoencoders crude: for Frechet distances to be published give 10 or more.
        folder: where they are kept; default in the cache folder, under the data's fingerprint.  Without `epochs`,
            judges of these data and networks that a folder of yours holds are taken however they were trained.
        tell: called with what is being trained.

    Raises:
        ValueError: the data set has no label, a modality no rows to train on, or `epochs` is below 1.
        OSError: `folder` cannot be written.
    """
    if splits.label is None:
        raise ValueError(f"data set '{splits.name}' has no label: judges are classifiers and need one")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    how, fingerprint = Training(epochs, seed), splits.fingerprint()
    place = Path(folder) if folder is not None else cache_folder() / "judges" / fingerprint
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        judges = Judges(splits.modalities, splits.label, _number_of_classes(splits, splits.label)).to(device)
        facts = {"format": FORMAT, "data": fingerprint, "training": repr(how), "networks": _digest(judges)}
        wanted = {k: v for k, v in facts.items() if k != "training" or folder is None or epochs is not None}
        if not _loaded(judges, place, wanted):
            _train(judges, splits, how, tell)
            try:
                _save(judges, place, facts)
            except OSError as error:
                if folder is not None:
                    raise
                log.info("judges could not be kept for next time: %s", error)  # a read-only home must not stop anybody
    return judges.eval().requires_grad_(False)


def _train(judges: Judges, splits: Splits, how: Training, tell: Callable[[str], object]) -> None:
    device = next(judges.parameters()).device
    train, held = splits.train_batch(how.seed), splits.validation
    for name in judges.names:
        rows = _labelled(train, name, judges.label, device)
        if len(rows[0]) < 2:
            raise ValueError(f"data set '{splits.name}': '{name}' has {len(rows[0])} labelled training rows, too few")
        valid = _labelled(held, name, judges.label, device)
        for what, (net, loss), work in (
            ("classifier", judges._classifier(name), CLASSIFYING),
            ("autoencoder", judges._autoencoder(name), RECODING),
        ):
            tell(f"{what} of {name}")
            _fit(net, loss, rows, valid, how, work)
        x, y = _labelled(splits.test, name, judges.label, device)
        hits = (judges.classify(name, x).argmax(-1) == y).double() if len(x) else x.new_tensor(nan)
        judges.accuracy[name] = Proportion(hits.mean().item(), len(x))


def _fit(net: nn.Module, loss: Loss, train: Rows, held: Rows, how: Training, work: float) -> None:
    """Adam with a rate that falls linearly to 0; the weights with the least validation loss are put back."""
    (x, y), device = train, train[0].device
    epochs = how.epochs or _affordable(loss, train, how, work)
    fused = device.type in ("cpu", "cuda")  # a third faster where dense layers are large
    optimiser = torch.optim.Adam(net.parameters(), lr=how.lr, fused=fused)
    steps = epochs * -(-len(x) // how.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / (steps + 1))
    best, since, kept = inf, 0, deepcopy(net.state_dict())
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(x)).to(device).split(how.batch_size):
            if len(rows) > 1:  # batch normalisation needs two
                optimiser.zero_grad()
                loss(x[rows], y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
        found = _mean_loss(net, loss, held if len(held[0]) else train)
        since = 0 if found < best else since + 1
        if found < best:
            best, kept = found, deepcopy(net.state_dict())
        if since == how.patience:
            break
    net.load_state_dict(kept)


def _affordable(loss: Loss, train: Rows, how: Training, work: float) -> int:
    """How many epochs so many operations buy, forwards and backwards."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports Triton

    x, y = (t[: how.batch_size] for t in train)
    with FlopCounterMode(display=False) as counter:
        loss(x, y).backward()  # type: ignore[no-untyped-call]
    each = counter.get_total_flops() / len(x) * len(train[0])
    return int(min(max(work / max(each, 1.0), LEAST), MOST))


@torch.no_grad()
def _mean_loss(net: nn.Module, loss: Loss, rows: Rows) -> float:
    net.eval()
    parts = zip(*(t.split(CHUNK) for t in rows), strict=True)
    return sum(loss(x, y).item() * len(x) for x, y in parts) / len(rows[0])


def _labelled(batch: Batch, name: str, label: str, device: torch.device) -> Rows:
    """The rows in which the modality and the label are present."""
    rows = batch.mask[name] & batch.mask[label]
    x, y = batch.x[name], batch.x[label]
    if not bool(rows.all()):
        x, y = x[rows], y[rows]
    return x.to(device), _classes(y).to(device)


def _save(judges: Judges, place: Path, facts: dict[str, Any]) -> None:
    raw = io.BytesIO()
    torch.save({k: v.cpu() for k, v in judges.state_dict().items()}, raw)
    accuracy = {m: [p.value, p.n] for m, p in judges.accuracy.items()}
    write_atomic(place / WEIGHTS, raw.getvalue())
    # The JSON last: its checksum vouches for the weights.
    write_json(place / FACTS, {**facts, "accuracy": accuracy, "sha256": hashlib.sha256(raw.getvalue()).hexdigest()})


def _loaded(judges: Judges, place: Path, facts: dict[str, Any]) -> bool:
    """Are judges with these facts kept there, whole?  Then they are filled."""
    try:
        found, raw = read_json(place / FACTS), (place / WEIGHTS).read_bytes()
        if {k: found.get(k) for k in facts} != facts or found.get("sha256") != hashlib.sha256(raw).hexdigest():
            return False
        accuracy = {m: Proportion(float(value), int(n)) for m, (value, n) in found["accuracy"].items()}
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        judges.load_state_dict(state)
    except (BadFile, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        log.info("judges are trained anew: %s", error)
        return False
    judges.accuracy = accuracy
    return True


def _digest(judges: Judges) -> str:
    """Of layers, activations and likelihoods: the data's fingerprint does not know them."""
    text = repr([judges, *((m.name, m.shape, repr(m.likelihood)) for m in judges.modalities.values())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _number_of_classes(splits: Splits, label: str) -> int:
    """By the label's likelihood; where that does not say, by the training rows."""
    m = next(m for m in splits.modalities if m.name == label)
    batch = splits.train_batch()
    return max(m.likelihood.feature_shape(m.shape)[-1], int(_classes(batch.x[label][batch.mask[label]]).max()) + 1)


def _encoder(m: Modality, out: int) -> nn.Module:
    return m.net.encoder(m.likelihood.feature_shape(m.shape), out)


def _classes(label: Tensor) -> Tensor:
    """Numbers `(N,)`, also of one-hot rows."""
    return label.argmax(-1) if label.dim() == 2 else label.long()
