"""Which models a backbone takes, and what it says of those that it does not."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.errors import InvalidInputError, UnsupportedModelError
from remanence.model.backbone import FAMILIES, Backbone
from tests.support import tiny
from tests.support.tiny import decoder, ids


def lora(hf: PreTrainedModel, *targets: str) -> Any:
    adapted = peft.get_peft_model(hf, peft.LoraConfig(r=2, target_modules=list(targets)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


def multimodal() -> Gemma3ForConditionalGeneration:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=decoder("gemma3_text").config.to_dict(),
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        mm_tokens_per_image=4,
        image_token_index=58,
        boi_token_index=59,
        eoi_token_index=60,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def refusal(model: Any) -> str:
    with pytest.raises(UnsupportedModelError) as refused:
        Backbone(model)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_an_unknown_family_is_refused_by_name() -> None:
    message = refusal(GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2)))
    assert "'gpt2'" in message and ", ".join(sorted(FAMILIES)) in message
    for where in ("remanence/model/backbone.py", "tests/support/tiny.py", "tests/unit/model/test_backbone.py"):
        assert where in message and (Path("src") / where if where.startswith("rem") else Path(where)).is_file()


def test_a_refused_model_is_left_as_it_was() -> None:
    hf = decoder(use_bidirectional_attention=True)
    before = [name for name, _ in hf.named_modules()]
    with pytest.raises(UnsupportedModelError):
        MemoryModel.attach(hf, slots=24, slots_per_write=6, lora=LoraSettings(r=2))
    assert [name for name, _ in hf.named_modules()] == before


def test_a_model_without_a_head_is_refused() -> None:
    for headless in (decoder().base_model, LlamaForSequenceClassification(decoder().config)):
        assert "no language-model head; load the model with AutoModelForCausalLM" in refusal(headless)


def test_what_is_no_transformers_model_is_refused() -> None:
    assert "got Linear" in refusal(nn.Linear(2, 2))


def test_an_encoder_decoder_is_refused() -> None:
    hf = T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    assert "encoder-decoder" in refusal(hf)


@pytest.mark.parametrize("setting", [{"use_bidirectional_attention": True}, {"is_causal": False}])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bidirectional_attention_is_refused(family: str, setting: dict[str, bool]) -> None:
    assert next(iter(setting)) in refusal(decoder(family, **setting))


def test_layers_of_an_unknown_type_are_refused_by_name() -> None:
    hf = decoder("qwen3")
    hf.config.layer_types[1] = "chunked_attention"
    assert "chunked_attention" in refusal(hf)


def test_attention_that_is_not_the_familys_is_refused() -> None:
    class Other(nn.Module):
        pass

    hf = decoder()
    hf.base_model.layers[0].self_attn = Other()
    assert "Other is not the attention of family 'llama'" in refusal(hf)


def test_a_multimodal_wrapper_is_refused_and_its_language_model_is_taken() -> None:
    model = multimodal()
    message = refusal(model)
    assert "'gemma3_text'" in message
    for step in ("with torch.device('meta'): lm = ", "lm.model, lm.lm_head = "):
        assert step in message
    with torch.device("meta"):  # as the message says
        lm = AutoModelForCausalLM.from_config(model.config.get_text_config())
    lm.model, lm.lm_head = model.model.language_model, model.lm_head
    assert Backbone(lm.eval()).config.model_type == "gemma3_text"
    assert torch.equal(lm(ids(9)[None]).logits, model(ids(9)[None]).logits)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(decoder().config)
    assert "meta device" in refusal(empty) and "from_pretrained" in refusal(empty)
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.disk_offload(decoder(), tmp_path)
    assert "offloaded" in refusal(offloaded) and "device_map" in refusal(offloaded)


def test_weights_on_several_devices_are_refused() -> None:
    hf = decoder()
    parameters = hf.parameters

    class Moved:
        device = torch.device("cuda", 1)

    hf.parameters = lambda: [*parameters(), Moved()]
    assert "cpu, cuda:1" in refusal(hf)


# What is taken


def test_a_peft_model_is_its_base_model_with_the_adapters() -> None:
    plain, adapted = decoder(), lora(decoder(), "k_proj", "down_proj")
    backbone = Backbone(adapted)
    assert backbone.hf is adapted.get_base_model()
    hidden = torch.randn(5, 32)
    keys, right = (one.project(0, hidden)[0] for one in (Backbone(plain), backbone))
    assert not torch.allclose(keys, right)


def test_a_peft_model_gets_a_memory() -> None:
    adapted = lora(decoder("phi3"), "qkv_proj")
    model = MemoryModel.attach(adapted, slots=24, slots_per_write=6, bos=False)
    text, prompt = ids(24), ids(9, seed=1)
    whole = adapted(torch.cat([text, prompt])[None], output_hidden_states=True, use_cache=False)
    slots = torch.cat(whole.hidden_states[: tiny.LAYERS])[:, :24]
    read = model.read(model.memory_from_slots(slots), prompt).logits
    torch.testing.assert_close(read[0], whole.logits[0, 24:], atol=1e-5, rtol=0.0)


def test_a_peft_model_gets_no_second_adapters() -> None:
    adapted = lora(decoder(), "k_proj")
    with pytest.raises(InvalidInputError, match=r"merge_and_unload\(\)"):
        MemoryModel.attach(adapted, slots=24, slots_per_write=6, lora=LoraSettings(r=2))
    MemoryModel.attach(adapted.merge_and_unload(), slots=24, slots_per_write=6, lora=LoraSettings(r=2))


def test_a_peft_model_with_tokens_of_its_own_is_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    message = refusal(peft.get_peft_model(decoder(), config))
    assert "'default'" in message and "PROMPT_TUNING" in message


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_quantized_weights_project_as_the_stock_decoder_does(kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    hf = decoder(dtype=torch.bfloat16)
    quantization.quantize_(hf, getattr(quantization, kind)())
    backbone = Backbone(hf)
    assert backbone.dtype == torch.bfloat16 and backbone.device.type == "cpu"
    inputs: list[torch.Tensor] = []
    backbone.layers[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        cache = hf(ids(9)[None], use_cache=True).past_key_values
        keys, values = backbone.project(1, inputs[0])
        cos, sin = backbone.rotary(torch.arange(9)[None], inputs[0])(1)
        assert torch.equal(backbone.rotate(1, keys, cos, sin).transpose(1, 2), cache.layers[1].keys)
        assert torch.equal(values.transpose(1, 2), cache.layers[1].values)


def test_dtype_is_that_of_computing_where_embeddings_are_stored_smaller() -> None:
    hf = decoder(dtype=torch.bfloat16)
    hf.config.dtype = torch.bfloat16
    hf.get_input_embeddings().weight.data = hf.get_input_embeddings().weight.data.to(torch.float8_e4m3fn)
    assert Backbone(hf).dtype == torch.bfloat16
