"""Commands for a store as a whole: what leaves it and comes in, what is erased, copies, checks, room."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.cli.places import require_input, require_writable
from remanence.cli.shared import JsonFlag, ModelOption, examples, out
from remanence.cli.storing import (
    DryRunFlag,
    NameArgument,
    NewNameArgument,
    OwnerOption,
    StoreOption,
    YesFlag,
    confirm,
    opened,
    show_table,
)
from remanence.errors import InvalidInputError

LOCAL = "local"

app = typer.Typer()


@app.command(epilog=examples("remanence store expire", "remanence store expire --json"))
def expire(store: StoreOption = None, as_json: JsonFlag = False) -> None:
    """Forget all writes that are past their time, of all owners."""
    with opened(store) as held:
        count = held.sweep()
    typer.echo(json.dumps({"expired": count}) if as_json else f"{count} expired")


@app.command(epilog=examples("remanence store export notes notes.zip"))
def export(
    memory: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    as_json: JsonFlag = False,
) -> None:
    """Write a memory to a file: all of its ledger, and its newest snapshot. `import` brings it back, anywhere."""
    require_writable(file)
    with opened(store) as held:
        from remanence.store.exchange import export_memory

        done = export_memory(held, held.memory(memory, owner=owner), file)
    typer.echo(json.dumps({"memory": memory, "file": str(file), **done}) if as_json else _exported(memory, file, done))


def _exported(memory: str, file: Path, done: dict[str, Any]) -> str:
    snapshot = "" if done["snapshot"] is None else f" and a snapshot at row {done['snapshot']}"
    return f"{memory}: {done['rows']} rows{snapshot} in {file}, {done['bytes']:,} bytes"


@app.command(
    name="import", epilog=examples("remanence store import notes.zip notes", "remanence store import notes.mem notes")
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by `store export`, or by `remanence write`.")],
    new: NewNameArgument,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
    snapshot: Annotated[
        bool, typer.Option(help="Take the snapshot in the file too; not where you do not know who made it.")
    ] = True,
) -> None:
    """Make a memory from a file, whole or not at all. The store is made too, if it is not there."""
    require_input(file)
    with open(file, "rb") as begun:
        exported = begun.read(4) == b"PK\3\4"
    with opened(store, model=model, make=True) as held:
        from remanence.store.exchange import import_file, import_memory

        if exported:
            made = import_memory(held, file, owner, new, snapshot=snapshot)
        else:
            made = import_file(held, file, owner, new)
    typer.echo(f"{made.name}: {made.found.version} rows, for {made.found.settings['model']}")


@app.command(epilog=examples("remanence store reencode notes notes-2 --model tiny"))
def reencode(
    memory: NameArgument,
    new: NewNameArgument,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    model: ModelOption = None,
) -> None:
    """Make a memory for another model, with the same writes on record."""
    with opened(store, model=model) as held:
        from remanence.store.exchange import reencode as made_anew

        made = made_anew(held, held.memory(memory, owner=owner), new)
    typer.echo(f"{made.name}: {made.found.version} rows, for {made.found.settings['model']}")


@app.command(
    epilog=examples(
        "remanence store erase notes 3",
        "remanence store erase notes --dry-run",
        "remanence store erase notes --cascade --yes --json",
    )
)
def erase(
    memory: NameArgument,
    writes: Annotated[
        list[int] | None, typer.Argument(metavar="WRITE...", help="Their numbers. Default: the whole memory.")
    ] = None,
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    cascade: Annotated[bool, typer.Option("--cascade", help="In its forks too.")] = False,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Leave nothing of some writes, or of a whole memory, in the store's files; prints a receipt."""
    with opened(store) as held:
        handle = held.memory(memory, owner=owner)
        receipt = held.erase(handle, writes or None, cascade=cascade, dry_run=True)
        if not dry_run:
            whole = f"the memory {memory}" if not writes else f"{len(receipt['writes'])} of the writes of {memory}"
            forks = f", and {len(receipt['names']) - 1} forks" if len(receipt["names"]) > 1 else ""
            confirm(f"Erase {whole}{forks}? This cannot be taken back.", yes)
            receipt = held.erase(handle, writes or None, cascade=cascade)
    if as_json:
        typer.echo(json.dumps(receipt))
        return
    numbers = ", ".join(map(str, receipt["writes"])) or "none"
    about = {
        "would be erased" if dry_run else "erased": ", ".join(receipt["names"]) if receipt["whole"] else memory,
        "writes": numbers,
        "snapshots": "" if dry_run else str(receipt["snapshots"]),
        "out of reach": ", ".join(receipt["out_of_reach"]),
    }
    about = {name: value for name, value in about.items() if value}
    show_table({"": list(about), " ": list(about.values())})


