"""Every data set that is reached by name: a function added to `__all__` here is in the command line's list."""

from pyro_mm.data.digits import digit_captions, digit_halves, digits
from pyro_mm.data.mhd import mhd
from pyro_mm.data.mhd_drawn import mhd_drawn
from pyro_mm.data.mhd_like import mhd_like
from pyro_mm.data.mnist import mnist, mnist_grey, mnist_halves, mnist_quadrants

__all__ = [
    "digits",
    "digit_halves",
    "digit_captions",
    "mhd",
    "mhd_drawn",
    "mhd_like",
    "mnist",
    "mnist_grey",
    "mnist_halves",
    "mnist_quadrants",
]
