"""What torch-fidelity is given, and what is said without it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from pyro_mm.evaluation import inception_fid


def test_images_reach_it_as_bytes_of_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def calculate_metrics(**asked: Any) -> dict[str, float]:
        seen.update(asked)
        return {"frechet_inception_distance": 12.5}

    fake = ModuleType("torch_fidelity")
    fake.calculate_metrics = calculate_metrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    real, made = torch.rand(4, 3, 8, 8), torch.rand(5, 1, 8, 8)
    assert inception_fid(real, made, batch_size=2) == 12.5
    assert seen["fid"] is True and seen["cuda"] is False and seen["batch_size"] == 2
    first, second = seen["input1"], seen["input2"]
    assert (len(first), len(second)) == (5, 4)
    assert first[1].dtype == torch.uint8 and torch.equal(first[1], (255 * made[1]).round().byte().expand(3, -1, -1))
    assert torch.equal(second[3], (255 * real[3]).round().byte())
    for bad, why in ((made[0], r"must be \(N, 1 or 3, H, W\), got \(1, 8, 8\)"), (made * 2, r"must lie in \[0, 1\]")):
        with pytest.raises(ValueError, match=f"made images {why}"):
            inception_fid(real, bad)


def test_without_it_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_mm\[fid\]'"):
        inception_fid(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
