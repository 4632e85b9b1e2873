"""Every data set that is reached by name: a function added to `__all__` here is in the command line's list."""

from pyro_mm.data.celeba import celeba
from pyro_mm.data.digits import digit_captions, digit_halves, digits
from pyro_mm.data.farsi_kannada import farsi_kannada_mfcc, farsi_kannada_speech
from pyro_mm.data.fashion import fashion_mnist, fashion_mnist_grey, kmnist
from pyro_mm.data.kannada import kannada_mnist
from pyro_mm.data.mhd import mhd
from pyro_mm.data.mhd_drawn import mhd_drawn
from pyro_mm.data.mhd_like import mhd_like
from pyro_mm.data.mnist import mnist, mnist_grey, mnist_halves, mnist_quadrants
from pyro_mm.data.poly_mnist import poly_mnist_like

__all__ = [
    "celeba",
    "digits",
    "digit_halves",
    "digit_captions",
    "farsi_kannada_mfcc",
    "farsi_kannada_speech",
    "fashion_mnist",
    "fashion_mnist_grey",
    "kannada_mnist",
    "kmnist",
    "mhd",
    "mhd_drawn",
    "mhd_like",
    "mnist",
    "mnist_grey",
    "mnist_halves",
    "mnist_quadrants",
    "poly_mnist_like",
]
