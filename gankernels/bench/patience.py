"""An end to what does not end: a compiler that unrolls a graph for an hour is a result, and not a benchmark's end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: A handler that some layer between swallows is called again.
_AGAIN_S = 5.0


class _Over(BaseException):
    """No ``Exception``, or a compiler's own handlers would take it for a graph break and go on."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the block after ``seconds``; child processes that it started are left to themselves.

    Signals reach Python between two of its instructions, and only in the main thread: a call into C++ is waited for,
    and in another thread, or where the system has no timers, the block takes as long as it does.

    Raises:
        TimeoutError: the block took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(signum: int, frame: FrameType | None) -> None:
        raise _Over

    former = signal.signal(signal.SIGALRM, over)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    except _Over:
        raise TimeoutError(f"no result within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)
        signal.signal(signal.SIGALRM, former)
