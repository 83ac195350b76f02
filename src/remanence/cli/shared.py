"""What the commands have in common: options, errors on one line, progress bars, and loading what they work on."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from remanence.config import Tier
from remanence.errors import InvalidInputError, MemoryMismatchError, RemanenceError

if TYPE_CHECKING:
    from remanence.memory import Memory, Storage
    from remanence.model.memory_model import MemoryModel

out = Console()
err = Console(stderr=True)

# Where torchao is installed peft imports it, and it reports on stderr whatever of it this machine cannot load.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class OneLineErrors(TyperGroup):
    """What went wrong for a reason that the user can mend is one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (RemanenceError, OSError) as error:
            complain(error)
            raise typer.Exit(2) from None


def complain(error: Exception | str) -> None:
    err.print("error: " + " ".join(str(error).split()), style="red", markup=False, highlight=False, soft_wrap=True)


def examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="REMANENCE_MODEL",
        help="Directory, hub id, or a bundled checkpoint: tiny, tiny_longterm (default).",
    ),
]
MemoryArgument = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")]
TierOption = Annotated[
    Tier | None, typer.Option("--tier", help="Where long-term slots lie. Default: host, for new ones.")
]
Int8Flag = Annotated[bool, typer.Option("--int8", help="Keep long-term slots as int8.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def load_model(name: str | None, *, optimize: bool = True) -> "MemoryModel":
    """`optimize`: for the CPU, which takes the memory of the weights once more."""
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        # By default a kernel is kept for each of the last 1,024 shapes, hundreds of MiB; with 64, nothing gets slower.
        os.environ.setdefault(capacity, "64")
    import transformers

    from remanence import MemoryModel
    from remanence.checkpoints import DEFAULT, bundled, names

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = name or DEFAULT
    model = MemoryModel.from_pretrained(bundled(name) if name in names() else name)
    return model.optimize_for_cpu() if optimize else model


def storage_of(keeper: "MemoryModel | Memory", tier: Tier | None, int8: bool) -> "Storage | None":
    """Where the long-term slots of a memory, or of a model's new ones, are to lie; None: where they would anyway.

    Raises:
        InvalidInputError: there are no long-term slots.
    """
    from remanence.memory import Memory, Storage

    if tier is None and not int8:
        return None
    if keeper.longterm is None:
        what = "memory" if isinstance(keeper, Memory) else "model"
        raise InvalidInputError(f"this {what} has no long-term slots; leave --tier and --int8 out")
    kept = keeper.longterm.layout.storage if isinstance(keeper, Memory) else Storage()
    return Storage(tier or kept.tier, int8 or kept.int8)


def load_memory(path: Path) -> "Memory":
    from remanence import Memory

    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{path} is not a memory: it is no file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no memory at {path}; make one with: remanence write {path} FILE")
    return Memory.load(path)


def checkpoint_of(memory: "Memory") -> str | None:
    """The bundled checkpoint that wrote a memory."""
    from remanence import MemoryModel
    from remanence.checkpoints import bundled, names

    wrote = (name for name in names() if MemoryModel.from_pretrained(bundled(name)).spec == memory.spec)
    return next(wrote, None)


def require_model(model: "MemoryModel", memory: "Memory", path: Path) -> None:
    """Raise `MemoryMismatchError`, with the model to name if it is a bundled one, where another wrote the memory."""
    try:
        model.spec.require(memory.spec)
    except MemoryMismatchError as error:
        name = checkpoint_of(memory)
        if name is None:
            raise MemoryMismatchError(f"{path}: {error}. Name the model that wrote it with --model") from error
        raise MemoryMismatchError(
            f"{path} was written by another model, the bundled checkpoint {name}: use --model {name}"
        ) from error


@contextmanager
def interruptible(state: str) -> Iterator[None]:
    """Ctrl-C says what has become of the work."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"interrupted; {state}")
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(what: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calls with (done, in all)."""
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
