"""The bundled checkpoint: a tiny Qwen3 that writes short biographies into memory and answers questions about them.

    REMANENCE_PROSE=path/to/text remanence train tiny --output runs/tiny
    REMANENCE_PROSE=path/to/text remanence train tiny --output runs/open -- start=runs/tiny/model

The first run learns to recall names and values of lists, the second any others too. REMANENCE_PROSE names a folder with
English text, searched for `*.txt` (stories, one paragraph per line) and for `wiki_*` (Wikipedia, as WikiExtractor
writes it).
"""

import glob
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from remanence import MemoryModel
from remanence.data.biographies import ATTRIBUTES, biography, question, sample_person, vocabulary
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.model_card import finish
from remanence.training.optimizer import MuonAdamW, make_optimizer, split_parameters
from remanence.training.recipes import training_arguments
from remanence.training.tasks.recall import Difficulty, Kind, RecallTask
from remanence.training.trainer import MemoryTrainer, stopping_after

SLOTS, SLOTS_PER_WRITE = 512, 32
VOCABULARY = 5120
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
SEED = 0


@dataclass(frozen=True)
class Level:
    """One level of the curriculum.

    Attributes:
        pairs: how often name-value pairs stand in for biographies; context: how often text stands in for memory.
        shared: all biographies of a batch have the same attributes, so that every question must be answered by name.
        scale: of the batch.
    """

    difficulty: Difficulty
    pairs: float
    context: float
    shared: bool = True
    scale: float = 1.0
    pair_counts: tuple[int, int] = (2, 5)


FEW = ATTRIBUTES[:3]

# First what kind of word answers a question; then to look it up by name, for few names, then for all; then more
# attributes, over ever more chunks, up to a full pool with prose in it; then pronouns and other lengths.
LEVELS = (
    Level(Difficulty(1, (2, 3), FEW), pairs=0.0, context=0.3, shared=False, scale=0.5),
    Level(Difficulty(2, (3, 3), FEW, names=16), pairs=0.6, context=0.4, scale=0.5, pair_counts=(2, 2)),
    Level(Difficulty(2, (3, 3), FEW, names=32), pairs=0.4, context=0.3, scale=0.5, pair_counts=(2, 3)),
    Level(Difficulty(2, (3, 3), FEW, names=64), pairs=0.35, context=0.2, scale=0.5, pair_counts=(2, 4)),
    Level(Difficulty(2, (3, 3), FEW), pairs=0.35, context=0.2, scale=0.5),
    Level(Difficulty(2, (3, 3)), pairs=0.3, context=0.2, scale=0.5),
    Level(Difficulty(4, (3, 3)), pairs=0.25, context=0.2),
    Level(Difficulty(8, (3, 3)), pairs=0.2, context=0.2),
    Level(Difficulty(0, (3, 3), pronouns=0.25), pairs=0.1, context=0.15, shared=False),
    Level(Difficulty(0, (2, 4), pronouns=0.5), pairs=0.05, context=0.15, shared=False),
)
# What stands on no list has several tokens, which must be read one by one; the same way again, then.
OPEN = (
    Level(Difficulty(1, (2, 3), open_share=0.5), pairs=0.3, context=0.3, scale=0.5),
    Level(Difficulty(2, (3, 3), open_share=0.5), pairs=0.3, context=0.2, scale=0.5),
    Level(Difficulty(4, (3, 3), open_share=0.5), pairs=0.25, context=0.2),
    Level(Difficulty(0, (3, 3), pronouns=0.25, open_share=0.5), pairs=0.1, context=0.15, shared=False),
    Level(Difficulty(0, (2, 4), pronouns=0.5, open_share=0.5), pairs=0.05, context=0.15, shared=False),
)
OPEN_THRESHOLDS = (0.8, 0.8, 0.8, 0.75)
LANGUAGE_FROM = 5  # from this level on some texts stand behind a pool that is of no use to them
THRESHOLDS = (0.85, 0.82, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.75)


def build_batch(task: RecallTask, step: int, number: int, levels: Sequence[Level] = LEVELS) -> Batch:
    rng = random.Random(f"{SEED}/{step}/{number}")
    drawn = rng.random()
    if drawn < 0.1:
        return {"batch": task.language(rng), "task": "language"}
    if drawn < 0.2 and (number >= LANGUAGE_FROM or levels is OPEN):
        return {"batch": task.language_behind_memory(rng, levels[-1].difficulty), "task": "language_memory"}
    return recall_batch(task, rng, levels[number])


def recall_batch(task: RecallTask, rng: random.Random, level: Level) -> Batch:
    """Questions about pairs or biographies, through memory or in context."""
    difficulty = level.difficulty
    kind: Kind = "pairs" if rng.random() < level.pairs else "biographies"
    context = rng.random() < level.context
    if kind != "biographies":
        difficulty = replace(difficulty, facts=level.pair_counts, kind=kind)
    elif level.shared:
        difficulty = replace(difficulty, attributes=tuple(rng.sample(difficulty.attributes, 3)))
    build = task.in_context if context else task.through_memory
    name = ("context" if context else "memory") + ("" if kind == "biographies" else f"_{kind}")
    return {"batch": build(rng, difficulty, level.scale), "task": name}


def text_files(folder: Path, pattern: str) -> list[Path]:
    """In the folder and all below, links included."""
    return sorted(Path(name) for name in glob.glob(f"{glob.escape(str(folder))}/**/{pattern}", recursive=True))


