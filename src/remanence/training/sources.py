"""Documents to train on, by number: of local files, or streamed through `datasets`. The same number, the same text."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from remanence.errors import InvalidInputError
from remanence.texts import read_text

STREAMED = "datasets:"
FORWARD = 1000  # so many documents are read over rather than skipped
LINES = {".jsonl", ".json"}


class Documents(Protocol):
    def text(self, number: int) -> str:
        """There is always one more: behind the last, they begin anew."""
        ...


class LocalDocuments:
    """Every line of `*.jsonl` files, by its "text", and every other file as a whole, in an order drawn for each round.

    Hidden files and folders are left out. All the rest is read once at the start, so that what is no document is told
    before a training and not in it.

    Raises:
        FileNotFoundError: no such file or folder, or an empty one.
        InvalidInputError: a file is no text, a line no document.
    """

    def __init__(self, path: Path, seed: int = 0) -> None:
        files = _files_in(path) if path.is_dir() else [path]
        self.places: list[tuple[Path, int | None]] = []
        for file in files:
            if file.suffix in LINES and file.is_file():
                self.places += [(file, start) for start in _lines(file)]
            elif file.is_file():
                read_text(file)
                self.places.append((file, None))
        if not self.places:
            raise FileNotFoundError(f"there are no documents in {path}; name a text file, a .jsonl file or a folder")
        self.seed = seed
        self._round, self._order = -1, list[int]()

    def text(self, number: int) -> str:
        round_, place = divmod(number, len(self.places))
        if round_ != self._round:
            self._order = list(range(len(self.places)))
            random.Random(f"{self.seed}/{round_}").shuffle(self._order)
            self._round = round_
        file, start = self.places[self._order[place]]
        if start is None:
            return read_text(file)
        with file.open("rb") as lines:
            lines.seek(start)
            return _text_of(lines.readline(), file)


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _lines(file: Path) -> Iterator[int]:
    """Where each line begins that is not blank."""
    start = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                _text_of(line, file, number)
                yield start
            start += len(line)


def _text_of(line: bytes, file: Path, number: int | None = None) -> str:
    try:
        text = json.loads(line)["text"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        where = file if number is None else f"{file}, line {number},"
        raise InvalidInputError(f'{where} needs one JSON object per line, with the document under "text"') from error
    return text


class StreamedDocuments:
    """`datasets:NAME` or `datasets:NAME:CONFIG`: the training split, in its own order, downloaded as it is read.

    Numbers must not fall much: going back means to begin anew.

    Raises:
        InvalidInputError: without `datasets`, or with an empty data set.
    """

    def __init__(self, name: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise InvalidInputError(
                f"{STREAMED}{name} is read with the package datasets; pip install 'remanence[train]', or name files"
            ) from error
        name, _, config = name.partition(":")
        self._stream: Any = datasets.load_dataset(name, config or None, split="train", streaming=True)
        self._rows: Iterator[Any] = iter(())
        self._begun, self._next = -1, -1
        self._length: int | None = None  # known when the end was seen

    def text(self, number: int) -> str:
        place = number if self._length is None else number % self._length
        if self._begun < 0 or not 0 <= place - self._next < FORWARD:
            self._rows, self._begun, self._next = iter(self._stream.skip(place)), place, place
        for row in self._rows:
            self._next += 1
            if self._next > place:
                return str(row["text"])
        self._length = self._next if self._next > self._begun else sum(1 for _ in self._stream)
        if not self._length:
            raise InvalidInputError("the data set is empty")
        return self.text(place)


@dataclass(frozen=True)
class Mixture:
    """Several sources, taken by turns: of each `sum(weights)` documents, `weights[i]` are of source i."""

    sources: Sequence[Documents]
    weights: Sequence[int]
    first: Sequence[int]  # of each source, where to begin

    def text(self, number: int) -> str:
        turns = [source for source, weight in enumerate(self.weights) for _ in range(weight)]
        random.Random(0).shuffle(turns)
        cycle, place = divmod(number, len(turns))
        source = turns[place]
        before = cycle * self.weights[source] + turns[:place].count(source)
        return self.sources[source].text(self.first[source] + before)


def open_documents(data: str) -> Documents:
    """A file, a folder, or `datasets:NAME[:CONFIG]`.

    Raises:
        FileNotFoundError, InvalidInputError: see the classes above.
    """
    if data.startswith(STREAMED):
        return StreamedDocuments(data.removeprefix(STREAMED))
    return LocalDocuments(Path(data))


def parts_of(data: str) -> list[Documents]:
    """What lies in a folder, each file and folder a source of its own; else the one source that is named."""
    if data.startswith(STREAMED) or not Path(data).is_dir():
        return [open_documents(data)]
    inside = sorted(path for path in Path(data).iterdir() if not path.name.startswith("."))
    return [LocalDocuments(path) for path in inside] or [LocalDocuments(Path(data))]
