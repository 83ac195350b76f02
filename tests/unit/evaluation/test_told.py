"""What was told is the same in a memory, as text and as words."""

from math import inf
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.evaluation.told import Told
from tests.support import asked


def texts(told: Told) -> list[str | None]:
    return [record.text for record in told.memory.writes]


def test_then_tells_more_and_leaves_the_first_as_it_was() -> None:
    first = Told(asked.model(), [asked.passage(0)])
    both = first.then([asked.passage(1)])
    assert texts(both) == both.passages == [asked.passage(0), asked.passage(1)]
    assert texts(first) == first.passages == [asked.passage(0)]
    assert both.lengths == Told(asked.model(), both.passages).lengths


def test_without_forgets_one_passage_and_leaves_the_first_as_it_was() -> None:
    whole = Told(asked.model(), [asked.passage(number) for number in range(3)])
    left = whole.without(1)
    assert texts(left) == left.passages == [asked.passage(0), asked.passage(2)]
    assert left.writes == [whole.writes[0], whole.writes[2]] and len(texts(whole)) == 3
    assert left.lengths == Told(asked.model(), left.passages).lengths


def test_nothing_is_written_before_the_memory_is_asked_for() -> None:
    model, calls = asked.model(), []
    model.write = lambda *args: calls.append(args)  # type: ignore[method-assign,assignment]
    told = Told(model, [asked.passage(0)])
    assert told.lengths == [len(model.tokenizer(asked.passage(0), add_special_tokens=False)["input_ids"])]
    assert told.ranked("Where was Ada born?") == [0] and not calls


def test_ranked_puts_the_passages_that_share_words_first_and_the_older_of_equal_ones() -> None:
    told = Told(asked.model(), [asked.passage(number) for number in range(4)])
    assert told.ranked("Where was Cleo born?")[0] == 2
    assert told.ranked("zzz") == told.ranked("the") == [0, 1, 2, 3]


def test_newest_takes_as_many_as_fit_oldest_first() -> None:
    told = Told(asked.model(), [asked.passage(number) for number in range(3)])
    room = told.lengths[1] + told.lengths[2] + 4
    assert told.newest(room) == [1, 2] and told.newest(room - 1) == [2] and told.newest(3) == []
    with pytest.raises(InvalidInputError, match="leave the column fits out"):
        told.newest(inf)


def test_fitting_leaves_out_what_does_not_fit_beside_better_ones() -> None:
    told = Told(asked.model(), [asked.passage(0), asked.passage(1) * 9, asked.passage(2)])
    assert told.fitting([0, 1, 2], told.lengths[0] + told.lengths[2] + 4) == [0, 2]
    assert told.fitting([1, 0, 2], told.lengths[1] + 2) == [1] and told.fitting([2, 0], inf) == [2, 0]


def test_a_text_that_is_told_whole_is_one_write_of_its_own(tmp_path: Path) -> None:
    model, parts = asked.model(), [asked.passage(0), asked.passage(1)]
    whole = Told(model, parts, whole="\n".join(parts), folder=tmp_path)
    assert texts(whole) == ["\n".join(parts)] and whole.passages == parts and whole.ranked("Bert?")[0] == 1
    assert texts(Told(model, parts, folder=tmp_path)) == parts


def test_a_memory_that_is_kept_in_a_folder_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [asked.passage(number) for number in range(3)]
    model, written = asked.model(), []
    first = Told(model, passages[:2], folder=tmp_path).then(passages[2:], tmp_path)
    found = model.search(first.memory, "Where was Cleo born?")
    write = MemoryModel.write

    def noting(self: Any, memory: Any, text: str) -> Any:
        written.append(text)
        return write(self, memory, text)

    monkeypatch.setattr(MemoryModel, "write", noting)
    again = Told(model, passages, folder=tmp_path)
    assert model.search(again.memory, "Where was Cleo born?") == found and again.writes == first.writes
    assert not written
    other = asked.model()
    other.config = other.config.replace(chunk=16)
    for told in (Told(model, passages[1:], folder=tmp_path), Told(other, passages, folder=tmp_path)):
        assert told.writes == list(range(len(told.passages)))
    assert written == [*passages[1:], *passages]
