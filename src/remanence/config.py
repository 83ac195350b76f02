"""Settings of models and memories: frozen, validated when made, to and from JSON. Imports no torch."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import wraps
from math import exp, isfinite, log
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, dataclass_transform, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from remanence.errors import InvalidInputError

Made = TypeVar("Made")
WriterName = Literal["text", "learned"]
Tier = Literal["device", "host", "disk", "text"]
Eviction = Literal["per_layer", "shared", "oldest", "random"]
TIERS: tuple[Tier, ...] = get_args(Tier)

TEXT_CHUNK = 256  # tokens at most of a text writer's chunk; a longer one is distracting to read
LEARNED_CHUNK = 512  # of a learned writer's, as published


def integer(name: str, value: Any) -> int:
    """A number as an int, NumPy's too. A bool in the place of a count is a slip."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidInputError(f"{name} must be an integer, got {value!r}")
    return int(value)


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


Count = Annotated[int, BeforeValidator(_integral)]  # strict but for NumPy's integers


@dataclass_transform(frozen_default=True)
def _settings(cls: type[Made]) -> type[Made]:
    """A frozen dataclass whose wrong values raise `InvalidInputError`, one line for each of them."""
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    validated: Callable[..., None] = made.__init__

    @wraps(validated)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except ValidationError as error:
            raise _explained(cls, error) from None

    made.__init__ = __init__
    return made


