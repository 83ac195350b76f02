"""Commands for the memories of a store: create, tell, ask, find, forget, undo, fork."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.cli import upkeep
from remanence.cli.memories import ROWS, pairs_of
from remanence.cli.shared import JsonFlag, ModelOption, OneLineErrors, examples, note, out
from remanence.cli.storing import (
    DryRunFlag,
    LimitOption,
    NameArgument,
    NewNameArgument,
    OwnerOption,
    StoreOption,
    YesFlag,
    confirm,
    opened,
    place_of,
    plain,
    show_rows,
    show_table,
    time_of,
)
from remanence.errors import ConflictError, InvalidInputError, NotFoundError

LOCAL = "local"  # as `Store` has it, which is imported when it is needed

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Named memories that outlive the process, with every write on record.",
    epilog=examples(
        "remanence store create notes",
        'remanence store tell notes "Alice Brown was born in Oslo."',
        'remanence store ask notes "Where was Alice Brown born?"',
        "remanence store show notes",
    ),
)


@app.command(epilog=examples("remanence store init", "remanence store init --store postgresql://user@host/memories"))
def init(store: StoreOption = None) -> None:
    """Make a store, or bring an older one to this version."""
    with opened(store, make=True):
        typer.echo(f"the store is at {place_of(store)}")


@app.command(name="list", epilog=examples("remanence store list", "remanence store list --owner ann --json"))
def list_(
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    limit: LimitOption = 100,
    after: Annotated[str, typer.Option("--after", help="Only names behind this one.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List an owner's memories by name."""
    with opened(store) as held:
        found = [one.found for one in held.memories(owner=owner, limit=limit, after=after)]
    if as_json:
        about = [{"name": one.name, "version": one.version, **_made(one)} for one in found]
        typer.echo(json.dumps({"owner": owner, "memories": about}))
        return
    if not found:
        out.print(f"{owner} has no memories{' behind that name' if after else ''}.", markup=False)
        return
    columns = {
        "name": [one.name for one in found],
        "rows": [f"{one.version:,}" for one in found],
        "model": [str(one.settings["model"]) for one in found],
        "created (UTC)": [one.created.isoformat()[:16].replace("T", " ") for one in found],
    }
    show_table(columns)
    if len(found) == limit:
        note(f"there may be more: --after {found[-1].name}")


def _made(found: Any) -> dict[str, Any]:
    about = {"model": found.settings["model"], "writer": found.settings["writer"], "created": found.created.isoformat()}
    return about | {"metadata": dict(found.metadata)}


@app.command(epilog=examples("remanence store create notes", "remanence store create notes --model tiny --seed 3"))
def create(
    memory: NameArgument,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Decides who leaves where a memory is full.")] = 0,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the memory; repeatable.")
    ] = None,
) -> None:
    """Create a memory, for a model. The store is made too, if it is not there."""
    about = pairs_of(metadata or [])
    with opened(store, model=model, make=True) as held:
        with suppress(NotFoundError):
            held.memory(memory, owner=owner)
            raise ConflictError(f"{owner} has a memory {memory!r} already")
        made = held.memory(memory, owner=owner, create=True, seed=seed, metadata=about)
        typer.echo(f"{made.name} was created, for {made.found.settings['model']}")


