"""sdpa with shared heads gives what stock sdpa gives, in every family and on every path that has one of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.kernels import gqa_sdpa
from remanence.kernels.gqa_sdpa import SHARED_HEADS, share_heads, use_stock_sdpa
from tests.support import tiny
from tests.support.tiny import ids

CLOSE = {"atol": 1e-5, "rtol": 0.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

FAMILIES = [family for family in sorted(tiny.FAMILIES) if "sdpa" in tiny.attentions(family)]
every_family = pytest.mark.parametrize("family", FAMILIES)


def both(family: str, **changes: Any) -> list[PreTrainedModel]:
    """A decoder with stock sdpa, and its like with shared heads."""
    stock, shared = (tiny.decoder(family, **changes) for _ in range(2))
    share_heads(shared)
    assert shared.config._attn_implementation == SHARED_HEADS
    return [stock, shared]


def alike(made: list[Any]) -> None:
    torch.testing.assert_close(made[1], made[0], **CLOSE)


@every_family
@pytest.mark.parametrize("padded", [False, True])
def test_share_heads_gives_the_logits_of_a_prompt(family: str, padded: bool) -> None:
    prompts = torch.stack([ids(12, seed=1), ids(12, seed=2)])
    mask = torch.ones_like(prompts)
    mask[0, :5] = int(not padded)
    made = [hf(input_ids=prompts, attention_mask=mask).logits[:, 5:].detach() for hf in both(family)]
    alike(made)


@every_family
def test_share_heads_gives_the_logits_of_every_step(family: str) -> None:
    prompt = ids(9)[None]
    made = [hf.generate(prompt, attention_mask=torch.ones_like(prompt), **GREEDY) for hf in both(family)]
    assert torch.equal(made[0].sequences, made[1].sequences)
    alike([torch.cat(out.logits) for out in made])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in FAMILIES),
        *((f, {"sliding_window": 4}) for f in ("gemma3_text", "mistral")),
    ],
)
def test_share_heads_writes_and_reads_what_stock_sdpa_does(family: str, changes: dict[str, int]) -> None:
    read: list[list[Tensor]] = []
    for shared in (False, True):
        model = tiny.with_memory(tiny.decoder(family, **changes))
        if shared:
            share_heads(model.hf)
        memories = [model.new_memory(seed) for seed in range(2)]
        for length in (20, 3, 9):
            model.write(memories, [ids(length, seed=length), ids(length + 2, seed=length)])
        prompts = [ids(7, seed=3), ids(11, seed=4)]
        out = model.generate(memories, torch.stack([ids(8, seed=5), ids(8, seed=6)]), **GREEDY)
        read.append([model.read(memories, prompts).logits[:, -7:], torch.cat(out.logits)])
    alike(read)


@pytest.mark.parametrize("tokens", [1, 5])
def test_share_heads_passes_gradients_on(tokens: int) -> None:
    gradients = []
    for hf in both("qwen3"):
        embedded = hf.get_input_embeddings()(ids(tokens)[None]).detach().requires_grad_()
        hf(inputs_embeds=embedded, attention_mask=torch.ones(1, tokens)).logits.sum().backward()
        gradients.append(embedded.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def test_share_heads_repeats_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    stock = gqa_sdpa.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        shapes.append((query.shape[1:3], key.shape[1]))
        made: Tensor = stock(query, key, *rest, **kwargs)
        return made

    monkeypatch.setattr(gqa_sdpa, "scaled_dot_product_attention", attention)
    _, hf = both("llama")  # 4 heads, of which 2 share one
    model = tiny.with_memory(hf)
    memory = model.memory_from_slots(torch.randn(tiny.LAYERS, tiny.SLOTS, 32))
    for tokens, seen in ((5, (4, 5)), (1, (2, 2))):  # one query: the heads of a group are its rows
        shapes.clear()
        model.read(memory, ids(tokens))
        assert shapes == [(seen, 2)] * tiny.LAYERS


@pytest.mark.parametrize("chosen", ["sdpa", "eager"])
def test_use_stock_sdpa_undoes_what_share_heads_did(chosen: str) -> None:
    hf = tiny.decoder(attention=chosen)
    share_heads(hf)
    assert hf.config._attn_implementation == (SHARED_HEADS if chosen == "sdpa" else chosen)
    use_stock_sdpa(hf)
    assert hf.config._attn_implementation == chosen


def test_use_stock_sdpa_leaves_what_was_chosen_since() -> None:
    _, hf = both("llama")
    hf.set_attn_implementation("eager")
    use_stock_sdpa(hf)
    assert hf.config._attn_implementation == "eager"