def _explained(cls: type, error: ValidationError) -> InvalidInputError:
    """pydantic's errors, each in some words that name the field and what was given."""
    lines = []
    for one in error.errors():
        reason, path = one.get("ctx", {}).get("error"), list(one["loc"])
        if path and isinstance(path[0], int):  # given by position
            path[0] = dataclasses.fields(cls)[path[0]].name
        field, message = ".".join(map(str, path)), one["msg"]
        if isinstance(reason, InvalidInputError):
            lines.append(str(reason))
        elif one["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"{cls.__name__} has no setting {field}")
        elif one["type"] in ("missing", "missing_argument"):
            lines.append(f"{cls.__name__} needs {field}")
        else:
            message = "must be an integer" if one["type"] == "int_type" else message
            lines.append(f"{field}: {message}, got {one['input']!r}")
    return InvalidInputError("; ".join(lines))


class Settings:
    """What all settings can do."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object: plain types only."""
        made: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return made

    @classmethod
    def from_json(cls, content: str | bytes | Mapping[str, Any]) -> Self:
        """What `to_json` made, as an object or as text.

        Raises:
            InvalidInputError: a setting is unknown, missing, or of another type or value than it may have.
        """
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise _explained(cls, error) from None

    def replace(self, **changes: Any) -> Self:
        """These settings with some of them changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@_settings
class LoraSettings(Settings):
    """How the adapters for reading and writing are made; as published, but for the dropout.

    Attributes:
        r, lora_alpha, lora_dropout: as in `peft.LoraConfig`.
        target_modules: names of linear layers; None: all of a decoder layer but the output projection of attention.
    """

    r: Count = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


@_settings
class LongTermConfig(Settings):
    """What a learned memory keeps of the slots that its pool evicts, and how a prompt reads them (M+, section 3.2).

    Attributes:
        retrieved: K0, slots per layer that a prompt reads.
        capacity: M, slots per layer; the oldest are dropped.
        cross_layer_prior: each layer's softmax over its scores at this temperature, summed for each write, is
            multiplied into the scores of the layers above. Pool slots then compete for the K0 places too, and are
            attended to twice where they win. 0 turns it off (M+).
        key_size: of retrieval keys and queries; None: 256, or a sixteenth of d where that is more (M+, appendix E).
        key_layers: linear layers of the retriever's projectors, 1 or 2.
    """

    retrieved: Count
    capacity: Count = 150_000
    cross_layer_prior: float = 0.0
    key_size: Count | None = None
    key_layers: Count = 2

    def __post_init__(self) -> None:
        if self.retrieved < 1 or self.capacity < 0:
            raise InvalidInputError("long-term memory needs retrieved > 0 and capacity >= 0")
        if not (isfinite(self.cross_layer_prior) and self.cross_layer_prior >= 0):
            raise InvalidInputError(f"cross_layer_prior is a temperature, at least 0, not {self.cross_layer_prior}")
        if self.key_size is not None and self.key_size < 1:
            raise InvalidInputError(f"key_size must be at least 1, got {self.key_size}")
        if self.key_layers not in (1, 2):
            raise InvalidInputError(f"key_layers is 1 or 2, not {self.key_layers}")


@_settings
class RetrievalConfig(Settings):
    """Which chunks of a text memory a prompt reads.

    Attributes:
        slots: K0, most slots that a prompt reads; fewer where the model has fewer positions left.
        min_score: chunks that score below it are not read; None: chunks are read whatever they score. Scores lie in
            [0, 1] and mean the same in a memory of any size.
        text_min_score: the same for text that is no conversation, where no reader can refuse; None: as `min_score`.
            Where `min_score` is None, it is not asked for either.
        near_best: nor are those that score below this share of the best score: what is read beside the right chunk
            distracts.
        rerank: where several chunks of a conversation's memory score well enough, at most so many, the best, are shown
            to the reader one by one. The odds of each score are divided by the odds that it begins to refuse, and
            `near_best` holds once more, for the probabilities that have these odds. None: all are read; so they are
            where it was not trained to refuse, and behind a long history.
        refusal: what a trained reader begins to answer in a conversation where no chunk that it reads holds the answer;
            None: it was not trained to.
        score_weight, refusal_weight, found_bias: nothing is read where
            found_bias + score_weight·logit(s) < refusal_weight·logit(p), with s the score of the best chunk and p the
            probability of beginning so, nor where no other beginning is likelier. Fitted to questions about other texts
            than the reader was trained on.
    """

    slots: Count = 1024
    min_score: float | None = 0.25
    text_min_score: float | None = None
    near_best: float = 0.0
    rerank: Count | None = None
    refusal: str | None = None
    score_weight: float = 0.0
    refusal_weight: float = 1.0
    found_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise InvalidInputError(f"retrieval needs slots > 0, got {self.slots}")
        for name in ("min_score", "text_min_score"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InvalidInputError(
                    f"{name} lies between 0 and 1, got {getattr(self, name)}; None reads whatever scores"
                )
        if not 0 <= self.near_best <= 1:
            raise InvalidInputError(f"near_best is a share of the best score, from 0 to 1, not {self.near_best}")
        if self.rerank is not None and self.rerank < 2:
            raise InvalidInputError(f"rerank counts chunks to choose from: 2 or more, not {self.rerank}, or None")
        for name in ("score_weight", "refusal_weight", "found_bias"):
            if not isfinite(getattr(self, name)):
                raise InvalidInputError(f"{name} must be finite, got {getattr(self, name)}")

    def least(self, best: float, *, chat: bool) -> float:
        """The least score that is read, given that of the best chunk."""
        if self.min_score is None:
            return 0.0
        least = self.min_score if chat or self.text_min_score is None else self.text_min_score
        return max(least, self.near_best * best)

    def found(self, score: float, refusing: float) -> bool:
        """Whether anything is read, given the best chunk's score and the probability of beginning to refuse."""
        told = self.found_bias + self.score_weight * logit(score)
        return refusing <= 0.5 and told >= self.refusal_weight * logit(refusing)


@_settings
class StorageConfig(Settings):
    """Where slots lie: all of a text memory's, and the long-term slots of a learned one.

    Attributes:
        tier: "device": with the model; "host": in host memory, pinned where there is CUDA; "disk": in mapped files;
            "text": token ids only, encoded again when they are read (text memories).
        int8: slots as int8 with one scale for the key and one for the value of each slot. None: a new memory keeps
            them as they are, and a loaded one as they were saved.
        folder: for working files of the disk tier; None: the system's temporary folder, which may lie in memory.
    """

    tier: Tier = "host"
    int8: bool | None = None
    folder: Annotated[Path | None, Field(strict=False)] = None

    def __post_init__(self) -> None:
        if self.folder is not None and self.tier != "disk":
            raise InvalidInputError(f"folder= belongs to the disk tier, not to {self.tier!r}")
        if self.int8 and self.tier == "text":
            raise InvalidInputError("int8= belongs to tiers that keep slots; the text tier keeps token ids only")


@_settings
class MemoryConfig(Settings):
    """How a model writes and reads its memories.

    Attributes:
        writer: "text": slots are the text's own keys and values, which any pretrained model reads without training;
            "learned": K slots a chunk, which a trained model compresses it into (MemoryLLM, M+).
        slots: N. Learned: slots in each layer's pool. Text: most slots a memory keeps; None: no limit.
        slots_per_write: K, a divisor of N (learned).
        chunk: most tokens of one forward pass of a write; None: 256 (text) or 512 (learned).
        bos: a learned slot stands in front of every layer's prefix (learned).
        eviction: learned: "per_layer" draws for each layer, "shared" once for all. Text: "oldest" drops the chunks
            written first, "random" draws them. None: the first of each.
        keep_hidden: keep slots in hidden form too, for inspection (learned).
        keep_text: keep the written text, its words and token ids (text). Without them slots lie in host memory or on
            disk, and chunks are found by the latent score alone.
        longterm: what a learned memory keeps of evicted slots; None: nothing.
        retrieval: which chunks a prompt reads (text).
        cache_bytes: bytes of encoded chunks that a model keeps for the text tier, the last used ones.
        lora: give reading an adapter, which acts behind memory that is read (text), or writing and reading one each
            (learned); None: no adapter.
    """

    writer: WriterName = "text"
    slots: Count | None = None
    slots_per_write: Count | None = None
    chunk: Count | None = None
    bos: bool = True
    eviction: Eviction | None = None
    keep_hidden: bool = False
    keep_text: bool = True
    longterm: LongTermConfig | None = None
    retrieval: RetrievalConfig = dataclasses.field(default_factory=RetrievalConfig)
    cache_bytes: Count = 2**30
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        own = ("per_layer", "shared") if self.writer == "learned" else ("oldest", "random")
        if self.eviction is not None and self.eviction not in own:
            raise InvalidInputError(
                f"eviction of a {self.writer} memory is {own[0]!r} or {own[1]!r}, not {self.eviction!r}"
            )
        if self.slots is not None and self.slots < 1:
            raise InvalidInputError(f"slots must be at least 1, got {self.slots}")
        if self.chunk is not None and self.chunk < 16:
            raise InvalidInputError(f"chunk must be at least 16 tokens, got {self.chunk}")
        if self.cache_bytes < 0:
            raise InvalidInputError(f"cache_bytes must be at least 0, got {self.cache_bytes}")
        if self.writer == "learned":
            self._check_learned()
        else:
            self._check_text()

    def _check_learned(self) -> None:
        n, k = self.slots, self.slots_per_write
        if n is None or k is None:
            raise InvalidInputError("a learned memory needs slots (N) and slots_per_write (K)")
        check_slots(n, k)

    def _check_text(self) -> None:
        for name in ("slots_per_write", "longterm"):
            if getattr(self, name) is not None:
                raise InvalidInputError(f"{name}= belongs to a learned memory; set writer='learned', or leave it out")
        if self.slots is not None and self.slots < self.chunk_tokens:
            raise InvalidInputError(
                f"slots={self.slots} does not hold one chunk of {self.chunk_tokens} tokens; raise slots or lower chunk"
            )

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a chunk."""
        return self.chunk or (TEXT_CHUNK if self.writer == "text" else LEARNED_CHUNK)

    @property
    def shared_eviction(self) -> bool:
        """Whether one draw serves all layers."""
        return self.eviction == "shared"

    @classmethod
    def of(cls, config: "MemoryConfig | None" = None, **overrides: Any) -> "MemoryConfig":
        """`config` with settings changed, or new ones from loose keywords.

        `min_score` belongs to `retrieval`, and `retrieval_size` (of keys) to `longterm`. Without a config,
        `slots_per_write` asks for a learned writer.

        Raises:
            InvalidInputError: a keyword is unknown or its value does not fit.
        """
        if "min_score" in overrides:
            base = overrides.pop("retrieval", None) or (RetrievalConfig() if config is None else config.retrieval)
            overrides["retrieval"] = base.replace(min_score=overrides.pop("min_score"))
        size = overrides.pop("retrieval_size", None)
        if size is not None:
            longterm = overrides.get("longterm") or (None if config is None else config.longterm)
            if longterm is None:
                raise InvalidInputError("retrieval_size= is that of long-term memory's keys; give longterm= too")
            overrides["longterm"] = longterm.replace(key_size=integer("retrieval_size", size))
        if config is None:
            if "slots_per_write" in overrides:
                overrides.setdefault("writer", "learned")
            return cls(**overrides)
        if not isinstance(config, MemoryConfig):
            raise InvalidInputError(f"config is a MemoryConfig, not {type(config).__name__}")
        if unknown := sorted(overrides.keys() - {field.name for field in dataclasses.fields(cls)}):
            raise InvalidInputError(f"MemoryConfig has no setting {unknown[0]}")
        return config.replace(**overrides)


def new_storage(config: MemoryConfig, tier: Tier | None, int8: bool) -> StorageConfig | None:
    """Where slots of a new memory are to lie; None: where they would anyway.

    Raises:
        InvalidInputError: the model keeps none.
    """
    if tier is None and not int8:
        return None
    if config.writer == "learned" and config.longterm is None:
        raise InvalidInputError("this model has no long-term slots; leave --tier and --int8 out")
    return StorageConfig(tier or "host", int8 or None)


def logit(probability: float) -> float:
    held = min(max(probability, 1e-9), 1 - 1e-9)
    return log(held / (1 - held))


def sigmoid(log_odds: float) -> float:
    return 1 / (1 + exp(-log_odds))


def check_slots(n: int, k: int) -> None:
    """Raise where K slots of a write and N of the pool do not go together."""
    if not 0 < k <= n:
        raise InvalidInputError(f"slots_per_write K={k} must be between 1 and slots N={n}")
    if n % k:
        raise InvalidInputError(
            f"slots N={n} is not a multiple of slots_per_write K={k}; take N={n - n % k} or N={n - n % k + k}"
        )
