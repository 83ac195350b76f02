"""Evaluations of text slots on real questions: `remanence eval squad`, `locomo` and others."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.places import require_input, require_output_folder, require_writable
from remanence.cli.shared import ModelOption, OneLineErrors, examples, interruptible, load_model, out, progress_bar
from remanence.environment import run_stamp
from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from remanence.evaluation.columns import Column
    from remanence.evaluation.harness import Evaluation
    from remanence.model.model import MemoryModel

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, rich_markup_mode="rich")

ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="What the model has when it is asked, with commas between: nothing, oracle (the passage as text), bm25_1, "
        "bm25_4 (the best passages as text), fits (as much text as fits), slots (retrieved by the memory itself), "
        "slots+reader+retriever (with trained parts). Default: most of them, slots with each part more."
    ),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for what is told and measured; the same command then resumes, and one with more "
        "questions or columns measures only these.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File for the figures.")]
_TEXTS = "nothing,oracle,bm25_1,bm25_4"


def measure(
    model: str | None,
    columns: str | None,
    json_file: Path | None,
    resume: Path | None,
    words: list[str],
    made: "Callable[..., Evaluation]",
    parse: "Callable[[MemoryModel, str], list[Column]] | None" = None,
    texts: str = _TEXTS,
) -> None:
    """Run an evaluation, show its table, and keep its figures if a file was named.

    Args:
        words: the command.
        made: makes the evaluation of a model and columns.
        parse: reads the names of columns; None: as usual.
        texts: columns without a memory that are measured where no columns are named.
    """
    if json_file is not None:
        require_writable(json_file)
    if resume is not None:
        require_output_folder(resume)
    from remanence.evaluation.columns import columns_of, slots_of, used_by
    from remanence.evaluation.harness import Report, Run, about

    engine = load_model(model)
    columns = columns or ",".join([texts, *slots_of(engine)])
    listed = (parse or columns_of)(engine, columns)
    uses = {column.name: used_by(engine, column) for column in listed}
    run = Run(made(engine, columns=listed), about(engine), resume, uses)
    left = (
        "nothing was kept" if run.file is None else f"what is measured is kept in {run.file}; the same command goes on"
    )
    with interruptible(left), progress_bar("asking") as progress:
        records = run(progress)
    command = shlex.join(["remanence", "eval", *words, "--columns", columns, "--model", model or engine.name])
    report = Report.of(run.evaluation, records, about(engine), run_stamp(command, engine.device))
    out.print(report.table(), markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")


@app.command(
    epilog=examples(
        "remanence eval squad --data dev-v1.1.json",
        "remanence eval squad --data dev-v1.1.json --memories 1,4 --count 300 --resume runs/squad --json squad.json",
        "remanence eval squad --data dev-v1.1.json --memories +0,+10,+100,+1000 --columns slots",
        "remanence eval squad --data nq-open-oracle.jsonl --memories untold,+0 --count 200 --columns slots",
    )
)
def squad(
    data: Annotated[Path, typer.Option(help="A SQuAD v1.1 file, or Natural Questions with the passages that answer.")],
    memories: Annotated[
        str,
        typer.Option(
            help="What the memory holds: 1 (the passage), 4 (and three others, read together), +0 (the 200 passages "
            "that are asked about), +1000 (and as many others, written after them), all, untold (not the passage)."
        ),
    ] = "1,4,+0,all,untold",
    count: Annotated[int, typer.Option(min=1, help="Questions, the same for each memory.")] = 100,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other passages and questions.")] = 0,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Questions about passages that were told: one alone, among others, with writes after it, or not at all.

    Asked are the questions whose shortest answer has at most 4 tokens. A hit is an answer of 12 tokens in which a right
    one stands. Of Natural Questions, the second half of the file is used. Figures stand with the interval that holds
    95 %, and beside the difference to the passage as text, question by question.
    """
    require_input(data)
    from remanence.evaluation.squad import evaluation

    words = ["squad", "--data", str(data), "--memories", memories, "--count", str(count), "--seed", str(seed)]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(evaluation, path=data, memories=memories, count=count, seed=seed, folder=resume),
    )


