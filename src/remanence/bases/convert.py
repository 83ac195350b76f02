"""A Llama decoder as llama.cpp keeps it, one GGUF file, turned into what transformers loads.

llama.cpp pairs neighbours where it turns queries and keys, transformers the two halves of a head; so the rows of those
two projections stand in another order in a GGUF, and are put back. Quantized numbers become bfloat16 once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from remanence.bases.folder import WEIGHTS, Progress
from remanence.errors import CheckpointError, UnsupportedModelError

_OF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens


def convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write the model of a GGUF into a folder: config, bfloat16 weights, tokenizer with its chat template.

    Raises:
        CheckpointError: it is no GGUF, or lacks a setting or a tensor.
        UnsupportedModelError: it holds another family, another kind of tokenizer, or tensors that Llama has not.
    """
    try:
        reader = GGUFReader(gguf)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{gguf} is no GGUF file that can be read: {error}") from error
    fields = _Fields(gguf, {name: field.contents() for name, field in reader.fields.items()})
    if fields["general.architecture"] != "llama":
        raise UnsupportedModelError(f"{gguf} holds a {fields['general.architecture']} model; only llama is converted")
    config = _config(fields, reader)
    tokenizer = _tokenizer(fields)
    weights = _weights(gguf, reader, config, progress)
    size = sum(tensor.nbytes for tensor in weights.values())
    progress("writing", 0, size)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    progress("writing", size, size)
    config.save_pretrained(folder)
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # made for its owner only
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _Fields:
    """The settings of a GGUF by name."""

    def __init__(self, gguf: Path, held: dict[str, Any]) -> None:
        self._gguf, self._held = gguf, held

    def __getitem__(self, name: str) -> Any:
        if name not in self._held:
            raise CheckpointError(f"{self._gguf} lacks {name}, so it is no whole model")
        return self._held[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._held.get(name, default)


def _config(fields: _Fields, reader: GGUFReader) -> LlamaConfig:
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise UnsupportedModelError("this GGUF scales its positions, which is not converted")
    heads, size = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    tokens: dict[str, int | None] = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=fields.get("llama.vocab_size", len(fields["tokenizer.ggml.tokens"])),
        hidden_size=size,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.rope.dimension_count", size // heads),
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        **tokens,
    )


def _weights(gguf: Path, reader: GGUFReader, config: LlamaConfig, progress: Progress) -> dict[str, Tensor]:
    """All tensors in bfloat16, by the names that transformers gives them."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in LlamaForCausalLM(config).named_parameters()}
    made: dict[str, Tensor] = {}
    done, total = 0, sum(int(tensor.n_bytes) for tensor in reader.tensors)
    for tensor in reader.tensors:
        name, part = _named(tensor.name)
        if name not in wanted:
            raise UnsupportedModelError(f"{gguf} holds {tensor.name}, for which a Llama decoder has no place")
        values = dequantize(tensor.data, tensor.tensor_type)
        if part in heads:
            values = _halves(values, heads[part])
        if values.shape != wanted[name]:
            raise CheckpointError(f"{gguf}: {tensor.name} is {list(values.shape)}, not {list(wanted[name])}")
        made[name] = torch.tensor(values).to(torch.bfloat16)
        done += int(tensor.n_bytes)
        progress("converting", done, total)
    if missing := wanted.keys() - made.keys():
        raise CheckpointError(f"{gguf} lacks the tensor for {min(missing)}, so it is no whole model")
    return made


def _named(name: str) -> tuple[str, str]:
    """What transformers calls a tensor of a GGUF ("" where it has none), and which part of a layer it is."""
    match name.split("."):
        case ["blk", layer, part, kind] if part in _OF_LAYER:
            return f"model.layers.{layer}.{_OF_LAYER[part]}.{kind}", part
        case [part, kind] if part in _OF_MODEL:
            return f"{_OF_MODEL[part]}.{kind}", part
    return "", ""


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:  # [H * D, d] -> [H * D, d]
    """Of each head, the even rows first and then the odd ones."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(fields: _Fields) -> PreTrainedTokenizerFast:
    """Byte-level pairs; each digit is a token of its own."""
    kind = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise UnsupportedModelError(f"this GGUF has a tokenizer of kind {kind}; only ('gpt2', 'smollm') is converted")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [(first, second) for first, _, second in (one.partition(" ") for one in fields["tokenizer.ggml.merges"])]
    pairs = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    pairs.decoder = decoders.ByteLevel()
    of_kind = [(AddedToken(token, normalized=False), kind) for token, kind in zip(tokens, kinds, strict=True)]
    pairs.add_special_tokens([token for token, kind in of_kind if kind == _CONTROL])
    pairs.add_tokens([token for token, kind in of_kind if kind == _USER_DEFINED])
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[index] for name, index in ids.items() if index is not None},
    )
