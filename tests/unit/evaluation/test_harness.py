"""The harness: what is measured once is kept, and a report says what the records say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column, column_of
from remanence.evaluation.harness import Evaluation, Item, Record, Report, Run
from remanence.evaluation.metrics import Metric, bootstrap, wilson

MODEL = {"fingerprint": "abc"}
METRICS = (Metric("right", "rate", compared=True), Metric("seconds", "median", 1), Metric("loss", "perplexity"))
RIGHT = {"plain": (False, False, True, False), "memory": (True, True, True, False)}


class Measured:
    """Counts what is measured, and can be cut."""

    def __init__(self, cut_at: int = -1) -> None:
        self.asked: list[tuple[str, str]] = []
        self._cut_at = cut_at

    def __call__(self, column: Column, items: Sequence[Item]) -> list[Record]:
        if len(self.asked) == self._cut_at:
            raise KeyboardInterrupt
        self.asked += [(item.key, column.name) for item in items]
        return [{"right": RIGHT[column.name][item.content], "seconds": float(item.content)} for item in items]


def columns(*names: str) -> list[Column]:
    return [column_of(name) for name in names or RIGHT]


def evaluation(measured: Measured, count: int = 4, seed: int = 0, names: Sequence[str] = ()) -> Evaluation:
    items = [Item(str(n), ("all", "odd" if n % 2 else "even"), content=n) for n in range(count)]
    return Evaluation("trial", {"seed": seed}, items, columns(*names), measured, METRICS, base="plain")


def test_run_measures_all_columns_of_an_item_before_the_next() -> None:
    measured = Measured()
    seen: list[tuple[int, int]] = []
    records = Run(evaluation(measured, 2), MODEL)(lambda done, total: seen.append((done, total)))
    assert measured.asked == [("0", "plain"), ("0", "memory"), ("1", "plain"), ("1", "memory")]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    digest = records[3].pop("model")
    assert {digest} == {record["model"] for record in records[:3]}
    assert records[3] == {"item": "1", "groups": ["all", "odd"], "column": "memory", "right": True, "seconds": 1.0}


def test_run_measures_items_together_and_only_under_their_columns() -> None:
    measured = Measured()
    items = [Item(str(n), ("all",), content=n, together="" if n == 3 else "first") for n in range(4)]
    items[2] = Item("2", ("all",), ("memory",), 2, "first")
    Run(Evaluation("trial", {}, items, columns(), measured, METRICS), MODEL)()
    assert measured.asked == [
        *[("0", "plain"), ("1", "plain")],
        *[("0", "memory"), ("1", "memory"), ("2", "memory")],
        *[("3", "plain"), ("3", "memory")],
    ]


def test_run_that_was_cut_goes_on_to_the_same_records(tmp_path: Path) -> None:
    cut, left = Measured(cut_at=5), Measured()
    with pytest.raises(KeyboardInterrupt):
        Run(evaluation(cut), MODEL, tmp_path)()
    run = Run(evaluation(left), MODEL, tmp_path)
    assert run() == Run(evaluation(Measured()), MODEL)()
    assert left.asked == [("2", "memory"), ("3", "plain"), ("3", "memory")]
    again = Measured()
    assert Run(evaluation(again), MODEL, tmp_path)() == run() and not again.asked


def test_run_keeps_each_record_before_the_next_is_measured(tmp_path: Path) -> None:
    measured = Measured()
    run = Run(evaluation(measured), MODEL, tmp_path)
    assert run.file is not None
    lines: list[int] = []
    run(lambda done, total: lines.append(len(run.file.read_text().splitlines())))  # type: ignore[union-attr]
    assert lines == [2, 3, 4, 5, 6, 7, 8, 9]
    assert json.loads(run.file.read_text().splitlines()[0]) == {"evaluation": "trial", "settings": {"seed": 0}}


def test_run_measures_again_what_was_cut_within_a_line(tmp_path: Path) -> None:
    whole = Run(evaluation(Measured()), MODEL, tmp_path)
    records = whole()
    assert whole.file is not None
    content = whole.file.read_bytes()
    whole.file.write_bytes(content[:-9])
    left = Measured()
    assert Run(evaluation(left), MODEL, tmp_path)() == records
    assert left.asked == [("3", "memory")]
    assert whole.file.read_bytes() == content


@pytest.mark.parametrize("change", ["seed", "model"])
def test_run_starts_anew_with_other_settings_or_another_model_and_keeps_the_old(change: str, tmp_path: Path) -> None:
    Run(evaluation(Measured()), MODEL, tmp_path)()
    measured, model = Measured(), MODEL if change == "seed" else {"fingerprint": "other"}
    Run(evaluation(measured, seed=int(change == "seed")), model, tmp_path)()
    assert len(measured.asked) == 8
    back = Measured()
    Run(evaluation(back), MODEL, tmp_path)()
    assert not back.asked


def test_run_measures_again_only_the_columns_that_hang_on_what_changed(tmp_path: Path) -> None:
    Run(evaluation(Measured()), {"parts": 1}, tmp_path, {"plain": {}})()
    measured = Measured()
    records = Run(evaluation(measured), {"parts": 2}, tmp_path, {"plain": {}})()
    assert {column for _, column in measured.asked} == {"memory"}
    assert len(records) == 8 and len({record["model"] for record in records}) == 2


def test_run_goes_on_with_more_items_and_columns(tmp_path: Path) -> None:
    Run(evaluation(Measured(), 2, names=["plain"]), MODEL, tmp_path)()
    measured = Measured()
    Run(evaluation(measured, 3), MODEL, tmp_path)()
    assert measured.asked == [("0", "memory"), ("1", "memory"), ("2", "plain"), ("2", "memory")]


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"no\n", b"\xff\xfe\n"])
def test_run_names_a_damaged_file(line: bytes, tmp_path: Path) -> None:
    run = Run(evaluation(Measured()), MODEL, tmp_path)
    assert run.file is not None
    run.file.write_bytes(run.file.read_bytes() + line)
    with pytest.raises(InvalidInputError, match="damaged; delete it"):
        Run(evaluation(Measured()), MODEL, tmp_path)


def test_evaluation_refuses_equal_keys_and_nothing() -> None:
    item = Item("a", ("all",))
    with pytest.raises(InvalidInputError, match="the same key"):
        Evaluation("trial", {}, [item, item], columns(), Measured(), METRICS)
    for items, names in (([], columns()), ([item], [])):
        with pytest.raises(InvalidInputError, match="nothing to measure"):
            Evaluation("trial", {}, items, names, Measured(), METRICS)


def report() -> Report:
    trial = evaluation(Measured())
    return Report.of(trial, Run(trial, MODEL)(), MODEL, {"command": "remanence eval trial", "date": "2026-01-01"})


def test_report_has_a_row_for_each_group_and_column() -> None:
    made = report()
    assert [(row["group"], row["column"], row["samples"]) for row in made.rows] == [
        ("all", "plain", 4),
        ("all", "memory", 4),
        ("even", "plain", 2),
        ("even", "memory", 2),
        ("odd", "plain", 2),
        ("odd", "memory", 2),
    ]
    plain, memory = made.rows[:2]
    assert plain["metrics"]["right"]["value"] == 0.25 and memory["metrics"]["right"]["value"] == 0.75
    assert (memory["metrics"]["right"]["low"], memory["metrics"]["right"]["high"]) == wilson(3, 4)
    assert memory["metrics"]["seconds"]["value"] == 1.5
    assert "loss" not in memory["metrics"] and [metric.name for metric in made.metrics] == ["right", "seconds"]


def test_report_compares_item_by_item() -> None:
    plain, memory = report().rows[:2]
    assert plain["versus"] == {}
    assert memory["versus"]["right"]["value"] == 0.5 and memory["versus"]["right"]["n"] == 4
    assert memory["versus"]["seconds"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def said(records: dict[str, Sequence[Any]], *metrics: Metric, base: str | None = "plain", group: str = "all") -> Report:
    """Of what was measured of items under columns: a metric's name and what each item has of it."""
    items = [Item(str(n), (group,), content=n) for n in range(len(next(iter(records.values()))))]

    def measure(column: Column, those: Sequence[Item]) -> list[Record]:
        return [{metric.name: records[column.name][item.content] for metric in metrics} for item in those]

    trial = Evaluation("trial", {}, items, columns(*records), measure, metrics, base=base)
    return Report.of(trial, Run(trial, MODEL)(), MODEL)


