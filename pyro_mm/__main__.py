"""`python -m pyro_mm`: the same as `pyro-mm`."""

import sys

from pyro_mm.cli import main

if __name__ == "__main__":
    sys.exit(main())
