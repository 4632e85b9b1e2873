"""The only place that imports torchvision, and only when a function here is called."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

__all__ = ["download_celeba", "download_mnist", "torchvision"]

CURE = (
    "install the two in one command from one source, for example `pip install --upgrade torch torchvision`, or, CPU "
    "only, `pip install --index-url https://download.pytorch.org/whl/cpu torch torchvision` (docs/install.md)"
)


def torchvision() -> ModuleType:
    """The module torchvision.

    Raises:
        ImportError: it is missing, or was built for another torch (its "operator torchvision::nms does not exist");
            the message names the cure.
    """
    try:
        import torchvision as module
        import torchvision.datasets
    except ImportError as error:
        raise ImportError(f"torchvision cannot be imported ({error}): {CURE}") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported: a second attempt would fail in another, stranger way
        import torch

        raise ImportError(
            f"the installed torchvision was built for another torch than {torch.__version__} ({error}): {CURE}"
        ) from error
    return module


def download_mnist(root: Path, name: str = "MNIST") -> None:
    """Have torchvision fetch the four archives of MNIST or a relative, check their md5 and unpack them below `root`.

    What is there already is left alone.

    Raises:
        ImportError: see `torchvision`.
        RuntimeError: no mirror could be reached, naming root and the way to do without one.
    """
    _download(name, root, "the four idx files", train=False)


def download_celeba(root: Path) -> None:
    """Have torchvision fetch CelebA's pictures and lists, check their md5 and unpack them into `root`/celeba.

    Raises:
        ImportError: see `torchvision`, or its own need of gdown is not met.
        RuntimeError: the files could not be had, naming root and the way to do without.
    """
    _download("CelebA", root, "the pictures and lists", target_type="attr")


def _download(name: str, root: Path, what: str, **options: object) -> None:
    make = getattr(torchvision().datasets, name)
    try:
        make(str(root), download=True, **options)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{name} could not be downloaded to {root}: {error}\n"
            f"Without a network, copy {what} to a folder and pass root=that folder"
        ) from error
