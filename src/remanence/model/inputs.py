"""What callers hand in, checked and brought into one form: rows of token ids."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from remanence.errors import InvalidInputError

Content = str | Sequence[int] | Tensor

MAX_CHUNK = 512
MIN_CHUNK = 16


def to_ids(content: Content, *, tokenizer: Any, vocabulary: int, device: torch.device) -> Tensor:  # [T], int64
    """One row of token ids from text or ids.

    Raises:
        InvalidInputError: nothing to read, ids outside the vocabulary, a tensor of the wrong dtype, shape or device.
    """
    if isinstance(content, str):
        if tokenizer is None:
            raise InvalidInputError("this model has no tokenizer, so it takes token ids; attach it with a tokenizer")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"the text holds {content[error.start]!a}, which is no character; it was not decoded as it is encoded"
            ) from error
        content = cast(Sequence[int], tokenizer(content, add_special_tokens=False)["input_ids"])
    if isinstance(content, Tensor):
        if content.device != device:
            raise InvalidInputError(
                f"the ids are on {content.device}, the model on {device}; move them with ids.to({str(device)!r})"
            )
        if content.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise InvalidInputError(f"token ids must be integers, got {content.dtype}; convert them with ids.long()")
        ids = content.long()
    else:
        if isinstance(content, Sequence) and any(isinstance(part, Sequence | Tensor) for part in content):
            raise InvalidInputError(
                "one memory takes one text or one row of ids, got a list of them; for a batch, give as many memories: "
                'model.write([first, second], ["one text", "another"])'
            )
        if not isinstance(content, Sequence) or not all(isinstance(token, int) for token in content):
            raise InvalidInputError("expected text, or a sequence of integer token ids")
        ids = torch.tensor(content, dtype=torch.long, device=device)
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise InvalidInputError(f"one memory takes one row of token ids [T], got shape {list(ids.shape)}")
    if not ids.numel():
        raise InvalidInputError("there is nothing to read: the text has no tokens")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise InvalidInputError(
            f"token ids must lie in 0..{vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}; "
            "were they made by another model's tokenizer?"
        )
    return ids


def to_rows(content: Any, count: int, **kwargs: Any) -> list[Tensor]:
    """One row per memory, from a list of texts, a list of ids, or a tensor `[B, T]`."""
    if isinstance(content, str) or (isinstance(content, Tensor) and content.dim() < 2):
        raise InvalidInputError(f"{count} memories take {count} texts or rows of ids, got one")
    if len(content) != count:
        raise InvalidInputError(f"{count} memories take {count} texts or rows of ids, got {len(content)}")
    return [to_ids(row, **kwargs) for row in content]


def chunked(ids: Tensor, longest: int = MAX_CHUNK, shortest: int = MIN_CHUNK) -> list[Tensor]:
    """Cut a text into chunks of at most `longest` tokens; a tail below `shortest` joins the chunk before it.

    Chunks under 16 tokens disturb a memory more than they add to it (published README).
    """
    chunks = list(ids.split(longest))
    if len(chunks) > 1 and len(chunks[-1]) < shortest:
        tail = chunks.pop()
        chunks[-1] = torch.cat([chunks[-1], tail])
    return chunks


def left_padded(rows: Sequence[Tensor], pad: int, minimum: int = 0) -> tuple[Tensor, Tensor]:  # ids, mask, both [B, T]
    width = max(minimum, *(len(row) for row in rows))
    ids = rows[0].new_full((len(rows), width), pad)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = True
    return ids, mask


def padding_id(*holders: Any) -> int:
    """The id that fills up short rows, from a tokenizer or a configuration. Which one does not matter: it is masked."""
    for holder in holders:
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(holder, name, None)
            value = value[0] if isinstance(value, list) else value
            if value is not None:
                return int(value)
    return 0
