"""For every test: one thread, so that numbers do not depend on the load, and memory that shows if nobody wrote it.

torch fills what `torch.empty` and its like return with NaN, or the largest integer, so that a number which nobody wrote
shows in whatever is computed from it.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import torch

# What models keep between runs goes away with this one.
os.environ.pop("REMANENCE_CACHE", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)  # fills only then; on a CPU little else follows from it
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever a test sets, as recipes do: a process forked by a later one would wait for threads that it has not."""
    yield
    torch.set_num_threads(1)
