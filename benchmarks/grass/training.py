"""One run: a random Llama trained from scratch by one method, and the loss it ends at."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from grass.corpus import Corpus, tokenizer_of_tiny
from grass.methods import METHODS, Maker, Projecting, gradient_bytes, state_bytes
from remanence.kernels.onednn import use_onednn
from shapes import llama
from tables import Figures
from timing import now

WARM_UP = 0.1  # of the steps; then the learning rate falls along a cosine to a tenth


@dataclass(frozen=True)
class Setup:
    """What is the same for all methods.

    Attributes:
        methods: by name; rest: the learning rate of embeddings and norms, where it is not that of all.
    """

    methods: ClassVar[dict[str, Maker]] = METHODS
    rest: ClassVar[float | None] = None
    layers: int
    size: int
    intermediate: int
    heads: int
    rank: int
    gap: int
    steps: int
    batch: int
    length: int
    held_out: int = 32_768  # tokens of validation, and of test
    threads: int = 1
    device: str = "cpu"
    autocast: str | None = None  # a dtype; weights are float32 in any case

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.length

    def model(self, vocabulary: int, seed: int) -> Any:
        torch.manual_seed(seed)
        config = llama(vocabulary, self.size, self.intermediate, self.layers, self.heads, self.heads, self.length)
        return LlamaForCausalLM(config).to(self.device)

    def tokenizer(self) -> Any:
        return tokenizer_of_tiny()

    def factor(self, step: int) -> float:
        """On the learning rate."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, self.steps - warm))

    def loss(self, model: Any, ids: Tensor) -> Tensor:
        ids = ids.to(self.device, torch.long)
        dtype = None if self.autocast is None else getattr(torch, self.autocast)
        with torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None):
            out: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return out


def rows(tokens: Tensor, length: int) -> Tensor:  # [n] -> [rows, length]
    return tokens[: len(tokens) // length * length].view(-1, length)


@torch.no_grad()
def mean_loss(setup: Setup, model: Any, tokens: Tensor) -> float:
    model.eval()
    batches = rows(tokens, setup.length).split(setup.batch)
    return sum(float(setup.loss(model, ids)) * len(ids) for ids in batches) / sum(len(ids) for ids in batches)


def train(setup: Setup, method: str, lr: float, seed: int, corpus: Corpus) -> Figures:
    """Losses, bytes and time of a run. The seed is that of the weights and of the text, none of which is seen twice.

    A run whose loss is not finite ends there, and has None for losses.
    """
    if setup.device == "cpu":
        torch.set_num_threads(setup.threads)
    model = setup.model(corpus.vocabulary, seed)
    optimizer = setup.methods[method](model, Projecting(setup.rank, setup.gap, seed, setup.rest), lr)
    if setup.device == "cpu":
        use_onednn(model)  # the same products for all, as those of layers that Grass projects
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, setup.factor)
    text = rows(corpus.train, setup.length)
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))
    model.train()
    start, curve, gradients = now(), [], 0
    for step in range(setup.steps):
        loss = setup.loss(model, text[order[step * setup.batch : (step + 1) * setup.batch]])
        if step % max(1, setup.steps // 20) == 0:
            curve.append([step, round(loss.item(), 4)])
        loss.backward()
        gradients = gradient_bytes(model)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if not math.isfinite(curve[-1][1]):
            break
    seconds = (now() - start) / (step + 1)
    held_out = {name: mean_loss(setup, model, getattr(corpus, name)) for name in ("validation", "test")}
    return {
        **{name: round(loss, 5) if math.isfinite(loss) else None for name, loss in held_out.items()},
        "training": [[at, loss if math.isfinite(loss) else None] for at, loss in curve],
        "seconds_per_step": round(seconds, 4),
        "gradient_bytes": gradients,
        "state_bytes": state_bytes(optimizer),
    }
