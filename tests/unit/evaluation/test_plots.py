"""Pictures are lines by the number that groups differ in, else marks; the same figures give the same file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remanence.evaluation.columns import Column, column_of
from remanence.evaluation.harness import Evaluation, Item, Record, Report, Run
from remanence.evaluation.metrics import Metric
from remanence.evaluation.plots import draw

METRICS = (Metric("right", "rate"), Metric("seconds", "mean"), Metric("layer_0", "mean", shown=False))


def report(groups: Sequence[str], columns: Sequence[str] = ("pool", "fits"), settings: Any = None) -> Report:
    def measure(column: Column, items: Sequence[Item]) -> list[Record]:
        return [{"right": item.key > "1", "seconds": 7.0, "layer_0": 0.5} for item in items]

    items = [Item(str(number), (group,)) for number, group in enumerate(groups)]
    made = Evaluation("trial", settings or {}, items, [column_of(name) for name in columns], measure, METRICS)
    return Report.of(made, Run(made, {})(), {})


def drawn(made: Report, folder: Path, name: str = "a.svg") -> str:
    draw(made, folder / name)
    return (folder / name).read_text()


RETENTION = {"slots": 24, "slots_per_write": 6, "listed": {"chance": 0.01}}
LISTED = [f"{kind}, {distance} writes later" for kind in ("listed", "unlisted") for distance in ("0", "4", "1,000")]


@pytest.mark.parametrize(
    ("groups", "settings", "labels", "others"),
    [
        (
            LISTED,
            RETENTION,
            ["pool, listed", "fits, unlisted", "survival", "chance", "writes later", "1000"],
            ["seconds", "layer"],
        ),
        (["1 edit", "10 edits", "100 edits"], None, ["pool", "fits", "edits"], ["pool, edit", "chance"]),
        (["answerable", "1,000 tokens", "4,000 tokens", "longer"], None, ["pool", "tokens"], ["answerable", "longer"]),
        (["answerable", "temporal"], None, ["answerable, pool", "temporal, fits", "right"], []),
    ],
    ids=["retention", "editing", "longcontext", "no numbers"],
)
def test_draw_shows_what_groups_differ_in(
    groups: list[str], settings: Any, labels: list[str], others: list[str], tmp_path: Path
) -> None:
    text = drawn(report(groups, settings=settings), tmp_path)
    shown = [line for line in text.splitlines() if "<text" in line or "<!--" in line]
    assert all(any(label in line for line in shown) for label in labels)
    assert not any(other in line for line in shown for other in others)


def test_draw_gives_the_same_file_for_the_same_figures_and_pictures_too(tmp_path: Path) -> None:
    made = report(LISTED)
    assert drawn(made, tmp_path) == drawn(made, tmp_path, "b.svg") != drawn(report(LISTED[:3]), tmp_path, "c.svg")
    draw(made, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("group", ["{} writes later", "all"])
def test_draw_takes_rates_whose_interval_is_rounded_to_behind_them(group: str, tmp_path: Path) -> None:
    figure = {"value": 0.0, "low": 1e-17, "high": 0.1}
    rows = [{"group": group.format(n), "column": "pool", "metrics": {"right": figure}} for n in (0, 4)]
    assert "right" in drawn(Report("trial", {}, {}, METRICS[:1], rows, None), tmp_path)


def test_draw_takes_a_metric_that_is_no_share_where_there_is_no_other(tmp_path: Path) -> None:
    made = Report("trial", {}, {}, (Metric("seconds", "mean"),), [], None)
    made.rows.append(
        {"group": "all", "column": "pool", "metrics": {"seconds": {"value": 7.0, "low": 6.0, "high": 8.0}}}
    )
    assert "seconds" in drawn(made, tmp_path)
