"""Every evaluation's loop: items are measured under columns, records are kept at once, and a report is made of them.

- An `Evaluation` says what is measured: a name, the settings that its figures hang on, items, columns and metrics.
- A `Run` measures each item under each column once, which gives a record: a JSON object. With a folder, a record is
  appended to a file of JSON lines at once, and what stands there is not measured again.
- A `Report` says what came out, for each group of items and each column, with intervals.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.metrics import Metric

Record = dict[str, Any]  # JSON
Progress = Callable[[int, int], None]  # called with (done, in all)
_WIDEST = 80  # characters of a table in text


@dataclass(frozen=True)
class Item:
    """What is measured under each column.

    Attributes:
        key: its name, which no other item has, and which is the same whenever the evaluation is made.
        groups: rows of the report that it counts in, such as all items and those of its kind.
        columns: it is measured under; None: all.
        content: what a column needs of it.
        together: items that follow each other and have this in common are measured at once; "": each by itself.
    """

    key: str
    groups: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    content: Any = None
    together: str = ""


Measure = Callable[[Column, Sequence[Item]], Sequence[Record]]  # a record of each item, in their order


@dataclass(frozen=True)
class Evaluation:
    """What is measured.

    Attributes:
        name: of the evaluation, and of its file of records.
        settings: JSON; all that the figures hang on but the model, the items and the columns. Other settings, other
            records.
        items: in the order in which they are measured.
        columns: under which they are.
        measure: items that are measured at once, under a column.
        metrics: what the report makes of the records.
        base: the column that the others are compared with, item by item, where it is measured.
    """

    name: str
    settings: Mapping[str, Any]
    items: Sequence[Item]
    columns: Sequence[Column]
    measure: Measure
    metrics: Sequence[Metric]
    base: str | None = None

    def __post_init__(self) -> None:
        if not self.items or not self.columns:
            raise InvalidInputError(f"{self.name} has nothing to measure; it needs an item and a column")
        keys = [item.key for item in self.items]
        if len(set(keys)) < len(keys):
            raise InvalidInputError(f"two items of {self.name} have the same key")

    def batches(self) -> Iterable[tuple[Column, list[Item]]]:
        """What is measured at once: a column and its items, all columns of some items before the next items."""
        for _, part in groupby(self.items, lambda item: item.together or item.key):
            held = list(part)
            for column in self.columns:
                if those := [item for item in held if item.columns is None or column.name in item.columns]:
                    yield column, those


class Run:
    """One pass over an evaluation.

    Args:
        model: what `about` says of it.
        folder: for the file of records, which is named after the evaluation and a digest of its settings: a changed
            setting starts anew, and the records of before stay. None: nothing is kept.
        uses: by column, what of the model its figures hang on; all of it where a column is not named. What was
            measured of another model is measured again.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        model: Mapping[str, Any],
        folder: Path | None = None,
        uses: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.evaluation = evaluation
        self._begun = {"evaluation": evaluation.name, "settings": dict(evaluation.settings)}
        self.file = None if folder is None else folder / f"{evaluation.name}-{_digest(self._begun)}.jsonl"
        names = [column.name for column in evaluation.columns]
        self._model = {name: _digest((uses or {}).get(name, model)) for name in names}
        self._records: dict[tuple[str, str], Record] = {}
        if self.file is not None:
            self._open(self.file)

    def __call__(self, progress: Progress | None = None) -> list[Record]:
        """Measure what is not measured yet.

        Returns:
            the records of all items under all columns, in the order of the items. Each has what the column gave, and
            `item`, `groups`, `column`, and `model`, a digest.
        """
        wanted, done = list(self.evaluation.batches()), 0
        total = sum(len(items) for _, items in wanted)
        for column, items in wanted:
            if left := [item for item in items if (item.key, column.name) not in self._records]:
                self._keep(column.name, left, self.evaluation.measure(column, left))
            done += len(items)
            if progress is not None:
                progress(done, total)
        return [self._records[item.key, column.name] for column, items in wanted for item in items]

    def _keep(self, column: str, items: Sequence[Item], found: Sequence[Record]) -> None:
        made = [
            {"item": item.key, "groups": list(item.groups), "column": column, "model": self._model[column], **record}
            for item, record in zip(items, found, strict=True)
        ]
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in made)
        self._records |= {(record["item"], column): record for record in made}

    def _open(self, file: Path) -> None:
        """Take in the records that are there; of a line that was cut nothing is left."""
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(file, sum(map(len, lines[:-1])))
            lines.pop()
        if not lines:
            file.write_text(json.dumps(self._begun) + "\n", encoding="utf-8")
        try:
            for record in map(json.loads, lines[1:]):
                if record["model"] == self._model.get(record["column"]):
                    self._records[record["item"], record["column"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{file} is damaged; delete it, or name another folder") from error


def digest_of(*content: Path | str) -> str:
    """By which settings tell data apart: of files, or of texts."""
    whole = hashlib.sha256()
    for one in content:
        whole.update(one.read_bytes() if isinstance(one, Path) else one.encode() + b"\n")
    return whole.hexdigest()[:16]


def settings_of(data: Path) -> dict[str, str]:
    """Settings that say which file of data."""
    return {"data": data.name, "digest": digest_of(data)}


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes:
        name, settings, model: as they were given to the run.
        metrics: those that any record has.
        rows: for each group and column, groups in the order of the items: `group`, `column`, `samples`, `metrics` (by
            name: `value`, `low`, `high`, `n`), and `versus` (the same, of the differences to the base).
        base: the column that others are compared with.
        stamp: command, date, device and versions, as `run_stamp` gives them.
    """

    name: str
    settings: dict[str, Any]
    model: dict[str, Any]
    metrics: tuple[Metric, ...]
    rows: list[dict[str, Any]]
    base: str | None = None
    stamp: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        records: Sequence[Record],
        model: Mapping[str, Any],
        stamp: Mapping[str, Any] | None = None,
    ) -> "Report":
        """Of the records that a run of the evaluation gave, what `about` says of its model, and a stamp."""
        held: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            for group in record["groups"]:
                held.setdefault((group, record["column"]), []).append(record)
        rows, columns = [], [column.name for column in evaluation.columns]
        groups = dict.fromkeys(group for group, _ in held)
        for group, column in (one for one in product(groups, columns) if one in held):
            those, base = held[group, column], held.get((group, evaluation.base or ""), [])
            row: dict[str, Any] = {"group": group, "column": column, "samples": len(those), "metrics": {}, "versus": {}}
            for metric in evaluation.metrics:
                if found := [record[metric.name] for record in those if metric.name in record]:
                    row["metrics"][metric.name] = metric.figure(found)
                if column != evaluation.base and (pairs := _pairs(those, base, metric.name)):
                    row["versus"][metric.name] = metric.difference(*zip(*pairs, strict=True))
            rows.append(row)
        said = {name for row in rows for name in row["metrics"]}
        return cls(
            evaluation.name,
            dict(evaluation.settings),
            dict(model),
            tuple(metric for metric in evaluation.metrics if metric.name in said),
            rows,
            evaluation.base if evaluation.base in columns else None,
            dict(stamp or {}),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluation": self.name,
            "settings": self.settings,
            "model": self.model,
            "base": self.base,
            "metrics": [vars(metric) for metric in self.metrics],
            "rows": self.rows,
            **self.stamp,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Report":
        """What `to_json` made."""
        own = ("evaluation", "settings", "model", "metrics", "rows", "base")
        name, settings, model, metrics, rows, base = (content[part] for part in own)
        stamp = {part: value for part, value in content.items() if part not in own}
        return cls(name, settings, model, tuple(Metric(**metric) for metric in metrics), rows, base, stamp)

    def table(self, style: Literal["text", "markdown"] = "text") -> str:
        """Figures, and between brackets the interval that holds 95 %.

        A line for each group and column; where there is one metric, a line for each group.
        """
        metrics = [metric for metric in self.metrics if metric.shown]
        titles, lines = self._crossed(metrics[0]) if len(metrics) == 1 else self._listed(metrics)
        return grid(titles, lines) if style == "markdown" else _text(titles, lines)

    def _listed(self, metrics: Sequence[Metric]) -> tuple[list[str], list[list[str]]]:
        shown = [one for metric in metrics for one in self._shown(metric)]
        lines, before = [], None
        for row in self.rows:
            group = "" if row["group"] == before else row["group"]
            before = row["group"]
            lines.append([group, row["column"], str(row["samples"]), *(cell(row) for _, cell in shown)])
        return ["", "", "n", *(title for title, _ in shown)], lines

    def _shown(self, metric: Metric) -> Iterator[tuple[str, Callable[[Record], str]]]:
        """Titles of a metric's columns, and what stands there in a row: its figure, and the difference to the base."""
        name, ratio = metric.name, metric.kind == "perplexity"
        yield name.replace("_", " "), lambda row: _cell(row["metrics"].get(name), metric.digits)
        if metric.compared and any(name in row["versus"] for row in self.rows):
            title, digits = f"{'against' if ratio else 'more than'} {self.base}", 4 if ratio else metric.digits
            yield title, lambda row: _cell(row["versus"].get(name), digits, sign=not ratio)

    def _crossed(self, metric: Metric) -> tuple[list[str], list[list[str]]]:
        columns, lines = list(dict.fromkeys(row["column"] for row in self.rows)), []
        for group in dict.fromkeys(row["group"] for row in self.rows):
            rows = {row["column"]: row for row in self.rows if row["group"] == group}
            figures = [rows[name]["metrics"].get(metric.name) if name in rows else None for name in columns]
            most = max(row["samples"] for row in rows.values())
            lines.append([group, str(most), *(_cell(figure, metric.digits) for figure in figures)])
        return ["", "n", *columns], lines


def _pairs(those: Sequence[Record], base: Sequence[Record], metric: str) -> list[tuple[Any, Any]]:
    others = {record["item"]: record[metric] for record in base if metric in record}
    return [
        (record[metric], others[record["item"]]) for record in those if metric in record and record["item"] in others
    ]


def _cell(figure: Mapping[str, float] | None, digits: int, *, sign: bool = False) -> str:
    if figure is None:
        return ""
    form = f"{'+' if sign else ''},.{digits}f"
    if figure["n"] == 1 and figure["low"] == figure["high"]:
        return f"{figure['value']:{form}}"
    return f"{figure['value']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A column without a title holds names and stands to the left; figures stand to the right."""
    rule = "|".join("---:" if title else "---" for title in titles)
    return "\n".join([f"| {' | '.join(titles)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _text(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Names to the left, figures to the right; below each other, with the names again, what is too wide."""
    first = list(titles).index("n") + 1
    columns = list(zip(titles, *lines, strict=True))
    if first == 3 and max(_width([*columns[:3], column]) for column in columns[3:]) > _WIDEST:
        lines = [row for line in lines for row in _below(line)]
        columns = list(zip(titles[1:], *lines, strict=True))
        first = 2
    blocks = [columns[:first]]
    for column in columns[first:]:
        if len(blocks[-1]) > first and _width([*blocks[-1], column]) > _WIDEST:
            blocks.append(columns[:first])
        blocks[-1] = [*blocks[-1], column]
    return "\n\n".join(map(_block, blocks))


def _below(line: Sequence[str]) -> list[list[str]]:
    """A group's name in a line of its own, and the others below it."""
    group, column, *cells = line
    named = [[group, *[""] * len(cells)]] if group else []
    return [*named, [f"  {column}", *cells]]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def _block(columns: Sequence[Sequence[str]]) -> str:
    rows = list(zip(*columns, strict=True))
    widths = [max(map(len, cells)) for cells in zip(*(row for row in rows if any(row[1:])), strict=True)]
    sides = [str.rjust if title else str.ljust for title in rows[0]]
    padded = ([side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
