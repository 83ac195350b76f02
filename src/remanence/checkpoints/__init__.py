"""Trained checkpoints that come with the package, one directory each."""

from pathlib import Path


def bundled(name: str = "tiny") -> Path:
    """The directory of a bundled checkpoint, for `MemoryModel.from_pretrained`.

    Raises:
        FileNotFoundError: there is none of this name; lists those there are.
    """
    here = Path(__file__).parent
    found = sorted(path.parent.name for path in here.glob("*/remanence.json"))
    if name not in found:
        raise FileNotFoundError(
            f"no checkpoint named {name!r} comes with this installation ({', '.join(found) or 'there is none'}); "
            "give a directory or a hub id with --model"
        )
    return here / name
