"""What became of each weight of a model: one table, for a person to read before a training."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from remanence.optim.groups import EXCLUDED, layers_of, why_not
from remanence.optim.refresh import by_directions

WIDTH = 80
_MOMENTS = 8  # bytes of two moments in float32


def summary(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> str:
    """Which weights are projected, which are trained in full, which are not trained, and what it saves.

    Layers of one name and shape make one line, their numbers written as `*`. Bytes are those of gradients and moments:
    of the selected directions or rows, beside those that AdamW needs for whole weights.

    Args:
        model, groups: as they came from `grass_param_groups`.

    Returns:
        Lines of at most 80 columns.
    """
    projected, plain = groups
    by_weight = {id(one.weight): one for one in projected["projections"]}
    trained = {id(parameter) for parameter in plain["params"]}
    layers = {id(module._parameters.get(key)) for _, module, key in layers_of(model)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    lines: dict[tuple[str, str, str], int] = {}
    before = after = 0
    proxies = {id(one.proxy) for one in projected["projections"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in proxies:
            continue
        shape = f" [{' x '.join(map(str, parameter.shape))}]"
        if (projection := by_weight.get(id(parameter))) is not None:
            before += parameter.numel() * (parameter.itemsize + _MOMENTS)
            after += projection.proxy.numel() * (projection.proxy.itemsize + _MOMENTS)
            if by_directions(projection, projected):
                after += 4 * projection.rank * projection.candidates
                what = f"{projection.rank} of {projection.candidates} directions"
            else:
                what = f"{projection.rank} of {projection.candidates} {'rows' if projection.by_row else 'columns'}"
        elif id(parameter) not in trained:
            what = "not trained"
        elif parameter.ndim < 2:
            name, shape, what = "vectors", "", "in full"
        elif head is not None and parameter is head.weight:
            what = "in full: the output head"
        elif id(parameter) in layers:
            what = f"in full: {why_not(parameter, projected['rank']) or EXCLUDED}"
        else:
            what = f"in full: {'an embedding' if id(parameter) in embeddings else 'no linear layer'}"
        if id(parameter) in trained:
            before += parameter.numel() * (parameter.itemsize + _MOMENTS)
            after += parameter.numel() * (parameter.itemsize + _MOMENTS)
        key = (re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name), shape, what)
        lines[key] = lines.get(key, 0) + 1
    rows = [f"{count:>5}  {name}{shape}: {what}" for (name, shape, what), count in lines.items()]
    saved = f"gradients and moments: {_gib(after)}; of AdamW on all of it: {_gib(before)}"
    return "\n".join([line for row in rows for line in _wrapped(row)] + [saved])


def _wrapped(row: str) -> Iterator[str]:
    """A row, its verdict in a line of its own where the two do not fit into one."""
    if len(row) <= WIDTH:
        yield row
        return
    name, what = row.split(": ", 1)
    yield name if len(name) < WIDTH else f"{name[:6]}…{name[len(name) - WIDTH + 8 :]}"
    yield f"         {what}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
