"""Answers are scored as the SQuAD evaluation scores them."""

import pytest

from remanence.evaluation.scores import exact_match, f1, normalised


def test_case_articles_punctuation_and_space_do_not_count() -> None:
    assert normalised(" The  Cat's a hat, an Andean 'THE' thesis.\n") == "cats hat andean thesis"


@pytest.mark.parametrize(
    ("answer", "truths", "f", "exact"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in the kitchen", ["kitchen"], 2 / 3, 0.0),
        ("one two three", ["two three four five"], 2 * 2 / 7, 0.0),
        ("two two", ["two"], 2 / 3, 0.0),
        ("red", ["blue", "Red."], 1.0, 1.0),
        ("dark red", ["blue", "red", "dark blue sea"], 2 / 3, 0.0),
        ("green", ["blue"], 0.0, 0.0),
        ("", ["blue"], 0.0, 0.0),
        ("the", ["A."], 1.0, 1.0),
    ],
)
def test_hand_made_answers_get_the_scores_worked_out_by_hand(
    answer: str, truths: list[str], f: float, exact: float
) -> None:
    assert f1(answer, truths) == pytest.approx(f)
    assert exact_match(answer, truths) == exact
