"""A Qwen3 of 36 million parameters that reads novels, Wikipedia and short biographies, trained from scratch on one GPU.

    export REMANENCE_PROSE=path/to/text
    remanence train small --output runs/small -- steps=0     # tokenizer and tokens only; needs no GPU
    remanence train small --output runs/small --minutes 8 --resume     # again, until it says "trained"

REMANENCE_PROSE names a folder as for the recipe `tiny`; each kind of file gives half of the tokens. Novels from which
the bundled paragraphs were taken are left out, as evaluations write and read those. Once the output folder has
`text.safetensors`, no text is needed. `-- scale=0.05` makes batches so much smaller, to try the recipe on a CPU.
"""

import os
import random
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, set_seed

from remanence import MemoryModel
from remanence.data.prose import paragraphs
from remanence.recipes import tiny
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.model_card import LOG, finish
from remanence.training.optimizer import MuonAdamW, make_optimizer, split_parameters
from remanence.training.recipes import training_arguments
from remanence.training.tasks.language_modeling import TextTask
from remanence.training.tasks.recall import Difficulty, RecallTask
from remanence.training.trainer import MemoryTrainer, stopping_after, write_log

SEED = 0
SLOTS, SLOTS_PER_WRITE = 1024, 32
VOCABULARY = 16_384
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
TOKENIZER_PARAGRAPHS = 20_000
READ = 24_576  # tokens of text in a batch
CHUNKS, ROWS, QUESTIONS = 128, 64, 512
TEXT_WEIGHT = 0.4
LANGUAGE_FROM = 3  # from this level on text is read behind memories, too

# The curriculum of the bundled checkpoint, with one level more on the way to a pool twice as large.
LEVELS = (*tiny.LEVELS[:8], tiny.Level(Difficulty(16, (3, 3)), pairs=0.15, context=0.2), *tiny.LEVELS[8:])
THRESHOLDS = (*tiny.THRESHOLDS[:8], 0.84, *tiny.THRESHOLDS[8:])


def build_batch(recall: RecallTask, text: TextTask, step: int, number: int) -> Batch:
    rng = random.Random(f"{SEED}/{step}/{number}")
    drawn = rng.random()
    if drawn < 0.3 and (drawn < 0.15 or number < LANGUAGE_FROM):
        return {"batch": text.alone(rng), "task": "language"}
    if drawn < 0.25:
        return {"batch": text.behind_memory(rng, related=True), "task": "language_related"}
    if drawn < 0.3:
        return {"batch": text.behind_memory(rng, related=False), "task": "language_unrelated"}
    if drawn < 0.35 and number >= LANGUAGE_FROM:
        return {"batch": recall.language_behind_memory(rng, LEVELS[-1].difficulty), "task": "language_memory"}
    return tiny.recall_batch(recall, rng, LEVELS[number])


def documents(folder: Path, pattern: str) -> Iterator[str]:
    """Articles or novels, of files in random order, without those that bundled paragraphs were taken from."""
    known = set(paragraphs())
    files = tiny.text_files(folder, pattern)
    random.Random(SEED).shuffle(files)
    for file in files:
        content = file.read_text(encoding="utf-8-sig", errors="ignore")
        for part in re.findall(r"<doc [^>]*>\n(.*?)\n?</doc>", content, flags=re.DOTALL) or [content]:
            lines = [" ".join(line.split()) for line in part.splitlines()]
            if known.isdisjoint(line.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for line in lines):
                yield "\n".join(line for line in lines if line)


def up_to(texts: Iterator[str], characters: int) -> list[str]:
    """So many characters, and the rest of the text in which they end."""
    found: list[str] = []
    while characters > 0 and (text := next(texts, None)) is not None:
        found.append(text)
        characters -= len(text)
    return found


