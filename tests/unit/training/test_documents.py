"""Documents become lessons: what is written, what is predicted, and where the pool's other slots come from."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence.errors import InvalidInputError
from remanence.training.documents import DocumentTask, Lessons
from remanence.training.objectives import Episodes
from remanence.training.recollection import Recollections
from remanence.training.sources import LocalDocuments, Mixture, open_documents, parts_of
from tests.support import tiny

LESSONS = Lessons(tokens=48, fewest=4, full=1.0, repeat=0.0, revisit=0.0, distance=6, contexts=((0, 5), (10, 40)))


class Numbered:
    def text(self, number: int) -> str:
        return f"{number} " * 20


def task(lessons: Lessons = LESSONS, documents: Any = None, **settings: Any) -> DocumentTask:
    return DocumentTask(
        tiny.tokenizer(), documents or Numbered(), lessons, slots=24, slots_per_write=4, chunk=16, **settings
    )


def lessons(**changes: Any) -> Lessons:
    return Lessons(**{**vars(LESSONS), **changes})


def test_a_document_is_written_but_for_its_end_which_is_predicted() -> None:
    made = task().batch(7, 0)
    episodes, ids = made["batch"], tiny.tokenizer()("7 " * 20, add_special_tokens=False)["input_ids"]
    assert made["task"] == "document" and isinstance(episodes, Episodes)
    written = [token for row, n in zip(episodes.chunks.tolist(), episodes.lengths, strict=True) for token in row[-n:]]
    predicted = [label for label in episodes.prompts.labels[0].tolist() if label != -100]
    assert written + predicted == ids
    assert max(episodes.lengths) <= 16
    assert episodes.prompts.ids[0, 0] == tiny.tokenizer().bos_token_id


def test_its_chunks_are_the_newest_of_a_full_pool_and_the_last_of_them_is_asked_about() -> None:
    episodes = task().batch(7, 0)["batch"]
    own = len(episodes.lengths)
    order = episodes.order[0].tolist()
    assert order[-own:] == list(range(own))
    assert len(order) == len(set(order)) == 9  # one and a half pools of six writes
    assert sorted(order[:-own]) == list(range(own, own + episodes.near))
    assert episodes.asked.nonzero().tolist() == [[0, 8]]


def test_into_an_empty_pool_nothing_else_is_put() -> None:
    episodes = task(lessons(full=0.0)).batch(7, 0)["batch"]
    assert episodes.order.tolist() == [list(range(len(episodes.lengths)))]
    assert episodes.near == 0


def test_what_is_revisited_has_others_behind_it_no_more_than_the_schedule_lets() -> None:
    asked = task(lessons(revisit=1.0))
    early, late = ([_later(asked.batch(n, step)["batch"]) for n in range(60)] for step in (0, 10))
    assert min(early + late) >= 1
    assert max(early) == 5 < max(late)
    assert 4 < sum(late) / 60 < 9  # 6 on average, as asked
    assert asked.batch(0, 0)["task"] == "revisit"


def _later(episodes: Episodes) -> int:
    return episodes.order.shape[1] - 1 - int(episodes.asked[0].nonzero())


def test_repeating_predicts_the_chunk_that_was_written_last() -> None:
    made = task(lessons(repeat=1.0)).batch(7, 0)
    episodes = made["batch"]
    last = episodes.chunks[-1, -episodes.lengths[-1] :].tolist()
    assert made["task"] == "repeat"
    assert [label for label in episodes.prompts.labels[0].tolist() if label != -100] == last
    assert "Repeat:" in tiny.tokenizer().decode(episodes.prompts.ids[0])


def test_rows_have_documents_of_their_own_and_pools_of_one_size() -> None:
    episodes = task(rows=3).batch(2, 0)["batch"]
    starts = [int(episodes.order[row][episodes.asked[row]]) for row in range(3)]
    assert len(set(starts)) == 3 and starts[-1] == len(episodes.lengths) - 1
    texts = [tiny.tokenizer().decode(episodes.chunks[chunk]) for chunk in starts]
    assert ["6" in texts[0], "7" in texts[1], "8" in texts[2]] == [True] * 3


def test_beyond_the_pool_what_lies_too_far_back_is_in_no_pool() -> None:
    asked = task(lessons(revisit=1.0, distance=1000, contexts=((0, 10_000),)), longterm=True)
    batches = [asked.batch(number, 0)["batch"] for number in range(20)]
    assert all(isinstance(batch, Recollections) and batch.order.shape == (1, 9) for batch in batches)
    outside = [not bool((batch.order == batch.asked[:, None]).any()) for batch in batches]
    assert sum(outside) >= 18
    spared = batches[0].spared[0].tolist()
    assert spared == [True] * (len(spared) - 1) + [False]
    assert int(batches[0].counted.sum()) == int((batches[0].prompts.labels != -100).sum())


def test_the_same_number_gives_the_same_batch() -> None:
    whole, again = task(), task()
    whole.batch(3, 0)
    for field in ("chunks", "order", "asked"):
        assert torch.equal(getattr(whole.batch(4, 0)["batch"], field), getattr(again.batch(4, 0)["batch"], field))


def test_short_documents_are_joined_and_empty_ones_are_complained_of() -> None:
    class Short:
        def text(self, number: int) -> str:
            return str(number)

    episodes = task(documents=Short()).batch(100, 0)["batch"]
    assert sum(episodes.lengths) + int((episodes.prompts.labels != -100).sum()) >= 8

    class Empty:
        def text(self, number: int) -> str:
            return ""

    with pytest.raises(InvalidInputError, match="are they empty"):
        task(documents=Empty()).batch(0, 0)


def test_documents_too_short_for_two_chunks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no two chunks"):
        task(lessons(tokens=6))


def test_local_files_give_every_document_once_a_round(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"line {n}"}) + "\n\n" for n in range(5)))
    (tmp_path / "b.txt").write_text("a whole\n\nfile")
    documents = open_documents(str(tmp_path))
    rounds = [[documents.text(number) for number in range(start, start + 6)] for start in (0, 6)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == ["a whole\n\nfile", *(f"line {n}" for n in range(5))]
    assert rounds[0] != rounds[1]
    assert [LocalDocuments(tmp_path).text(number) for number in (7, 2)] == [rounds[1][1], rounds[0][2]]


def test_hidden_files_are_left_out_and_what_is_no_document_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("A story about a fox.\n")
    (tmp_path / ".DS_Store").write_bytes(bytes(range(256)))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("[core]")
    assert len(LocalDocuments(tmp_path).places) == 1
    for name, content, said in (
        ("more.jsonl", b'{"text": "a"}\n\n{"text": null}\n', r"more\.jsonl, line 3, needs one JSON object"),
        ("more.jsonl", b'{"text": 7}\n', r"more\.jsonl, line 1, needs"),
        ("picture", bytes(range(256)), "is not text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=said):
            LocalDocuments(tmp_path)
        (tmp_path / name).unlink()


def test_files_without_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no documents in"):
        open_documents(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="no documents in"):
        open_documents(str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"words": 1}\n')
    with pytest.raises(InvalidInputError, match='under "text"'):
        open_documents(str(tmp_path)).text(0)


def test_a_mixture_takes_each_source_by_its_weight_and_leaves_no_document_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [part.text(0) for part in parts_of(str(tmp_path))] == ["a", "b"]

    class Marked(Numbered):
        def __init__(self, mark: str) -> None:
            self.mark = mark

        def text(self, number: int) -> str:
            return f"{self.mark}{number}"

    mixture = Mixture([Marked("s"), Marked("l")], [3, 1], [0, 100])
    taken = [mixture.text(number) for number in range(8)]
    assert [text for text in taken if text[0] == "s"] == [f"s{n}" for n in range(6)]
    assert [text for text in taken if text[0] == "l"] == ["l100", "l101"]


class Stream:
    """As much of a streamed data set as is used."""

    opened = 0

    def __init__(self, rows: int, start: int = 0) -> None:
        self.rows, self.start = rows, start

    def skip(self, count: int) -> "Stream":
        return Stream(self.rows, self.start + count)

    def __iter__(self) -> Any:
        Stream.opened += 1
        return ({"text": f"row {n}"} for n in range(self.start, self.rows))


def test_a_streamed_data_set_is_read_on_skipped_to_and_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Stream:
        asked.append((names, options))
        return Stream(5)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    documents = open_documents("datasets:owner/name:config")
    assert asked == [(("owner/name", "config"), {"split": "train", "streaming": True})]
    Stream.opened = 0
    assert [documents.text(number) for number in (0, 1, 3)] == ["row 0", "row 1", "row 3"]
    assert Stream.opened == 1
    assert [documents.text(number) for number in (4, 5, 6, 12, 2)] == ["row 4", "row 0", "row 1", "row 2", "row 2"]
    assert open_documents("datasets:owner/name").text(7 + 10 * 5) == "row 2"  # a resumed run, far behind the end


def test_without_the_package_a_streamed_data_set_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'remanence\[train\]'"):
        open_documents("datasets:owner/name")
