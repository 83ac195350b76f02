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
from remanence.evaluation.harness import digest_of
from remanence.evaluation.steady import Sample, Samples
from remanence.texts import Question, json_lines, prompt_of, read_text, texts_of, token_ids

ANSWER_LIMIT, ANSWER_TOKENS = 4, 10
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


def passages_of(path: Path, tokenizer: Any, warm_up: int = 0) -> Samples:
    """The samples of a file. Of each question those answers remain that are short and stand in the passage.

    Passages longer than one chunk are left out, so that each is one write; so are questions without an answer left.

    Raises:
        FileNotFoundError, InvalidInputError: as `read_passages`; fewer than two articles, or no question is left.
    """
    passages = [one for one in read_passages(path) if len(token_ids(tokenizer, one.text)) <= LEARNED_CHUNK]
    asked: list[tuple[Passage, Question]] = []
    for passage in passages:
        for question in passage.questions:
            told = [truth for truth in question.truths if truth in passage.text]
            if short := [truth for truth in told if len(token_ids(tokenizer, truth)) <= ANSWER_LIMIT]:
                asked.append((passage, Question(question.text, short[0], tuple(short[1:]))))
    if not asked or len({passage.article for passage in passages}) < 2:
        raise InvalidInputError(
            f"{path} leaves nothing to ask about: it needs passages of two articles of at most {LEARNED_CHUNK} "
            f"tokens each, and an answer of at most {ANSWER_LIMIT} tokens that stands in its passage"
        )

    def episode(seed: int, index: int) -> Sample:
        if index >= len(asked):
            raise InvalidInputError(f"{path.name} has {len(asked)} questions to ask; name a smaller --count")
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        passage, question = asked[order[index]]
        return _Sample(passage, question, passages, random.Random(f"{seed}/{index}"))

    about = {"digest": digest_of(path), "passages": len(passages), "questions": len(asked)}
    about |= {"answer_limit": ANSWER_LIMIT, "answer_tokens": ANSWER_TOKENS}
    return Samples(path.name, about, episode, _stands_in, warm_up, ANSWER_TOKENS)


def _stands_in(said: str, question: Question) -> bool:
    return any(truth in said for truth in question.truths)
