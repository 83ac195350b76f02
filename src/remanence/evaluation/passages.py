"""Retention on passages of SQuAD and Natural Questions, by the published protocol (MemoryLLM, section 4.3).

A passage is written, then passages of other articles, one per write, then a question about the first is asked. Only
answers of at most 4 tokens count, and 10 tokens are generated: a hit is a continuation in which an answer stands to the
letter. Every sample has a memory of its own, which starts as the checkpoint ships it.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.config import LEARNED_CHUNK
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.harness import digest_of
from remanence.evaluation.steady import Sample
from remanence.model.model import MemoryModel
from remanence.texts import Question, json_lines, prompt_of, read_text, texts_of, token_ids

ANSWER_LIMIT = 4  # tokens
_FORMS = 'SQuAD v1.1 (JSON with "data"), or one JSON object per line with "question", "answers" and "nq_annotated_gold"'


@dataclass(frozen=True)
class Passage:
    """`article`: passages of one article are never unrelated to each other."""

    article: str
    text: str
    questions: tuple[Question, ...]


def read_passages(path: Path) -> list[Passage]:
    """Passages of a SQuAD v1.1 file, or the long answers of a Natural Questions file, with their questions.

    In a file of a single article every passage counts as an article of its own.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format.
    """
    text = read_text(path)
    try:
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            content = None
        if isinstance(content, dict) and "data" in content:
            passages = _squad(content["data"])
        else:
            passages = [_natural(record) for record in json_lines(text, path)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path} is in none of the known formats: {_FORMS}") from error
    if len({passage.article for passage in passages}) > 1:
        return passages
    return [Passage(str(index), passage.text, passage.questions) for index, passage in enumerate(passages)]


def _squad(articles: list[dict[str, Any]]) -> list[Passage]:
    return [
        Passage(
            article["title"],
            paragraph["context"],
            tuple(
                question
                for qa in paragraph["qas"]
                for question in _questions(qa["question"], [answer["text"] for answer in qa["answers"]])
            ),
        )
        for article in articles
        for paragraph in article["paragraphs"]
    ]


def _natural(record: dict[str, Any]) -> Passage:
    gold = record["nq_annotated_gold"]
    return Passage(gold["title"], gold["long_answer"], tuple(_questions(record["question"], record["answers"])))


def _questions(text: str, answers: str | list[str]) -> Iterator[Question]:
    """One, or none where no answer is there."""
    if given := list(dict.fromkeys(answer for answer in texts_of(answers) if answer.strip())):
        yield Question(prompt_of(text), given[0], tuple(given[1:]))


class _Sample:
    """A passage, its question, which is the same at every distance, and passages of other articles."""

    def __init__(self, passage: Passage, question: Question, others: list[Passage], rng: random.Random) -> None:
        self.fact, self._question = passage.text, question
        self.unrelated = self._unrelated(passage.article, others, rng)

    def question(self, distance: int) -> Question:
        return self._question

    @staticmethod
    def _unrelated(article: str, others: list[Passage], rng: random.Random) -> Iterator[str]:
        while True:
            yield from (other.text for other in rng.sample(others, len(others)) if other.article != article)


class Passages:
    """The samples of a file. Of each question those answers remain that are short and stand in the passage.

    Passages longer than one chunk are left out, so that each is one write; so are questions without an answer left.

    Raises:
        FileNotFoundError, InvalidInputError: as `read_passages`; fewer than two articles, or no question is left.
    """

    answer_tokens = 10

    def __init__(self, path: Path, tokenizer: Any) -> None:
        self.name, self._digest = path.name, digest_of(path)
        self._passages = [
            passage for passage in read_passages(path) if len(token_ids(tokenizer, passage.text)) <= LEARNED_CHUNK
        ]
        self._asked: list[tuple[Passage, Question]] = []
        for passage in self._passages:
            for question in passage.questions:
                told = [truth for truth in question.truths if truth in passage.text]
                if short := [truth for truth in told if len(token_ids(tokenizer, truth)) <= ANSWER_LIMIT]:
                    self._asked.append((passage, Question(question.text, short[0], tuple(short[1:]))))
        if not self._asked or len({passage.article for passage in self._passages}) < 2:
            raise InvalidInputError(
                f"{path} leaves nothing to ask about: it needs passages of two articles of at most {LEARNED_CHUNK} "
                f"tokens each, and an answer of at most {ANSWER_LIMIT} tokens that stands in its passage"
            )

    @property
    def about(self) -> dict[str, Any]:
        return {
            "digest": self._digest,
            "passages": len(self._passages),
            "questions": len(self._asked),
            "answer_limit": ANSWER_LIMIT,
            "answer_tokens": self.answer_tokens,
        }

    def warm_up(self, model: MemoryModel) -> int:
        """None, where the checkpoint ships a written pool."""
        return 0 if model.shipped_pool is not None else 2 * writes_per_pool(model)

    def episode(self, seed: int, index: int) -> Sample:
        """
        Raises:
            InvalidInputError: there are fewer questions.
        """
        if index >= len(self._asked):
            raise InvalidInputError(f"{self.name} has {len(self._asked)} questions to ask; name a smaller --count")
        order = random.Random(seed).sample(range(len(self._asked)), len(self._asked))
        passage, question = self._asked[order[index]]
        return _Sample(passage, question, self._passages, random.Random(f"{seed}/{index}"))

    def right(self, said: str, question: Question) -> bool:
        return any(truth in said for truth in question.truths)
