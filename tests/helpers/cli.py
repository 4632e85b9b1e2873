"""What tests of the command line share."""

import torch

from pyro_mm.cli import main
from pyro_mm.runs import open_run

TINY = ["--epochs", "1", "--dim", "3", "--batch-size", "256", "--quiet", "--device", "cpu"]


def parameters(folder):
    return {f"{n}.{k}": v for n, m in open_run(folder).recipe.modules.items() for k, v in m.state_dict().items()}


def same(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def complaint(capsys, *arguments, code=2):
    """The one line on stderr of a command that fails."""
    assert main([str(a) for a in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]
