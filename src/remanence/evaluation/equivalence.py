"""Slots that hold the layer inputs of a text are that text.

A memory whose slots at layer l are the inputs of layer l for a text gives, for a prompt, the logits of text + prompt in
one pass. This needs no other code to compare with, and no training, so it tells of any checkpoint whether memory is
read exactly. Run it with `python -m remanence.evaluation.equivalence PATH`.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from remanence.errors import InvalidInputError
from remanence.model.formats.native import load_tokenizer
from remanence.model.model import MemoryModel

TOLERANCE = 1e-5  # absolute, in float32

PASSAGE = """The harbour was quiet in the early morning. Two fishermen mended their nets on the quay while the gulls \
waited on the roof of the old customs house. At seven the ferry from the island came in, with a cart of apples, three \
passengers and the mail. The younger fisherman, whose name was Anders, asked for his letter; there was none. He went \
back to his net and said nothing for an hour. Then the wind turned to the east, the fog lifted, and the whole bay lay \
open in front of them, as blue as a plate. "We could go out after all," said the older one, and he folded his net. """


@torch.no_grad()
def equivalence(hf: PreTrainedModel, text_ids: Tensor, prompt_ids: Tensor) -> float:
    """Largest difference between the logits of a prompt read behind a text, and behind a memory that is that text.

    Args:
        hf: a decoder of a supported family; gets hooks that do nothing outside of memory.
        text_ids: `[N]`; prompt_ids: `[T]`. Together within the window of a model with sliding windows, because a window
            hides text, but never memory.

    Raises:
        UnsupportedModelError: the family is unknown.
        InvalidInputError: text and prompt do not fit the sliding window.
    """
    slots = len(text_ids)
    model = MemoryModel.attach(hf, slots=slots, slots_per_write=slots, bos=False)
    window = model.backbone.config.sliding_window if model.backbone.sliding else None
    if window is not None and slots + len(prompt_ids) > window:
        raise InvalidInputError(
            f"{slots} + {len(prompt_ids)} tokens do not fit the sliding window of {window}, which hides text but never "
            "memory; take fewer tokens"
        )
    whole = hf(torch.cat([text_ids, prompt_ids])[None], output_hidden_states=True, use_cache=False)
    inputs = torch.cat(whole.hidden_states[: len(model.backbone.layers)])  # [L, N + T, d]
    memory = model.memory_from_slots(inputs[:, :slots])
    logits = model.read(memory, prompt_ids).logits
    assert logits is not None
    return float((logits[0] - whole.logits[0, slots:]).abs().max())


def _tokens(path: Path, vocabulary: int, count: int) -> Tensor:  # [count]
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(tokenizer(PASSAGE, add_special_tokens=False)["input_ids"])
    return ids.repeat(-(-count // len(ids)))[:count]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m remanence.evaluation.equivalence",
        description="Check on a checkpoint that slots which hold the layer inputs of a text are that text.",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="directory of a transformers checkpoint")
    parser.add_argument(
        "--tokens", metavar="N", type=int, default=64, help="tokens of the text, and of the prompt (default: 64)"
    )
    arguments = parser.parse_args()
    if arguments.tokens < 1:
        parser.error("--tokens must be at least 1")
    if not (arguments.path / "config.json").is_file():
        sys.exit(f"{arguments.path} is no checkpoint directory: it has no config.json")
    try:
        hf = AutoModelForCausalLM.from_pretrained(arguments.path, dtype=torch.float32, local_files_only=True)
        ids = _tokens(arguments.path, hf.config.vocab_size, 2 * arguments.tokens)
        difference = equivalence(hf.eval(), ids[: arguments.tokens], ids[arguments.tokens :])
    except (OSError, ValueError) as error:
        sys.exit(f"{arguments.path}: {error}")
    equal = difference <= TOLERANCE
    print(f"max difference {difference:.2e} over {arguments.tokens} tokens: {'equal' if equal else 'different'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
