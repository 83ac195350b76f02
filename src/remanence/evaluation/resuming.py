"""What a run has finished, kept in a file, so that the same command resumes."""

import json
import os
from pathlib import Path
from typing import Any

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel


def identity(model: MemoryModel) -> dict[str, Any]:
    """What of a model its figures hang on: `n` and `k`, `model`, a fingerprint of its weights, and `longterm`, how its
    long-term memory is read."""
    return {
        "n": model.slots,
        "k": model.slots_per_write,
        "model": model.fingerprint(),
        "longterm": None if model.config.longterm is None else model.config.longterm.to_json(),
    }


def kept(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """What `keep` wrote, or None if it wrote nothing yet.

    Raises:
        InvalidInputError: it belongs to a run with other settings; says which.
    """
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name, value in run.items() if record["run"].get(name) != value]
    if differing:
        raise InvalidInputError(
            f"{path.parent} holds a run with another {' and '.join(differing)}; name another folder, or delete this one"
        )
    return record


def keep(path: Path, run: dict[str, Any], **finished: Any) -> None:
    """Replace what is kept, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"run": run, **finished}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