@app.command(epilog=examples("remanence store backup copies/monday", "remanence store backup monday.db"))
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder, or a new file that ends in .db.")],
    store: StoreOption = None,
) -> None:
    """Copy a store while it is used. The copy is a store: name it with --store."""
    with opened(store) as held:
        from remanence.store.copying import backup as copied

        file = copied(held, target)
    typer.echo(f"{file}: {file.stat().st_size:,} bytes; open it with --store {target}")


@app.command(epilog=examples("remanence store check", "remanence store check --repair"))
def check(
    store: StoreOption = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be made again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look whether all of a store fits together; exit code 1 if something is left that does not."""
    from dataclasses import asdict

    with opened(store) as held:
        from remanence.store.checking import check as looked_through

        found = looked_through(held, repair=repair)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in found]}))
    elif found:
        columns = {
            "what": [one.what for one in found],
            "memory": [f"{one.owner}/{one.memory}" if one.memory else "" for one in found],
            "row": ["" if one.row is None else str(one.row) for one in found],
            "repaired": ["yes" if one.repaired else "" for one in found],
            "says": [one.says for one in found],
        }
        show_table(columns)
    else:
        out.print("All of it fits together.")
    if not all(one.repaired for one in found):
        raise typer.Exit(1)


@app.command(epilog=examples("remanence store compact"))
def compact(store: StoreOption = None, as_json: JsonFlag = False) -> None:
    """Give room back: the database is written anew, and of each memory's snapshots only the newest is kept."""
    with opened(store) as held:
        done = held.compact()
    typer.echo(json.dumps(done) if as_json else f"{done['snapshots']} snapshots dropped; the database was written anew")


@app.command(
    epilog=examples(
        "remanence store quota --owner ann",
        "remanence store quota --owner ann --writes 10000 --bytes 50000000",
        "remanence store quota --owner ann --bytes none",
    )
)
def quota(
    store: StoreOption = None,
    owner: OwnerOption = LOCAL,
    most_bytes: Annotated[
        str | None, typer.Option("--bytes", metavar="COUNT|none", help="Most bytes of texts and token ids.")
    ] = None,
    most_writes: Annotated[
        str | None, typer.Option("--writes", metavar="COUNT|none", help="Most writes on record.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show, or set, how much an owner may keep."""
    with opened(store) as held:
        limits = held.ledger.quota(owner)
        if most_bytes is not None or most_writes is not None:
            for name, asked in (("max_bytes", most_bytes), ("max_writes", most_writes)):
                limits[name] = limits[name] if asked is None else _limit(asked)
            held.ledger.set_quota(owner, **limits)
        used = held.ledger.used(owner)
    if as_json:
        typer.echo(json.dumps({"owner": owner, **used, **limits}))
        return
    most = {name: limits[f"max_{name}"] for name in used}
    shown = {name: "no limit" if most[name] is None else f"of {most[name]:,}" for name in used}
    show_table({"": list(used), "used": [f"{count:,}" for count in used.values()], "limit": list(shown.values())})


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidInputError(f"a quota is a whole number, or none, not {text!r:.40}")
    return int(text)
