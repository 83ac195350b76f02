"""Weights that FSDP2 has sharded (`fully_shard`): what of them lies here, and what is exchanged.

A sharded weight is a `DTensor`, split by rows. Proxies and their moments are of the size of the selected rows only, and
stand whole in every process: their gradients are added up in `step`, once per step, and each process then updates what
it holds of the weight.
"""

from typing import Any

from torch import Tensor, distributed
from torch.nn.utils import get_total_norm


def _dtensor() -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor


def is_sharded(tensor: Tensor) -> bool:
    return distributed.is_available() and isinstance(tensor, _dtensor())


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies here, in the same storage."""
    if not is_sharded(tensor):
        return tensor
    held: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return held


def first_row(weight: Any) -> int:
    """The first row of a weight that lies here; of experts, `[experts, out, in]`, rows are counted over all of them.

    Raises:
        NotImplementedError: it is split otherwise than by rows over one dimension.
    """
    if not is_sharded(weight):
        return 0
    mesh, placements = weight.device_mesh, weight.placements
    if mesh.ndim != 1 or not (placements[0].is_shard(0) or placements[0].is_replicate()):
        raise NotImplementedError(
            f"Grass projects weights that fully_shard splits by rows over a mesh of one dimension, not {placements}"
        )
    if placements[0].is_replicate():
        return 0
    rows = len(weight)
    before = min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))
    return before * weight.shape[1:-1].numel()


def mean_over(weight: Any, gradient: Tensor) -> Tensor:
    """The mean of a gradient over the processes that share a weight."""
    group = weight.device_mesh.get_group()
    distributed.all_reduce(gradient, group=group)
    return gradient.div_(weight.device_mesh.size())


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, of those that are sharded over all processes that share them."""
    sharded = [gradient for gradient in gradients if is_sharded(gradient)]
    square = get_total_norm([gradient for gradient in gradients if not is_sharded(gradient)]).square()
    if sharded:
        here = get_total_norm([local(gradient) for gradient in sharded]).square()
        distributed.all_reduce(here, group=sharded[0].device_mesh.get_group())  # type: ignore[attr-defined]
        square = square.to(here.device) + here
    return square.sqrt()
