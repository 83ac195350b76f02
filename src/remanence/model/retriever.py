"""Retrievers: what finds slots of a learned memory's long-term part, layer by layer, and chunks of a text memory.

That of a learned memory (M+, section 3.2) has two projectors a layer: one for what a prompt asks, one for what a slot
holds. That of a text memory reads slots, so its keys can be made anew from slots wherever those are kept.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from transformers import PreTrainedModel

from remanence.errors import CheckpointError, InvalidInputError
from remanence.memory.late import Fusion, LateQuery, to_int8
from remanence.memory.longterm import LongTerm, Retrieved
from remanence.memory.pool import Pool
from remanence.memory.scoring import CrossLayerPrior

_FORMAT = "remanence-retriever-1"
_PARTS = ("query", "query_bias", "key", "key_bias", "share", "offset", "offset_bias")


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

    def keys(
        self, normed: Callable[[int, Tensor], Tensor], hidden: Tensor
    ) -> Tensor:  # [B, L, q, d] -> [B, L, q, size]
        """Retrieval keys of slots in hidden form; `normed`: what a layer's attention sees of `[B, q, d]`."""
        keys = [key(normed(layer, hidden[:, layer])) for layer, key in enumerate(self.key)]
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


class TokenRetriever(nn.Module):
    """f_q and f_k of M+ for text slots, token by token: the best pairs of a question's and a chunk's tokens count.

    Its weights are buffers that no checkpoint of the decoder holds, since they are trained apart, against frozen slots.

    Attributes:
        layers: whose slots it reads.
        size: numbers of a key.
        name: names its weights.

    Args:
        weights: with F = 2·H·D numbers for each of the layers: `query`, `key` `[size, F]`, `query_bias`, `key_bias`
            `[size]`, `share`, `offset` `[F]`, `offset_bias` `[]`.

    Raises:
        InvalidInputError: a weight is missing, of another shape, or not finite.
    """

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    share: Tensor
    offset: Tensor
    offset_bias: Tensor

    def __init__(self, layers: Sequence[int], weights: dict[str, Tensor], fusion: Fusion) -> None:
        super().__init__()
        if weights.keys() != set(_PARTS):
            raise InvalidInputError(
                f"a retriever has the weights {', '.join(_PARTS)}, not {', '.join(sorted(weights))}"
            )
        self.layers, self.fusion = tuple(layers), fusion
        self.size, features = weights["query"].shape
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key"), (self.size, features))
        shapes |= {"query_bias": (self.size,), "key_bias": (self.size,), "share": (features,), "offset": (features,)}
        for name, tensor in weights.items():
            if tuple(tensor.shape) != shapes.get(name, ()):
                raise InvalidInputError(f"{name} of a retriever has shape {list(tensor.shape)}")
            if not bool(tensor.isfinite().all()):
                raise InvalidInputError(f"{name} of a retriever is not finite")
            self.register_buffer(name, tensor.detach().float().clone(), persistent=False)

    @cached_property
    def name(self) -> str:
        held = hashlib.blake2b(repr((self.layers, self.fusion)).encode(), digest_size=12)
        for name in _PARTS:
            held.update(getattr(self, name).float().cpu().contiguous().numpy().tobytes())
        return f"late interaction 1 {held.hexdigest()}"

    def features(self, slots: Tensor) -> Tensor:  # [2, L, n, H, D] -> [n, F]
        """What it reads of slots."""
        return token_features(slots, self.layers)

    @torch.no_grad()
    def keys(self, slots: Tensor) -> Tensor:  # [2, L, n, H, D] -> [n, size], int8
        """The retrieval keys of a chunk."""
        return to_int8(normalize(linear(self.features(slots), self.key.float(), self.key_bias.float()), dim=-1))

    @torch.no_grad()
    def asked(self, features: Tensor) -> LateQuery:  # [q, F]
        """What a question asks, encoded behind the head by the stock model as a chunk is."""
        vectors = normalize(linear(features, self.query.float(), self.query_bias.float()), dim=-1)
        shares = (features @ self.share.float()).softmax(0)
        offset = float(shares @ (features @ self.offset.float() + self.offset_bias.float()))
        return LateQuery(to_int8(vectors), shares.cpu(), offset, self.fusion)

    def require(self, layers: int, slot: int) -> None:
        """Raise `InvalidInputError` where it was not trained for a decoder of so many layers, with slots so large."""
        if max(self.layers) >= layers or self.query.shape[1] != len(self.layers) * slot:
            raise InvalidInputError(
                f"this retriever reads {self.query.shape[1]} numbers of layers {list(self.layers)}; the decoder has "
                f"{layers} layers with {slot} each: take the retriever that was trained for it"
            )


def token_features(slots: Tensor, layers: Sequence[int]) -> Tensor:  # [2, L, n, H, D] -> [n, F]
    """Key and value of each token at some layers, one behind the other."""
    picked = slots[:, list(layers)].permute(2, 1, 0, 3, 4)  # [n, layers, 2, H, D]
    return picked.flatten(1).float()


def save_retriever(retriever: TokenRetriever, path: Path) -> None:
    """Write it into one file."""
    about = {"format": _FORMAT, "layers": json.dumps(retriever.layers), "fusion": json.dumps(asdict(retriever.fusion))}
    save_file({name: getattr(retriever, name).cpu().contiguous() for name in _PARTS}, path, metadata=about)


def load_retriever(path: Path) -> TokenRetriever:
    """Read what `save_retriever` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or foreign.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            names = set(file.keys())
            weights = {name: file.get_tensor(name) for name in names}
        if about.get("format") != _FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, and this version reads {_FORMAT!r}")
        return TokenRetriever(json.loads(about["layers"]), weights, Fusion(**json.loads(about["fusion"])))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, InvalidInputError) as error:
        raise CheckpointError(f"{path} is no retriever: {error}") from error
