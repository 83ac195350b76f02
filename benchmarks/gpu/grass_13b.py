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

from gpu.common import TINY, device_of, llama, parser, peak, step_seconds
from measure import circumstances, summary, write_down
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import configuration, plan

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
    figures = {
        **circumstances(device),
        "model": "llama-13b" if not options.smoke else "tiny",
        "parameters": sum(parameter.numel() for name, parameter in model.named_parameters() if "proxy" not in name),
        "tokens": TOKENS,
        "rank": rank,
        "layerwise": layerwise,
        "room_bytes": ROOM,
        "planned": {**vars(planned), "total": planned.total},
        "measured": {"model": made, "usual_step": usual, "step_with_selection": selecting},
        "planned_against_measured": None if usual is None else round(planned.total / usual, 3),
        "step": summary(seconds),
        "finite": bool(torch.isfinite(model(input_ids=ids, labels=ids).loss)),
    }
    write_down(figures, options.json)


if __name__ == "__main__":
    main()
