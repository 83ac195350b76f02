"""Loss at the shape of a Llama of 60M: AdamW, GaLore and Grass, each at its own best learning rate.

    pip install galore-torch bitsandbytes
    python benchmarks/gpu/grass_60m.py --text PATH... --output runs/60m --minutes 6 --json benchmarks/gpu/grass_60m.json

`benchmarks/grass/quality.py` with a larger model and more text, a cell at a time: weights in float32, products in
bfloat16, about 10 million tokens in each run. Give it the same command again until it has nothing left to do. The
tokenizer is that of the bundled checkpoint, so that embeddings are smaller than in Llamas that were trained on 32,000
tokens. Once --output has the tokens, no text is needed.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from transformers import HfArgumentParser

from gpu.common import device_of, write_down
from grass import quality
from grass.training import Setup
from remanence.data.prose import paragraphs

SETUP = Setup(8, 512, 1376, 8, rank=128, gap=100, steps=600, batch=64, length=256, device="cuda", autocast="bfloat16")
TINY: dict[str, Any] = {"layers": 1, "size": 32, "intermediate": 48, "heads": 4, "rank": 4}
SMOKE = replace(SETUP, **TINY, gap=2, steps=3, batch=2, length=16, held_out=64, device="cpu")
METHODS = ("adamw", "galore", "grass-top-reset", "grass-multinomial_norm-keep")


@dataclass(frozen=True)
class Settings(quality.Settings):
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    json: Path | None = None
    smoke: bool = field(default=False, metadata={"help": "tiny shapes on the CPU, to see that the script runs"})


def main(arguments: list[str] | None = None) -> None:
    on: Settings
    (on,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses(arguments)
    device = device_of(on)
    if on.smoke and not on.text:
        file = on.output / "bundled.jsonl"
        on.output.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs()[:200]))
        on = replace(on, text=[file])
    write_down({"benchmark": "grass_quality", **quality.measure(on, SMOKE if on.smoke else SETUP)}, device, on.json)


if __name__ == "__main__":
    main()
