"""Text on its way in and out: paragraphs of a file, prompts of questions, answers in what a model says."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from remanence.errors import InvalidInputError


@dataclass(frozen=True)
class Question:
    text: str
    truth: str
    also: tuple[str, ...] = ()  # further answers that are right

    @property
    def truths(self) -> tuple[str, ...]:
        return (self.truth, *self.also)


def read_text(path: Path) -> str:
    """A UTF-8 file, or standard input for `-`.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: a folder, or not text in UTF-8.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {name}") from error
    except OSError as error:
        raise InvalidInputError(f"cannot read {name}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(_not_text(name, content, error.start)) from error
    if "\0" in text:
        raise InvalidInputError(_not_text(name, content, content.index(0)))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_text(name: str, content: bytes, at: int) -> str:
    likely = "UTF-16" if b"\0" in content else "LATIN1"
    return (
        f"{name} is not text in UTF-8: byte {at:,} is 0x{content[at]:02x}. If it is text in another encoding, convert "
        f"it first, e.g. with: iconv -f {likely} -t UTF-8"
    )


def paragraphs_of(text: str) -> list[str]:
    """Paragraphs are parted by blank lines; in a text without any, each line is one."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if "" not in lines:
        return lines
    blocks = "\n".join(lines).split("\n\n")
    return [" ".join(block.split()) for block in blocks if block.strip()]


def prompt_of(question: str) -> str:
    """`Question: ... Answer:`, the form in which the bundled checkpoint is asked; left alone if it is in it already."""
    question = question.strip()
    if question.startswith("Question:") and question.endswith("Answer:"):
        return question
    return f"Question: {question} Answer:"


def first_line(continuation: str) -> str:
    return continuation.strip().partition("\n")[0].strip()


def answer_of(continuation: str) -> str:
    """What counts as the answer in a continuation: up to the first newline or period."""
    return first_line(continuation).partition(".")[0].strip()


def read_questions(path: Path) -> list[Question]:
    """Questions and their answers.

    Either a JSON list of objects with `question` and `truth`, or lines `question<TAB>answer`.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: the file is in neither form, or has no question.
    """
    text = read_text(path)
    teach = f'{path} needs lines "question<TAB>answer", or JSON: [{{"question": "...", "truth": "..."}}]'
    try:
        if text.lstrip().startswith("["):
            questions = [Question(str(item["question"]), str(item["truth"])) for item in json.loads(text)]
        else:
            pairs = [line.split("\t") for line in text.splitlines() if line.strip()]
            questions = [Question(question.strip(), answer.strip()) for question, answer in pairs]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(teach) from error
    if not questions:
        raise InvalidInputError(f"{path} has no questions. {teach}")
    return questions
