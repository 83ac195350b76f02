"""Commands that change a memory, and say what is in it: write, show, forget."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.places import require_memory_place
from remanence.cli.shared import (
    Int8Flag,
    JsonFlag,
    MemoryArgument,
    ModelOption,
    TierOption,
    envelope_of,
    examples,
    interruptible,
    load_memory,
    load_model,
    moved_storage,
    note,
    out,
    progress_bar,
    require_model,
)
from remanence.config import new_storage
from remanence.errors import InvalidInputError, MemoryConflictError

if TYPE_CHECKING:
    from remanence.memory import Memory, Receipt
    from remanence.model.model import MemoryModel

app = typer.Typer()

ROWS = 20  # of the table of writes, the newest


@dataclass(frozen=True)
class Text:
    """One text to write, and what is kept with it."""

    text: str
    source: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_all(model: "MemoryModel", memory: "Memory", texts: Sequence[Text]) -> int:
    """How many of the texts were shorter than a chunk should be."""
    from remanence.model.inputs import MIN_CHUNK

    sizes = [len(one.text.encode()) for one in texts]
    total, done, short = sum(sizes), 0, 0
    with progress_bar("writing", in_bytes=True) as progress:
        for one, size in zip(texts, sizes, strict=True):

            def moved(chunk: int, chunks: int, done: int = done, size: int = size) -> None:
                progress(done + size * chunk // chunks, total)

            receipt = model.write(memory, one.text, source=one.source, metadata=one.metadata, progress=moved)
            short += receipt.tokens < MIN_CHUNK
            done += size
    return short


def changed(path: Path, change: Callable[[], "Memory"], unsaved: str) -> "Memory":
    """The memory that `change` made or loaded anew and changed, saved.

    Where another command saved to the file meanwhile, this is done once more, with what is there now.

    Raises:
        MemoryConflictError: and then it happened again.
    """
    for last in (False, True):
        with interruptible(f"nothing was saved: {path} {unsaved}"):
            held = change()
        try:
            with interruptible(f"{path} has either everything or nothing of this; see: remanence show {path}"):
                held.save(path)
        except MemoryConflictError as error:
            if last:
                raise MemoryConflictError(
                    f"{path} was saved by others again and again meanwhile, so nothing of this was; run it once more"
                ) from error
            note(f"{path} was saved by another meanwhile; this goes into what is there now")
        else:
            break
    return held


@app.command(
    epilog=examples(
        "remanence write notes.mem notes.txt more.txt",
        'echo "Alice Brown was born in Oslo. She works as a surveyor and lives in Rome." | remanence write notes.mem -',
        "remanence write book.mem book.txt --whole",
        "remanence write notes.mem mail.txt --source 'mail of 3 May' --metadata topic=travel --metadata by=Ann",
    )
)
def write(
    memory: MemoryArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files; - for standard input.")],
    model: ModelOption = None,
    whole: Annotated[bool, typer.Option("--whole", help="Each file is one write, not each of its paragraphs.")] = False,
    source: Annotated[
        str | None, typer.Option(help="Where the text is from, kept with each write. Default: the name of its file.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with each write; repeatable.")
    ] = None,
    tier: TierOption = None,
    int8: Int8Flag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write text files into a memory, which is made if it is not there.

    Each paragraph is one write. The memory file changes only when everything was written; Ctrl-C before that leaves it
    as it was. With --tier or --int8, slots of a memory that is there already move.
    """
    from remanence.texts import paragraphs_of, read_text

    require_memory_place(memory)
    about = pairs_of(metadata or [])
    contents = [(source or (None if str(file) == "-" else str(file)), read_text(file)) for file in files]
    texts = [
        Text(part, name, about)
        for name, content in contents
        for part in ([content] if whole else paragraphs_of(content))
    ]
    if memory.exists():
        moved_storage(envelope_of(memory).header, tier, int8)
    engine = load_model(model)
    short, written = 0, 0

    def change() -> "Memory":
        nonlocal short, written
        if memory.exists():
            storage = moved_storage(envelope_of(memory).header, tier, int8)
            held = load_memory(memory, storage)
            require_model(engine, held, memory)
        else:
            held = engine.new_memory(storage=new_storage(engine.config, tier, int8))
        before = held.write_count
        short = write_all(engine, held, texts)
        written = held.write_count - before
        return held

    held = changed(memory, change, "is as it was" if memory.exists() else "was not made")
    if short and engine.config.writer == "learned":
        from remanence.model.inputs import MIN_CHUNK

        note(
            f"{short} of {len(texts)} texts had fewer than {MIN_CHUNK} tokens. So short a text is poorly remembered, "
            "and disturbs the memory more than it adds to it; join short notes into paragraphs."
        )
    done = {"memory": str(memory), "written": written, "writes": held.write_count}
    typer.echo(json.dumps(done) if as_json else "{memory}: {written} written, {writes} writes in all".format(**done))


def pairs_of(words: Sequence[str]) -> dict[str, str]:
    """What --metadata says.

    Raises:
        InvalidInputError: a word is no KEY=VALUE.
    """
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InvalidInputError(f"--metadata takes KEY=VALUE, such as topic=travel, not {name!r}")
    return {name: value for name, _, value in pairs}


@app.command(
    epilog=examples(
        "remanence show notes.mem",
        "remanence show notes.mem --all",
        "remanence show notes.mem --model tiny",
        "remanence show notes.mem --json",
    )
)
def show(
    memory: MemoryArgument,
    model: Annotated[
        str | None, typer.Option("--model", help="Load this model, too, and say whether it can read the memory.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List all writes, not just the newest 20.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What is in a memory: its sizes, the model that wrote it, and its writes. This needs no model."""
    from remanence.details import details_table, file_details, reading_details, writes_table

    envelope = envelope_of(memory)
    details = file_details(memory, envelope)
    if model is not None:
        details |= reading_details(envelope.header.spec, load_model(model, optimize=False))
    if as_json:
        typer.echo(json.dumps(details))
        return
    out.print(details_table(details))
    if details["writes"]:
        out.print(writes_table(details["writes"], newest=None if every else ROWS))


@app.command(epilog=examples("remanence forget notes.mem 3", "remanence forget notes.mem 3 --json"))
def forget(
    memory: MemoryArgument,
    write: Annotated[int, typer.Argument(metavar="ID", help="Of the write, as `remanence show` lists it.")],
    model: ModelOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take a write out of a memory of text slots. The others stay as they are."""
    require_memory_place(memory)
    header = envelope_of(memory).header
    if header.chunks is None:
        raise InvalidInputError(
            f"{memory} is a learned memory: its slots hold what came before them, so no write can be taken out. Write "
            "the other texts into a new one"
        )
    if write not in {record.id for record in header.writes}:
        raise InvalidInputError(f"{memory} has no write {write}; see those that it has: remanence show {memory} --all")
    engine = load_model(model)
    receipt: Receipt | None = None

    def change() -> "Memory":
        nonlocal receipt
        held = load_memory(memory)
        require_model(engine, held, memory)
        receipt = engine.forget(held, write)
        return held

    held = changed(memory, change, "is as it was")
    assert receipt is not None
    done = {"memory": str(memory), "forgotten": write, "tokens": receipt.tokens, "exact": receipt.exact}
    if as_json:
        typer.echo(json.dumps(done | {"writes": len(held.writes)}))
        return
    typer.echo(f"{memory}: write {write} forgotten, {len(held.writes)} left")
    if not receipt.exact:
        note("others were dropped for want of room since that write, which the memory might still hold without it")
