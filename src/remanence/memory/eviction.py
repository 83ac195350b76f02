"""Who leaves the pool: K slots per layer, uniformly at random; the other N - K stay (MemoryLLM, section 3.1)."""

import torch
from torch import Tensor

from remanence.errors import InvalidInputError


def draw_evicted(
    layers: int,
    slots: int,
    count: int,
    generator: torch.Generator,
    *,
    shared: bool = False,
) -> Tensor:  # [layers, count], distinct in each row, ascending
    """Draw `count` of `slots` places to evict in each layer, or once for all layers if `shared`.

    Costs O(count) at any pool size when `count` is small against `slots`: duplicates are drawn again, which gives
    the same distribution as drawing until enough are distinct.

    Raises:
        InvalidInputError: more slots are to be evicted than there are.
    """
    if not 0 <= count <= slots:
        raise InvalidInputError(f"cannot evict {count} of {slots} slots; lower slots_per_write or raise slots")
    rows = 1 if shared else layers
    if 4 * count > slots:
        drawn = torch.stack([torch.randperm(slots, generator=generator)[:count] for _ in range(rows)])
        drawn = drawn.sort(dim=1).values
    else:
        drawn = torch.randint(slots, (rows, count), generator=generator).sort(dim=1).values
        while (repeated := drawn[:, 1:] == drawn[:, :-1]).any():
            again = torch.zeros_like(drawn, dtype=torch.bool)
            again[:, 1:] = repeated
            drawn[again] = torch.randint(slots, (int(again.sum()),), generator=generator)
            drawn = drawn.sort(dim=1).values
    return drawn.expand(layers, count) if shared else drawn


def chosen(
    evict: Tensor | None, layers: int, slots: int, made: int, generator: torch.Generator, *, shared: bool
) -> Tensor:  # [layers, P], P <= made
    """Ranks that a write of `made` slots evicts: those given, else drawn.

    Raises:
        InvalidInputError: those given do not fit.
    """
    if evict is None:
        return draw_evicted(layers, slots, made, generator, shared=shared)
    evict = check_evicted(evict, layers, slots)
    if evict.shape[1] > made:
        raise InvalidInputError(f"evict names {evict.shape[1]} slots per layer, but the write makes only {made}")
    return evict


def check_evicted(evict: Tensor, layers: int, slots: int) -> Tensor:  # [layers, count], ascending
    """Ranks given by a caller (0 = oldest), checked and sorted.

    Raises:
        InvalidInputError: wrong shape or dtype, a rank outside the pool, or a rank given twice.
    """
    if evict.dim() != 2 or evict.shape[0] != layers or evict.is_floating_point() or evict.dtype == torch.bool:
        raise InvalidInputError(
            f"evict must be integer ranks of shape [{layers}, K], one row per layer; "
            f"got {evict.dtype} of shape {list(evict.shape)}"
        )
    evict = evict.long().sort(dim=1).values
    if evict.numel() and (int(evict.min()) < 0 or int(evict.max()) >= slots):
        raise InvalidInputError(f"evict names ranks outside 0..{slots - 1}")
    if bool((evict[:, 1:] == evict[:, :-1]).any()):
        raise InvalidInputError("evict names the same rank twice in one layer")
    return evict
