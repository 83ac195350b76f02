"""Documents become lessons: what is written, what is predicted, and where the pool's other slots come from."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from remanence.errors import InvalidInputError
from remanence.training.sources import ORDERS, DocumentStream, mixed, open_documents, parts_of
from remanence.training.tasks.documents import DocumentTask, Lessons
from remanence.training.tasks.longterm_task import LongTermBatch
from remanence.training.tasks.pool_task import PoolBatch
from tests.support import tiny

LESSONS = Lessons(tokens=48, fewest=4, full=1.0, repeat=0.0, revisit=0.0, distance=6, contexts=((0, 5), (10, 40)))


class Numbered:
    def since(self, number: int) -> Iterator[str]:
        return (f"{each} " * 20 for each in itertools.count(number))


def task(lessons: Lessons = LESSONS, documents: Any = None, **settings: Any) -> DocumentTask:
    return DocumentTask(
        tiny.tokenizer(), documents or Numbered(), lessons, slots=24, slots_per_write=4, chunk=16, **settings
    )


def lessons(**changes: Any) -> Lessons:
    return Lessons(**{**vars(LESSONS), **changes})


def test_a_document_is_written_but_for_its_end_which_is_predicted() -> None:
    made = task().batch(7, 0)
    episodes, ids = made["batch"], tiny.tokenizer()("7 " * 20, add_special_tokens=False)["input_ids"]
    assert made["task"] == "document" and isinstance(episodes, PoolBatch)
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
    assert sorted(order[:-own]) == list(range(own, own + episodes.num_bank_chunks))
    assert episodes.targets.nonzero().tolist() == [[0, own - 1]]


def test_into_an_empty_pool_nothing_else_is_put() -> None:
    episodes = task(lessons(full=0.0)).batch(7, 0)["batch"]
    assert episodes.order.tolist() == [list(range(len(episodes.lengths)))]
    assert episodes.num_bank_chunks == 0


def test_what_is_revisited_has_others_behind_it_no_more_than_the_schedule_lets() -> None:
    asked = task(lessons(revisit=1.0))
    early, late = ([_later(asked.batch(n, step)["batch"]) for n in range(60)] for step in (0, 10))
    assert min(early + late) >= 1
    assert max(early) == 5 < max(late)
    assert 4 < sum(late) / 60 < 9  # 6 on average, as asked
    assert asked.batch(0, 0)["task"] == "revisit"


def _later(episodes: PoolBatch) -> int:
    return episodes.order.shape[1] - 1 - episodes.order[0].tolist().index(int(episodes.targets[0].nonzero()))


def test_repeating_predicts_the_chunk_that_was_written_last() -> None:
    made = task(lessons(repeat=1.0)).batch(7, 0)
    episodes = made["batch"]
    last = episodes.chunks[-1, -episodes.lengths[-1] :].tolist()
    assert made["task"] == "repeat"
    assert [label for label in episodes.prompts.labels[0].tolist() if label != -100] == last
    assert "Repeat:" in tiny.tokenizer().decode(episodes.prompts.ids[0])


def test_rows_have_documents_of_their_own_and_pools_of_one_size() -> None:
    episodes = task(rows=3).batch(2, 0)["batch"]
    starts = [int(episodes.targets[row].nonzero()) for row in range(3)]
    assert len(set(starts)) == 3 and starts[-1] == len(episodes.lengths) - 1
    texts = [tiny.tokenizer().decode(episodes.chunks[chunk]) for chunk in starts]
    assert ["6" in texts[0], "7" in texts[1], "8" in texts[2]] == [True] * 3


def test_beyond_the_pool_what_lies_too_far_back_is_in_no_pool() -> None:
    asked = task(lessons(revisit=1.0, distance=1000, contexts=((0, 10_000),)), longterm=True)
    batches = [asked.batch(number, 0)["batch"] for number in range(20)]
    assert all(isinstance(batch, LongTermBatch) and batch.order.shape == (1, 9) for batch in batches)
    outside = [not bool((batch.order == batch.targets.nonzero()[0, 1]).any()) for batch in batches]
    assert sum(outside) >= 18
    spared = batches[0].ignore_mask[0].tolist()
    assert spared == [True] * (len(spared) - 1) + [False]
    assert int(batches[0].query_mask.sum()) == int((batches[0].prompts.labels != -100).sum())


def test_the_same_number_gives_the_same_batch() -> None:
    whole, again = task(), task()
    whole.batch(3, 0)
    for field in ("chunks", "order", "targets"):
        assert torch.equal(getattr(whole.batch(4, 0)["batch"], field), getattr(again.batch(4, 0)["batch"], field))


def test_short_documents_are_joined_and_empty_ones_are_complained_of() -> None:
    class Short:
        def since(self, number: int) -> Iterator[str]:
            return map(str, itertools.count(number))

    episodes = task(documents=Short()).batch(100, 0)["batch"]
    assert sum(episodes.lengths) + int((episodes.prompts.labels != -100).sum()) >= 8

    class Empty:
        def since(self, number: int) -> Iterator[str]:
            return itertools.repeat("")

    with pytest.raises(InvalidInputError, match="are they empty"):
        task(documents=Empty()).batch(0, 0)


def test_documents_too_short_for_two_chunks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no two chunks"):
        task(lessons(tokens=6))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def first(count: int, dataset: Any) -> list[str]:
    return [row["text"] for row in itertools.islice(dataset, count)]


def fill(folder: Path) -> list[str]:
    """Files of every kind, whose rows have other columns; the documents in them."""
    folder.mkdir(exist_ok=True)
    for name, column in (("a", "page"), ("b", "title")):
        lines = [json.dumps({"text": f"{name} {n}", column: n}) + "\n\n" for n in range(5)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    datasets.Dataset.from_dict({"id": [1, 2], "text": ["c 0", "c 1"]}).to_parquet(folder / "c.parquet")
    (folder / "d.txt").write_text("a whole\n\nfile")
    return [*(f"{name} {n}" for name in "ab" for n in range(5)), "a whole\n\nfile", "c 0", "c 1"]


def test_open_documents_gives_every_row_and_file_once_a_round_in_orders_that_differ(tmp_path: Path) -> None:
    documents = fill(tmp_path)
    found = first(2 * len(documents), open_documents(str(tmp_path)))
    rounds = found[: len(documents)], found[len(documents) :]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(documents)
    assert rounds[0] != rounds[1] and sorted(rounds[0]) != list(rounds[0])
    for start in (5, 5 + ORDERS * len(documents)):
        assert first(15, open_documents(str(tmp_path), start)) == found[5:20]


def test_hidden_files_are_left_out_and_what_is_no_document_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("A story about a fox.\n")
    (tmp_path / ".DS_Store").write_bytes(bytes(range(256)))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("[core]")
    assert set(first(9, open_documents(str(tmp_path)))) == {"A story about a fox.\n"}
    for name, content, said in (
        ("more.jsonl", b'{"text": "a"}\n\n{"text": null}\n', r"more\.jsonl, line 3, needs one JSON object"),
        ("more.jsonl", b'{"text": "a"}\n{"text": 7}\n', r"more\.jsonl, line 2, needs"),
        ("more.jsonl", b'{"text": "a"}\n{"text": \n', r"more\.jsonl, line 2, needs"),
        ("more.jsonl", b'{"words": 1}\n', r"more\.jsonl, line 1, needs .* under .text"),
        ("more.jsonl", b"", r"more\.jsonl is empty"),
        ("rows.parquet", b"no parquet", r"rows\.parquet needs a column .text. of strings"),
        ("picture", bytes(range(256)), "is not text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=said):
            open_documents(str(tmp_path))
        (tmp_path / name).unlink()


def test_files_without_documents_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no documents in"):
            open_documents(str(path))


def numbered(mark: str, count: int) -> Any:
    return datasets.Dataset.from_dict({"text": [f"{mark}{n}" for n in range(count)]}).to_iterable_dataset()


def test_mixed_draws_each_source_by_its_weight() -> None:
    taken = first(400, mixed([numbered("s", 1000), numbered("l", 7).repeat(None)], [3, 1]))
    short, long = ([text for text in taken if text[0] == mark] for mark in "sl")
    assert short == [f"s{n}" for n in range(len(short))]
    assert long == [f"l{n % 7}" for n in range(len(long))]
    assert 270 < len(short) < 330


def test_parts_of_a_folder_are_sources_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [first(1, part) for part in parts_of(str(tmp_path))] == [["a"], ["b"]]


def test_a_stream_goes_on_from_any_place_to_the_same_documents(tmp_path: Path) -> None:
    fill(tmp_path)

    def stream() -> DocumentStream:
        return DocumentStream(mixed([open_documents(str(tmp_path)), numbered("l", 4).repeat(None)], [2, 1]))

    def read(stream: DocumentStream, number: int) -> list[str]:
        return list(itertools.islice(stream.since(number), 3))

    whole = stream()
    documents = list(itertools.islice(whole.since(0), 60))
    assert len(set(documents)) == 17
    cut = stream()
    for number in range(0, 50, 3):
        resumed = stream()
        resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
        for one in (cut, resumed):
            assert read(one, number) == documents[number : number + 3]
            assert read(one, number + 1) == documents[number + 1 : number + 4]  # looked at again
        assert read(resumed, number + 7) == documents[number + 7 : number + 10]  # as another process skips


def test_a_stream_without_documents_says_so() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        next(DocumentStream(numbered("s", 3).filter(lambda row: False).repeat(None)).since(0))


def test_a_data_set_is_streamed_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        return numbered("row ", 5).map(lambda row: {**row, "id": 1})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert first(7, open_documents("datasets:owner/name:config", 3)) == [f"row {n % 5}" for n in range(3, 10)]
    assert asked == [(("owner/name", "config"), {"split": "train", "streaming": True})]


def test_without_the_package_documents_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'remanence\[train\]'"):
        open_documents("datasets:owner/name")
