"""The retriever: per layer, one projector for what a prompt asks and one for what a slot holds (M+, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.memory.longterm import LongTerm, Retrieved
from remanence.memory.pool import Pool
from remanence.memory.scoring import CrossLayerPrior
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
        """`every`: retrieve again whenever so many tokens were generated; None: for the prompt only, as published."""
        self.retriever, self.longterms, self.every = retriever, list(longterms), every
        self._pools, self._k = list(pools), slots_per_write
        self._priors: list[CrossLayerPrior | None] = []
        self.sizes = [0 if longterm is None else longterm.readable for longterm in self.longterms]
        self.found: list[list[Retrieved | None]] = []
        self._since: list[list[Tensor]] = [[] for _ in retriever.query]

    def observe(self, layer: int, normed: Tensor, mask: Tensor | None) -> bool:  # [rows, T, d], [B, T]
        """Retrieve at the prompt, and again whenever `every` tokens more have passed; says whether it did.

        Rows of one memory (beams) retrieve together.
        """
        prompt = layer >= len(self.found)
        if not prompt and self.every is None:
            return False
        queries: Tensor = self.retriever.query[layer](normed).unflatten(0, (len(self.longterms), -1))
        if not prompt and self.every is not None:
            since = self._since[layer]
            since.append(queries)
            if sum(part.shape[2] for part in since) < self.every:
                return False
            queries, mask = torch.cat(since, dim=2), None
            since.clear()
        if not layer:
            self._priors = [self._prior(longterm) for longterm in self.longterms]
        found = []
        for row, (longterm, size) in enumerate(zip(self.longterms, self.sizes, strict=True)):
            rows = queries[row, :1] if prompt else queries[row]  # the rows of one memory start from one prompt
            kept = rows if mask is None or not bool(mask[row].any()) else rows[:, : mask.shape[1]][:, mask[row]]
            # Layer 0 has no say: there the tokens of a prompt have not seen each other yet.
            prior = self._priors[row] if layer else None
            asked = kept.flatten(0, 1)
            found.append(None if longterm is None else longterm.retrieve(layer, asked, size, prior, self._pools[row]))
        self.found[layer : layer + 1] = [found]
        return True

    def _prior(self, longterm: LongTerm | None) -> CrossLayerPrior | None:
        temperature = 0.0 if longterm is None else longterm.rules.cross_layer_prior
        return CrossLayerPrior(temperature, self._k) if temperature else None
