"""The digest of a model: the same for what is the same, another for all else, whatever the parameters are stored as."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remanence.model.validation import Fingerprint
from tests.support.tiny import decoder


def module(*, tied: bool = True) -> nn.Module:
    made = nn.Module()
    made.first, made.norm, made.last = nn.Linear(40, 30), nn.LayerNorm(7), nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) * 0.37 - 5)
    if tied:
        made.last.weight = made.first.weight
    return made


def digest(model: nn.Module) -> str:
    return Fingerprint().of(model, "llama")


def quantized(kind: str = "Int8WeightOnlyConfig", change: float = 0.0) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    hf = decoder(hidden_size=32)
    hf.base_model.layers[1].self_attn.k_proj.weight.data += change
    quantization.quantize_(hf, getattr(quantization, kind)())
    return hf


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        (torch.float32, "587b4d53951876ff29bade32c3f8dba9"),
        (torch.bfloat16, "22b050e2d1b0f66cc474b7f06d2e89f6"),
        (torch.float16, "aa8899ce3af33eeb3307c63647834bf5"),
    ],
    ids=str,
)
def test_fingerprint_of_plain_parameters_is_what_memories_on_disk_carry(dtype: torch.dtype, known: str) -> None:
    assert digest(module().to(dtype)) == known


def test_fingerprint_of_bytes_and_float8_is_what_memories_on_disk_carry() -> None:
    model = module()
    model.packed = nn.Parameter((torch.arange(200) % 251).to(torch.uint8), requires_grad=False)
    model.small = nn.Parameter(torch.arange(200.0).to(torch.float8_e4m3fn), requires_grad=False)
    assert digest(model) == "9c8894d93ddb40391b1f02be1b112181"


def test_fingerprint_of_numbers_of_less_than_a_byte_hangs_on_their_bytes() -> None:
    digests = set()
    for start in (0, 1, 0):
        model = nn.Module()
        packed = (torch.arange(64) + start).to(torch.uint8).view(torch.float4_e2m1fn_x2)
        model.packed = nn.Parameter(packed, requires_grad=False)
        digests.add(digest(model))
    assert len(digests) == 2


def test_fingerprint_counts_tied_parameters_once() -> None:
    assert digest(module()) != digest(module(tied=False))
    model = decoder(tie_word_embeddings=True)
    assert digest(model) == digest(decoder(tie_word_embeddings=True))
    assert digest(model) != digest(decoder(tie_word_embeddings=False))


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_fingerprint_of_a_quantized_model_tells_it_from_others(kind: str) -> None:
    assert digest(quantized(kind)) == digest(quantized(kind))
    assert len({digest(each) for each in (quantized(kind), quantized(kind, change=0.5), decoder(hidden_size=32))}) == 3


def test_fingerprint_dequantizes_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = quantized()

    def whole(self: Tensor, *args: Any) -> Tensor:
        raise AssertionError("a whole matrix was made")

    monkeypatch.setattr(type(hf.base_model.layers[0].self_attn.k_proj.weight), "dequantize", whole)
    assert digest(hf)


def test_fingerprint_notices_what_a_quantized_parameter_became() -> None:
    hf, fingerprint = quantized(), Fingerprint()
    before, stamp = fingerprint.of(hf, "llama"), fingerprint.stamp
    assert fingerprint.of(hf, "llama") == before and fingerprint.stamp == stamp
    with torch.no_grad():
        hf.base_model.layers[1].self_attn.k_proj.weight.qdata.zero_()
    assert fingerprint.of(hf, "llama") != before and fingerprint.stamp != stamp
