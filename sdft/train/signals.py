"""Ctrl-C and SIGTERM as a request to stop after the current step."""
from __future__ import annotations

import signal
import sys
import threading
from typing import Any


class StopRequest:
    """Within the block, the first signal sets `.asked`; a second Ctrl-C interrupts at once. Only in the main thread."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print("\nfinishing this step …", file=sys.stderr)
