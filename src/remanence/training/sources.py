"""Documents by Hugging Face `datasets`: of local files, or streamed from the hub; mixed by weights, read by number."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remanence.errors import InvalidInputError
from remanence.texts import read_text

STREAMED = "datasets:"
KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
ORDERS = 4  # in which local documents come, one behind the other; then these again


class DocumentStream:
    """Endless documents by number, read once, one behind the other.

    Args:
        dataset: an `IterableDataset` of rows {"text": ...} without an end.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._rows = dataset, iter(dataset)
        self._number, self._ahead = 0, deque[str]()  # documents that are read already, and the number of the first

    def since(self, number: int) -> Iterator[str]:
        """Documents from one on. Those in front of it are let go: numbers of later calls are not smaller.

        Raises:
            InvalidInputError: there are none.
        """
        while self._number < number:
            if self._ahead:
                self._ahead.popleft()
            else:
                self._next()
            self._number += 1
        place = 0
        while True:
            if place == len(self._ahead):
                self._ahead.append(self._next())
            yield self._ahead[place]
            place += 1

    def _next(self) -> str:
        row = next(self._rows, None)
        if row is None:
            raise InvalidInputError("the data set is empty")
        return str(row["text"])

    def state_dict(self) -> dict[str, Any]:
        """JSON; any process goes on with it."""
        return {"stream": self._dataset.state_dict(), "number": self._number, "ahead": list(self._ahead)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._dataset.load_state_dict(state["stream"])
        self._rows, self._number, self._ahead = iter(self._dataset), state["number"], deque(state["ahead"])


def mixed(sources: Sequence[Any], weights: Sequence[float]) -> Any:
    """Endless documents of several sources, drawn by weight."""
    shares = [weight / sum(weights) for weight in weights]
    return _datasets("").interleave_datasets(list(sources), probabilities=shares, seed=0)


def open_documents(data: str, first: int = 0) -> Any:
    """An endless `IterableDataset` of a file, a folder, or the training split of `datasets:NAME[:CONFIG]`.

    Of `*.jsonl` and `*.parquet` every row's "text" is a document, any other file as a whole; in an order that is drawn.
    Hidden files are left out. What is no document is refused now, and not in a training. Streams keep their order, and
    are downloaded as they are read.

    Args:
        first: the number of the document to begin with.

    Raises:
        FileNotFoundError: no such file or folder, or an empty one.
        InvalidInputError: without the package `datasets`; a file is no text, a row no document.
    """
    datasets = _datasets(data)
    texts = datasets.Features({"text": datasets.Value("string")})
    if data.startswith(STREAMED):
        name, _, config = data.removeprefix(STREAMED).partition(":")
        stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
        return stream.select_columns("text").cast(texts).repeat(None).skip(first)
    path = Path(data)
    files = _files_in(path) if path.is_dir() else [path] if path.is_file() else []
    whole = [file for file in files if file.suffix not in KINDS]
    for file in whole:
        read_text(file)
    rows = [_rows_of(datasets, file) for file in files if file.suffix in KINDS]
    documents = datasets.concatenate_datasets([*rows, datasets.Dataset.from_dict({"path": list(map(str, whole))})])
    if not len(documents):
        raise FileNotFoundError(
            f"there are no documents in {path}; name a text file, a .jsonl or .parquet file, or a folder"
        )
    orders = datasets.concatenate_datasets([documents.shuffle(seed=seed) for seed in range(ORDERS)])
    begun = orders.select(np.roll(np.arange(len(orders)), -first)).to_iterable_dataset()
    others = [column for column in documents.column_names if column != "text"]
    return begun.map(_read, remove_columns=others, features=texts).repeat(None)


def parts_of(data: str, first: int = 0) -> list[Any]:
    """What lies in a folder, each file and folder a source of its own; else the one source that is named."""
    if data.startswith(STREAMED) or not Path(data).is_dir():
        return [open_documents(data, first)]
    inside = sorted(path for path in Path(data).iterdir() if not path.name.startswith("."))
    return [open_documents(str(path), first) for path in inside or [Path(data)]]


def _datasets(data: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInputError(
            f"documents such as {data} are read with the package datasets; pip install 'remanence[train]'"
        ) from error
    return datasets


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _rows_of(datasets: Any, file: Path) -> Any:
    try:
        rows = datasets.load_dataset(KINDS[file.suffix], data_files=str(file), split="train").select_columns("text")
        kind = getattr(rows.features["text"], "dtype", None)
        if kind not in ("string", "large_string") or rows.data.column("text").null_count:
            raise ValueError(f"{kind} or null")
    except (datasets.exceptions.DatasetsError, ValueError, StopIteration) as error:
        raise InvalidInputError(_fault(file)) from error
    return rows


def _fault(file: Path) -> str:
    if KINDS[file.suffix] != "json":
        return f'{file} needs a column "text" of strings'
    for number, line in enumerate(read_text(file).split("\n"), 1):
        try:
            if line.strip() and not isinstance(json.loads(line)["text"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return f'{file}, line {number}, needs one JSON object per line, with the document under "text"'
    return f"{file} is no JSON lines file"


def _read(row: dict[str, Any]) -> dict[str, str]:
    path = row.get("path")
    return {"text": row["text"] if path is None else read_text(Path(path))}
