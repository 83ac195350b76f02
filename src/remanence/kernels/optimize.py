"""A decoder computed by the kernels of this package, and back."""

import logging

from torch import nn
from transformers import PreTrainedModel

from remanence.kernels.gqa_sdpa import share_heads, use_stock_sdpa
from remanence.kernels.onednn import OneDnnLinear, available, multiplies, pack, use_onednn, use_stock_linear

_log = logging.getLogger(__name__)


def optimize_for_cpu(hf: PreTrainedModel) -> bool:
    """Compute linear layers by oneDNN, their weights packed, and sdpa without copies of shared heads.

    Parameters are untouched, and results differ by rounding. It may be called again, and then packs weights anew.

    Returns:
        Whether there was anything to optimize. If not, nothing changes, and the log says why.
    """
    layers = [module for module in hf.modules() if type(module) in (nn.Linear, OneDnnLinear)]
    if not any(multiplies(layer.weight) for layer in layers):
        _log.info("nothing is optimized for the CPU: %s", _hindrance(layers))
        return False
    use_onednn(hf)
    pack(hf)
    share_heads(hf)
    return True


def restore_stock(hf: PreTrainedModel) -> None:
    """Undo `optimize_for_cpu`, whole: classes, attention implementation, packed weights. Parameters are untouched.

    Raises:
        InvalidInputError: a layer was made into something else since; nothing is undone then.
    """
    use_stock_linear(hf)
    use_stock_sdpa(hf)


def _hindrance(layers: list[nn.Linear]) -> str:
    if not available():
        return "this torch has no oneDNN"
    kinds = {f"{str(layer.weight.dtype).removeprefix('torch.')} on {layer.weight.device}" for layer in layers}
    found = ", ".join(sorted(kinds)) or "there are none of torch's own class"
    return f"that is for linear layers in float32 on a CPU; here: {found}"
