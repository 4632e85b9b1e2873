"""Ctrl-C between steps, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """A shield round what must happen as a whole: `with guard: step()`.

    Ctrl-C inside the shield waits until it ends; a second one, or an exception, breaks it.  `whole` says that nothing
    was broken, so that the state outside is that of a completed step and may be saved.
    """

    def __init__(self) -> None:
        self.whole, self.pending = True, False

    def __enter__(self) -> None:
        self.whole = False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            if self.pending and isinstance(error, RuntimeError):  # data loader workers die of the same Ctrl-C
                self.pending = False
                raise KeyboardInterrupt from error
            return
        self.whole = True
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle Ctrl-C meanwhile, unless we are in a thread or somebody has a handler of their own."""
        mine = threading.current_thread() is threading.main_thread()
        if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._asked)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _asked(self, number: int, frame: Any) -> None:
        if self.whole or self.pending:
            raise KeyboardInterrupt
        self.pending = True
