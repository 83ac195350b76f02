"""What attaching puts on a decoder comes off again, whole; and a decoder with it can be copied and pickled."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.errors import InvalidInputError
from remanence.model import hooks
from remanence.optim import GrassAdamW, grass_param_groups, release
from tests.support import tiny
from tests.support.models import KINDS, randomised, told, with_longterm
from tests.support.tiny import decoder, ids, with_memory, with_text

HOOKS = [name for name in vars(nn.Module()) if "hooks" in name and not name.startswith("_is_full")]
LORA = LoraSettings(r=2, lora_alpha=4.0)
every_kind = pytest.mark.parametrize("kind", KINDS)


def found(hf: PreTrainedModel) -> dict[str, Any]:
    """All that somebody could have put on a decoder: hooks, attributes of instances, classes, settings, weights."""
    about: dict[str, Any] = {"attention": hf.config._attn_implementation, "config": hf.config.to_dict()}
    about["generation"] = hf.generation_config.to_dict()
    for name, module in hf.named_modules():
        counts = {kind: len(getattr(module, kind)) for kind in HOOKS}
        own = vars(module).get("forward")
        about[f"module {name}"] = (type(module), counts, set(vars(module)), own, module.training)
    about["gradients"] = {name: parameter.requires_grad for name, parameter in hf.named_parameters()}
    about["where"] = {name: parameter.data_ptr() for name, parameter in hf.named_parameters()}
    about["buffers"] = {name: buffer.tolist() for name, buffer in hf.named_buffers()}
    about["state"] = list(hf.state_dict())
    return about


def bits(hf: PreTrainedModel) -> Tensor:
    prompts = torch.stack([ids(9), ids(9, seed=1)])
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    with torch.no_grad():
        first = hf(input_ids=prompts, attention_mask=mask).logits[mask.bool()]
    continued = hf.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=4)
    return torch.cat([first.flatten(), continued.flatten()])


def use(model: MemoryModel) -> None:
    memory = told(model)
    model.read(memory, ids(5))
    model.generate(memory, ids(5), max_new_tokens=3, do_sample=False)


def attached(hf: PreTrainedModel) -> list[MemoryModel]:
    return [with_memory(hf)]


def attached_for_text(hf: PreTrainedModel) -> list[MemoryModel]:
    return [with_text(hf)]


def attached_with_adapters(hf: PreTrainedModel) -> list[MemoryModel]:
    return [randomised(with_memory(hf, lora=LORA))]


def extended(hf: PreTrainedModel) -> list[MemoryModel]:
    first = with_memory(hf)
    use(first)
    return [first, randomised(first.with_longterm(LongTermConfig(retrieved=4), retrieval_size=8, lora=LORA))]


def extended_with_its_adapters(hf: PreTrainedModel) -> list[MemoryModel]:
    first = with_memory(hf, lora=LORA)
    return [first, randomised(first.with_longterm(LongTermConfig(retrieved=4), retrieval_size=8))]


def attached_twice(hf: PreTrainedModel) -> list[MemoryModel]:
    return [with_memory(hf), with_text(hf), with_longterm(hf)]


def attached_beside_adapters(hf: PreTrainedModel) -> list[MemoryModel]:
    return [with_text(hf), randomised(with_memory(hf, lora=LORA))]


def checkpointed(hf: PreTrainedModel) -> list[MemoryModel]:
    model = randomised(with_longterm(hf, lora=LORA))
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return [model]


def optimized(hf: PreTrainedModel) -> list[MemoryModel]:
    return [randomised(with_longterm(hf, lora=LORA)).optimize_for_cpu()]


def optimized_before_adapters(hf: PreTrainedModel) -> list[MemoryModel]:
    first = with_memory(hf).optimize_for_cpu()
    return [first, randomised(first.with_longterm(LongTermConfig(retrieved=4), retrieval_size=8, lora=LORA))]


def everything_at_once(hf: PreTrainedModel) -> list[MemoryModel]:
    models = [*attached_twice(hf), *extended(hf)]
    for model in models:
        model.gradient_checkpointing_enable()
    models[-1].optimize_for_cpu()
    return models


WAYS: list[Callable[[PreTrainedModel], list[MemoryModel]]] = [
    attached,
    attached_for_text,
    attached_with_adapters,
    extended,
    extended_with_its_adapters,
    attached_twice,
    attached_beside_adapters,
    checkpointed,
    optimized,
    optimized_before_adapters,
    everything_at_once,
]


@pytest.mark.parametrize("by", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("attach", WAYS, ids=lambda way: way.__name__)
def test_detach_gives_back_what_was_there_and_nothing_else(
    attach: Callable[[PreTrainedModel], list[Any]], by: int
) -> None:
    hf = decoder()
    hf.model.layers[0].requires_grad_(False)
    before, made = found(hf), bits(hf)
    models = attach(hf)
    use(models[-1])
    assert hooks.installed(hf.base_model) and found(hf) != before
    assert models[by].detach() is hf
    assert not hooks.installed(hf.base_model)
    assert found(hf) == before
    assert (
        not hasattr(hf, "peft_config") and not hasattr(hf, "_hf_peft_config_loaded")
    ) or not hf._hf_peft_config_loaded
    assert torch.equal(bits(hf), made)
    for model in models:
        with pytest.raises(InvalidInputError, match="was detached; attach a memory to the decoder again"):
            model.write(model.new_memory(), ids(4))


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("make", [with_memory, with_text])
def test_detach_gives_every_family_back(family: str, make: Callable[..., MemoryModel]) -> None:
    hf = decoder(family)
    before, made = found(hf), bits(hf)
    model = make(hf)
    use(model)
    model.gradient_checkpointing_enable()
    model.optimize_for_cpu()
    model.detach()
    assert found(hf) == before and torch.equal(bits(hf), made)


def test_detach_leaves_hooks_and_forwards_of_others_alone() -> None:
    hf, calls = decoder(), list[str]()
    layer = hf.model.layers[1]
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    stock = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append("forward")
        return stock(*args, **kwargs)

    hf.model.forward = hf.model.forward  # an attribute of the instance, as accelerate leaves one
    layer.forward = forward
    before, made = found(hf), bits(hf)
    model = with_memory(hf)
    calls.clear()
    use(model)
    assert {*calls} == {"hook", "forward"}
    model.detach()
    assert found(hf) == before and torch.equal(bits(hf), made)


@every_kind
def test_detach_leaves_a_model_that_says_what_to_do(kind: str) -> None:
    model = KINDS[kind](decoder(vocab_size=300), tokenizer=tiny.tokenizer())
    memory = told(model)
    hf = model.detach()
    acts: list[Callable[[], Any]] = [
        lambda: model.write(memory, ids(4)),
        lambda: model.read(memory, ids(4)),
        lambda: model.generate(memory, ids(4), max_new_tokens=1),
        lambda: model.ask(memory, "Where?"),
        lambda: model.search(memory, "Where?"),
        lambda: model.forget(memory, 0),
        lambda: model(ids(4)[None], [memory]),
        lambda: model(ids(4)[None]),
    ]
    for act in acts:
        with pytest.raises(InvalidInputError, match="was detached; attach a memory to the decoder again"):
            act()
    model.detach()  # again: there is nothing left to do
    again = KINDS[kind](hf, tokenizer=tiny.tokenizer())
    use(again)
    for act in acts:
        with pytest.raises(InvalidInputError, match="was detached"):
            act()
    model.detach()  # and what was attached since stays
    use(again)


@pytest.mark.parametrize("kind", ["pool", "longterm", "text"])
def test_attach_after_detach_reads_the_memories_of_before(kind: str) -> None:
    hf = decoder()
    model = KINDS[kind](hf)
    memory = told(model)
    expected, state = model.read(memory, ids(5)).logits, model.state_dict()
    model.detach()
    again = KINDS[kind](hf)
    again.load_state_dict(state)
    torch.testing.assert_close(again.read(memory, ids(5)).logits, expected, atol=1e-5, rtol=0.0)


def test_attach_again_hooks_a_decoder_once() -> None:
    hf = decoder()
    with_memory(hf)
    once = found(hf)
    with_text(hf)
    with_longterm(hf)
    assert found(hf) == once


def test_detach_gives_a_peft_model_back_as_it_was_given() -> None:
    own = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2))
    for name, parameter in own.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    own.eval()
    made, before = bits(own), found(own)
    model = with_memory(own)
    use(model)
    assert torch.equal(model.read(model.new_memory(), ids(5)).logits, own(ids(5)[None]).logits)
    assert model.detach() is own
    assert found(own) == before and torch.equal(bits(own), made)


def test_detach_is_refused_whole_while_an_optimizer_holds_layers() -> None:
    model = with_memory(lora=LORA).optimize_for_cpu()
    optimizer = GrassAdamW(grass_param_groups(model.hf, rank=2, target_modules=["mlp.up_proj"]), lr=1e-3)
    with pytest.raises(InvalidInputError, match="release"):
        model.detach()
    use(model)
    release(model)
    del optimizer
    model.detach()
    assert {type(module).__name__ for module in model.hf.modules()} == {type(m).__name__ for m in decoder().modules()}


# Copies and pickles.


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: Any) -> Any:
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def as_it_is(model: MemoryModel) -> MemoryModel:
    return model


def with_checkpointing(model: MemoryModel) -> MemoryModel:
    model.gradient_checkpointing_enable()
    return model


def with_kernels(model: MemoryModel) -> MemoryModel:
    return model.optimize_for_cpu()


def with_both(model: MemoryModel) -> MemoryModel:
    return with_kernels(with_checkpointing(model))


every_copy = pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch])
every_state = pytest.mark.parametrize("prepared", [as_it_is, with_checkpointing, with_kernels, with_both])


def logits(model: MemoryModel) -> Tensor:
    """Of reading what the model wrote itself; and gradients, for which layers run again where they do so."""
    memory, prompt = told(model), ids(9, seed=8)
    read = model.read(memory, prompt).logits.flatten()
    model.train()
    model(prompt[None], [memory], labels=prompt[None]).loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.eval()
    return torch.cat([read, *gradients])


@torch.no_grad()
def spoil(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.5)


@every_kind
@every_copy
@every_state
def test_copies_of_a_model_compute_with_their_own_weights(
    kind: str, copied: Callable[[Any], Any], prepared: Callable[[MemoryModel], MemoryModel]
) -> None:
    model = prepared(KINDS[kind]())
    told(model)
    twin = copied(model)
    expected = logits(model)
    spoil(model)
    assert not torch.allclose(logits(model), expected, atol=1e-3)
    torch.testing.assert_close(logits(twin), expected, atol=1e-4, rtol=1e-4)  # weights of a copy are not packed
    spoil(twin)
    torch.testing.assert_close(logits(twin), logits(model), atol=1e-4, rtol=1e-4)
    twin.detach()
    assert hooks.installed(model.backbone.decoder) and not hooks.installed(twin.backbone.decoder)
    use(model)


@every_kind
@every_copy
@every_state
def test_copies_of_the_decoder_alone_compute_with_their_own_weights(
    kind: str, copied: Callable[[Any], Any], prepared: Callable[[MemoryModel], MemoryModel]
) -> None:
    model = prepared(KINDS[kind]())
    use(model)
    twin, prompt = copied(model.hf), ids(9)[None]
    with torch.no_grad():
        expected = decoder()(prompt).logits
        torch.testing.assert_close(twin(prompt).logits, expected, atol=1e-5, rtol=0.0)
        spoil(model.hf)
        torch.testing.assert_close(twin(prompt).logits, expected, atol=1e-5, rtol=0.0)
        spoil(twin)
        torch.testing.assert_close(twin(prompt).logits, model.hf(prompt).logits, atol=1e-5, rtol=0.0)
    use(model)
