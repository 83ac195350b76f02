"""Trained checkpoints that come with the package, one directory each."""

from pathlib import Path

DEFAULT = "tiny_longterm"


def names() -> list[str]:
    """All bundled checkpoints."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/remanence.json"))


def bundled(name: str = DEFAULT) -> Path:
    """The directory of a bundled checkpoint, for `MemoryModel.from_pretrained`.

    Args:
        name: "tiny" has a pool; "tiny_longterm" also long-term memory.

    Raises:
        FileNotFoundError: there is none of this name; lists those there are.
    """
    if name not in names():
        raise FileNotFoundError(
            f"no checkpoint named {name!r} comes with this installation ({', '.join(names()) or 'there is none'}); "
            "give a directory or a hub id with --model"
        )
    return Path(__file__).parent / name


def name_of(model: str) -> str | None:
    """The bundled checkpoint that a model was loaded from, by what the model is called; None: from another."""
    path = Path(model)
    ours = model in names() or path.parts[-3:-1] == ("remanence", "checkpoints")
    return path.name if ours and path.name in names() else None
