"""The structure of the package: which room imports which, no circles, files of one idea.

`python -m tests.unit.test_rooms` prints what it finds.
"""

import ast
from pathlib import Path

import pytest

import remanence

SOURCE = Path(remanence.__file__).parent
ROOMS = [  # from the ground up; a room imports from those before it
    {"errors", "config", "environment", "bases"},
    {"kernels", "memory", "optim"},
    {"model"},
    {"checkpoints", "data", "evaluation", "training", "texts"},
    {"conversation", "chatting", "details"},
    {"demo"},
    {"store", "serve", "cli", "recipes"},
]
LONGEST = 400


def imports() -> dict[str, set[str]]:
    """For each module of the package, the modules of it that it imports, for types too."""
    files = {".".join(["remanence", *file.relative_to(SOURCE).with_suffix("").parts]): file for file in modules()}
    names = {name.removesuffix(".__init__"): name for name in files}
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        held = found.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            held |= {names[one] for one in wanted if one in names and names[one] != name}
        held -= {one for one in held if one.endswith(".__init__")}  # which hand on what lies in their rooms
    return found


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Paths that come back to where they began, one for each circle found."""
    found, done = [], set[str]()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(arrows.get(name, ())):
                walk(other, [*path, name])
            done.add(name)

    for name in sorted(arrows):
        walk(name, [])
    return found


def floors(arrows: dict[str, set[str]], room: str) -> int:
    """How many files of a room stand on each other at most."""
    inside = {name for name in arrows if name.startswith(f"remanence.{room}.") and name.count(".") == 2}

    def height(name: str) -> int:
        return 1 + max((height(other) for other in arrows[name] & inside), default=0)

    return max(map(height, inside - {f"remanence.{room}.__init__"}))


def room_of(name: str) -> int | None:
    part = name.split(".")[1]
    return next((floor for floor, rooms in enumerate(ROOMS) if part in rooms), None)


def test_imports_have_no_circles() -> None:
    assert not circles(imports())


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


def test_rooms_import_from_the_ground_up() -> None:
    wrong = []
    for name, others in imports().items():
        for other in others:
            here, there = room_of(name), room_of(other)
            same = name.split(".")[1] == other.split(".")[1]
            if here is not None and there is not None and not same and there > here:
                wrong.append(f"{name} -> {other}")
    assert not wrong


@pytest.mark.parametrize("room", ["memory", "optim"])
def test_rooms_below_know_only_settings_and_errors(room: str) -> None:
    allowed = {"remanence.config", "remanence.errors"} | ({"remanence.kernels.onednn"} if room == "optim" else set())
    others = {
        other
        for name, held in imports().items()
        if name.startswith(f"remanence.{room}.")
        for other in held
        if not other.startswith(f"remanence.{room}.")
    }
    assert others <= allowed


def test_model_is_a_room_of_few_files_and_floors() -> None:
    files = [file for file in (SOURCE / "model").glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= 17
    assert floors(imports(), "model") <= 8


def test_files_hold_one_idea() -> None:
    lengths = {str(file.relative_to(SOURCE)): len(file.read_text().splitlines()) for file in modules()}
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}


if __name__ == "__main__":
    arrows = imports()
    print(f"{len(circles(arrows))} circles; model/ on {floors(arrows, 'model')} floors")