@app.command(
    epilog=examples(
        "remanence eval locomo --data locomo/30.json --count 20",
        "remanence eval locomo --data locomo --columns bm25_4,slots --resume runs/locomo --json locomo.json",
    )
)
def locomo(
    data: Annotated[Path, typer.Option(help="A file of LoCoMo, or a folder of them.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions in all. Default: every one.")] = None,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other questions first.")] = 0,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Very long conversations, told turn by turn: evidence found, F1 of answers as published, by kind of question.

    recall 5 is the share of the turns that hold the answer among the five best. Questions about what was never told
    are right where the memory says so.
    """
    if not data.exists():
        raise FileNotFoundError(f"there is nothing at {data}")
    from remanence.evaluation.locomo import of_path

    words = ["locomo", "--data", str(data), *([] if count is None else ["--count", str(count)]), "--seed", str(seed)]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(of_path, path=data, count=count, seed=seed, folder=resume),
    )


@app.command(
    epilog=examples(
        "remanence eval longmemeval --data longmemeval_oracle.json --count 20",
        "remanence eval longmemeval --data longmemeval_s.json --columns slots --resume runs/longmemeval",
    )
)
def longmemeval(
    data: Annotated[Path, typer.Option(help="A file of LongMemEval.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions, the first ones. Default: every one.")] = None,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Questions about chats with an assistant, each with a history of its own: evidence found, hits and F1.

    The published score is a large model's judgement. With --resume, what was said is kept for one, by question.
    """
    require_input(data)
    from remanence.evaluation.longmemeval import of_path

    words = ["longmemeval", "--data", str(data), *([] if count is None else ["--count", str(count)])]
    measure(model, columns, json_file, resume, words, partial(of_path, path=data, count=count))


@app.command(
    epilog=examples(
        "remanence eval harm",
        "remanence eval harm --data wikitext2/test.txt --count 100 --resume runs/harm --json harm.json",
        "remanence eval harm --data wikitext2/test.txt --told dev-v1.1.json",
    )
)
def harm(
    data: Annotated[
        Path | None, typer.Option(help="UTF-8 text that has nothing to do with what is told. Default: bundled novels.")
    ] = None,
    told: Annotated[
        Path | None, typer.Option(help="Passages to tell: a SQuAD v1.1 or Natural Questions file. Default: novels.")
    ] = None,
    unrelated: Annotated[int, typer.Option(min=1, help="Passages that are told.")] = 200,
    count: Annotated[int, typer.Option(min=1, help="Windows of the text, and prompts, of which there are 50.")] = 100,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Whether a memory of something else changes what the model says: perplexity of a text, answers to 50 prompts.

    The first 128 tokens of a window are what the memory is asked with, and are not scored.
    """
    for file in (data, told):
        if file is not None:
            require_input(file)
    from remanence.evaluation.harm import evaluation
    from remanence.evaluation.passages import read_passages
    from remanence.evaluation.perplexity import bundled_text
    from remanence.texts import read_text

    text = bundled_text() if data is None else read_text(data)
    passages = None if told is None else [passage.text for passage in read_passages(told)]
    words = ["harm", *([] if data is None else ["--data", str(data)]), *([] if told is None else ["--told", str(told)])]
    words += ["--unrelated", str(unrelated), "--count", str(count)]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(evaluation, text=text, told=passages, unrelated=unrelated, count=count, folder=resume),
        texts="nothing",
    )


@app.command(
    epilog=examples(
        "remanence eval multihop --data hotpot_dev_distractor_v1.json --count 100",
        "remanence eval multihop --data musique.json --columns bm25_4,slots --resume runs/musique --json musique.json",
    )
)
def multihop(
    data: Annotated[Path, typer.Option(help="A file of HotpotQA or MuSiQue, a JSON list.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions, the first ones. Default: every one.")] = None,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Questions whose answer takes several paragraphs, which stand among those of all other questions of the file.

    recall 5 is the share of these paragraphs among the five best.
    """
    require_input(data)
    from remanence.evaluation.multihop import of_path

    words = ["multihop", "--data", str(data), *([] if count is None else ["--count", str(count)])]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(of_path, path=data, count=count, folder=resume),
    )


@app.command(
    epilog=examples(
        "remanence eval babi --data qa1_single-supporting-fact_test.txt --lengths 4k,16k",
        "remanence eval babi --data qa1_test.txt --novels novels --lengths 4k,128k --resume runs/babi --json babi.json",
    )
)
def babi(
    data: Annotated[Path, typer.Option(help="A bAbI file.")],
    novels: Annotated[
        Path | None, typer.Option(help="A text, or a folder of .txt files, to tell the facts among. Default: bundled.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Of what is told before the facts, in tokens.")] = "4k,16k",
    count: Annotated[int, typer.Option(min=1, help="Stories, the same at each length.")] = 100,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, other stories and paragraphs.")] = 0,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """bAbI's facts among paragraphs of novels: the same questions in memories of some thousand tokens and of many."""
    require_input(data)
    if novels is not None and not novels.exists():
        raise FileNotFoundError(f"there is nothing at {novels}")
    from remanence.evaluation.babi import evaluation
    from remanence.evaluation.documents import parse_lengths

    tokens = parse_lengths(lengths)
    words = ["babi", "--data", str(data), *([] if novels is None else ["--novels", str(novels)]), "--lengths", lengths]
    words += ["--count", str(count), "--seed", str(seed)]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(evaluation, path=data, lengths=tokens, novels=novels, count=count, seed=seed, folder=resume),
    )


@app.command(
    epilog=examples(
        "remanence eval edits --data counterfact.json --counts 1,10,100",
        "remanence eval edits --data zsre.json --columns nothing,fits,slots,ft --resume runs/zsre --json zsre.json",
    )
)
def edits(
    data: Annotated[Path, typer.Option(help="CounterFact or zsRE edits, JSON.")],
    counts: Annotated[str, typer.Option(help="Edits to make one after another before asking.")] = "1,10,100",
    count: Annotated[int, typer.Option(min=1, help="Edits asked about, for each such number.")] = 100,
    columns: Annotated[
        str | None,
        typer.Option(
            help="How edits are made: nothing (not), fits (as text, all that fit), bm25_4 (the best as text), "
            "slots, slots+reader+retriever (told), ft, ft_all, ft_l (fine-tuning). Default: all but the fine-tuning."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate of the fine-tuning.")] = 5e-4,
    bound: Annotated[float, typer.Option(min=0, help="How far ft_l may move a weight in an edit.")] = 1e-4,
    model: ModelOption = None,
    resume: ResumeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Facts that change, told one after another: efficacy, paraphrase, specificity, and the harmonic mean of these."""
    require_input(data)
    if not all(number.strip().isdecimal() for number in counts.split(",")):
        raise InvalidInputError(f"--counts takes numbers with commas between, such as 1,10,100; got {counts}")
    from remanence.evaluation.edits import evaluation, methods_of

    numbers = [int(number) for number in counts.split(",")]
    words = ["edits", "--data", str(data), "--counts", counts, "--count", str(count)]
    words += ["--rate", str(rate), "--bound", str(bound)]
    measure(
        model,
        columns,
        json_file,
        resume,
        words,
        partial(evaluation, path=data, counts=numbers, asked=count, rate=rate, bound=bound),
        methods_of,
        texts="nothing,fits,bm25_4",
    )
