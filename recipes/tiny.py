"""The bundled checkpoint: a tiny Qwen3 that reads short biographies into memory and answers questions about them.

    remanence train recipes/tiny.py --output runs/tiny

Trains on two CPU cores. Wikipedia and TinyStories text is read from the folder in REMANENCE_PROSE (see `prose` below).
"""

import glob
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainingArguments

from remanence import MemoryModel
from remanence.data.biographies import ATTRIBUTES, Person, biography, question, sample_person, vocabulary
from remanence.training.batches import Example, left_pad, pack
from remanence.training.objectives import Episodes
from remanence.training.optimizer import MuonAdamW, split_parameters
from remanence.training.trainer import MemoryTrainer, StopAfter, write_log

VOCABULARY = 5120
SLOTS, K = 512, 32


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum. Tasks are drawn by weight; `chunks` = 0 reads the full pool."""

    until: int
    chunks: int
    facts: tuple[int, int]
    pronouns: float
    tasks: dict[str, float] = field(default_factory=dict)
    names: int = 0
