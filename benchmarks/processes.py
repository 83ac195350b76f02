"""Work in a process of its own, and what a process holds."""

import ctypes
import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def apart(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a function returns in a process of its own, which begins anew."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        return own.submit(function, *given, **named).result()


def resident(kind: str) -> int:
    """Bytes of this process: now (VmRSS) or at most (VmHWM)."""
    return 1024 * int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def settled() -> int:
    """Bytes that are resident and in use: what the allocator keeps for later is given back first, where it can be."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return resident("VmRSS")
