"""SIGTERM, SIGINT and the signals of batch systems: finish the call that runs, save, and end; the same command continues.

Python handles a signal only between two calls into TensorFlow, so no call may last long (`train` sees to that).
"""

import signal
import threading

# Terminals and batch systems send these before they end a process by force.
ALWAYS = (signal.SIGTERM, signal.SIGINT)
UNLESS_HANDLED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


class Interrupted(KeyboardInterrupt):
    """A run was stopped and its state saved; the same call, or the same command, continues it.

    Attributes:
        step: steps done; None where the workers know it.
    """

    exit_code = 42

    def __init__(self, step: int | None = 0, *, of: int | None = None):
        done = f"after step {step}{f' of {of}' if of else ''}, state saved" if step else "before the first step"
        super().__init__(f"stopped {'with all workers' if step is None else done}; the same command continues")
        self.step = step


class StopSignal:
    """Catch the signals that ask for the end.

    While `deferred`, a signal only sets `requested`; otherwise it raises `Interrupted` immediately, because there is no
    state to save. A signal that was ignored at the start stays ignored, as `nohup` wants it. Outside of the main thread
    (some notebooks and servers) signals are left alone. After SIGXCPU, which the kernel repeats, that signal stays ignored.
    """

    def __init__(self, *, deferred: bool = False):
        self.requested = False
        self.deferred = deferred

    def __enter__(self) -> "StopSignal":
        self.earlier = {}
        if threading.current_thread() is threading.main_thread():
            asking = [number for number in ALWAYS if signal.getsignal(number) != signal.SIG_IGN]
            asking += [number for number in UNLESS_HANDLED if _free(signal.getsignal(number))]
            self.earlier = {number: signal.signal(number, self._request) for number in asking}
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self.earlier.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's own

    def _request(self, number, _frame) -> None:
        self.requested = True
        if number == signal.SIGXCPU:  # the kernel repeats it every second, and would end a process that saves its state
            signal.signal(number, signal.SIG_IGN)
        if not self.deferred:
            raise Interrupted()


def _free(handler) -> bool:
    """Tell whether a signal has its default effect, or belongs to a StopSignal around this one."""
    return handler == signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), StopSignal)
