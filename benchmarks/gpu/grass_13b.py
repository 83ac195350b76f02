"""Does a Llama of 13B train within 40 GB, and does the plan tell how much it takes?

    python benchmarks/gpu/grass_13b.py --json benchmarks/gpu/grass_13b.json

Random weights in bfloat16, 256 tokens, Grass at rank 128. The allocator is given 40 GB and not a byte more, so that the
script ends in an out-of-memory error if they are not enough. Where the plan is above that, parameters are updated
within the backward pass, one layer at a time.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu.common import TINY, device_of, llama, parser, peak, step_seconds, write_down
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import configuration, plan
from tables import Rows, cell, listed
from timing import timed

ROOM = 40_000_000_000
TOKENS = 256


def main(arguments: list[str] | None = None) -> None:
    named = parser(__doc__)
    named.add_argument("--layerwise", action="store_true", help="update within the backward pass in any case")
    options = named.parse_args(arguments)
    device, rank = device_of(options), 4 if options.smoke else 128
    config = TINY if options.smoke else configuration("llama-13b")
    planned = plan(config, "grass", rank=rank, tokens=TOKENS)
    layerwise = options.layerwise or planned.total + planned.refresh > ROOM
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, ROOM / total))
    model = llama(config, device).train()
    made = peak(device)
    optimizer = GrassAdamW(grass_param_groups(model, rank=rank), lr=1e-4, layerwise=layerwise)
    ids = torch.randint(config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    step_seconds(model, optimizer, ids, 1)  # rows are selected at its end
    selecting = peak(device)
    seconds = step_seconds(model, optimizer, ids, 8)
    usual = peak(device)
    selecting_total = planned.total + planned.refresh
    rows: Rows = {
        "peak of a usual step": {"planned": cell(planned.total, "bytes"), "measured": cell(usual, "bytes")},
        "peak of a step after which rows are selected": {
            "planned": cell(selecting_total, "bytes"),
            "measured": cell(selecting, "bytes"),
        },
        "a step": {"measured": timed(seconds)},
    }
    name = "tiny" if options.smoke else "llama-13b"
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if "proxy" not in name)
    finite = bool(torch.isfinite(model(input_ids=ids, labels=ids).loss))
    figures = {
        "rows": listed(rows),
        "note": f"{name}, {parameters:,} parameters, bfloat16, {TOKENS} tokens, rank {rank}; the allocator was given "
        f"{ROOM / 1e9:.1f} GB. Peaks of one run. The loss {'stayed' if finite else 'did not stay'} finite.",
        "parameters": parameters,
        "layerwise": layerwise,
        "room_bytes": ROOM,
        "planned": {**vars(planned), "total": planned.total},
        "measured": {"model": made, "usual_step": usual, "step_with_selection": selecting},
        "finite": finite,
    }
    write_down(figures, device, options.json)


if __name__ == "__main__":
    main()
