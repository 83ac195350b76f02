"""What callers hand in, checked and brought into one form: rows of token ids."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.errors import InvalidInputError

Message = Mapping[str, Any]  # {"role": ..., "content": ...}
Content = str | Sequence[int] | Tensor | Sequence[Message]

MIN_CHUNK = 16


def is_messages(content: Any) -> bool:
    """Whether it is one conversation: a list of messages."""
    return (
        isinstance(content, Sequence)
        and not isinstance(content, str | bytes)
        and len(content) > 0
        and all(isinstance(part, Mapping) and "role" in part for part in content)
    )


def is_text(content: Any) -> bool:
    """Whether it is a text, or a conversation."""
    return isinstance(content, str) or is_messages(content)


def check_text(text: str) -> str:
    """The text, if it is one.

    Raises:
        InvalidInputError: it is blank, or holds what is no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the text holds {text[error.start]!a}, which is no character; it was not decoded as it is encoded"
        ) from error
    if "\0" in text:
        raise InvalidInputError("the text holds NUL characters, so it is no text; a binary file was read as one?")
    if not text.strip():
        raise InvalidInputError("there is nothing to read: the text is empty, or blank")
    return text


def check_messages(messages: Sequence[Message]) -> None:
    """Raise where a message lacks its role or its text."""
    for number, message in enumerate(messages):
        if not isinstance(message["role"], str) or not isinstance(message.get("content"), str):
            raise InvalidInputError(
                f'message {number} is not {{"role": ..., "content": text}}; parts other than text are not read'
            )


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata of a write, as JSON has it.

    Raises:
        InvalidInputError: it is no JSON object.
    """
    try:
        made = json.loads(json.dumps({} if metadata is None else dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"metadata is a JSON object, such as {{'topic': 'travel'}}: {error}") from error
    assert isinstance(made, dict)
    return made


def to_ids(content: Any, *, vocabulary: int, device: torch.device) -> Tensor:  # [T], int64
    """One row of token ids from a sequence or a tensor of them.

    Raises:
        InvalidInputError: nothing to read, ids outside the vocabulary, a tensor of the wrong dtype, shape or device.
    """
    if isinstance(content, bytes | bytearray):
        raise InvalidInputError("bytes are no text; decode them first, for example with content.decode('utf-8')")
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
            raise InvalidInputError(
                f"expected text, messages, or a sequence of integer token ids, got {type(content).__name__}"
            )
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


def to_rows(content: Any, count: int) -> list[Any]:
    """What each of `count` memories takes, from a list, a tensor `[B, T]` or a tokenizer's `BatchEncoding`."""
    if isinstance(content, Mapping) and "input_ids" in content:
        ids = content["input_ids"]
        mask = content.get("attention_mask")
        rows = list(ids) if isinstance(ids, Sequence | Tensor) and len(ids) and not isinstance(ids[0], int) else [ids]
        if mask is not None:
            masks = list(mask) if len(rows) == len(mask) and not isinstance(mask[0], int) else [mask]
            rows = [_unpadded(row, kept) for row, kept in zip(rows, masks, strict=True)]
        content = rows
    elif count == 1 and (is_messages(content) or isinstance(content, str)):
        content = [content]
    if isinstance(content, bytes | bytearray):
        raise InvalidInputError("bytes are no text; decode them first, for example with content.decode('utf-8')")
    if isinstance(content, str) or (isinstance(content, Tensor) and content.dim() < 2):
        raise InvalidInputError(f"{count} memories take {count} texts or rows of ids, got one")
    if not isinstance(content, Sequence | Tensor):
        raise InvalidInputError(f"expected a list of texts or of rows of ids, got {type(content).__name__}")
    if len(content) != count:
        raise InvalidInputError(f"{count} memories take {count} texts or rows of ids, got {len(content)}")
    return list(content)


def _unpadded(row: Any, mask: Any) -> Tensor:
    return torch.as_tensor(row)[torch.as_tensor(mask) != 0]


def chunked(ids: Tensor, longest: int, shortest: int = MIN_CHUNK) -> list[Tensor]:
    """Cut a text into chunks of at most `longest` tokens; a tail below `shortest` joins the chunk before it.

    Chunks under 16 tokens disturb a learned memory more than they add to it (published README).
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


def option(hf: PreTrainedModel, kwargs: dict[str, Any], name: str) -> Any:
    """An option of `generate` as transformers will find it; None where nobody set it."""
    given = kwargs.get(name)
    for config in (kwargs.get("generation_config"), hf.generation_config):
        given = getattr(config, name, None) if given is None else given
    return given


def new_tokens(hf: PreTrainedModel, kwargs: dict[str, Any]) -> int:
    """Tokens that a generation may add, to size its buffers; a guess is enough, they grow."""
    return int(option(hf, kwargs, "max_new_tokens") or option(hf, kwargs, "max_length") or 20)


def drawn_apart(hf: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    """Whether the sequences of one prompt are drawn one by one. Beams take over each other's text instead."""
    return bool(option(hf, kwargs, "do_sample")) and (option(hf, kwargs, "num_beams") or 1) == 1
