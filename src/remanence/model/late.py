"""The retriever of a text memory: projections of each token's keys and values, trained so that questions find chunks.

What it reads are slots of some layers, so retrieval keys can be made anew from slots wherever those are kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from remanence.errors import CheckpointError, InvalidInputError
from remanence.memory.late import Fusion, LateQuery, to_int8

FILE = "retriever.safetensors"  # in the folder of a checkpoint
_FORMAT = "remanence-retriever-1"
_PARTS = ("query", "query_bias", "key", "key_bias", "share", "offset", "offset_bias")


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
        """What it reads of slots: key and value of each of its layers, one behind the other."""
        picked = slots[:, list(self.layers)].permute(2, 1, 0, 3, 4)  # [n, layers, 2, H, D]
        return picked.flatten(1).float()

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
