"""For every test: one thread, so that numbers do not depend on the load, and memory that shows if nobody wrote it.

torch fills what `torch.empty` and its like return with NaN, or the largest integer, so that a number which nobody wrote
shows in whatever is computed from it.
"""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)  # fills only then; on a CPU little else follows from it
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever a test sets, as recipes do: a process forked by a later one would wait for threads that it has not."""
    yield
    torch.set_num_threads(1)
