"""Text on its way in and out: paragraphs of a file, prompts of questions, answers in what a model says."""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.errors import InvalidInputError


@dataclass(frozen=True)
class Question:
    """`also`: further answers that are right; `all_of`: or, each of which must be given as well."""

    text: str
    truth: str
    also: tuple[str, ...] = ()
    all_of: bool = False

    @property
    def truths(self) -> tuple[str, ...]:
        return (AllOf if self.all_of else tuple)((self.truth, *self.also))


class AllOf(tuple[str, ...]):
    """Answers that are right together only, as RULER asks for several values at once."""


# How files begin that hold no text, what they are, and what to do with them.
_BINARY = (
    (b"%PDF-", "a PDF", "take its text out first, e.g. with: pdftotext FILE -"),
    (b"PK\x03\x04", "a zip archive, as docx, xlsx and epub are", "save it as text, or unpack it first"),
    (b"\xd0\xcf\x11\xe0", "an Office document", "save it as text first"),
    (b"\x89PNG\r\n", "a picture (PNG)", "give what it says as text"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "give what it says as text"),
    (b"GIF87a", "a picture (GIF)", "give what it says as text"),
    (b"GIF89a", "a picture (GIF)", "give what it says as text"),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first, e.g. with: gunzip -c FILE"),
    (b"\xfd7zXZ\0", "compressed (xz)", "unpack it first, e.g. with: xz -dc FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it first, e.g. with: zstd -dc FILE"),
    (b"\x7fELF", "a program (ELF)", "name a file of text"),
)
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """A file in UTF-8, or in UTF-16 or UTF-32 if it says so by a mark; or standard input for `-`.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: a folder, an empty or blank file, or no text; says what it is and what to do.
    """
    name = "standard input" if str(path) == "-" else str(path)
    if str(path) != "-" and path.is_dir():
        raise InvalidInputError(f"{name} is a folder; name files in it, such as {path / '*.txt'}")
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {name}") from error
    except OSError as error:
        raise InvalidInputError(f"cannot read {name}: {error.strerror}") from error
    text = _decoded(name, content).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InvalidInputError(f"{name} is {'blank' if content else 'empty'}: there is no text in it; leave it out")
    return text


def _decoded(name: str, content: bytes) -> str:
    for start, what, remedy in _BINARY:
        if content.startswith(start):
            raise InvalidInputError(f"{name} is {what}, not text; {remedy}")
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise InvalidInputError(
                f"{name} begins as text in {encoding.upper()} and goes on otherwise: {error.reason} at byte "
                f"{error.start:,}; was it cut? Save it again, in UTF-8"
            ) from error
        raise InvalidInputError(_not_text(name, content, error.start)) from error
    if "\0" in text:
        raise InvalidInputError(_not_text(name, content, content.index(0)))
    return text


def _not_text(name: str, content: bytes, at: int) -> str:
    likely = "LATIN1" if b"\0" not in content else "UTF-16LE" if content.index(0) % 2 else "UTF-16BE"
    return (
        f"{name} is not text in UTF-8: byte {at:,} is 0x{content[at]:02x}. If it is text in another encoding, convert "
        f"it first, e.g. with: iconv -f {likely} -t UTF-8"
    )


def lines_of(text: str) -> list[str]:
    """Lines end at a newline and nowhere else: JSON allows U+2028 and the like within a string."""
    return [line for line in text.split("\n") if line.strip()]


def texts_of(answers: Any) -> list[str]:
    """Several texts, of which one may stand alone without a list around it.

    Raises:
        TypeError: something else.
    """
    found = [answers] if isinstance(answers, str) else list(answers)
    if other := [answer for answer in found if not isinstance(answer, str)]:
        raise TypeError(f"{other[0]!r:.60} is no text")
    return found


def json_lines(text: str, name: Path) -> list[Any]:
    """One JSON value of each line that is not blank.

    Raises:
        InvalidInputError: a line is no JSON; names it.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InvalidInputError(f"{name}, line {number} is no JSON: {error}") from error
    return found


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Of a text without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def paragraphs_of(text: str) -> list[str]:
    """Paragraphs are parted by blank lines; in a text without any, each line is one."""
    lines = [line.strip() for line in text.strip().split("\n")]
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
        InvalidInputError: the file is in neither form, or no text.
    """
    text = read_text(path)
    teach = f'{path} needs lines "question<TAB>answer", or JSON: [{{"question": "...", "truth": "..."}}]'
    try:
        if text.lstrip().startswith("["):
            questions = [Question(str(item["question"]), str(item["truth"])) for item in json.loads(text)]
        else:
            pairs = [line.split("\t") for line in lines_of(text)]
            questions = [Question(question.strip(), answer.strip()) for question, answer in pairs]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(teach) from error
    if not questions:
        raise InvalidInputError(f"{path} has no questions. {teach}")
    return questions
