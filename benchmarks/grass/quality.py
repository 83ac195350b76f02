r"""Loss at equal tokens: AdamW, GaLore, APOLLO, LoRA and Grass, each at its own best learning rate.

    pip install galore-torch apollo-torch bitsandbytes
    python benchmarks/run.py grass_quality --text PATH... --output runs/quality

The same random Llama (d 256, 4 layers), real text, tokens and schedule for all. Runs that are finished are kept in
--output (search.py), where several commands can share the work, each with other --methods; `--minutes 0` makes figures
of what is there.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from grass.corpus import corpus
from grass.methods import METHODS
from grass.search import Cell, First, figures_of, sweep
from grass.training import Setup, train
from tables import Figures

SETUP = Setup(4, 256, 688, 4, rank=64, gap=25, steps=250, batch=8, length=128)
FIRST = {
    "adamw": 2,
    "lora": 2,
    "adamw-scale0.03125": 6,
    "galore-scale0.0625": 6,
    "grass-subspace-scale0.0625": 5,
    "grass-multinomial_norm-keep-scale0.03125": 6,
}
ABOUT = (
    "A random Llama, d {size:,}, {layers} layers, trained from scratch on {tokens:,} tokens of real text, {steps} "
    "steps, the same for all; rank {rank}, a refresh every {gap} steps. Learning rates were chosen on validation, from "
    "powers of two; means over {seeds} seeds with one standard error, on documents of which no other part has any."
)


@dataclass(frozen=True)
class Settings:
    output: Path = field(metadata={"help": "folder of finished runs, and of the tokens"})
    text: list[Path] = field(
        default_factory=list, metadata={"help": "WikiExtractor or .jsonl files, or folders; none once there are tokens"}
    )
    steps: int | None = field(default=None, metadata={"help": "of each run, in the place of what is usual here"})
    seeds: int = 3
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    minutes: float = field(default=math.inf, metadata={"help": "begin no run later than this"})
    threads: int = 1


def measure(on: Settings, setup: Setup = SETUP) -> Figures:
    """
    Raises:
        ValueError: the runs in the folder are of another setup.
    """
    return swept(on, setup, run, FIRST, ABOUT)


def swept(on: Settings, setup: Setup, run_one: Callable[..., Figures], first: First, about: str) -> Figures:
    """Figures of all methods: what the text `about` says stands under them, and each run is `run_one`."""
    setup = replace(setup, steps=on.steps or setup.steps, threads=on.threads)
    same_setup(setup, on.output)
    corpus(on.output / "tokens.pt", on.text, setup.tokens, setup.held_out, setup.tokenizer)
    one = partial(run_one, setup=setup, folder=on.output)
    cells = sweep(on.methods, on.seeds, one, on.output, first, on.minutes)
    own = {} if setup.rest is None else {"rest_lr": setup.rest}
    known = {**asdict(setup), "tokens": setup.tokens, "seeds": on.seeds, **own}
    return {**figures_of(cells, setup.methods, on.seeds, known), "note": about.format(**known)}


def run(cell: Cell, setup: Setup, folder: Path) -> Figures:
    text = corpus(folder / "tokens.pt", [], setup.tokens, setup.held_out)
    return train(setup, cell.method, cell.lr, cell.seed, text)


def same_setup(setup: Setup, folder: Path) -> None:
    """Note the setup in the folder.

    Raises:
        ValueError: its runs are of another one.
    """
    file, mine = folder / "setup.json", json.loads(json.dumps(asdict(setup)))
    folder.mkdir(parents=True, exist_ok=True)
    if file.is_file() and (there := json.loads(file.read_text())) != mine:
        raise ValueError(f"the runs in {folder} are of another setup, {there}; name another --output")
    file.write_text(json.dumps(mine))
