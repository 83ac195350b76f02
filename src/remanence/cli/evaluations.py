"""Evaluations: `remanence eval ...`."""

import json
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from remanence.cli.places import require_output_folder, require_writable
from remanence.cli.shared import (
    Int8Flag,
    ModelOption,
    OneLineErrors,
    TierOption,
    examples,
    interruptible,
    load_model,
    out,
    progress_bar,
    storage_of,
)
from remanence.data.episodes import FACTS
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import DISTANCES

if TYPE_CHECKING:
    from rich.table import Table

    from remanence.data.edits import Kind
    from remanence.evaluation.editing import Method
    from remanence.evaluation.retention import Condition

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, rich_markup_mode="rich")


def made_by(words: list[str], model: str | None) -> dict[str, Any]:
    """The command that an evaluation can be repeated with, its date, and versions."""
    import torch
    import transformers

    from remanence import __version__

    versions = {
        "remanence": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    command = shlex.join(words if model is None else [*words, "--model", model])
    return {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}


def publish(report: dict[str, Any], table: "Table", json_file: Path | None) -> None:
    """Show what an evaluation found, and keep it if a file was named."""
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@app.command(
    epilog=examples(
        "remanence eval retention --samples 50",
        "remanence eval retention --distances 0,5,…,20p --json retention.json --plot retention.png",
        "remanence eval retention --memory pool --memory none --distances 0..16",
    )
)
def retention(
    samples: Annotated[int, typer.Option(min=1, help="People asked about, at each distance.")] = 100,
    distances: Annotated[
        str, typer.Option(help="In writes: 0,5,10; 2p is 2·N/K; 0..20 counts by one; 0,5,…,20p by five.")
    ] = DISTANCES,
    memory: Annotated[
        list[str] | None,
        typer.Option(help="A curve: pool, longterm, none or context; repeatable. Default: all there are."),
    ] = None,
    model: ModelOption = None,
    facts: Annotated[int, typer.Option(min=1, help="Facts per biography.")] = FACTS,
    tier: TierOption = None,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for the picture, .png or .svg.")] = None,
) -> None:
    """Exact match of answers about held-out people, by the writes since their biography was written."""
    from remanence.evaluation.retention import measure
    from remanence.terminal import retention_table

    for path in (json_file, plot):
        if path is not None:
            require_writable(path)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InvalidInputError(f"a plot is a .png or .svg file, not {plot.name}")
    engine = load_model(model)
    storage = storage_of(engine, tier, int8)
    with progress_bar("measuring") as progress:
        report = measure(
            engine,
            distances=distances,
            samples=samples,
            conditions=cast("list[Condition] | None", memory),
            storage=storage,
            seed=seed,
            attributes_per_biography=facts,
            progress=progress,
        )
    words = ["remanence", "eval", "retention", "--samples", str(samples), "--distances", distances]
    words += ["--facts", str(facts), "--seed", str(seed), *(f"--memory={curve}" for curve in memory or [])]
    words += [f"--tier={tier}"] * (tier is not None) + ["--int8"] * int8
    report |= made_by(words, model)
    publish(report, retention_table(report), json_file)
    if plot is not None:
        from remanence.evaluation.plots import retention_plot

        retention_plot(report, plot)


@app.command(
    epilog=examples(
        "remanence eval integrity",
        "remanence eval integrity --writes 1000000 --windows 10 --questions 200 --state runs/integrity",
    )
)
def integrity(
    writes: Annotated[int, typer.Option(min=1, help="Writes into one memory.")] = 10_000,
    windows: Annotated[int, typer.Option(min=1, help="Equal parts that are scored each.")] = 10,
    questions: Annotated[int, typer.Option(min=1, help="Asked in each window, about the newest biography.")] = 100,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: Annotated[
        Path | None, typer.Option(help="Folder for finished windows; the same command then goes on after a cut.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exact match about the newest biography, and resident memory, over very many writes into one memory."""
    from remanence.evaluation.integrity import measure
    from remanence.terminal import integrity_table

    if json_file is not None:
        require_writable(json_file)
    if state is not None:
        require_output_folder(state)
    engine = load_model(model)
    left = "nothing was kept" if state is None else f"finished windows are kept in {state}; the same command goes on"
    with interruptible(left), progress_bar("writing") as progress:
        report = measure(
            engine, writes=writes, windows=windows, questions=questions, seed=seed, state=state, progress=progress
        )
    words = ["remanence", "eval", "integrity", "--writes", str(writes), "--windows", str(windows)]
    words += ["--questions", str(questions), "--seed", str(seed)]
    report |= made_by(words, model)
    publish(report, integrity_table(report), json_file)


@app.command(
    epilog=examples(
        "remanence eval retrieval",
        "remanence eval retrieval --distances 5p,10p,20p --samples 100 --json retrieval.json",
    )
)
def retrieval(
    samples: Annotated[int, typer.Option(min=1, help="People asked about, at each distance.")] = 50,
    distances: Annotated[str, typer.Option(help="In writes, or 10p for 10·N/K.")] = "10p",
    model: ModelOption = None,
    tier: TierOption = None,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """How many of a fact's slots a question brings back from long-term memory, against chance, layer by layer."""
    from remanence.evaluation.retrieval import measure
    from remanence.terminal import retrieval_table

    if json_file is not None:
        require_writable(json_file)
    engine = load_model(model)
    storage = storage_of(engine, tier, int8)
    with progress_bar("measuring") as progress:
        report = measure(
            engine,
            distances=distances,
            samples=samples,
            seed=seed,
            storage=storage,
            progress=progress,
        )
    words = ["remanence", "eval", "retrieval", "--samples", str(samples), "--distances", distances, "--seed", str(seed)]
    words += [f"--tier={tier}"] * (tier is not None) + ["--int8"] * int8
    report |= made_by(words, model)
    publish(report, retrieval_table(report), json_file)


@app.command(
    epilog=examples(
        "remanence eval editing --edits 1,10,100 --samples 20 --json editing.json",
        "remanence eval editing counterfact.json --model MODEL --edits 1,10,100,1000 --state runs/editing",
        "remanence eval editing --method memory --method context --edits 100",
    )
)
def editing(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="CounterFact or zsRE edits, JSON. Default: edits of invented people."),
    ] = None,
    edits: Annotated[str, typer.Option(help="How many to make one after another before asking.")] = "1,10,100",
    samples: Annotated[int, typer.Option(min=1, help="Edits asked about in all, for each such number.")] = 100,
    method: Annotated[
        list[str] | None,
        typer.Option(help="none, memory, context, ft, ft_all or ft_l; repeatable. Default: all of them."),
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate of the fine-tuning.")] = 5e-4,
    bound: Annotated[float, typer.Option(min=0, help="How far ft_l may move a weight in an edit.")] = 1e-4,
    batch: Annotated[int, typer.Option(min=1, help="Prompts read at once.")] = 25,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: Annotated[
        Path | None, typer.Option(help="Folder for what is finished; the same command then goes on after a cut.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Efficacy, generalisation and specificity of changed facts: by memory, in context, by fine-tuning."""
    from remanence.data.edits import biography_edits, read_edits
    from remanence.evaluation.editing import METHODS, edits_needed, measure
    from remanence.terminal import editing_table

    if json_file is not None:
        require_writable(json_file)
    if state is not None:
        require_output_folder(state)
    if not all(count.strip().isdecimal() for count in edits.split(",")):
        raise InvalidInputError(f"--edits takes numbers parted by commas, such as 1,10,100; got {edits}")
    counts = [int(count) for count in edits.split(",")]
    kind: Kind = "biographies"
    if file is None:
        made = biography_edits(edits_needed(counts, samples), seed)
    else:
        kind, made = read_edits(file)
    engine = load_model(model)
    left = "nothing was kept" if state is None else f"what is finished is kept in {state}; the same command goes on"
    with interruptible(left), progress_bar("editing") as progress:
        report = measure(
            engine,
            made,
            kind,
            counts=counts,
            samples=samples,
            methods=METHODS if method is None else cast("list[Method]", method),
            rate=rate,
            bound=bound,
            seed=seed,
            batch=batch,
            state=state,
            progress=progress,
        )
    words = ["remanence", "eval", "editing", *([] if file is None else [str(file)]), "--edits", edits]
    words += ["--samples", str(samples), "--rate", str(rate), "--bound", str(bound), "--seed", str(seed)]
    words += [f"--method={one}" for one in method or []]
    report |= made_by(words, model)
    publish(report, editing_table(report), json_file)
