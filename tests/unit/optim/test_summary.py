"""One table says what became of each weight."""

import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification

from remanence.optim import grass_param_groups, summary


def test_it_names_what_is_projected_what_is_trained_in_full_and_why() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200, bos_token_id=1, eos_token_id=1))
    model.transformer.wpe.requires_grad_(False)
    assert summary(model, grass_param_groups(model, rank=8, exclude="attn")).splitlines() == [
        "    1  transformer.wte.weight [200 x 64]: in full: the output head",
        "    1  transformer.wpe.weight [1024 x 64]: not trained",
        "   18  vectors: in full",
        "    2  transformer.h.*.attn.c_attn.weight [64 x 192]: in full: it was left out",
        "    2  transformer.h.*.attn.c_proj.weight [64 x 64]: in full: it was left out",
        "    2  transformer.h.*.mlp.c_fc.weight [64 x 256]: 8 of 64 directions",
        "    2  transformer.h.*.mlp.c_proj.weight [256 x 64]: 8 of 64 directions",
        "gradients and moments: 0.6 MiB; of AdamW on all of it: 1.3 MiB",
    ]


def test_small_heads_computed_weights_and_other_matrices() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, vocab_size=50, num_labels=2, pad_token_id=0))
    model.extra = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    told = summary(model, grass_param_groups(model, rank=4))
    assert "    1  score.weight [2 x 16]: in full: its smaller side, 2, is below the rank" in told
    assert "    1  model.embed_tokens.weight [50 x 16]: in full: an embedding" in told
    assert "extra.parametrizations.weight.original1 [16 x 16]\n         in full: no linear layer" in told


@pytest.mark.parametrize("length", [1, 40, 70, 71, 72, 73, 90, 200])
def test_lines_fit_into_80_columns(length: int) -> None:
    model = nn.ModuleDict({"x" * length: nn.Linear(16, 16), "y" * length: nn.Linear(2, 16)})
    told = summary(model, grass_param_groups(model, rank=4))
    assert max(map(len, told.splitlines())) <= 80
    assert "4 of 16 directions" in told
    assert "is below the rank" in told
