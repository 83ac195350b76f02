"""The command line: thin. Everything heavy is imported where it is needed, so that `--help` is quick."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from remanence.data.episodes import FACTS
from remanence.errors import InvalidInputError, RemanenceError
from remanence.evaluation.distances import DISTANCES

if TYPE_CHECKING:
    from rich.table import Table

    from remanence.memory import Memory, Storage
    from remanence.model.memory_model import MemoryModel

out = Console()
err = Console(stderr=True)


class _OneLineErrors(TyperGroup):
    """What went wrong for a reason that the user can mend is one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RemanenceError, FileNotFoundError) as error:
            complain(error)
            raise typer.Exit(2) from None


def complain(error: Exception) -> None:
    err.print("error: " + " ".join(str(error).split()), style="red", markup=False, highlight=False, soft_wrap=True)


def examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    name="remanence",
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A latent memory for decoder-only language models, written in one forward pass.",
    epilog=examples(
        "remanence demo",
        "remanence write notes.mem notes.txt",
        'remanence ask notes.mem "Where was Alice Brown born?"',
        "remanence eval retention --samples 50 --plot retention.png",
    ),
)
evaluations = typer.Typer(cls=_OneLineErrors, no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(evaluations, name="eval", help="Measure what a memory is worth.")


class Where(StrEnum):
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Curve(StrEnum):
    NONE = "none"
    POOL = "pool"
    LONGTERM = "longterm"
    CONTEXT = "context"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="REMANENCE_MODEL",
        help="Directory, hub id, or a bundled checkpoint: tiny, tiny_longterm (default).",
    ),
]
MemoryArgument = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")]
TierOption = Annotated[Where, typer.Option("--tier", help="Where the long-term slots of a new memory lie.")]
Int8Flag = Annotated[bool, typer.Option("--int8", help="Keep the long-term slots of a new memory as int8.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _version(wanted: bool) -> None:
    if wanted:
        from remanence import __version__

        typer.echo(f"remanence {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def load_model(name: str | None) -> "MemoryModel":
    import transformers

    from remanence import MemoryModel
    from remanence.checkpoints import DEFAULT, bundled, names

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = name or DEFAULT
    return MemoryModel.from_pretrained(bundled(name) if name in names() else name)


def storage_of(tier: Where, int8: bool) -> "Storage":
    from remanence.memory import Storage

    return Storage(tier.value, int8)


def load_memory(path: Path) -> "Memory":
    from remanence import Memory

    if not path.is_file():
        raise FileNotFoundError(f"there is no memory at {path}; make one with: remanence write {path} FILE")
    return Memory.load(path)


def require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to put {path.name} into")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calls with (done, in all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def made_by(words: list[str], model: str | None) -> dict[str, Any]:
    """The command that an evaluation can be repeated with, its date, and versions."""
    from remanence.evaluation.retention import circumstances

    return circumstances(shlex.join(words if model is None else [*words, "--model", model]))


def publish(report: dict[str, Any], table: "Table", json_file: Path | None) -> None:
    """Show what an evaluation found, and keep it if a file was named."""
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@app.command(epilog=examples("remanence demo", "remanence demo people.txt --questions people.tsv --unrelated 100"))
def demo(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Paragraphs to write.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Lines question<TAB>answer, or a JSON list with question and truth.")
    ] = None,
    model: ModelOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the plot.")] = Path(),
    unrelated: Annotated[int, typer.Option(min=0, help="Unrelated paragraphs to write after the facts.")] = 300,
) -> None:
    """Write facts, then hundreds of unrelated paragraphs, and watch what is recalled.

    Without FILE, six invented people whom the checkpoint has never met.
    """
    from remanence.data.demo import demo_files
    from remanence.terminal import answer_questions, show_rounds
    from remanence.texts import paragraphs_of, read_questions, read_text

    if file is None:
        file, bundled_questions = demo_files()
        questions = questions or bundled_questions
    texts = paragraphs_of(read_text(file))
    asked = None if questions is None else read_questions(questions)
    plot = output / "remanence-demo.png"
    require_folder(plot)
    engine = load_model(model)
    memory = engine.new_memory()
    write_all(engine, memory, texts)
    out.print(f"{file.name}: {memory.write_count} paragraphs written. From here on the model has only its memory.")
    if asked is not None:
        show_rounds(out, engine, memory, asked, texts, unrelated, plot)
    elif sys.stdin.isatty():
        answer_questions(out, engine, memory)
    else:
        out.print('To ask about it, give --questions with lines "question<TAB>answer", or run this in a terminal.')


def write_all(model: "MemoryModel", memory: "Memory", texts: list[str]) -> None:
    if not texts:
        raise InvalidInputError("there is no text to write")
    with progress_bar("writing") as progress:
        for done, text in enumerate(texts, start=1):
            model.write(memory, text)
            progress(done, len(texts))


@app.command(
    epilog=examples(
        "remanence write notes.mem notes.txt more.txt",
        'echo "Alice Brown was born in Oslo." | remanence write notes.mem -',
        "remanence write book.mem book.txt --whole",
    )
)
def write(
    memory: MemoryArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files; - for standard input.")],
    model: ModelOption = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Cut each file into chunks of 512 tokens, not into its paragraphs.")
    ] = False,
    tier: TierOption = Where.HOST,
    int8: Int8Flag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write text files into a memory, which is made if it is not there.

    Each paragraph is one write. The memory file changes only when everything was written.
    """
    from remanence.texts import paragraphs_of, read_text

    require_folder(memory)
    contents = [read_text(file) for file in files]
    texts = contents if whole else [paragraph for content in contents for paragraph in paragraphs_of(content)]
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    held = engine.new_memory(storage=storage_of(tier, int8)) if held is None else held
    before = held.write_count
    write_all(engine, held, texts)
    held.save(memory)
    done = {"memory": str(memory), "written": held.write_count - before, "writes": held.write_count}
    typer.echo(json.dumps(done) if as_json else "{memory}: {written} written, {writes} writes in all".format(**done))


@app.command(
    epilog=examples('remanence ask notes.mem "Where was Alice Brown born?"', 'remanence ask notes.mem "..." --json')
)
def ask(
    memory: MemoryArgument,
    question: Annotated[str, typer.Argument(help="In plain words.")],
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 32,
    as_json: JsonFlag = False,
) -> None:
    """Ask a memory one question. It is not changed."""
    from remanence.terminal import answer_from
    from remanence.texts import prompt_of

    held = load_memory(memory)
    answer = answer_from(load_model(model), held, question, max_new_tokens)
    if as_json:
        typer.echo(json.dumps({"question": question, "prompt": prompt_of(question), "answer": answer}))
    else:
        typer.echo(answer)


@app.command(epilog=examples("remanence chat notes.mem"))
def chat(memory: MemoryArgument, model: ModelOption = None) -> None:
    """Ask and write, line by line. The memory is saved when you leave."""
    from remanence.terminal import chat_loop

    require_folder(memory)
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    chat_loop(out, engine, engine.new_memory() if held is None else held, memory)


@app.command(epilog=examples("remanence show notes.mem", "remanence show notes.mem --json"))
def show(memory: MemoryArgument, model: ModelOption = None, as_json: JsonFlag = False) -> None:
    """Slots, writes and sizes of a memory, and whether the model can read it."""
    from remanence.terminal import describe, details_table

    held = load_memory(memory)
    details = {"file": str(memory), "file_bytes": memory.stat().st_size} | describe(held, load_model(model))
    if as_json:
        typer.echo(json.dumps(details))
    else:
        out.print(details_table(details))


@app.command(
    epilog=examples(
        "remanence train recipes/tiny.py",
        "remanence train recipes/tiny.py --output runs/tiny --resume --minutes 30",
        "remanence train recipes/tiny.py -- steps=200",
    )
)
def train(
    recipe: Annotated[Path, typer.Argument(help="A Python file with a function train(output, *, resume, minutes).")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- NAME=VALUE...]", help="More settings, if the recipe takes any.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints. Default: runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so long, with a checkpoint.")] = None,
) -> None:
    """Train a checkpoint by a recipe."""
    from remanence.training.recipes import load_recipe, settings_of

    run = load_recipe(recipe)
    settings = settings_of(run, extra or [])
    result = run(output or Path("runs") / recipe.stem, resume=resume, minutes=minutes, **settings)
    if result is not None:
        out.print(f"trained: {result}", markup=False, soft_wrap=True)


@evaluations.command(
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
        list[Curve] | None, typer.Option(help="Which curves; repeatable. Default: all there are.")
    ] = None,
    model: ModelOption = None,
    facts: Annotated[int, typer.Option(min=1, help="Facts per biography.")] = FACTS,
    tier: TierOption = Where.HOST,
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
            require_folder(path)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InvalidInputError(f"a plot is a .png or .svg file, not {plot.name}")
    engine = load_model(model)
    with progress_bar("measuring") as progress:
        report = measure(
            engine,
            distances=distances,
            samples=samples,
            conditions=[curve.value for curve in memory] if memory else None,
            storage=storage_of(tier, int8),
            seed=seed,
            attributes_per_biography=facts,
            progress=progress,
        )
    words = ["remanence", "eval", "retention", "--samples", str(samples), "--distances", distances]
    words += ["--facts", str(facts), "--seed", str(seed), *(f"--memory={curve}" for curve in memory or [])]
    words += [f"--tier={tier}"] * (tier is not Where.HOST) + ["--int8"] * int8
    report |= made_by(words, model)
    publish(report, retention_table(report), json_file)
    if plot is not None:
        from remanence.evaluation.plots import retention_plot

        retention_plot(report, plot)


@evaluations.command(
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

    for path in (json_file, state):
        if path is not None:
            require_folder(path)
    engine = load_model(model)
    with progress_bar("writing") as progress:
        report = measure(
            engine, writes=writes, windows=windows, questions=questions, seed=seed, state=state, progress=progress
        )
    words = ["remanence", "eval", "integrity", "--writes", str(writes), "--windows", str(windows)]
    words += ["--questions", str(questions), "--seed", str(seed)]
    report |= made_by(words, model)
    publish(report, integrity_table(report), json_file)


@evaluations.command(
    epilog=examples(
        "remanence eval retrieval",
        "remanence eval retrieval --distances 5p,10p,20p --samples 100 --json retrieval.json",
    )
)
def retrieval(
    samples: Annotated[int, typer.Option(min=1, help="People asked about, at each distance.")] = 50,
    distances: Annotated[str, typer.Option(help="In writes, or 10p for 10·N/K.")] = "10p",
    model: ModelOption = None,
    tier: TierOption = Where.HOST,
    int8: Int8Flag = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """How many of a fact's slots a question brings back from long-term memory, against chance, layer by layer."""
    from remanence.evaluation.retrieval import measure
    from remanence.terminal import retrieval_table

    if json_file is not None:
        require_folder(json_file)
    engine = load_model(model)
    with progress_bar("measuring") as progress:
        report = measure(
            engine,
            distances=distances,
            samples=samples,
            seed=seed,
            storage=storage_of(tier, int8),
            progress=progress,
        )
    words = ["remanence", "eval", "retrieval", "--samples", str(samples), "--distances", distances, "--seed", str(seed)]
    words += [f"--tier={tier}"] * (tier is not Where.HOST) + ["--int8"] * int8
    report |= made_by(words, model)
    publish(report, retrieval_table(report), json_file)
