"""The tasks of lm-eval, answered through a memory: `lm_eval --model remanence --model_args pretrained=...,memory=...`.

From releases of lm-eval that look for the models of installed packages, `lm_eval` finds this one by itself. With those
that do not, up to 0.4.13, `python -m remanence.evaluation.lm_eval` takes the place of the command `lm_eval`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from remanence.checkpoints import bundled, names
from remanence.errors import InvalidInputError
from remanence.evaluation.scoring import complete, room, score
from remanence.memory import Memory
from remanence.model.model import MemoryModel

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f'lm-eval is not here ({error}); install it with: pip install "remanence[lm-eval]"') from error

NEW_TOKENS = 256  # where a task names no limit; as lm-eval's own models have it

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is there counts


@register_model("remanence")
class RemanenceLM(TemplateLM):
    """A model and one memory, which every request reads and none changes.

    Args:
        pretrained: directory, hub id, or the name of a bundled checkpoint.
        memory: a file that `Memory.save` made; None: never written, so that the decoder reads alone.
        batch_size: requests read at once.
        device: as torch names it; a GPU that is not there, or None, is the CPU.
        dtype: as torch names it, e.g. "bfloat16"; None: as the checkpoint has it.

    Raises:
        InvalidInputError: a batch size that is no number.
        FileNotFoundError, MemoryFileError, MemoryMismatchError: the memory cannot be read, or not by this model.
    """

    def __init__(
        self,
        pretrained: str,
        memory: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InvalidInputError(f"batch_size is how many requests to read at once, a number, not {batch_size!r}")
        self.batch_size = int(batch_size)
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command line of lm-eval says cuda:0 where its user says nothing
        name = bundled(pretrained) if pretrained in names() else pretrained
        self.model = MemoryModel.from_pretrained(
            name, device=device, dtype=None if dtype is None else getattr(torch, dtype)
        ).optimize_for_cpu()
        self.tokenizer = self.model.tokenizer
        self._device = self.model.device
        self.memory = Memory(self.model.spec) if memory is None else Memory.load(Path(memory), self.model.device)
        self.model.spec.require(self.memory.spec)
        self.max_length = room(self.model, written=self.memory.written)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        results: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(context) + len(continuation) for context, continuation in pairs]):
            scored = score(self.model, self.memory, [pairs[index] for index in batch])
            for index, result in zip(batch, scored, strict=True):
                results[index] = result
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, cut into windows that fit; every token is predicted once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            cut = get_rolling_token_windows(
                self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            made = [(None, *make_disjoint_window(window)) for window in cut]
            windows += made
            counts.append(len(made))
        scored = iter(self._loglikelihood_tokens(windows))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(scored)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a task's stop strings; greedy, unless its options say otherwise."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        results: dict[int, str] = {}
        for group in groups.values():
            options = dict(requests[group[0]].args[1])
            until, most, options = _normalised(options)
            if most >= self.max_length:
                raise InvalidInputError(f"{most} new tokens do not fit; at most {self.max_length - 1} do")
            prompts = [self.tok_encode(requests[index].args[0])[most - self.max_length :] for index in group]
            prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
            for batch in self._batches([len(prompt) for prompt in prompts]):
                rows = [prompts[place] for place in batch]
                texts = complete(self.model, self.memory, rows, until, max_new_tokens=most, **options)
                for place, text in zip(batch, texts, strict=True):
                    results[group[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[group[place]].args, text)
        return [results[index] for index in range(len(requests))]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """As much of a context's end as fits with its continuation, whose last token is never read."""
        left = self.max_length + 1 - len(continuation)
        if left < 1:
            raise InvalidInputError(
                f"a continuation of {len(continuation)} tokens does not fit; at most {self.max_length} do"
            )
        return context[-left:], continuation

    def _batches(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Indices, the longest rows first, so that rows of a batch are about as long."""
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))


def _normalised(options: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop strings, most new tokens, and what is left for `generate`, by the names that lm-eval's own models take."""
    until = options.pop("until", None) or []
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    limits = [options.pop(name, None) for name in LIMITS]
    most = next((limit for limit in limits if limit is not None), NEW_TOKENS)
    warm = (options.get("temperature") or 0) > 0
    options["do_sample"] = bool(options.get("do_sample", warm)) and (warm or options.get("temperature") is None)
    if not warm:
        options.pop("temperature", None)
    return until, int(most), options


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