@app.command(
    epilog=examples(
        "remanence store show notes", "remanence store show notes --all", "remanence store show notes --json"
    )
)
def show(
    memory: NameArgument,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    every: Annotated[bool, typer.Option("--all", help="List all writes, not just the newest 20.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What a memory is, and its writes; what was forgotten stays on record. This needs no model."""
    with opened(store) as held:
        handle = held.memory(memory, owner=owner)
        found, holds = held.ledger.holding(handle.found)
        forks = [one.name for one in held.ledger.forks(found)]
        rows = [
            plain(row) for row in (handle.all() if every or as_json else handle.writes(limit=ROWS, newest_first=True))
        ]
    about = {"name": found.name, "owner": found.owner, "version": found.version, "holds": len(holds), **_made(found)}
    about |= {"fork_at": found.parent_seq} if found.parent else {}
    about |= {"forks": forks} if forks else {}
    if as_json:
        typer.echo(json.dumps(about | {"writes": rows}))
        return
    show_table({"": list(about), " ": [_shown(value) for value in about.values()]})
    if rows:
        rows.sort(key=lambda row: row["seq"])
        show_rows(rows, None if every or len(rows) < ROWS else f"the newest {ROWS} writes; --all lists all")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or "-"
    return ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)


@app.command(
    epilog=examples(
        'remanence store tell notes "Alice Brown was born in Oslo."',
        "remanence store tell notes --file notes.txt --file more.txt --key auto",
        "cat mail.txt | remanence store tell notes - --source 'mail of 3 May' --expires 30d",
        'remanence store tell notes "Alice Brown lives in Rome." --supersedes 1',
    )
)
def tell(
    memory: NameArgument,
    text: Annotated[str | None, typer.Argument(help="What to remember; - for standard input.")] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", help="A text file; repeatable.")] = None,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
    create: Annotated[bool, typer.Option("--create", help="Create the memory, if it is not there.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Each file is one write, not each of its paragraphs.")] = False,
    source: Annotated[str | None, typer.Option(help="Where it is from. Default: the name of the file.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with each write; repeatable.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it is forgotten: 30d, 12h, or a date.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Telling again with this key changes nothing; auto: nor does the same text within 10 minutes."
        ),
    ] = None,
    supersedes: Annotated[int | None, typer.Option(help="The write that this takes the place of.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a text, or files, into a memory. When this returns, it is on disk.

    Each paragraph of a file, or of standard input, is one write.
    """
    from remanence.texts import paragraphs_of, read_text

    about: dict[str, Any] = {"metadata": pairs_of(metadata or []), "idempotency_key": key, "supersedes": supersedes}
    about["expires_at"] = None if expires is None else time_of(expires, ahead=True)
    texts = [(text, source)] if text is not None and text != "-" else []
    for path in [*([Path("-")] if text == "-" else []), *(file or [])]:
        content, name = read_text(path), source or (None if str(path) == "-" else str(path))
        texts += [(part, name) for part in ([content] if whole else paragraphs_of(content))]
    if not texts:
        raise InvalidInputError("there is nothing to tell: give a text, - for standard input, or --file")
    if len(texts) > 1 and (supersedes is not None or key not in (None, "auto")):
        raise InvalidInputError(f"--key and --supersedes are about one write, and these are {len(texts)}; add --whole")
    rows = []
    with opened(store, model=model, make=create) as held:
        handle = held.memory(memory, owner=owner, create=create)
        try:
            rows += [handle.tell(part, source=name, **about) for part, name in texts]
        finally:
            version = handle.version
            if rows and len(rows) < len(texts):
                note(f"{len(rows)} of {len(texts)} were told before this")
    again = sum(row.deduplicated for row in rows)
    if as_json:
        done = {"memory": memory, "writes": [row.seq for row in rows], "deduplicated": again, "version": version}
        typer.echo(json.dumps(done))
        return
    numbers = str(rows[0].seq) if len(rows) == 1 else f"{rows[0].seq} to {rows[-1].seq}"
    known = f" ({again} known already)" if again else ""
    typer.echo(f"{memory}: write{'s' * (len(rows) > 1)} {numbers}{known}")


@app.command(
    epilog=examples(
        'remanence store ask notes "Where was Alice Brown born?"',
        'remanence store ask notes "Where was Alice Brown born?" --sources --json',
    )
)
def ask(
    memory: NameArgument,
    question: Annotated[str, typer.Argument(help="In plain words.")],
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="The longest answer, in tokens.")] = 64,
    sources: Annotated[bool, typer.Option("--sources", help="Also list the writes that it was read from.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a memory one question. It is not changed."""
    if not question.strip():
        raise InvalidInputError("there is no question; put it in quotes behind the memory")
    with opened(store, model=model) as held:
        handle = held.memory(memory, owner=owner)
        answer = handle.ask(question, max_new_tokens=max_new_tokens)
        read = [plain(handle.write(seq)) | {"score": round(score, 4)} for seq, score in answer.sources]
    if as_json:
        typer.echo(json.dumps({"question": question, "answer": answer.text, "found": answer.found, "sources": read}))
        return
    typer.echo(answer.text)
    if not answer.found:
        note("the memory was not told this; these are the model's own words")
    if sources and read:
        show_rows(read)
    elif sources:
        out.print("The memory names no write that this was read from." if answer.found else "Nothing was read for it.")


@app.command(
    epilog=examples(
        'remanence store search notes "alice oslo"', 'remanence store search notes "Who was born in Oslo?" --by-meaning'
    )
)
def search(
    memory: NameArgument,
    query: Annotated[str, typer.Argument(help="Words that must all be there.")],
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
    limit: LimitOption = 20,
    by_meaning: Annotated[bool, typer.Option("--by-meaning", help="As the model finds what it reads.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find writes that are held, by their words; this needs no model, unless it is by meaning."""
    if not query.strip():
        raise InvalidInputError("there is nothing to search for; put it in quotes behind the memory")
    with opened(store, model=model) as held:
        handle = held.memory(memory, owner=owner)
        if by_meaning:
            rows = [plain(row) | {"score": round(score, 4)} for row, score in handle.recall(query, limit)]
        else:
            rows = [plain(row) for row in handle.search(query, limit=limit)]
    if as_json:
        typer.echo(json.dumps({"query": query, "writes": rows}))
    elif rows:
        show_rows(rows)
    else:
        out.print("No write that is held has all of these words.")


@app.command(epilog=examples("remanence store history notes", "remanence store history notes 3"))
def history(
    memory: NameArgument,
    write: Annotated[
        int | None, typer.Argument(metavar="WRITE", help="Only this write, and what was done to it.")
    ] = None,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    limit: LimitOption = 100,
    after: Annotated[int, typer.Option("--after", min=0, help="Only rows behind this one.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """What was done to a memory, oldest first: writes, and what was forgotten, undone or expired."""
    with opened(store) as held:
        handle = held.memory(memory, owner=owner)
        kinds = ("write", "forget", "undo", "expire", "redact")
        found = held.ledger.rows(handle.found, limit=limit, after=after, kinds=kinds) if write is None else None
        rows = [plain(row) for row in (handle.history(write) if found is None and write is not None else found or [])]
    if as_json:
        typer.echo(json.dumps({"memory": memory, "rows": rows}))
        return
    if rows:
        show_rows(rows)
    if not rows or len(rows) == limit:
        note(f"there may be more: --after {rows[-1]['seq']}" if rows else "there is nothing on record")


@app.command(
    epilog=examples(
        "remanence store forget notes 3",
        "remanence store forget notes --source mail.txt --dry-run",
        "remanence store forget notes --before 90d --yes",
    )
)
def forget(
    memory: NameArgument,
    write: Annotated[
        int | None, typer.Argument(metavar="WRITE", help="Number of the write, as `show` lists it.")
    ] = None,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    source: Annotated[str | None, typer.Option(help="All writes of this source.")] = None,
    before: Annotated[str | None, typer.Option(help="All writes older than this: 90d, 12h, or a date.")] = None,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take writes out of a memory, which is then as if it had never had them. They stay on record: see `erase`."""
    if (write is None) == (source is None and before is None):
        raise InvalidInputError("name either one write, or which ones: --source, --before, or both")
    moment = None if before is None else time_of(before, ahead=False)
    with opened(store) as held:
        handle = held.memory(memory, owner=owner)
        if write is not None:
            rows = [handle.write(write)]
            if rows[0].state != "held":
                raise InvalidInputError(f"{memory} holds no write {write} any more: it was {rows[0].state}")
            if not dry_run:
                handle.forget(write)
        else:
            rows = handle.forget_all(source=source, before=moment, dry_run=True)
            if rows and not dry_run:
                confirm(f"Forget {len(rows)} of the writes of {memory}?", yes)
                held.ledger.forget_many(handle.found, [row.seq for row in rows])
        version = handle.version
    if as_json:
        done = {"memory": memory, "forgotten": [row.seq for row in rows], "dry_run": dry_run, "version": version}
        typer.echo(json.dumps(done))
        return
    if dry_run and rows:
        show_rows([plain(row) for row in rows])
    typer.echo(f"{memory}: {len(rows)} {'would be ' * dry_run}forgotten")


@app.command(epilog=examples("remanence store undo notes", "remanence store undo notes 5"))
def undo(
    memory: NameArgument,
    row: Annotated[
        int | None, typer.Argument(metavar="ROW", help="What to take back. Default: the newest write or forget.")
    ] = None,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
) -> None:
    """Take back a write, a forget, or an undo. Nothing is lost: an undo can be undone."""
    with opened(store) as held:
        done = held.memory(memory, owner=owner).undo(row)
    typer.echo(f"{memory}: row {done.target} was taken back, by row {done.seq}")


@app.command(epilog=examples("remanence store fork notes trial"))
def fork(memory: NameArgument, new: NewNameArgument, store: StoreOption = None, owner: OwnerOption = LOCAL) -> None:
    """Make another memory that begins as this one is now."""
    with opened(store) as held:
        made = held.memory(memory, owner=owner).fork(new)
    typer.echo(f"{made.name} is a fork of {memory}, from row {made.found.parent_seq}")


@app.command(epilog=examples("remanence store rename notes journal"))
def rename(memory: NameArgument, new: NewNameArgument, store: StoreOption = None, owner: OwnerOption = LOCAL) -> None:
    """Give a memory another name."""
    with opened(store) as held:
        held.memory(memory, owner=owner).rename(new)
    typer.echo(f"{memory} is called {new} now")


app.add_typer(upkeep.app)
