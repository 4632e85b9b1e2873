"""What two processes do, and what one does with the same: a program that writes `2-0.json`, `2-1.json`, `1-0.json`.

The two are forked from one interpreter and given torchrun's environment: imports, which take most of the time, are paid
for once.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import BlockSampler, OnDisk, write_rows
from pyro_mm.evaluation import log_conditional, log_marginal, sharded
from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.modality import encoders
from pyro_mm.objectives import elbo
from pyro_mm.training import NonFiniteLoss, Stage, fit
from pyro_mm.variants import mvae_sampled
from tests.helpers.oracle import LG, MeanField
from tests.helpers.parallel import Fixed, Shared, Spoilt, Stream, doubled, seeded, told
from tests.helpers.training import MODALITIES, At, Noisy, data, pair, raising

ROWS = 8  # of a minibatch of all processes together
DEAD = "label"  # the modality that no row has in `unused`


class World:
    """This process, for scenarios: `rank` of `size`."""

    def __init__(self, rank: int, size: int, out: Path) -> None:
        self.rank, self.size, self.out = rank, size, out

    def fit(self, objective: Any, rows: Any, epochs: int | None = 3, **options: Any) -> Any:
        own = {
            "batch_size": ROWS // self.size,
            "accelerator": "cpu",
            "progress": False,
            "lr": 1e-2,
            "seed": 3,
        } | options
        return fit(objective, rows, epochs, **own)


def keyed(world: World) -> dict[str, Any]:
    objective = elbo(*pair()).double()
    held = doubled(data(9, seed=2))
    history = world.fit(objective, doubled(data(23)), validation=held, clip_norm=2.0, noise_by_row=True)
    return told(history, objective)


def keyed_mixture(world: World) -> dict[str, Any]:
    model, _ = pair()
    objective = elbo(model, Experts(encoders(MODALITIES, 2), mixture_of_experts), particles=3).double()
    objective.load_state_dict(seeded(objective))
    return told(world.fit(objective, doubled(data(21)), noise_by_row=True), objective)


def keyed_subsets(world: World) -> dict[str, Any]:
    objective = mvae_sampled(MODALITIES, 2).objective.double()
    objective.load_state_dict(seeded(objective))
    return told(world.fit(objective, doubled(data(23)), noise_by_row=True), objective)


def without_noise(world: World) -> dict[str, Any]:
    """9 rows in minibatches of 8: of the second the second process has none."""
    objective = Fixed()
    return told(world.fit(objective, doubled(data(9)), validation=doubled(data(3, seed=2))), objective)


def batch_norm(world: World) -> dict[str, Any]:
    objective = Fixed(norm=True)
    history = world.fit(objective, doubled(data(13)), validation=doubled(data(5, seed=2)))
    unseen = Fixed(norm=True)
    world.fit(unseen, doubled(data(13)))
    buffers = [b.tolist() for module in (objective, unseen) for b in module.buffers()]
    return told(history, objective) | {"buffers": buffers}


def stages(world: World) -> dict[str, Any]:
    """The same modules in two stages, of which the second moves the guide alone."""
    model, guide = (part.double() for part in pair())
    both = [Stage(elbo(model, guide), 2, name="all"), Stage(elbo(model, guide), 2, train=guide, name="guide")]
    history = world.fit(both, doubled(data(13)), None, noise_by_row=True, validation=doubled(data(5, seed=2)))
    return told(history, nn.ModuleList([model, guide]))


def blocks(world: World) -> dict[str, Any]:
    """Rows on disk, in blocks, through a DataLoader; another one validates: of its three minibatches, the last of one
    row, the second process has the second.
    """
    rows = OnDisk(world.out / "rows", MODALITIES, block=4, buffer=2, dtype=torch.float64)
    loader = DataLoader(rows, ROWS // world.size, sampler=BlockSampler(rows), collate_fn=Batch.collate)
    held = DataLoader(doubled(data(9, seed=2)), 4, collate_fn=Batch.collate)
    objective = elbo(*pair()).double()
    return told(world.fit(objective, loader, validation=held, noise_by_row=True), objective)


def unused(world: World) -> dict[str, Any]:
    objective = mvae_sampled(MODALITIES, 2).objective
    objective.load_state_dict(seeded(objective))
    before = {n: p.clone() for n, p in objective.named_parameters()}
    history = world.fit(objective, data(23).without(DEAD), strategy="ddp" if world.size > 1 else None)
    still = [n for n, p in objective.named_parameters() if torch.equal(p, before[n])]
    return told(history, objective) | {"still": len(still), "all": len(before)}


def streams(world: World) -> dict[str, Any]:
    rows = Shared(data(24))
    world.fit(elbo(*pair()), rows, 1)
    first = ROWS // world.size  # of the pass before training, which nobody counts
    return {"asked": rows.asked[first:], "noise": torch.rand(2).tolist()}


def monte_carlo(world: World) -> dict[str, Any]:
    """The loss without movement, epoch by epoch: independent estimates of minus the exact ELBO."""
    lg = LG()
    objective = elbo(lg.model(), MeanField(lg))
    still = functools.partial(torch.optim.SGD, lr=0.0)
    history = world.fit(objective, lg.data(19), 30, lr=None, optimiser=still)
    return {"losses": history["loss"]}


def not_finite(world: World, training: bool) -> dict[str, Any]:
    spoilt = Spoilt(elbo(*pair()), 3 if training else 2, training, world.rank == world.size - 1)
    try:
        world.fit(spoilt, data(23), validation=data(9, seed=2))
    except NonFiniteLoss as error:
        return {"error": str(error), "step": error.step}
    return {"error": None}


def interrupted(world: World, ask: Callable[[Any], Any], folder: str) -> dict[str, Any]:
    """Straight on; and asked to stop in the last process after step 4, then resumed."""

    def run(where: str, **more: Any) -> tuple[Any, nn.Module]:
        torch.manual_seed(5)
        objective = mvae_sampled(MODALITIES, 2).objective
        options = {"validation": Noisy(data(9, seed=2)), "folder": world.out / f"{folder}-{world.size}-{where}"}
        return world.fit(objective, Noisy(data(23)), **options, **more), objective

    straight = told(*run("straight"))
    last = [At(4, ask)] if world.rank == world.size - 1 else [At(0, print)]
    partial, _ = run("parts", callbacks=last)
    step = torch.load(world.out / f"{folder}-{world.size}-parts" / "checkpoint.pt")["step"]
    resumed = told(*run("parts", resume=True))
    return {"straight": straight, "resumed": resumed, "interrupted": partial.interrupted, "step": step}


def own_folders(world: World) -> dict[str, Any]:
    folder = world.out / f"own-{world.size}-{world.rank}"
    world.fit(elbo(*pair()), data(23), 2, folder=folder, jsonl=True)
    return {"files": sorted(p.name for p in folder.iterdir())}


def early(world: World) -> dict[str, Any]:
    objective = elbo(*pair())
    return told(world.fit(objective, data(23), 30, validation=data(9, seed=2), patience=1, lr=0.3), objective)


def stopped_by_one(world: World) -> dict[str, Any]:
    def stop(state: Any) -> None:
        state.stop = world.rank == world.size - 1

    objective = elbo(*pair())
    return told(world.fit(objective, data(23), callbacks=[At(2, stop)]), objective)


def loaders(world: World) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    shuffled = DataLoader(data(23), 4, shuffle=True, generator=g, collate_fn=Batch.collate)
    uneven = DataLoader(Stream(5 if world.rank == 0 else 2), batch_size=None)
    held = DataLoader(data(9, seed=2), 2, collate_fn=Batch.collate)
    one, two = elbo(*pair()), elbo(*pair())
    first = world.fit(one, shuffled, 2, validation=held)
    return {"shuffled": told(first, one), "uneven": told(world.fit(two, uneven, 2), two)}


def evaluated(world: World) -> dict[str, Any]:
    lg = LG()
    model, guide, batch = lg.model(), MeanField(lg), lg.data(22)
    joint = sharded(functools.partial(log_marginal, model, guide, k=50), batch, seed=7, rows=5)
    part = functools.partial(log_conditional, model, guide, of="a", given="b", k=50)
    conditional = sharded(part, batch, seed=7, rows=5)
    values = sharded(lambda block, seed: block.x["a"].mean(-1), batch, rows=4)

    def broken(block: Batch, seed: int) -> Any:
        if torch.equal(block.x["a"], batch.x["a"][5:10]):  # the second process's first block
            raise ArithmeticError("this block")
        return values[: len(block)]

    try:
        error = str(sharded(broken, batch, rows=5))
    except (ArithmeticError, RuntimeError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    lists = {n: getattr(joint, n).tolist() for n in ("estimate", "se", "ess", "khat")}
    return {"joint": lists, "conditional": conditional.estimate.tolist(), "values": values.tolist(), "error": error}


def own_signal(number: int) -> Callable[[Any], Any]:
    return lambda state: os.kill(os.getpid(), number)


BOTH: dict[str, Callable[[World], Any]] = {
    **{f.__name__: f for f in (keyed, keyed_mixture, keyed_subsets, without_noise)},
    **{f.__name__: f for f in (stages, blocks, evaluated)},
    "sigterm": functools.partial(interrupted, ask=own_signal(signal.SIGTERM), folder="sigterm"),
}
TWO: dict[str, Callable[[World], Any]] = {
    **{f.__name__: f for f in (unused, streams, monte_carlo, own_folders, early, stopped_by_one, loaders)},
    "batch_norm": batch_norm,
    "nan_in_training": functools.partial(not_finite, training=True),
    "nan_in_validation": functools.partial(not_finite, training=False),
    "callback": functools.partial(interrupted, ask=raising(KeyboardInterrupt()), folder="callback"),
}


def run(rank: int, size: int, out: Path, port: int) -> None:
    """Every scenario in this process, and its results to a file."""
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    world = World(rank, size, out)
    chosen = BOTH | TWO if size > 1 else BOTH
    found = {name: scenario(world) for name, scenario in chosen.items()}
    (out / f"{size}-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        torch.distributed.destroy_process_group()


def main(out: Path) -> None:
    """Two processes, then one."""
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    import lightning_fabric  # noqa: F401  # once, for both

    write_rows(out / "rows", data(23))
    context = mp.get_context("fork")
    both = [context.Process(target=run, args=(rank, 2, out, port), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(500)
    if any(process.exitcode != 0 for process in both):
        sys.exit(f"exit codes {[process.exitcode for process in both]}")
    run(0, 1, out, port)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
