"""A flowchart has the edges of both programs, and says what is data."""

from __future__ import annotations

import pytest
import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.describe import Node, nodes_of
from pyro_mm.mermaid import flowchart

TOY = LinearGaussian.random({"a": 2, "b": 2}, 2, seed=0)


def chart(name: str) -> list[str]:
    torch.manual_seed(0)
    recipe = getattr(variants, name)(TOY.modalities, 2)
    for module in recipe.modules.values():
        module.double()
    batch: Batch = TOY.sample(3, seed=1)
    return flowchart(nodes_of(recipe.model, batch), nodes_of(recipe.guide, batch)).splitlines()


def test_private_latents() -> None:
    assert chart("dmvae") == [
        "flowchart TB",
        '  v_z(("z"))',
        '  v_w_a(("w_a"))',
        '  v_a(("a"))',
        '  v_w_b(("w_b"))',
        '  v_b(("b"))',
        "  v_z & v_w_a --> v_a",
        "  v_z & v_w_b --> v_b",
        "  v_a & v_b -.-> v_z",
        "  v_a -.-> v_w_a",
        "  v_b -.-> v_w_b",
        "  classDef seen fill:#d9d9d9,color:#000",
        "  class v_a,v_b seen",
    ]


def test_what_is_only_conditioned_on_is_a_box() -> None:
    lines = chart("cvae")
    assert '  v_b["b"]' in lines and "  v_z & v_b --> v_a" in lines and "  class v_a,v_b seen" in lines


def test_names_are_safe_and_no_program_is_an_error() -> None:
    end = Node("end", "Normal", False, (1,), (), {}, ())
    out = Node("x/1", "Normal", True, (1,), (), {}, ("end",))
    text = flowchart([end, out], [])
    assert '  v_end(("end"))' in text and '  v_x_1(("x/1"))' in text and "  v_end --> v_x_1" in text
    with pytest.raises(ValueError, match="no sample sites"):
        flowchart([], [])