def test_report_gives_perplexity_and_its_ratio() -> None:
    plain, memory = said({"plain": (1.0, 3.0), "memory": (1.1, 3.1)}, Metric("loss", "perplexity")).rows
    assert plain["metrics"]["loss"]["value"] == pytest.approx(np.exp(2.0))
    assert memory["versus"]["loss"]["value"] == pytest.approx(np.exp(0.1))
    assert memory["versus"]["loss"]["low"] == pytest.approx(np.exp(0.1))


def test_report_gives_harmonic_means_of_means() -> None:
    scores = {"plain": ([1.0, 0.0], [1.0, 1.0]), "memory": ([1.0, 1.0], [1.0, 1.0])}
    plain, memory = said(scores, Metric("score", "harmonic", compared=True)).rows
    assert plain["metrics"]["score"]["value"] == pytest.approx(2 / (1 / 1.0 + 1 / 0.5))
    assert memory["versus"]["score"]["value"] == pytest.approx(1 - 2 / 3)
    assert (plain["metrics"]["score"]["low"], plain["metrics"]["score"]["high"]) == (0.0, 1.0)


def test_report_leaves_out_of_a_harmonic_mean_what_no_item_has_and_is_zero_where_a_part_is() -> None:
    [row] = said({"plain": ([1.0, 0.5, None], [0.0, 0.5, None])}, Metric("score", "harmonic")).rows
    assert row["metrics"]["score"]["value"] == pytest.approx(0.5)
    [none] = said({"plain": ([1.0, 0.0, 1.0],)}, Metric("score", "harmonic")).rows
    assert none["metrics"]["score"]["value"] == 0.0


