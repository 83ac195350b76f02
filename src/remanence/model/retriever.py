"""The retriever: per layer, one projector for what a prompt asks and one for what a slot holds (M+, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.memory.agreement import Agreement
from remanence.memory.longterm import LongTerm, Retrieved
from remanence.memory.pool import Pool
from remanence.model.backbone import Backbone


def _projector(hidden_size: int, size: int, depth: int) -> nn.Module:
    if depth == 1:
        return nn.Linear(hidden_size, size, bias=False)
    return nn.Sequential(nn.Linear(hidden_size, 2 * size, bias=False), nn.SiLU(), nn.Linear(2 * size, size, bias=False))


class Retriever(nn.Module):
    """f_q and f_k of every layer, over what the layer's attention sees: hidden states behind the input norm.

    Attributes:
        query, key: a projector `[..., d] -> [..., size]` for each layer, of one linear layer or two with SiLU between.
    """

    def __init__(self, layers: int, hidden_size: int, size: int, depth: int = 2) -> None:
        super().__init__()
        self.size, self.depth = size, depth
        self.query = nn.ModuleList(_projector(hidden_size, size, depth) for _ in range(layers))
        self.key = nn.ModuleList(_projector(hidden_size, size, depth) for _ in range(layers))

    def keys(self, backbone: Backbone, hidden: Tensor) -> Tensor:  # [B, L, q, d] -> [B, L, q, size]
        """Retrieval keys of slots in hidden form."""
        keys = [key(backbone.normed(layer, hidden[:, layer])) for layer, key in enumerate(self.key)]
        return torch.stack(keys, dim=1)


def new_retriever(hf: PreTrainedModel, size: int | None = None, depth: int = 2) -> Retriever:
    """An untrained one for this decoder; `size` None: 256, or a sixteenth of d where that is more (M+, appendix E)."""
    config, like = hf.config, hf.get_input_embeddings().weight
    made = Retriever(config.num_hidden_layers, config.hidden_size, size or max(256, config.hidden_size // 16), depth)
    return made.to(dtype=like.dtype, device=like.device)


class Retrieval:
    """What one read retrieves, layer by layer, as the layers run.

    Attributes:
        sizes: slots that each row retrieves in every layer.
        found: per layer passed so far, what each row read; None for a row without long-term memory.
    """

    def __init__(
        self,
        retriever: Retriever,
        longterms: Sequence[LongTerm | None],
        pools: Sequence[Pool | None],
        slots_per_write: int,
        every: int | None = None,
    ) -> None:
        self.retriever, self.longterms, self.every = retriever, list(longterms), every
        self._pools, self._k = list(pools), slots_per_write
        self._agreed: list[Agreement | None] = []
        self.sizes = [0 if longterm is None else longterm.readable for longterm in self.longterms]
        self.found: list[list[Retrieved | None]] = []
        self._since: list[list[Tensor]] = [[] for _ in retriever.query]

    def observe(self, layer: int, normed: Tensor, mask: Tensor | None) -> bool:  # [rows, T, d], [B, T]
        """Retrieve at the prompt, and again whenever `every` tokens more have passed; says whether it did.

        Rows of one memory (beams) retrieve together.
        """
        asked = layer >= len(self.found)
        if not asked and self.every is None:
            return False
        queries: Tensor = self.retriever.query[layer](normed).unflatten(0, (len(self.longterms), -1))
        if not asked and self.every is not None:
            since = self._since[layer]
            since.append(queries)
            if sum(part.shape[2] for part in since) < self.every:
                return False
            queries, mask = torch.cat(since, dim=2), None
            since.clear()
        if not layer:
            self._agreed = [None if one is None else one.rules.agreeing(self._k) for one in self.longterms]
        found = []
        for row, (longterm, size) in enumerate(zip(self.longterms, self.sizes, strict=True)):
            rows = queries[row, :1] if asked else queries[row]  # the rows of one memory start from one prompt
            kept = rows if mask is None or not bool(mask[row].any()) else rows[:, mask[row]]
            asking, agreed, pool = kept.flatten(0, 1), self._agreed[row] if layer else None, self._pools[row]
            found.append(None if longterm is None else longterm.retrieve(layer, asking, size, agreed, pool))
        self.found[layer : layer + 1] = [found]
        return True


def install_retrieval(backbone: Backbone) -> None:
    """Let every attention show what it sees to the cache of the call that runs through it, if that retrieves.

    Two `MemoryModel`s may share a decoder; its layers report once.
    """
    if getattr(backbone.decoder, "reports_reads", False):
        return
    backbone.decoder.reports_reads = True
    for index, layer in enumerate(backbone.layers):

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            cache = kwargs.get(backbone.family.cache)
            retrieving = getattr(cache, "retrieving", None)
            if retrieving is not None:
                retrieving(index, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        getattr(layer, backbone.family.attention).register_forward_pre_hook(before, with_kwargs=True)
