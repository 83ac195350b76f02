"""What others call stays as it is: names, parameters, defaults, commands and their options.

`python -m tests.unit.test_public_face` renews the record; look at what changes in it, for others will have to.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import typer

import remanence
from remanence import optim
from remanence.cli import app

RECORDED = Path(__file__).with_name("public_face.json")
OPTIONAL = ("MemoryConfig", "Store")  # recorded as soon as they are there


def signature(of: Any) -> str:
    """Parameters and defaults. Annotations are left out: Python's versions print them differently."""
    made = inspect.signature(of)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in made.parameters.values()]
    return str(made.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def members(kind: type) -> dict[str, str]:
    """Public methods and properties that are our own, those of base classes of ours among them, by name."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("remanence")]
    found = {"__init__": signature(kind)}
    for name in sorted({name for base in own for name in vars(base) if not name.startswith("_")}):
        held = inspect.getattr_static(kind, name)
        found[name] = signature(getattr(kind, name)) if callable(getattr(kind, name)) else type(held).__name__
    return found


def commands(of: Any, name: str = "") -> dict[str, list[str]]:
    """Arguments and options of every command, by the words that call it."""
    if hasattr(of, "list_commands"):  # of which some are made when they are named
        context = typer.Context(of)
        words = of.list_commands(context)
        parts = [commands(of.get_command(context, word), f"{name} {word}".strip()) for word in words]
        return {word: options for part in parts for word, options in part.items()}
    return {name: sorted("/".join(each.opts + each.secondary_opts) for each in of.params)}


def public_face() -> dict[str, Any]:
    classes = ["MemoryModel", "Memory", *(name for name in OPTIONAL if hasattr(remanence, name))]
    return {
        "remanence": sorted(remanence.__all__),
        **{name: members(getattr(remanence, name)) for name in classes},
        "remanence.optim": sorted(optim.__all__),
        "GrassAdamW": members(optim.GrassAdamW),
        "grass_param_groups": signature(optim.grass_param_groups),
        "commands": dict(sorted(commands(typer.main.get_command(app)).items())),
    }


def test_public_face_is_as_it_was_recorded() -> None:
    now, then = public_face(), json.loads(RECORDED.read_text())
    assert now == then, "the public face changed; if it is meant to: python -m tests.unit.test_public_face"


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(public_face(), indent=1) + "\n")
