"""Facts are told into forks of a memory of novels, the same at each length."""

import functools
import random
from pathlib import Path

import pytest

from remanence.errors import InvalidInputError
from remanence.evaluation import babi
from remanence.evaluation.babi import Story, read_stories
from remanence.evaluation.evidence import teller
from remanence.evaluation.harness import Evaluation, Run
from remanence.texts import token_ids
from tests.support import asked

PARAGRAPH = (
    "Paragraph {} of a long novel that nobody asks about has at least twenty words, or else it would not be told."
)


def novels(folder: Path, paragraphs: int = 12) -> Path:
    (folder / "novels").mkdir(exist_ok=True)
    text = "\n\n".join([*(PARAGRAPH.format(number) for number in range(paragraphs)), "Too short."])
    (folder / "novels" / "one.txt").write_text(text, encoding="utf-8")
    return folder / "novels"


def evaluation(folder: Path, lengths: str, columns: str = "oracle,slots", count: int = 2) -> Evaluation:
    options = {"data": asked.babi_file(folder), "lengths": lengths, "novels": novels(folder), "count": count}
    return asked.evaluation(babi, asked.model(), columns, **options)


def test_read_stories_gives_each_question_the_facts_before_it(tmp_path: Path) -> None:
    first, second, third = read_stories(asked.babi_file(tmp_path))
    facts = ("John went to the hall.", "Mary went to the bath.", "John went to the attic.")
    assert first == Story(facts[:2], "Where is John?", "hall", (0,))
    assert second == Story(facts, "Where is John?", "attic", (2,))
    assert third == Story(("Sandra took the milk.",), "Where is Sandra?", "kitchen", (0,))


@pytest.mark.parametrize("content", ["Hello.", "1 John went.\n2 Where? \thall\t7", "1 John went."])
def test_read_stories_refuses_other_formats(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InvalidInputError, match=r"a\.txt"):
        read_stories(tmp_path / "a.txt")


def test_read_novels_takes_paragraphs_that_are_not_short(tmp_path: Path) -> None:
    assert babi.read_novels(novels(tmp_path)) == [PARAGRAPH.format(number) for number in range(12)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.txt"):
        babi.read_novels(tmp_path / "empty")


def test_evaluation_tells_the_same_stories_behind_longer_and_longer_texts(tmp_path: Path) -> None:
    made = evaluation(tmp_path, "500,300", "slots", count=1)
    model, told, paragraphs = asked.model(), {}, babi.read_novels(novels(tmp_path))
    tokens = functools.partial(token_ids, model.tokenizer)
    random.Random(0).shuffle(paragraphs)
    told_of = teller(model, paragraphs)
    for item in made.items:
        corpus, one = item.content
        told[item.groups] = told_of(corpus)
        passages = told[item.groups].passages
        assert [record.text for record in told[item.groups].memory.writes] == passages
        assert passages == [*paragraphs[: corpus.after], *(part.text for part in corpus.parts)]
        assert {passages[place] for place in one.evidence} <= {part.text for part in corpus.parts}
        length, sizes = int(corpus.name), [len(tokens(text)) for text in passages[: corpus.after]]
        assert sum(sizes) <= length < sum(sizes) + max(sizes)
    short, long = told["300 tokens",].passages, told["500 tokens",].passages
    after = made.items[0].content[0].after
    assert list(told) == [("300 tokens",), ("500 tokens",)] and 0 < len(short) < len(long)
    assert short[:after] == long[:after]


def test_evaluation_finds_the_facts_that_answer(tmp_path: Path) -> None:
    made = evaluation(tmp_path, "300,500", "bm25_4,slots")
    records = Run(made, {})()
    assert [(record["item"], record["groups"]) for record in records[::2]] == [
        *[("300/0", ["300 tokens"]), ("300/1", ["300 tokens"]), ("500/0", ["500 tokens"]), ("500/1", ["500 tokens"])]
    ]
    assert all(record["among_4"] for record in records)
    stories = [(item.content[0].parts, item.content[1].text, item.content[1].truths) for item in made.items]
    assert stories[:2] == stories[2:]


def test_evaluation_refuses_lengths_and_columns_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="fewer than 100,000 tokens"):
        evaluation(tmp_path, "300,100k")
    with pytest.raises(InvalidInputError, match="no column 'fits'"):  # facts are told last: it would always have them
        evaluation(tmp_path, "300", "fits")
