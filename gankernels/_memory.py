"""How freed memory on the CPU is kept for the next step."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator, for the rest of the process, to keep what is freed instead of returning it to the system.

    A training step frees and takes the same large tensors over and over. By default each of them is mapped anew, and
    the system clears it page by page when it is first touched: for memory-bound layers that costs more than their work.
    The price is that the process never shrinks below the most it has used.

    Returns:
        Whether it could be done: only on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
