"""Evaluations: `remanence eval ...`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from remanence.checkpoints import LEARNED
from remanence.cli.places import require_input, require_output_folder, require_writable
from remanence.cli.shared import (
    Int8Flag,
    LearnedModelOption,
    OneLineErrors,
    TierOption,
    examples,
    interruptible,
    load_model,
    new_storage,
    out,
    progress_bar,
)
from remanence.data.episodes import FACTS
from remanence.environment import run_stamp
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import DISTANCES
from remanence.evaluation.documents import LENGTHS

if TYPE_CHECKING:
    from rich.table import Table

    from remanence.evaluation.editing import Method
    from remanence.evaluation.retention import Condition
    from remanence.model.model import MemoryModel

StateOption = Annotated[Path | None, typer.Option(help="Folder for what is finished; the same command then resumes.")]

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, rich_markup_mode="rich")


def made_by(words: list[str], model: str | None, engine: "MemoryModel") -> dict[str, Any]:
    """The command that an evaluation can be repeated with, its date, device and versions."""
    command = shlex.join(words if model is None else [*words, "--model", model])
    return run_stamp(command, engine.device)


def require_places(*files: Path | None, state: Path | None = None, data: Path | None = None) -> None:
    """Before the work: that what is to be read is there, and what is to be written can be."""
    if data is not None:
        require_input(data)
    for file in files:
        if file is not None:
            require_writable(file)
    if state is not None:
        require_output_folder(state)


def left(state: Path | None, what: str) -> str:
    """What an evaluation leaves when it is cut; `what`: "windows are"."""
    return "nothing was kept" if state is None else f"{what} kept in {state}; the same command goes on"


def stored(tier: str | None, int8: bool) -> list[str]:
    """The words that say where long-term slots lie, as they were given."""
    return [f"--tier={tier}"] * (tier is not None) + ["--int8"] * int8


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
        "remanence eval retention --data dev-v1.1.json --distances 0,5,…,60",
    )
)
def retention(
    samples: Annotated[int, typer.Option(min=1, help="People or questions asked about, at each distance.")] = 100,
    distances: Annotated[
        str, typer.Option(help="In writes: 0,5,10; 2p is 2·N/K; 0..20 counts by one; 0,5,…,20p by five.")
    ] = DISTANCES,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            help="A curve: pool, longterm, none, context (the newest text), fact (the text asked about), bm25; "
            "repeatable. Default: all there are; about people all but the last two."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Passages in place of people: a SQuAD v1.1 or Natural Questions file.")
    ] = None,
    people: Annotated[
        str,
        typer.Option(
            help="Whose biographies: listed (names and values of the lists that the bundled models were trained on), "
            "unlisted (made up of words that nothing was trained on), or both."
        ),
    ] = "both",
    model: LearnedModelOption = None,
    facts: Annotated[int, typer.Option(min=1, help="Facts per biography.")] = FACTS,
    tier: TierOption = None,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: StateOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for the picture, .png or .svg.")] = None,
) -> None:
    """How often a text is recalled, by the writes since it was written: exact match about people, hits about passages.

    Passages are asked about by the published protocol: answers of at most 4 tokens, and 10 generated tokens in which
    one must stand.
    """
    require_places(json_file, plot, state=state, data=data)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InvalidInputError(f"a plot is a .png or .svg file, not {plot.name}")
    if people not in ("listed", "unlisted", "both"):
        raise InvalidInputError(f"--people is listed, unlisted or both, not {people!r}")
    kinds = ["passages"] if data is not None else ["listed", "unlisted"] if people == "both" else [people]
    from remanence.evaluation.passages import Passages
    from remanence.evaluation.retention import Biographies, Samples, measure
    from remanence.terminal import retention_table

    engine = load_model(model or LEARNED)
    storage = new_storage(engine, tier, int8)
    reports = []
    for kind in kinds:
        told: Samples = Biographies(facts, unlisted=kind == "unlisted")
        if data is not None:
            told = Passages(data, engine.tokenizer)
        with interruptible(left(state, "finished batches are")), progress_bar(f"measuring {kind}") as progress:
            made = measure(
                engine,
                distances=distances,
                samples=samples,
                conditions=cast("list[Condition] | None", memory),
                storage=storage,
                seed=seed,
                data=told,
                state=state if state is None or kind != "unlisted" else state / kind,
                progress=progress,
            )
        reports.append(made)
    report = reports[0] | ({"unlisted": reports[1]} if len(reports) > 1 else {})
    words = ["remanence", "eval", "retention", "--samples", str(samples), "--distances", distances]
    words += ["--facts", str(facts), "--people", people] if data is None else ["--data", str(data)]
    words += ["--seed", str(seed), *(f"--memory={curve}" for curve in memory or [])]
    words += stored(tier, int8)
    report |= made_by(words, model, engine)
    for made in reports[:-1]:
        out.print(retention_table(made))
    publish(report, retention_table(reports[-1]), json_file)
    if plot is not None:
        from remanence.evaluation.plots import retention_plot

        retention_plot(report, plot)


@app.command(
    epilog=examples(
        "remanence eval longcontext --data hotpotqa.jsonl --lengths 4k,8k,16k --state runs/hotpotqa",
        "remanence eval longcontext --data qa1_single-supporting-fact_test.txt --lengths 1k,4k,16k --json babi.json",
    )
)
def longcontext(
    data: Annotated[Path, typer.Option(help="A LongBench file, or a bAbI file to hide among paragraphs of novels.")],
    samples: Annotated[int, typer.Option(min=1, help="Documents of each length.")] = 50,
    lengths: Annotated[str, typer.Option(help="In tokens; LongBench documents are sorted into them.")] = LENGTHS,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure: pool, longterm, none, context (the end of the document), bm25; repeatable. "
            "Default: all there are."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Documents written at once.")] = 8,
    model: LearnedModelOption = None,
    tier: TierOption = None,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other documents.")] = 0,
    state: StateOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """F1 and exact match of answers about long documents, by their length."""
    from remanence.evaluation.documents import parse_lengths, read_task

    require_places(json_file, state=state, data=data)
    asked = parse_lengths(lengths)
    from remanence.evaluation.longcontext import measure
    from remanence.terminal import longcontext_table

    engine = load_model(model or LEARNED)
    storage = new_storage(engine, tier, int8)
    task = read_task(data, engine.tokenizer, asked, samples, seed)
    with interruptible(left(state, "finished batches are")), progress_bar("asking") as progress:
        report = measure(
            engine,
            task,
            conditions=cast("list[Condition] | None", memory),
            storage=storage,
            seed=seed,
            batch=batch,
            state=state,
            progress=progress,
        )
    words = ["remanence", "eval", "longcontext", "--data", str(data), "--samples", str(samples), "--lengths", lengths]
    words += ["--seed", str(seed), *(f"--memory={condition}" for condition in memory or [])]
    words += stored(tier, int8)
    report |= {"data": data.name, "lengths": asked, "answer_tokens": task.answer_tokens} | made_by(words, model, engine)
    publish(report, longcontext_table(report), json_file)


@app.command(
    epilog=examples(
        "remanence eval integrity",
        "remanence eval integrity --model tiny --writes 1000000 --questions 500 --state runs/integrity --json i.json",
    )
)
def integrity(
    writes: Annotated[int, typer.Option(min=1, help="Writes into one memory.")] = 10_000,
    windows: Annotated[int, typer.Option(min=1, help="Equal parts that are scored each.")] = 10,
    questions: Annotated[int, typer.Option(min=1, help="Asked in each window, about the newest biography.")] = 100,
    model: LearnedModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for the memory and the counts, every 10,000 writes; the same command then resumes."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exact match about the newest biography, and resident memory, over very many writes into one memory."""
    require_places(json_file, state=state)
    from remanence.evaluation.integrity import measure
    from remanence.terminal import integrity_table

    engine = load_model(model or LEARNED)
    with interruptible(left(state, "the memory and the counts are")), progress_bar("writing") as progress:
        report = measure(
            engine, writes=writes, windows=windows, questions=questions, seed=seed, state=state, progress=progress
        )
    words = ["remanence", "eval", "integrity", "--writes", str(writes), "--windows", str(windows)]
    words += ["--questions", str(questions), "--seed", str(seed)]
    report |= made_by(words, model, engine)
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
    model: LearnedModelOption = None,
    tier: TierOption = None,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: StateOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """How many of a fact's slots a question brings back from long-term memory, against chance, layer by layer."""
    require_places(json_file, state=state)
    from remanence.evaluation.retrieval import measure
    from remanence.terminal import retrieval_table

    engine = load_model(model or LEARNED)
    storage = new_storage(engine, tier, int8)
    with interruptible(left(state, "finished batches are")), progress_bar("measuring") as progress:
        report = measure(
            engine,
            distances=distances,
            samples=samples,
            seed=seed,
            storage=storage,
            state=state,
            progress=progress,
        )
    words = ["remanence", "eval", "retrieval", "--samples", str(samples), "--distances", distances, "--seed", str(seed)]
    words += stored(tier, int8)
    report |= made_by(words, model, engine)
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
    model: LearnedModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    state: StateOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Efficacy, generalisation and specificity of changed facts: by memory, in context, by fine-tuning."""
    from remanence.data.edits import biography_edits, read_edits

    require_places(json_file, state=state)
    if not all(count.strip().isdecimal() for count in edits.split(",")):
        raise InvalidInputError(f"--edits takes numbers parted by commas, such as 1,10,100; got {edits}")
    counts = [int(count) for count in edits.split(",")]
    read = None if file is None else read_edits(file)
    from remanence.evaluation.editing import METHODS, edits_needed, measure
    from remanence.terminal import editing_table

    kind, made = read or ("biographies", biography_edits(edits_needed(counts, samples), seed))
    engine = load_model(model or LEARNED)
    with interruptible(left(state, "what is finished is")), progress_bar("editing") as progress:
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
    report |= made_by(words, model, engine)
    publish(report, editing_table(report), json_file)


@app.command(
    epilog=examples(
        "remanence eval perplexity",
        "remanence eval perplexity --text wikitext2/test.txt --samples 200 --json perplexity.json",
    )
)
def perplexity(
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8 text to read. Default: half of the bundled novels.")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Windows, spread evenly over the text.")] = 100,
    window: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 256,
    memories: Annotated[int, typer.Option(min=1, help="Read in one batch, a window each.")] = 8,
    model: LearnedModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other unrelated texts.")] = 0,
    state: StateOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Perplexity of a text with an empty memory, and with memories full of other text: whether memory does harm."""
    from remanence.texts import read_text

    require_places(json_file, state=state)
    given = None if text is None else read_text(text)
    from remanence.evaluation.perplexity import bundled_text, measure
    from remanence.terminal import perplexity_table

    content = bundled_text() if given is None else given
    engine = load_model(model or LEARNED)
    with interruptible(left(state, "finished batches are")), progress_bar("reading") as progress:
        report = measure(
            engine,
            content,
            samples=samples,
            window=window,
            memories=memories,
            seed=seed,
            state=state,
            progress=progress,
        )
    words = ["remanence", "eval", "perplexity", *([] if text is None else ["--text", str(text)])]
    words += ["--samples", str(samples), "--window", str(window), "--memories", str(memories), "--seed", str(seed)]
    report |= made_by(words, model, engine)
    publish(report, perplexity_table(report), json_file)
