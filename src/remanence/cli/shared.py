"""What the commands have in common: options, errors on one line, progress bars, and loading what they work on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from remanence.errors import InvalidInputError, RemanenceError

if TYPE_CHECKING:
    from remanence.memory import Memory, Storage
    from remanence.model.memory_model import MemoryModel

out = Console()
err = Console(stderr=True)


class OneLineErrors(TyperGroup):
    """What went wrong for a reason that the user can mend is one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RemanenceError, FileNotFoundError) as error:
            complain(error)
            raise typer.Exit(2) from None


def complain(error: Exception) -> None:
    err.print("error: " + " ".join(str(error).split()), style="red", markup=False, highlight=False, soft_wrap=True)


def examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


class Where(StrEnum):
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="REMANENCE_MODEL",
        help="Directory, hub id, or a bundled checkpoint: tiny, tiny_longterm (default).",
    ),
]
MemoryArgument = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")]
TierOption = Annotated[Where, typer.Option("--tier", help="Where the long-term slots of a new memory lie.")]
Int8Flag = Annotated[bool, typer.Option("--int8", help="Keep the long-term slots of a new memory as int8.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def load_model(name: str | None) -> "MemoryModel":
    import transformers

    from remanence import MemoryModel
    from remanence.checkpoints import DEFAULT, bundled, names

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = name or DEFAULT
    return MemoryModel.from_pretrained(bundled(name) if name in names() else name)


def storage_of(tier: Where, int8: bool) -> "Storage":
    from remanence.memory import Storage

    return Storage(tier.value, int8)


def load_memory(path: Path) -> "Memory":
    from remanence import Memory

    if not path.is_file():
        raise FileNotFoundError(f"there is no memory at {path}; make one with: remanence write {path} FILE")
    return Memory.load(path)


def require_folder(path: Path, *, file: bool = True) -> None:
    if file and path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to put {path.name} into")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calls with (done, in all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
