"""Memory for Llama-3.1-8B, in the three stages of M+: short documents, long ones, long-term memory.

    remanence train llama_3_1_8b --output runs/llama -- long=path/to/long

`long` names a folder with one file or folder of documents for each range of lengths. Short documents are streamed from
fineweb-edu, or read from what `data` names. Any other decoder is trained likewise: `base=PATH_OR_HUB_ID`. Several GPUs:

    torchrun --nproc-per-node 8 -m remanence train llama_3_1_8b -- long=path/to/long shard=true

where `shard` has them hold a part each of weights, gradients and optimizer state, which are whole in each otherwise.

The settings are the published ones (arXiv 2502.00592, and its code), where they are known. Ours are the steps of the
third stage; the share of revisits, which is what the coin of MemoryLLM's algorithm 1 comes to; and how distances are
drawn around their published mean. It has been run on small models only.
"""

from dataclasses import replace
from pathlib import Path

from remanence.errors import InvalidInputError
from remanence.training.stages import Setup, Stage, train_stages
from remanence.training.tasks.documents import Lessons

FINEWEB = "datasets:HuggingFaceFW/fineweb-edu"
DOUBLING = ((0, 50), (100_000, 100), (200_000, 200))

STAGES = (
    Stage(
        "1-short",
        Lessons(tokens=2048, fewest=16, full=0.8, repeat=0.1, distance=60, contexts=DOUBLING),
        steps=1_200_000,
        lr=4.6e-5,
        falling=100_000,
        short=f"{FINEWEB}:CC-MAIN-2024-10",
    ),
    # One epoch of 200,000 documents of each kind, with eight processes.
    Stage(
        "2-long",
        Lessons(tokens=65_536, fewest=384, full=0.9, repeat=0.05, distance=60, contexts=DOUBLING),
        steps=125_000,
        lr=4.6e-6,
        short=f"{FINEWEB}:CC-MAIN-2024-10",
        weights=(1, 1),
    ),
    Stage(
        "3-longterm",
        Lessons(tokens=65_536, fewest=384, full=0.8, repeat=0.05, distance=200, contexts=((0, 100), (20_000, 200))),
        steps=40_000,
        lr=4.6e-6,
        short=f"{FINEWEB}:CC-MAIN-2023-50",
        first=720_000,
        weights=(36, 1),
        first_long=200_000,
        retrieved=2560,
    ),
)


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    base: str = "meta-llama/Llama-3.1-8B",
    data: str = "",
    long: str = "",
    steps: list[int] | None = None,
    tokens: int = 65_536,
    slots: int | None = None,
    slots_per_write: int | None = None,
    retrieved: int = 2560,
    chunk: int = 512,
    optimizer: str = "adamw",
    rank: int = 128,
    accumulate: int = 1,
    shard: bool = False,
    log_to: str = "none",
) -> Path | None:
    """Train all stages, or go on with the last; returns the folder with the trained model.

    `slots` and `slots_per_write`: 12,800 and 256, or those of a base with memory.
    `steps` of each stage; `tokens` of a document at most: the writes of a long one take memory. `optimizer`: adamw
    trains twin LoRA, grass every weight. `shard` as above.
    """
    if steps is not None and (not isinstance(steps, list) or len(steps) != len(STAGES)):
        raise InvalidInputError(f"steps={steps} needs a number for each stage, such as steps=[{'10, ' * 2}10]")
    stages = []
    for stage, count in zip(STAGES, steps or [stage.steps for stage in STAGES], strict=True):
        lessons = replace(
            stage.lessons, tokens=min(tokens, stage.lessons.tokens), fewest=min(stage.lessons.fewest, chunk // 2)
        )
        stages.append(replace(stage, lessons=lessons, steps=count, retrieved=min(retrieved, stage.retrieved)))
    setup = Setup(
        recipe="llama_3_1_8b",
        base=base,
        data=data,
        long=long,
        slots=slots,
        slots_per_write=slots_per_write,
        chunk=chunk,
        optimizer=optimizer,
        rank=rank,
        accumulate=accumulate,
        shard=shard,
        log_to=log_to,
    )
    return train_stages(stages, setup, output, resume=resume, minutes=minutes)
