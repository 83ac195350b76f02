"""What the commands of a store have in common: where it is, whose memories, times, tables, and asking first."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from remanence.cli.shared import load_model, out
from remanence.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from remanence.store import Store
    from remanence.store.rows import Row

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="REMANENCE_STORE",
        metavar="PLACE",
        help="The store: a folder, a .db file, or a URL. Default: remanence/store among your data (~/.local/share).",
    ),
]
OwnerOption = Annotated[str, typer.Option("--owner", help="Whose memories.")]
NameArgument = Annotated[str, typer.Argument(metavar="MEMORY", help="Its name.")]
NewNameArgument = Annotated[str, typer.Argument(metavar="NEW", help="Name of the new memory.")]
WriteArgument = Annotated[int, typer.Argument(metavar="WRITE", help="Number of the write, as `show` lists it.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="Most to list.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
YesFlag = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d{1,9})([smhdw])")


def place_of(store: str | None) -> str:
    """Where the store is: what was named, else a folder among the user's data."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return store or str(Path(data) / "remanence" / "store")


@contextmanager
def opened(store: str | None, *, model: str | None = None, make: bool = False) -> Iterator["Store"]:
    """The store; `make`: also where there is none yet.

    Raises:
        StoreError: there is none.
    """
    from remanence.store.database import url_of

    place = place_of(store)
    url = url_of(place)
    if not make and url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise StoreError(f"there is no store at {place}; make one with: remanence store init --store {place}")
    from remanence.store import Store

    # As Store.open loads them elsewhere: kernels made for this CPU would differ in the last bit of what is encoded.
    with Store.open(place, model=model, load=lambda name: load_model(name, optimize=False)) as made:
        yield made


def time_of(text: str, *, ahead: bool) -> datetime:
    """A moment: "30d" from now (`ahead`), or ago, in s, m, h, d or w; or ISO, in UTC if it names no zone.

    Raises:
        InvalidInputError: it is neither.
    """
    try:
        if span := _SPAN.fullmatch(text.strip()):
            distance = timedelta(seconds=int(span[1]) * _UNITS[span[2]])
            return datetime.now(UTC) + (distance if ahead else -distance)
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"a time is 30d, 12h or 2027-05-03T12:00, not {text!r:.40}") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def confirm(what: str, yes: bool) -> None:
    """Ask before something that cannot be taken back; leaves if the answer is no."""
    if not yes:
        typer.confirm(what, abort=True, err=True)


def plain(row: "Row") -> dict[str, Any]:
    """A row of the ledger as JSON has it, without what is not said."""
    values = asdict(row) | {"metadata": dict(row.metadata)}
    made = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
    return {name: value for name, value in made.items() if value not in (None, "", {}, False)}


def show_rows(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Rows, each on a line; columns that none of them fills are left out."""
    from remanence.details import first_words

    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "row": lambda one: str(one["seq"]),
        "score": lambda one: f"{one['score']:.2f}" if "score" in one else "",
        "kind": lambda one: one["kind"] if any(each["kind"] != "write" for each in rows) else "",
        "about": lambda one: str(one.get("target", "")),
        "state": lambda one: one.get("state", ""),
        "time (UTC)": lambda one: one["created"][:16].replace("T", " "),
        "by": lambda one: one.get("actor", ""),
        "source": lambda one: one.get("source", ""),
        "text": lambda one: first_words(one.get("text")),
    }
    show_table({name: [cell(one) for one in rows] for name, cell in cells.items()}, title)


def show_table(columns: Mapping[str, Sequence[str]], title: str | None = None) -> None:
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(title=title, title_justify="left", show_header=any(name.strip() for name in filled))
    for name in filled:
        table.add_column(name, justify="right" if name in ("row", "score", "rows", "about") else "left")
    for row in zip(*filled.values(), strict=True):
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    out.print(table)
