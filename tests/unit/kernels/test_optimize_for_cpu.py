"""Attaching changes no class of a decoder, `optimize_for_cpu` does on request, and all of it can be undone."""

import copy
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.kernels import onednn
from remanence.kernels.gqa_sdpa import SHARED_HEADS
from remanence.kernels.onednn import OneDnnLinear
from remanence.kernels.optimize import optimize_for_cpu, restore_stock
from tests.support import tiny
from tests.support.tiny import ids

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def classes(hf: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in hf.named_modules()}


def packed(hf: nn.Module) -> list[bool]:
    return [module.packed is not None for module in hf.modules() if isinstance(module, OneDnnLinear)]


def linears(hf: nn.Module) -> int:
    return sum(isinstance(module, nn.Linear) for module in hf.modules())


def logits(hf: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        made: Tensor = hf(input_ids=torch.stack([ids(9), ids(9, seed=1)])).logits
    return made


def written_and_read(model: MemoryModel) -> Tensor:
    memory = model.new_memory()
    for length in (20, 3, 9):
        model.write(memory, ids(length, seed=length))
    return model.read(memory, ids(7)).logits


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_attach_swaps_nothing(family: str) -> None:
    hf = tiny.decoder(family)
    before, attention = classes(hf), hf.config._attn_implementation
    written_and_read(tiny.with_memory(hf))
    assert classes(hf) == before and hf.config._attn_implementation == attention


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_attach_leaves_every_linear_layer_to_quantize_dynamic() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch cannot quantize dynamically")
    hf = tiny.decoder()
    found = linears(hf)
    tiny.with_memory(hf)
    bare = copy.deepcopy(hf)
    quantized = torch.ao.quantization.quantize_dynamic(bare, {nn.Linear}, dtype=torch.qint8)
    kinds = [type(module).__module__ for module in quantized.modules()]
    assert sum("quantized" in kind and kind.endswith("dynamic.modules.linear") for kind in kinds) == found
    assert linears(quantized) == 0


@needs_onednn
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_optimize_for_cpu_writes_and_reads_what_the_stock_model_does(family: str) -> None:
    stock, model = (tiny.with_memory(tiny.decoder(family)) for _ in range(2))
    assert model.optimize_for_cpu() is model
    assert packed(model.hf) == [True] * linears(model.hf)
    attention = SHARED_HEADS if "sdpa" in tiny.attentions(family) else "eager"
    assert model.hf.config._attn_implementation == attention
    torch.testing.assert_close(written_and_read(model), written_and_read(stock), **CLOSE)
    assert model.spec == stock.spec, "a memory of one can be read by the other"


@needs_onednn
def test_optimize_for_cpu_retrieves_with_adapters_what_the_stock_model_does() -> None:
    read = []
    for optimized in (False, True):
        rules = LongTermConfig(retrieved=8)
        model = tiny.with_memory(tiny.decoder("qwen3"), longterm=rules, retrieval_size=16, lora=LoraSettings(r=2))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or name.startswith("retriever."):
                torch.nn.init.normal_(parameter, std=0.1)
        if optimized:
            model.optimize_for_cpu()
        memory = model.new_memory()
        for step in range(9):
            model.write(memory, ids(9 + step, seed=step))
        read.append(model.read(memory, ids(7)).logits)
    torch.testing.assert_close(read[1], read[0], atol=1e-4, rtol=0.0)


@needs_onednn
def test_optimize_for_cpu_lets_every_linear_layer_multiply_by_a_packed_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.with_memory().optimize_for_cpu()
    model.bos_slots()  # made once, by layers that every read runs through as well
    used: list[Tensor] = []
    multiply = onednn._onednn

    def product(given: Tensor, weight: Tensor, *rest: object) -> Tensor:
        used.append(weight)
        made: Tensor = multiply(given, weight, *rest)
        return made

    monkeypatch.setattr(onednn, "_onednn", product)
    model.read(model.new_memory(), ids(5))
    assert len(used) == linears(model.hf) and not any(type(weight) is nn.Parameter for weight in used)


@needs_onednn
def test_optimize_for_cpu_can_be_called_again() -> None:
    model = tiny.with_memory().optimize_for_cpu()
    once, classes_once = logits(model.hf), classes(model.hf)
    model.optimize_for_cpu()
    assert classes(model.hf) == classes_once and torch.equal(logits(model.hf), once)


@needs_onednn
def test_optimize_for_cpu_called_again_packs_what_was_written_through_data() -> None:
    stock, model = tiny.with_memory(), tiny.with_memory().optimize_for_cpu()
    for hf in (stock.hf, model.hf):
        hf.lm_head.weight.data.mul_(-2)
    model.optimize_for_cpu()
    torch.testing.assert_close(logits(model.hf), logits(stock.hf), **CLOSE)


@needs_onednn
def test_optimize_for_cpu_makes_the_bos_slots_anew() -> None:
    early, late = tiny.with_memory(), tiny.with_memory()
    early.bos_slots()
    made = [written_and_read(model.optimize_for_cpu()) for model in (early, late)]
    assert torch.equal(*made)


def _to_bfloat16(model: MemoryModel, _: pytest.MonkeyPatch) -> None:
    model.bfloat16()


def _to_meta(model: MemoryModel, _: pytest.MonkeyPatch) -> None:
    model.to("meta")


def _without_onednn(_: MemoryModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(onednn, "_onednn", None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_to_bfloat16, "bfloat16 on cpu"),
        (_to_meta, "float32 on meta"),
        (_without_onednn, "this torch has no oneDNN"),
    ],
)
def test_optimize_for_cpu_changes_nothing_where_it_cannot_help_and_logs_why(
    change: Callable[[MemoryModel, pytest.MonkeyPatch], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny.with_memory()
    change(model, monkeypatch)
    before = classes(model.hf)
    with caplog.at_level(logging.INFO, "remanence"):
        assert model.optimize_for_cpu() is model
    assert classes(model.hf) == before and model.hf.config._attn_implementation == "sdpa"
    assert [record.levelno for record in caplog.records] == [logging.INFO] and why in caplog.text


@needs_onednn
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_restore_stock_gives_classes_attention_and_every_bit_back(attention: str) -> None:
    hf = tiny.decoder(attention=attention)
    before, config, made = classes(hf), dict(vars(hf.config)), logits(hf)
    held = {name: set(vars(module)) for name, module in hf.named_modules()}
    assert optimize_for_cpu(hf) and optimize_for_cpu(hf)
    logits(hf)
    restore_stock(hf)
    assert classes(hf) == before and dict(vars(hf.config)) == config
    assert {name: set(vars(module)) for name, module in hf.named_modules()} == held
    assert torch.equal(logits(hf), made)


def test_restore_stock_leaves_a_stock_decoder_as_it_is() -> None:
    hf = tiny.decoder()
    before = classes(hf)
    restore_stock(hf)
    assert classes(hf) == before and hf.config._attn_implementation == "sdpa"


@needs_onednn
def test_optimize_for_cpu_survives_a_deep_copy_which_is_independent() -> None:
    model = tiny.with_memory().optimize_for_cpu()
    made = logits(model.hf)
    twin = copy.deepcopy(model)
    assert classes(twin.hf) == classes(model.hf) and not any(packed(twin.hf))
    torch.testing.assert_close(logits(twin.hf), made, **CLOSE)
    with torch.no_grad():
        twin.optimize_for_cpu().hf.lm_head.weight.zero_()
    assert float(logits(twin.hf).abs().max()) == 0 and torch.equal(logits(model.hf), made)
    restore_stock(twin.hf)
    assert all(packed(model.hf)) and model.hf.config._attn_implementation == SHARED_HEADS


@needs_onednn
def test_optimize_for_cpu_survives_a_pickle_into_another_process(tmp_path: Path) -> None:
    hf = tiny.decoder()
    assert optimize_for_cpu(hf)
    (tmp_path / "hf.pickle").write_bytes(pickle.dumps(hf))
    prompt = torch.stack([ids(9), ids(9, seed=1)])
    torch.save(prompt, tmp_path / "prompt.pt")
    program = (
        "import pickle, torch; torch.set_num_threads(1)\n"
        "hf = pickle.load(open('hf.pickle', 'rb'))\n"
        "with torch.no_grad(): torch.save(hf(input_ids=torch.load('prompt.pt')).logits, 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(hf), **CLOSE)


@needs_onednn
def test_optimize_for_cpu_trains_as_the_stock_model_does() -> None:
    trained = []
    for optimized in (False, True):
        hf = tiny.decoder("qwen3")
        assert not optimized or optimize_for_cpu(hf)
        optimizer = torch.optim.SGD(hf.parameters(), lr=0.05)
        losses = []
        for step in range(4):
            batch = torch.stack([ids(12, seed=step), ids(12, seed=step + 9)])
            loss = hf(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        trained.append([torch.stack(losses), logits(hf), *(p.detach() for p in hf.parameters())])
    torch.testing.assert_close(trained[1], trained[0], atol=1e-4, rtol=1e-4)
