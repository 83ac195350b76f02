"""Long-term memory for the bundled checkpoint: twin LoRA for writing and reading, and a retriever; the rest is frozen.

    REMANENCE_PROSE=path/to/text remanence train recipes/tiny_longterm.py --output runs/tiny_longterm

REMANENCE_PROSE is what recipes/tiny.py takes. The start is the bundled checkpoint, or what `-- base=PATH` names. The
bundled result came of an earlier commit of this recipe, which its log names, and of the `tiny` of then.
"""

import os
import random
from pathlib import Path

import torch
from transformers import set_seed

from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.memory import LongTermRules
from remanence.model.adapters import LoraSettings
from remanence.training.card import write_card
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.optimizer import MuonAdamW
from remanence.training.recall import Difficulty, RecallTask
from remanence.training.recipes import load_module, training_arguments
from remanence.training.recollection import RetrieverLoss
from remanence.training.trainer import MemoryTrainer, StopAfter, write_log

SEED = 0
RETRIEVED = 128  # K0, a quarter of the pool, as published
RETRIEVAL_SIZE = 64
CAPACITY = 150_000
BANK = 0  # chunks; as many slots as a memory of some 8,000 writes has
NEAR = 16  # of them, that pools are filled with
LORA = LoraSettings(r=32, lora_alpha=64.0)
BIOGRAPHIES = Difficulty(0, (2, 4), pronouns=0.5)


def build_batch(task: RecallTask, wide: RecallTask, step: int) -> Batch:
    """Mostly questions beyond the pool; some within it and some in context, so that neither is unlearned."""
    rng = random.Random(f"{SEED}/{step}")
    drawn = rng.random()
    if drawn < 0.05:
        return {"batch": task.language(rng), "task": "language"}
    if drawn < 0.15:
        return {"batch": task.language_beyond_pool(rng, BIOGRAPHIES, near=NEAR), "task": "language_longterm"}
    if drawn < 0.19:
        return {"batch": task.in_context(rng, BIOGRAPHIES), "task": "context"}
    if drawn < 0.29:
        return {"batch": task.through_memory(rng, BIOGRAPHIES), "task": "memory"}
    return {"batch": wide.beyond_pool(rng, BIOGRAPHIES, near=NEAR), "task": "longterm"}


def build_model(base: str | Path) -> MemoryModel:
    model = MemoryModel.from_pretrained(base)
    model.shipped_pool = None
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 2)
    model.hf.get_input_embeddings().weight.requires_grad_(False)
    return model


def build_optimizer(model: MemoryModel) -> MuonAdamW:
    """Muon gets the retriever off its first plateau, where all slots score alike; LoRA under it unlearns to read."""
    assert model.retriever is not None
    layers = {id(p) for n, p in model.named_parameters() if ".lora_" not in n and not n.startswith("retriever") and p.requires_grad}
    matrices = [p for p in model.parameters() if id(p) in layers]
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in layers]
    print(len(matrices), len(others), flush=True)
    return MuonAdamW(matrices, others, muon_lr=3e-3, adamw_lr=7e-4, weight_decay=0.0, betas=(0.9, 0.99))


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    steps: int = 1150,
    base: str = "",
    log_to: str = "none",
) -> Path:
    """Train from the base, or go on from the last checkpoint in `output`; returns the folder with the trained model."""
    set_seed(SEED)
    if torch.get_num_threads() > 2 and not torch.cuda.is_available():
        torch.set_num_threads(2)
    recipe = load_module(Path(__file__).with_name("tiny.py"))
    paragraphs = recipe.prose(Path(os.environ.get("REMANENCE_PROSE", "data")))
    model = build_model(base or bundled("tiny"))
    ids = model.tokenizer(paragraphs, add_special_tokens=False)["input_ids"]
    task = RecallTask(
        model.tokenizer,
        [i for i in ids if len(i) >= model.slots_per_write],
        slots=model.slots,
        slots_per_write=model.slots_per_write,
        rows=48,
    )
    wide = RecallTask(task.tokenizer, task.prose, slots=model.slots, slots_per_write=model.slots_per_write, rows=48, chunks=160)
    model.hf.set_attn_implementation("sdpa_float32")
    trainer = MemoryTrainer(
        model,
        through="last",
        args=training_arguments(output, steps=steps, warmup=20, decay=steps - 20, save_steps=250, log_to=log_to),
        curriculum=Curriculum(lambda step, _: build_batch(task, wide, step), levels=1, steps=steps, threshold=()),
        retriever_loss=RetrieverLoss(temperature=0.02, detach=False, random_prefix=0.1, weight=0.15),
        bank=BANK,
        text_weight=0.3,
        optimizers=(build_optimizer(model), None),
        callbacks=[] if minutes is None else [StopAfter(minutes)],
    )
    trainer.train(resume_from_checkpoint=resume)
    model.hf.set_attn_implementation("sdpa")
    recipe.ship_pool(model.eval(), paragraphs)
    final = output / "model"
    model.save_pretrained(final)
    data = [f"prose in {os.environ.get('REMANENCE_PROSE', 'data')}", "generated biographies"]
    write_card(trainer, final, recipe="recipes/tiny_longterm.py", base=base or "the bundled checkpoint tiny", data=data)
    write_log(trainer, final / "training_log.json", recipe="recipes/tiny_longterm.py", steps=trainer.state.global_step)
    return final