def test_report_goes_to_json_and_back() -> None:
    made = report()
    content = json.loads(json.dumps(made.to_json()))
    assert content["command"] == "remanence eval trial" and content["settings"] == {"seed": 0}
    assert Report.from_json(content) == made


def test_report_is_a_table_in_text_and_in_markdown() -> None:
    text, more = (block.splitlines() for block in report().table().split("\n\n"))
    markdown = report().table("markdown").splitlines()
    assert len(text) == len(more) == 7 and len(markdown) == 8
    assert text[0].split() == ["n", "right", "more", "than", "plain"] and more[0].split() == ["n", "seconds"]
    assert text[1].startswith("all   plain   4  0.250 (0.046 to 0.699)")
    assert text[2].startswith("      memory  4  0.750 (0.301 to 0.954)  +0.500 (")
    assert markdown[0] == "|  |  | n | right | more than plain | seconds |"
    assert markdown[1] == "|---|---|---:|---:|---:|---:|"
    assert markdown[2].startswith("| all | plain | 4 | 0.250 (0.046 to 0.699) |  | 1.5 (")


def test_report_of_one_metric_has_a_line_for_each_group() -> None:
    made = said(
        {"plain": (True, False), "memory": (True, True)}, Metric("right", "rate"), Metric("extra", "mean", shown=False)
    )
    lines = made.table().splitlines()
    assert lines[0].split() == ["n", "plain", "memory"] and lines[1].startswith("all  2  0.500 (")
    assert len(lines) == 2 and "extra" in made.rows[0]["metrics"]


@pytest.mark.parametrize("group", ["all", "200 passages, 1,000 writes later"])
def test_report_puts_what_is_too_wide_below_with_the_names_again(group: str) -> None:
    wide = [Metric(f"metric_number_{number}", "rate") for number in range(7)]
    made = said({"slots+reader+retriever": (True, True), "nothing": (False, True)}, *wide, base=None, group=group)
    blocks = [block.splitlines() for block in made.table().split("\n\n")]
    assert all(len(line) <= 80 for block in blocks for line in block)
    names = [line.split("  ")[0].strip() for line in blocks[0][1:]]
    assert names == (["all", ""] if group == "all" else [group, "", ""])
    for lines in blocks:
        assert [line for line in lines if "slots+reader+retriever  2" in line] and group in "\n".join(lines)
    assert "metric number 0" in blocks[0][0] and "metric number 6" in blocks[-1][0]
    assert len(made.table("markdown").splitlines()) == 4


def test_report_shows_a_single_figure_without_an_interval() -> None:
    [line] = said({"plain": (512.0,)}, Metric("mib", "mean", 0)).table().splitlines()[1:]
    assert line.split() == ["all", "1", "512"]


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_gives_published_intervals(hits: int, samples: int, low: float, high: float) -> None:
    assert wilson(hits, samples) == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap(values, lambda samples: samples.mean(axis=1))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
