"""One side of the comparison, in a process of its own. Either Python runs it: it imports what both have."""

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

TEXT, PROMPT, TOKENS = 512, 32, 32  # of a write; of a question; generated after the first
GATE = (512, 20, 300)  # tokens of the writes before the gate's question; 20 are fewer than the slots of a write
GREEDY = {"max_new_tokens": 1 + TOKENS, "do_sample": False, "pad_token_id": 0}


class Published:
    def __init__(self, job: dict[str, Any]) -> None:
        sys.path.insert(0, job["checkout"])
        code: Any = importlib.import_module("modeling_memoryllm").MemoryLLM
        self.model = code.from_pretrained(job["model"], attn_implementation="sdpa").eval()

    def write(self, ids: torch.Tensor, evict: torch.Tensor | None = None) -> None:  # it draws these itself
        self.model.inject_memory(ids[None], update_memory=True)

    def generate(self, ids: torch.Tensor, **options: Any) -> Any:
        return self.model.generate(input_ids=ids[None], **GREEDY, **options)

    def held(self) -> dict[str, int]:
        return {"memory_bytes": self.model.memory.nbytes, "prefix_bytes": 0}


class Remanence:
    def __init__(self, job: dict[str, Any]) -> None:
        self.model: Any = importlib.import_module("remanence").MemoryModel.from_pretrained(job["model"])
        if job["side"] == "optimized":
            self.model.optimize_for_cpu()
        self.memory = self.model.new_memory()

    def write(self, ids: torch.Tensor, evict: torch.Tensor | None = None) -> None:
        self.model.write(self.memory, ids, evict=evict)

    def generate(self, ids: torch.Tensor, **options: Any) -> Any:
        return self.model.generate(self.memory, ids, **GREEDY, **options)

    def held(self) -> dict[str, int]:
        prefix = sum(part.nbytes for layer in self.model.prefixes.acquire(self.memory.pool, None)[0] for part in layer)
        return {"memory_bytes": sum(self.memory.nbytes.values()), "prefix_bytes": prefix}


def gate(side: Published | Remanence, job: dict[str, Any]) -> None:
    """Write texts, ask a question, and save tokens and logits of the answer."""
    layers, slots, k = (job[name] for name in ("num_hidden_layers", "num_memory_tokens", "num_tokens"))
    for number, count in enumerate(GATE):
        # In each layer the published code keeps the first of a permutation. Who draws from its seed knows the others.
        torch.manual_seed(number)
        evict = torch.stack([torch.randperm(slots)[-k:].sort().values for _ in range(layers)])
        torch.manual_seed(number)
        side.write(random_ids(job, count, number), evict)
    out = side.generate(random_ids(job, PROMPT, len(GATE)), return_dict_in_generate=True, output_logits=True)
    save_file({"tokens": out.sequences[0, PROMPT:].clone(), "logits": torch.cat(out.logits)}, job["gate"])


def turn(side: Published | Remanence, job: dict[str, Any], number: int) -> dict[str, float]:
    """Milliseconds of a write, and of two questions after it: to the first token, and a token after that."""
    text, *prompts = (random_ids(job, count, 3 * number + n) for n, count in enumerate((TEXT, PROMPT, PROMPT)))
    start = time.perf_counter()
    side.write(text)
    taken = {"write": 1e3 * (time.perf_counter() - start), "token": 0.0}
    for name, prompt in zip(("first_after_write", "first"), prompts, strict=True):
        times = [time.perf_counter()]  # then when the prompt was put into the streamer, and each token
        clock = SimpleNamespace(put=lambda _, times=times: times.append(time.perf_counter()), end=bool)
        side.generate(prompt, streamer=clock)
        taken[name] = 1e3 * (times[2] - times[0])
        taken["token"] += 1e3 * (times[-1] - times[2]) / TOKENS / 2
    return taken


def random_ids(job: dict[str, Any], count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, job["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):  # the published code prints
        side = Published(job) if job["side"] == "published" else Remanence(job)
        if "gate" in job:
            gate(side, job)
        turns = [turn(side, job, number) for number in range(job["turns"])]
    peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    about = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"turns": turns, "peak_bytes": peak, **side.held(), "versions": about}))
