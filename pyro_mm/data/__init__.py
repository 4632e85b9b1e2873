"""Data sets with real and simulated rows, and ways to hide parts of them.

Importing this reads no file and imports neither scikit-learn nor torchvision.
"""

from collections.abc import Callable

from pyro_mm.data import sets
from pyro_mm.data.binarise import Binarised, binarised_once
from pyro_mm.data.celeba import celeba
from pyro_mm.data.corrupt import corrupted, gaussian_noise, occluded, salt_and_pepper, swapped, with_noise
from pyro_mm.data.digits import caption_label, caption_text, digit_captions, digit_halves, digits
from pyro_mm.data.exact import ExactGuide
from pyro_mm.data.farsi_kannada import farsi_kannada_mfcc, farsi_kannada_speech
from pyro_mm.data.fashion import fashion_mnist, fashion_mnist_grey, kmnist
from pyro_mm.data.kannada import kannada_mnist
from pyro_mm.data.mfcc import mfcc, mfcc_centroid
from pyro_mm.data.mhd import mhd
from pyro_mm.data.mhd_drawn import mhd_drawn
from pyro_mm.data.mhd_like import mhd_like
from pyro_mm.data.mhd_modalities import mhd_modalities
from pyro_mm.data.missing import few_labels, mar, mcar, mnar
from pyro_mm.data.mnist import mnist, mnist_grey, mnist_halves, mnist_quadrants
from pyro_mm.data.on_disk import BlockSampler, OnDisk
from pyro_mm.data.paired import Paired
from pyro_mm.data.poly_mnist import Coloured, poly_mnist_like
from pyro_mm.data.splits import Splits, stratified
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.data.write_rows import write_rows

__all__ = [
    "Binarised",
    "BlockSampler",
    "Coloured",
    "ExactGuide",
    "LinearGaussian",
    "OnDisk",
    "Paired",
    "Splits",
    "available",
    "binarised_once",
    "caption_label",
    "caption_text",
    "celeba",
    "corrupted",
    "digit_captions",
    "digit_halves",
    "digits",
    "farsi_kannada_mfcc",
    "farsi_kannada_speech",
    "few_labels",
    "fashion_mnist",
    "fashion_mnist_grey",
    "gaussian_noise",
    "kannada_mnist",
    "kmnist",
    "mar",
    "mcar",
    "mfcc",
    "mfcc_centroid",
    "mhd",
    "mhd_drawn",
    "mhd_like",
    "mhd_modalities",
    "mnar",
    "mnist",
    "mnist_grey",
    "mnist_halves",
    "mnist_quadrants",
    "occluded",
    "poly_mnist_like",
    "salt_and_pepper",
    "stratified",
    "swapped",
    "write_rows",
    "with_noise",
]


def available() -> dict[str, Callable[..., Splits]]:
    """Every data set by name: functions that return `Splits`; the first line of its docstring describes each."""
    return {name: getattr(sets, name) for name in sets.__all__}
