"""A benchmark at another commit: its sources in a git worktree of their own, the benchmark as it stands here."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from timing import Other, Parts, turn

ROOT = Path(__file__).parent.parent


@contextmanager
def worktree(repository: Path, ref: str) -> Iterator[Path]:
    """A folder with the files of a commit, there for as long as it is needed and gone however that ends."""
    with tempfile.TemporaryDirectory(prefix="base-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(repository), "worktree"]
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), ref], check=True)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


@contextmanager
def at(ref: str, words: Sequence[str]) -> Iterator[Other]:
    """The benchmark that these words name, in a process of its own that imports the package as it was at a commit.

    Raises:
        subprocess.CalledProcessError: there is no such commit.
        RuntimeError: the benchmark does not run there.
    """
    with worktree(ROOT, ref) as tree:
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--serve", *words]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        asked, answers = child.stdin, child.stdout
        assert asked is not None and answers is not None

        def ask(name: str) -> list[float]:
            print(json.dumps(name), file=asked, flush=True)
            answer = answers.readline()
            if not answer:
                raise RuntimeError(f"the benchmark ends at {ref}, for what is said above")
            made: list[float] = json.loads(answer)
            return made

        try:
            yield Other(ref, ask)
        finally:
            child.kill()
            child.communicate()


def serve(parts: Parts) -> None:
    """Answer what `at` asks, on standard output; what the benchmark prints goes to standard error."""
    answers, part = sys.stdout, None
    with redirect_stdout(sys.stderr):
        for line in sys.stdin:
            seconds: list[float] = []
            if name := json.loads(line):
                part = None  # let go of the one before
                part = parts[name]()
                part.gate()
            else:
                assert part is not None
                seconds = turn(part.cases)
            print(json.dumps(seconds), file=answers, flush=True)