def prepare(output: Path, tokens: int) -> None:
    """Make the tokenizer and the tokens of the text that the output folder lacks.

    Raises:
        FileNotFoundError: there is no text in the folder that REMANENCE_PROSE names.
    """
    if (output / "text.safetensors").is_file():
        return
    folder = Path(os.environ.get("REMANENCE_PROSE", "data"))
    per_kind = tokens // 2
    kinds = [found for kind in ("wiki_*", "*.txt") if (found := up_to(documents(folder, kind), 6 * per_kind))]
    if not kinds:
        raise FileNotFoundError(
            f"no English text in {folder}; set REMANENCE_PROSE to a folder with wiki_* or *.txt files"
        )
    lines = [line for found in kinds for document in found for line in document.splitlines() if len(line) > 150]
    tokenizer = tiny.build_tokenizer(lines, VOCABULARY, TOKENIZER_PARAGRAPHS)
    ids = array("H")
    for found in kinds:
        end = len(ids) + per_kind
        for start in range(0, len(found), 4):
            for row in tokenizer(found[start : start + 4], add_special_tokens=False)["input_ids"]:
                ids.extend([*row, tokenizer.eos_token_id])
            if len(ids) > end:
                del ids[end:]
                break
    tokenizer.save_pretrained(output / "tokenizer")
    save_file({"text": torch.frombuffer(ids, dtype=torch.int16)}, output / "text.safetensors")


def text_of(output: Path) -> Sequence[int]:
    """What `prepare` made."""
    ids = array("H")
    ids.frombytes(load_file(output / "text.safetensors")["text"].numpy().tobytes())
    return ids


def build_model(tokenizer: PreTrainedTokenizerFast) -> MemoryModel:
    model: MemoryModel = tiny.build_model(tokenizer, {**SHAPE, "max_position_embeddings": 4096}, SLOTS, SLOTS_PER_WRITE)
    return model


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    steps: int = 8000,
    optimizer: str = "default",
    scale: float = 1.0,
    tokens: int = 24_000_000,
) -> Path | None:
    """Train from scratch, or go on from the last checkpoint in `output`, if there is one.

    Returns:
        The folder with the trained model; None while there are steps left to take.
    """
    set_seed(SEED)
    on_gpu = torch.cuda.is_available()
    if torch.get_num_threads() > 2 and not on_gpu:
        torch.set_num_threads(2)
    output.mkdir(parents=True, exist_ok=True)
    prepare(output, tokens)
    if steps == 0:
        return None
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(output / "tokenizer")
    text = text_of(output)
    pieces = [text[start : start + 256] for start in range(0, len(text) - 255, 256)]
    sizes: dict[str, int] = {"slots": SLOTS, "slots_per_write": SLOTS_PER_WRITE}
    chunks, rows, questions = (max(8, int(scale * full)) for full in (CHUNKS, ROWS, QUESTIONS))
    recall = RecallTask(tokenizer, pieces, chunks=chunks, rows=rows, questions=questions, **sizes)
    reading = TextTask(text, tokenizer.pad_token_id, tokens=int(scale * READ), **sizes)
    model = build_model(tokenizer)
    model.hf.set_attn_implementation("sdpa" if on_gpu else "sdpa_float32")
    matrices, others = split_parameters(model, model.backbone.layers)

    def muon() -> MuonAdamW:
        return MuonAdamW(matrices, others, muon_lr=0.01, adamw_lr=0.003)

    trainer = MemoryTrainer(
        model,
        through="all",
        text_weight=TEXT_WEIGHT,
        args=training_arguments(output, steps=steps, warmup=100, decay=steps // 4, save_steps=500, log_steps=10),
        curriculum=Curriculum(
            lambda step, level: build_batch(recall, reading, step, level),
            levels=len(LEVELS),
            steps=steps,
            threshold=THRESHOLDS,
        ),
        optimizers=(make_optimizer(optimizer, model, lr=0.002, rank=128, default=muon), None),
        callbacks=stopping_after(minutes),
    )
    done = trainer.run(resume=resume)
    write_log(trainer, output / LOG, recipe="small", steps=trainer.state.global_step)
    if not done:
        return None
    model.hf.set_attn_implementation("sdpa")
    tiny.ship_pool(model.eval(), [tokenizer.decode(piece) for piece in pieces[-200:]])
    data = ["novels and Wikipedia", "generated biographies"]
    finish(trainer, output / "model", recipe="small", base="", data=data)
    return output / "model"
