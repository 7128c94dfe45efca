"""SIGINT and SIGTERM: the first asks the loop to finish its step, save and leave; a second leaves at once."""

import signal
import threading
from types import FrameType


class Interrupts:
    """Context manager that turns the first signal into a request and gives the second its usual effect."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Elsewhere Python refuses to set handlers.
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        for n in self._previous:
            signal.signal(n, signal.SIG_DFL)
