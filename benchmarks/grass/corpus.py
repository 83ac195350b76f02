"""Real text as tokens, parted by document into training, validation and test."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

BUNDLED = Path(__file__).parents[2] / "src/remanence/checkpoints/tiny"  # its tokenizer: byte-level BPE, 5,120 tokens


@dataclass(frozen=True)
class Corpus:
    """Tokens `[n]` of each part; no document is in two parts."""

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: int


def documents(paths: list[Path]) -> Iterator[str]:
    """Of WikiExtractor's `<doc>` files, of JSON lines with "text", and of folders of these."""
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".jsonl":
                yield from (json.loads(line)["text"] for line in text.split("\n") if line.strip())
            else:
                yield from re.findall(r"<doc [^>]*>\n(.*?)\n?</doc>", text, flags=re.DOTALL)


def tokenizer_of_tiny() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


def read(paths: list[Path], train: int, held_out: int, tokenizer: Callable[[], Any] = tokenizer_of_tiny) -> Corpus:
    """So many tokens of each part, of documents in an order that is random and always the same.

    Raises:
        ValueError: there is not enough text.
    """
    by_hash = {hashlib.sha256(text.encode()).digest(): text for text in documents(paths)}
    tokens, wanted = tokenizer(), {"test": held_out, "validation": held_out, "train": train}
    parts: dict[str, list[int]] = {name: [] for name in wanted}
    for digest, text in sorted(by_hash.items()):
        part = {0: "test", 1: "validation"}.get(digest[-1] % 20, "train")
        if len(parts[part]) < wanted[part]:
            parts[part] += [*tokens(text, add_special_tokens=False)["input_ids"], tokens.eos_token_id]
        elif all(len(parts[name]) >= wanted[name] for name in wanted):
            break
    for name, ids in parts.items():
        if len(ids) < wanted[name]:
            raise ValueError(f"there are {len(ids):,} tokens for {name}, and {wanted[name]:,} are needed; add text")
    made = {name: torch.tensor(ids[: wanted[name]], dtype=torch.int32) for name, ids in parts.items()}
    return Corpus(**made, vocabulary=len(tokens))


def corpus(
    file: Path, paths: list[Path], train: int, held_out: int, tokenizer: Callable[[], Any] = tokenizer_of_tiny
) -> Corpus:
    """The tokens in a file, which is made from text where it is not there.

    Raises:
        ValueError: neither file nor text; not enough text; the file has fewer tokens for training than are wanted.
    """
    if not file.is_file():
        if not paths:
            raise ValueError(f"there is no {file} yet, so that it needs text to be made from: --text PATH...")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(read(paths, train, held_out, tokenizer)), file)
    there = Corpus(**torch.load(file, weights_only=True))
    if len(there.train) < train:
        raise ValueError(f"{file} has {len(there.train):,} tokens to train on, and {train:,} are wanted; remove it")
    return there
