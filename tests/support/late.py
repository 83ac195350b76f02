"""Retrievers of token keys with random weights."""

import torch

from remanence.memory.late import Fusion, LateQuery, to_int8
from remanence.model.model import MemoryModel
from remanence.model.retriever import TokenRetriever

FUSION = Fusion(lexical=8.0, late=10.0, bias=-6.0, late_alone=12.0, bias_alone=-5.0)


def unit(*shape: int, seed: int) -> torch.Tensor:
    """Rows of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


def late_query(tokens: int = 3, size: int = 16, seed: int = 0) -> LateQuery:
    shares = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)).softmax(0)
    return LateQuery(to_int8(unit(tokens, size, seed=seed)), shares, 0.25, FUSION)


def token_retriever(
    model: MemoryModel, *, layers: tuple[int, ...] = (0, 2), size: int = 16, seed: int = 0
) -> TokenRetriever:
    """For a decoder: it compares what the tokens hold, as questions and chunks are projected alike."""
    backbone = model.backbone
    features = len(layers) * 2 * backbone.kv_heads * backbone.head_dim
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(size, features, generator=generator)
    weights = {
        "query": projection,
        "key": projection.clone(),
        "query_bias": torch.zeros(size),
        "key_bias": torch.zeros(size),
        "share": 0.1 * torch.randn(features, generator=generator),
        "offset": 0.01 * torch.randn(features, generator=generator),
        "offset_bias": torch.tensor(0.1),
    }
    return TokenRetriever(layers, weights, FUSION)
