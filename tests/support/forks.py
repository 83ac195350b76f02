"""Children made by `os.fork`, which end without running what pytest would run at its end."""

import os
import traceback
from collections.abc import Callable


def forked(run: Callable[[], object]) -> int:
    """Start a child that runs a function; its exit code is 0 if that raised nothing. Returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a child; minus the number of the signal that ended it, if one did."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
