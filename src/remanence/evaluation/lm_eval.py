"""The tasks of lm-eval, answered through a memory: `lm_eval --model remanence --model_args pretrained=...,memory=...`.

Releases after 0.4.13 find the models of installed packages by themselves. Up to then,
`python -m remanence.evaluation.lm_eval` takes the place of the command `lm_eval`. It knows the tasks in `TASKS`, too.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.checkpoints import bundled, names
from remanence.errors import InvalidInputError
from remanence.evaluation.scoring import room, score_tokens
from remanence.memory import Memory
from remanence.model.model import MemoryModel

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM, stop_sequences_criteria
    from lm_eval.models.utils import Collator
except ImportError as error:
    raise ImportError(f'lm-eval is not here ({error}); install it with: pip install "remanence[lm-eval]"') from error

TASKS = Path(__file__).with_name("tasks")  # ours, for --include_path
_OPTIONS = (  # that act on a model that is loaded already
    *("max_batch_size", "max_length", "truncation", "logits_cache", "softmax_dtype", "mixed_precision_dtype"),
    *("add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args"),
)


@register_model("remanence")
class RemanenceLM(HFLM):
    """A model and one memory, which every request reads and none changes. Without a memory it is lm-eval's own `hf`.

    What is retrieved hangs on the context of a request alone, never on the continuation that is scored.

    Args:
        pretrained: directory, hub id, or the name of a bundled checkpoint.
        memory: a file that `Memory.save` made; None: the decoder reads alone.
        batch_size: requests read at once.
        device: as torch names it; a GPU that is not there, or None, is the CPU.
        dtype: as torch names it, e.g. "bfloat16"; None: as the checkpoint has it.
        options: others of lm-eval's `hf`, of those that act on a model that is loaded already.

    Raises:
        InvalidInputError: no such option; a batch size that is no number.
        FileNotFoundError, MemoryFileError, MemoryMismatchError: the memory cannot be read, or not by this model.
    """

    def __init__(
        self,
        pretrained: str,
        memory: str | None = None,
        *,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise InvalidInputError(f"remanence takes no {unknown[0]}; besides memory it takes {', '.join(_OPTIONS)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InvalidInputError(f"batch_size is how many requests to read at once, a number, not {batch_size!r}")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command line of lm-eval says cuda:0 where its user says nothing
        name = bundled(pretrained) if pretrained in names() else pretrained
        reader = MemoryModel.from_pretrained(
            name, device=device, dtype=None if dtype is None else getattr(torch, dtype)
        )
        self.reader = reader.optimize_for_cpu()
        self.memory = None if memory is None else Memory.load(Path(memory), reader.device)
        if self.memory is not None:
            reader.spec.require(self.memory.spec)
            if reader.config.writer == "learned":
                options.setdefault("add_bos_token", False)  # learned slots stand in front of texts without one
            else:
                retrieval = reader.config.retrieval
                most = room(reader, written=False) // 2  # so that as many tokens are left for the text
                retrieval = retrieval.replace(slots=min(retrieval.slots, most))
                reader.config = reader.config.replace(retrieval=retrieval)
            fits = room(reader, written=self.memory.written)
            options["max_length"] = min(fits, int(options.get("max_length") or fits))
        super().__init__(pretrained=reader.hf, tokenizer=reader.tokenizer, batch_size=int(batch_size), **options)

    def _model_call(self, inps: Tensor, **options: Any) -> Tensor:
        with self.reader.stock():
            logits: Tensor = super()._model_call(inps, **options)
        return logits

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a task's stop strings. Options that are None or empty count as not given."""
        plain = [replace(one, arguments=(one.args[0], _given(one.args[1]))) for one in requests]
        return list(super().generate_until(plain, disable_tqdm=disable_tqdm))

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        if not options.get("temperature"):  # nothing can be drawn at zero
            options |= {"do_sample": False, "temperature": 0.0 if self.memory is None else None}
        if self.memory is None:
            with self.reader.stock():
                out: Tensor = super()._model_generate(context, max_length, stop, **options)
            return out
        stopping = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context))
        new, memories = max_length - context.shape[1], [self.memory] * len(context)
        return self.reader.generate(memories, context, max_new_tokens=new, stopping_criteria=stopping, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *args: Any, **options: Any
    ) -> list[tuple[float, bool]]:
        if self.memory is None:
            return list(super()._loglikelihood_tokens(requests, *args, **options))
        longest = max((len(rest) for _, _, rest in requests), default=0)
        if longest > self.max_length:
            raise InvalidInputError(f"a continuation of {longest} tokens does not fit; at most {self.max_length} do")
        order, found = Collator(requests, sort_fn=lambda one: -len(one[1]) - len(one[2])), list[tuple[float, bool]]()
        for chunk in order.get_batched(n=self.batch_size):
            pairs = [(context[len(rest) - self.max_length - 1 :], rest) for _, context, rest in chunk]
            scored, _ = score_tokens(self.reader, self.memory, pairs)
            for (asked, _, _), one in zip(chunk, scored, strict=True):
                found.append((sum(one.likelihoods), all(one.greedy)))
                if asked is not None:
                    self.cache_hook.add_partial("loglikelihood", asked, found[-1])
        return list(order.get_original(found))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(stops := given.get("until"), list):
        given["until"] = [stop for stop in stops if stop]
    return given


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    if "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()
