"""What the commands have in common: options, errors on one line, progress bars, and loading what they work on."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from remanence.config import StorageConfig, Tier
from remanence.errors import InvalidInputError, MemoryMismatchError, RemanenceError

if TYPE_CHECKING:
    from remanence.memory import Memory
    from remanence.memory.envelope import Envelope
    from remanence.memory.state import MemoryHeader
    from remanence.model.model import MemoryModel

out = Console()
err = Console(stderr=True)


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


def note(what: str) -> None:
    """Say something beside the output."""
    err.print(f"note: {what}", markup=False, highlight=False, soft_wrap=True)


def examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="REMANENCE_MODEL",
        help="Directory, hub id, smollm2 (default; after: remanence setup smollm2), tiny, or tiny_longterm.",
    ),
]
LearnedModelOption = Annotated[
    str | None,
    typer.Option("--model", envvar="REMANENCE_MODEL", help="Directory, hub id, tiny, or tiny_longterm (default)."),
]
MemoryArgument = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")]
TierOption = Annotated[
    Tier | None,
    typer.Option(
        "--tier",
        help="Where slots lie. Default, for a new memory: text (token ids only), or host for long-term slots.",
    ),
]
Int8Flag = Annotated[bool, typer.Option("--int8", help="Keep these slots as int8.")]
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
    model.name = name  # which memories keep: a name outlives the folder that a checkpoint lies in
    if not model.trained:
        warnings.filterwarnings("ignore", message="the learned writer of this model was never trained")
        note(
            f"the learned writer of {name} was never trained: what it writes cannot be recalled. Train it first: "
            "remanence train --help"
        )
    return model.optimize_for_cpu() if optimize else model


def moved_storage(header: "MemoryHeader", tier: Tier | None, int8: bool) -> StorageConfig | None:
    """Where slots of a memory that is there are to lie from now on; None: where they lie.

    Raises:
        InvalidInputError: there are none, or they cannot lie there.
    """
    if tier is None and not int8:
        return None
    kept = header.chunks or header.longterm
    if kept is None:
        raise InvalidInputError("this memory has no long-term slots; leave --tier and --int8 out")
    storage = kept.storage
    if header.chunks is not None and storage.tier == "text":
        if tier == "text" and not int8:
            return None
        raise InvalidInputError(
            "this memory keeps token ids, and no slots that could move; leave --tier and --int8 out, or write a new one"
        )
    if header.longterm is not None and tier == "text":
        raise InvalidInputError("long-term slots cannot be made again from their text; --tier is device, host or disk")
    return StorageConfig(tier or storage.tier, int8 or None, storage.folder if tier in (None, storage.tier) else None)


def envelope_of(path: Path) -> "Envelope":
    """What a memory's file says of itself; read without torch, so that what is wrong with it is said at once.

    Raises:
        FileNotFoundError, InvalidInputError, MemoryFileError: there is none, or it is no memory.
    """
    from remanence.memory.envelope import read_envelope

    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder, not a memory; name the file of a memory")
    if not path.exists():
        raise FileNotFoundError(f"there is no memory at {path}; make one with: remanence write {path} FILE")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a memory: it is no file")
    return read_envelope(path)


def load_memory(path: Path, storage: StorageConfig | None = None) -> "Memory":
    envelope_of(path)
    from remanence import Memory

    return Memory.load(path, storage=storage)


def require_model(model: "MemoryModel", memory: "Memory", path: Path) -> None:
    """Raise `MemoryMismatchError`, with the model to name if that is known, where another wrote the memory."""
    try:
        model.spec.require(memory.spec)
    except MemoryMismatchError as error:
        wrote = maker_of(memory)
        if wrote is None:
            raise MemoryMismatchError(f"{path}: {error}. Name the model that wrote it with --model") from error
        if wrote == model.name:
            raise MemoryMismatchError(f"{path} was written by {wrote} as it was then: {error}") from error
        raise MemoryMismatchError(f"{path} was written by another model, {wrote}: use --model {wrote}") from error


def maker_of(memory: "Memory") -> str | None:
    """The model that wrote a memory, as --model takes it."""
    from remanence import MemoryModel
    from remanence.checkpoints import bundled, name_of, whole

    if memory.model_name:
        return name_of(memory.model_name) or memory.model_name
    # Memories of version 0.1 do not say.
    wrote = (name for name in whole() if MemoryModel.from_pretrained(bundled(name)).spec == memory.spec)
    return next(wrote, None)


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
    with stages_bar(in_bytes=in_bytes) as move:
        yield lambda done, total: move(what, done, total)


@contextmanager
def stages_bar(*, in_bytes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, moved by calls with (what is done now, done, in all; 0: nobody knows)."""
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)
