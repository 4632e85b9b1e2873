"""Every figure is closed after its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyro_mm import plots


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plots.close()
