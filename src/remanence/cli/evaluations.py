"""`remanence eval NAME`: a command for each evaluation, made of the options that its function takes."""

import inspect
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from remanence.checkpoints import LEARNED
from remanence.cli.places import require_input, require_output_folder, require_writable
from remanence.cli.shared import (
    LearnedModelOption,
    ModelOption,
    OneLineErrors,
    examples,
    interruptible,
    load_model,
    out,
    progress_bar,
)
from remanence.environment import run_stamp
from remanence.errors import InvalidInputError
from remanence.evaluation.registry import EVALUATIONS, Command, load

_SHOWN = {
    "nothing": "nothing",
    "oracle": "oracle (the passages that answer, as text)",
    "bm25": "bm25_1, bm25_4, … (the best passages as text)",
    "fits": "fits (the newest text, as much as fits)",
}
_REMEMBERED = (
    "pool, longterm (a learned memory without its long-term slots, and with them)",
    "slots, slots+reader+retriever (text slots as the memory finds them, and with trained parts)",
)
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for what is told and measured; the same command then resumes, and one with more "
        "questions or columns measures only these.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File for the figures.")]
PlotOption = Annotated[Path | None, typer.Option(help="File for the picture, .png or .svg.")]
_COMMON = {"resume": ResumeOption, "json": JsonOption, "plot": PlotOption}


class Evaluations(OneLineErrors):
    """An evaluation is imported when it is named: a list of them takes no torch."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(EVALUATIONS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in EVALUATIONS:
            return None
        return TyperCommand(cmd_name, help=EVALUATIONS[cmd_name]) if self._listing else _command(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(cls=Evaluations, no_args_is_help=True)


@app.callback()
def evaluations() -> None:
    """Measure what a memory is worth."""


def _command(name: str) -> Any:
    command, make = load(name)
    own = [one for one in inspect.signature(make).parameters.values() if one.kind is one.KEYWORD_ONLY]
    own = [one for one in own if one.name != "folder"]

    def run(**options: Any) -> None:
        common = {key: options.pop(key) for key in kinds}
        measure(name, command, make, options, **common)

    model = LearnedModelOption if command.learned else ModelOption
    kinds = {"model": model, "columns": _columns_option(command), **_COMMON}
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for key, kind in kinds.items()
    ]
    run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    run.__doc__ = make.__doc__
    made = typer.Typer(rich_markup_mode="rich", add_completion=False)
    shown = [f"remanence eval {name} {line}".rstrip() for line in command.examples]
    made.command(name, epilog=examples(*shown))(run)
    return typer.main.get_command(made)


def _columns_option(command: Command) -> Any:
    shown = [*(_SHOWN.get(one, one) for one in command.shows), *_REMEMBERED[: 1 if command.whole else None]]
    usual = "the whole memory" if command.whole else f"{command.columns}, and each memory that the model has"
    help_text = f"What the model has when it is asked, with commas between: {'; '.join(shown)}. Default: {usual}."
    return Annotated[str | None, typer.Option(help=help_text)]


def measure(
    name: str,
    command: Command,
    make: Callable[..., Any],
    options: dict[str, Any],
    *,
    columns: str | None,
    model: str | None,
    resume: Path | None,
    json: Path | None,
    plot: Path | None,
) -> None:
    """Run an evaluation, show its table, and keep its figures and its picture where files were named."""
    _require_places(options, json, plot, resume)
    from remanence.evaluation.columns import about, columns_of, memory_columns, used_by
    from remanence.evaluation.harness import Report, Run

    engine = load_model(model or (LEARNED if command.learned else None))
    memories = memory_columns(engine)
    listed = columns or ",".join([command.columns, *(memories[-1:] if command.whole else memories)]).strip(",")
    chosen = columns_of(engine, listed, command.shows)
    uses = {column.name: used_by(engine, column) for column in chosen}
    run = Run(make(engine, chosen, **options, folder=resume), about(engine), resume, uses)
    left = "nothing was kept" if run.file is None else f"what is measured is kept in {run.file}; run it again to resume"
    with interruptible(left), progress_bar("asking") as progress:
        records = run(progress)
    words = shlex.join(_words(name, {**options, "columns": listed, "model": model or engine.name}))
    report = Report.of(run.evaluation, records, about(engine), run_stamp(words, engine.device))
    out.print(report.table(), markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write(report.to_json(), json)
    if plot is not None:
        from remanence.evaluation.plots import draw

        draw(report, plot)


def write(figures: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _require_places(options: dict[str, Any], figures: Path | None, plot: Path | None, resume: Path | None) -> None:
    """Before the work: that what is to be read is there, and what is to be written can be."""
    for value in options.values():
        if isinstance(value, Path) and not value.is_dir():
            require_input(value)
    for file in (figures, plot):
        if file is not None:
            require_writable(file)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InvalidInputError(f"a plot is a .png or .svg file, not {plot.name}")
    if resume is not None:
        require_output_folder(resume)


def _words(name: str, options: dict[str, Any]) -> list[str]:
    """The command that the evaluation can be repeated with."""
    words = ["remanence", "eval", name]
    for option, value in options.items():
        if value is True:
            words.append(f"--{option}")
        elif value is not None and value is not False:
            words += [f"--{option}", str(value)]
    return words