def prose(folder: Path) -> list[str]:
    """Paragraphs of 150 to 400 characters, up to 12,000 from each kind of file."""
    kinds = {"wiki_*": 12_000, "*.txt": 12_000}
    found: list[str] = []
    for pattern, most in kinds.items():
        lines: list[str] = []
        for file in text_files(folder, pattern)[:60]:
            text = file.read_text(errors="ignore")
            lines += [line.strip() for line in text.splitlines() if len(line) > 150 and not line.startswith("<")]
        random.Random(SEED).shuffle(lines)
        found += [line[:400].rsplit(" ", 1)[0] for line in lines[:most]]
    if not found:
        raise FileNotFoundError(
            f"no English text in {folder}; set REMANENCE_PROSE to a folder with wiki_* or *.txt files"
        )
    return found


def build_tokenizer(paragraphs: list[str], size: int = VOCABULARY, most: int = 4_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of so many tokens, in which every name and value is one, wherever it stands.

    Args:
        most: paragraphs that it is trained on, besides biographies.
    """
    rng = random.Random(SEED)
    texts = []
    for _ in range(20_000):
        person, attribute = sample_person(rng, "train"), rng.choice(ATTRIBUTES)
        texts += [biography(person, rng), f"{question(person, attribute, rng)} {person.facts[attribute]}"]
    rng.shuffle(paragraphs)
    texts += paragraphs[:most] + [" ".join(vocabulary())] * 1_300
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build_model(
    tokenizer: PreTrainedTokenizerFast, shape: dict[str, int] = SHAPE, slots: int = SLOTS, k: int = SLOTS_PER_WRITE
) -> MemoryModel:
    config = Qwen3Config(
        **shape,
        vocab_size=len(tokenizer),
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = MemoryModel.attach(Qwen3ForCausalLM(config), tokenizer, slots=slots, slots_per_write=k)
    with torch.no_grad():
        _initialise(model)
    return model


def _initialise(model: MemoryModel) -> None:
    """Wider than the library's default: attention must be able to pick single slots from the start."""
    hf: Any = model.hf
    layers: Any = model.backbone.layers
    size, depth = hf.config.hidden_size, len(layers)
    hf.get_input_embeddings().weight.normal_(std=0.5)
    hf.model.norm.weight.fill_(0.3 * 128 / size)  # so that tied weights echo a token alike at all sizes
    for learned, std in ((model.bos_embedding, 0.5), (model.new_memory_positional_emb, 0.1)):
        assert learned is not None
        learned.normal_(std=std)
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.normal_(std=size**-0.5)
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.normal_(std=(2 * depth * linear.in_features) ** -0.5)
        attention.q_norm.weight.fill_(0.9)
        attention.k_norm.weight.fill_(1.5)


def ship_pool(model: MemoryModel, paragraphs: list[str]) -> None:
    """Let new memories start with a full pool of unrelated writes, as the model was trained to read, not with copies of
    whatever is written first."""
    rng = random.Random(SEED)
    model.config = model.config.replace(keep_hidden=True)
    model.optimize_for_cpu()
    memory = model.new_memory(seed=SEED)
    for _ in range(2 * model.slots // model.slots_per_write):
        model.write(memory, biography(sample_person(rng, "train"), rng, rng.sample(ATTRIBUTES, 3)))
        model.write(memory, rng.choice(paragraphs))
    model.shipped_pool = memory.pool.slots()


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    optimizer: str = "default",
    log_to: str = "none",
    start: str | None = None,
) -> Path:
    """Train from scratch, or go on from the last checkpoint in `output`; returns the folder with the trained model.

    Args:
        steps: None: 4,500, or 8,000 from a start.
        start: a checkpoint that recalls names and values of lists, to learn any others too.
    """
    steps = steps or (4500 if start is None else 8000)
    set_seed(SEED)
    if torch.get_num_threads() > 2 and not torch.cuda.is_available():
        torch.set_num_threads(2)
    folder = Path(os.environ.get("REMANENCE_PROSE", "data"))
    paragraphs = prose(folder)
    final = output / "model"
    tokenizer_file = output / "tokenizer"
    levels, thresholds = (LEVELS, THRESHOLDS) if start is None else (OPEN, OPEN_THRESHOLDS)
    if resume and tokenizer_file.is_dir() != (start is None):
        raise ValueError(f"{output} holds a run that began otherwise; resume it with the same start=, or without")
    begun = None if start is None else MemoryModel.from_pretrained(start)
    if begun is not None:
        tokenizer: Any = begun.tokenizer
    elif resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_file)
    else:
        tokenizer = build_tokenizer(list(paragraphs))
        tokenizer.save_pretrained(tokenizer_file)
    ids = tokenizer(paragraphs, add_special_tokens=False)["input_ids"]
    task = RecallTask(
        tokenizer, [i for i in ids if len(i) >= SLOTS_PER_WRITE], slots=SLOTS, slots_per_write=SLOTS_PER_WRITE
    )
    model = build_model(tokenizer) if begun is None else begun.train()
    model.hf.set_attn_implementation("sdpa_float32")
    rate = 0.01 if start is None else 0.007
    matrices, others = split_parameters(model, model.backbone.layers)

    def muon() -> MuonAdamW:
        return MuonAdamW(matrices, others, muon_lr=rate, adamw_lr=0.4 * rate)

    trainer = MemoryTrainer(
        model,
        through="all",
        args=training_arguments(output, steps=steps, warmup=50, decay=steps // 5, save_steps=500, log_to=log_to),
        curriculum=Curriculum(
            lambda step, level: build_batch(task, step, level, levels),
            levels=len(levels),
            steps=steps,
            threshold=thresholds,
        ),
        optimizers=(make_optimizer(optimizer, model, lr=0.004, rank=32, default=muon), None),
        callbacks=stopping_after(minutes),
    )
    trainer.run(resume=resume)
    model.hf.set_attn_implementation("sdpa")
    ship_pool(model.eval(), paragraphs)
    finish(trainer, final, recipe="tiny", base=start or "", data=[f"prose in {folder}", "generated biographies"])
    return final
