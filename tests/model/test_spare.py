"""A prefix that is kept for the next prompt is used for the very same prefix only."""

from collections.abc import Callable

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.memory import LongTermRules
from remanence.model.spare import Spare
from tests import tiny
from tests.tiny import ids


def written(model: MemoryModel, seed: int = 0) -> Memory:
    memory = model.new_memory(seed)
    for number in range(4):
        model.write(memory, ids(9, seed=10 * seed + number))
    return memory


def test_a_prefix_is_found_by_its_pool_and_all_that_it_hangs_on_and_taken_once() -> None:
    pool, other = (written(tiny.with_memory(), seed).pool for seed in range(2))
    buffers = [(torch.zeros(1), torch.zeros(1))]
    spare = Spare()
    assert spare.take(pool, (1, 2)) == ([], False)
    for asked, about, filled in ((pool, (1, 2), True), (pool, (1, 3), False), (other, (1, 2), False)):
        spare.give(pool, (1, 2), buffers)
        taken, found = spare.take(asked, about)
        assert taken is buffers and found is filled
        assert spare.take(pool, (1, 2)) == ([], False)


def written_again(model: MemoryModel, memory: Memory) -> Memory:
    model.write(memory, ids(9, seed=99))
    return memory


def with_other_weights(model: MemoryModel, memory: Memory) -> Memory:
    """Weights that change without a trace in the model's fingerprint."""
    before = model.fingerprint()
    weight = model.backbone.layers[0].self_attn.k_proj.weight
    with torch.no_grad():
        weight.view(-1)[1::8] += 1
    assert model.fingerprint() == before
    return memory


CHANGES: dict[str, Callable[[MemoryModel, Memory], Memory]] = {
    "nothing": lambda model, memory: memory,
    "a write": written_again,
    "other weights": with_other_weights,
    "without its long-term part": lambda model, memory: memory.pool_only(),
    "a fork": lambda model, memory: written_again(model, memory.fork()),
    "another memory": lambda model, memory: written(model, 5),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_next_prompt_reads_what_is_there_by_then(change: str) -> None:
    model = tiny.with_memory(longterm=LongTermRules(retrieved=4), retrieval_size=8)
    memory, prompt = written(model), ids(5)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    model.generate(memory, prompt, **options)
    memory = CHANGES[change](model, memory)
    out = model.generate(memory, prompt, **options, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(out.logits[0], model.read(memory, prompt).logits[:, -1], atol=1e-5, rtol=0)
