"""Ctrl-C at any step of the memory's code, where the interpreter would deliver it."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import remanence.memory

_PLACE = remanence.memory.__path__[0]


def steps(run: Callable[[], object], interrupt_at: int = 0) -> int:
    """Run a function, raising KeyboardInterrupt at one of its steps, if one is given; returns how many it took.

    A step is a function that begins, or one in C that ends, in the package of memories. The interpreter looks there for
    signals; at an instruction between, such as those before the end of a `with`, it never does.
    """
    taken, before = 0, sys.getprofile()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal taken
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PLACE):
            taken += 1
            if taken == interrupt_at:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return taken
