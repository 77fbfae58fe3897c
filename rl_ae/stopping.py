"""Signals that end a training, as a question that it asks itself after every step."""

import signal
import sys
import threading
from typing import Self

from tqdm import tqdm


class StopSignals:
    """Takes note of SIGINT (Ctrl-C) and SIGTERM, so that a training can end after a step, with everything stored.

    A context manager, which puts the handlers back. The second signal interrupts at once.

    Attributes:
        received: Whether there was one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()  # others may not handle signals
        self._handlers = {n: signal.signal(n, self._handle) for n in self.SIGNALS if in_main_thread}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.received:
            raise KeyboardInterrupt("stopped at once; --resume continues from the last checkpoint")
        self.received = True
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)
