"""Trained checkpoints that come with the package, one directory each."""

from pathlib import Path

DEFAULT = "smollm2"  # what commands take
LEARNED = "tiny_longterm"  # and what those take that measure learned memories


def names() -> list[str]:
    """All bundled checkpoints."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/remanence.json"))


def bundled(name: str = DEFAULT) -> Path:
    """The directory of a bundled checkpoint, for `MemoryModel.from_pretrained`.

    Args:
        name: "smollm2" has adapters for a base that `remanence setup smollm2` fetches. "tiny", with a pool, and
            "tiny_longterm", with long-term memory behind it, are whole models.

    Raises:
        FileNotFoundError: there is none of this name; lists those there are.
    """
    if name not in names():
        raise FileNotFoundError(
            f"no checkpoint named {name!r} comes with this installation ({', '.join(names()) or 'there is none'}); "
            "give a directory or a hub id with --model"
        )
    return Path(__file__).parent / name


def whole() -> list[str]:
    """The bundled checkpoints that hold their decoder."""
    return [name for name in names() if (bundled(name) / "model.safetensors").is_file()]


def name_of(model: str) -> str | None:
    """The bundled checkpoint that a model was loaded from, by what the model is called; None: from another."""
    path = Path(model)
    ours = model in names() or path.parts[-3:-1] == ("remanence", "checkpoints")
    return path.name if ours and path.name in names() else None
