"""Files of memories, rewritten with digests that fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.memory.envelope import digest_of
from remanence.memory.tensorfile import tensor_digest


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], object], tensors: dict[str, Tensor | None] | None = None
) -> None:
    """Change what a memory's file says, and its tensors (None: left out); all digests fit afterwards."""
    held = {name: part for name, part in {**load_file(path), **(tensors or {})}.items() if part is not None}
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["remanence"])
    content["tensors"] = {name: tensor_digest(part) for name, part in held.items()}
    change(content)
    content.pop("digest", None)
    content["digest"] = digest_of([text_of(content).encode()])
    save_file(held, path, metadata={"remanence": text_of(content)})


def text_of(content: dict[str, Any]) -> str:
    """Canonical, but for numbers that JSON does not have."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
