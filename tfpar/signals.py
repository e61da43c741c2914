"""SIGTERM and SIGINT: finish the call that runs, save, and end with a state that the same command continues.

Python handles a signal only between two calls into TensorFlow, so no call may last long (`train` sees to that).
"""

from __future__ import annotations

import signal
import threading


class Interrupted(KeyboardInterrupt):
    """A run was stopped and its state saved; the same call, or the same command, continues it.

    Attributes:
        step: steps done; None where the workers know it.
    """

    exit_code = 42

    def __init__(self, step: int | None = 0):
        done = (
            "with all workers"
            if step is None
            else f"after step {step}, state saved"
            if step
            else "before the first step"
        )
        super().__init__(f"stopped {done}; the same command continues")
        self.step = step


class StopSignal:
    """Catch SIGTERM and SIGINT. While `deferred`, a signal only sets `requested`; otherwise it raises `Interrupted`
    immediately, because there is no state to save.

    Only in the main thread; elsewhere (some notebooks and servers) signals are left alone.
    """

    def __init__(self, *, deferred: bool = False):
        self.requested = False
        self.deferred = deferred

    def __enter__(self) -> StopSignal:
        self.earlier = {}
        if threading.current_thread() is threading.main_thread():
            self.earlier = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def _request(self, _number, _frame) -> None:
        self.requested = True
        if not self.deferred:
            raise Interrupted()
