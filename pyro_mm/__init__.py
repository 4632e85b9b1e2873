"""placeholder while the package is being written."""

__version__ = "0.1.0"
