"""Time to the first token with a full long-term memory, against the plain path that does what the published code does.

    python benchmarks/gpu/longterm_ttft.py --json benchmarks/gpu/longterm_ttft.json

A part of `benchmarks/longterm`, on the device, at the size that was published: Llama-3-8B's shape in bfloat16 with
random weights, a pool of 12,800 slots, 153,600 long-term slots in each layer, 2,560 of them retrieved. Takes about
110 GB of device memory and 70 GB of host memory.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu.common import device_of, parser, write_down
from read_write.run import first_token
from shapes import SHAPES
from tables import listed
from timing import measure


def main(arguments: list[str] | None = None) -> None:
    named = parser(__doc__)
    named.add_argument("--repeats", type=int, default=10)
    options = named.parse_args(arguments)
    device = device_of(options)
    shape, slots, retrieved = ("tiny", 64, 8) if options.smoke else ("8b", 153_600, 2_560)
    on = replace(SHAPES[shape], device=device, dtype=torch.bfloat16)
    part = partial(first_token, on, on.slots, options.repeats, slots, retrieved)
    rows, checks = measure({"first token": part})
    write_down({"rows": listed(rows), "checks": checks, "note": "Random weights, bfloat16."}, device, options.json)


if __name__ == "__main__":
    main()
