"""Ctrl-C, and the SIGTERM of a scheduler that wants its machine back, between steps, never inside one."""

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

    Args:
        shared: several processes must stop at the same step.  A signal then only sets `pending`, and whoever made this
            asks all of them; torchrun passes one Ctrl-C on as two signals, so it takes a third to break.
        terminate: listen to SIGTERM too.
    """

    def __init__(self, shared: bool = False, terminate: bool = False) -> None:
        self.whole, self.pending, self.heard = True, False, 0
        self.patience = 2 if shared else 1
        self.shared, self.terminate = shared, terminate

    def __enter__(self) -> None:
        self.whole = False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            if self.pending and isinstance(error, RuntimeError):  # data loader workers die of the same Ctrl-C
                self.pending = False
                raise KeyboardInterrupt from error
            return
        self.whole = True
        if self.pending and not self.shared:
            self.pending = False
            raise KeyboardInterrupt

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals meanwhile, unless we are in a thread; those that somebody handles already are left alone."""
        usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        if self.terminate:
            usual[signal.SIGTERM] = signal.SIG_DFL
        if threading.current_thread() is not threading.main_thread():
            usual = {}
        usual = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
        for number in usual:
            signal.signal(number, self._asked)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def _asked(self, number: int, frame: Any) -> None:
        self.heard = self.heard + 1 if self.pending else 1
        if self.heard > self.patience or (self.whole and not self.shared):
            self.whole = self.whole and not self.shared
            raise KeyboardInterrupt
        self.pending = True
