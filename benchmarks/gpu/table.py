"""What was measured on a GPU only."""

from grass.table import NAMES
from tables import Figures, grid, ms


def fits(figures: Figures) -> str:
    """A Llama of 13B in a room of 40 GB: peaks beside what was planned."""
    planned, measured = figures["planned"], figures["measured"]
    rows = [
        ("peak of a usual step", gb(planned["total"]), gb(measured["usual_step"])),
        (
            "peak of a step after which rows are selected",
            gb(planned["total"] + planned["refresh"]),
            gb(measured["step_with_selection"]),
        ),
        ("a step", "", ms(figures["step"])),
    ]
    about = (
        f"{figures['model']}, {figures['parameters']:,} parameters, bfloat16, {figures['tokens']:,} tokens, rank "
        f"{figures['rank']}; the allocator was given {gb(figures['room_bytes'])}. Peaks of one run; a step: median and "
        f"quartiles of {figures['step']['samples']}. The loss "
        f"{'stayed finite' if figures['finite'] else 'did not stay finite'}."
    )
    return "\n".join([grid(("", "planned", "measured"), rows), "", about])


def throughput(figures: Figures) -> str:
    rows = []
    for shape, methods in figures["shapes"].items():
        faster = methods["grass_is_faster_by"]
        rows += [
            (
                f"{shape}, {NAMES[method]}",
                f"{methods[method]['tokens_per_second']:,.0f}",
                f"{100 * faster[method]:+.1f} %" if method in faster else "",
                ms(methods[method]["step"]),
                gb(methods[method]["peak_bytes"]),
            )
            for method in NAMES
            if method in methods
        ]
    samples = next(iter(figures["shapes"].values()))["adamw"]["step"]["samples"]
    about = (
        f"{figures['batch']} x {figures['length']} tokens a step, {figures['dtype']}, the cost of a refresh shared out "
        f"over {figures['gap']} steps. Steps: medians and quartiles of {samples}."
    )
    titles = ("", "tokens per second", "Grass is faster by", "a step without refresh", "peak")
    return "\n".join([grid(titles, rows), "", about])


def attention(figures: Figures) -> str:
    made = figures["agreement"]
    from_float32, largest = made["mean_difference_from_float32"], made["largest_difference_from_float32"]
    from_eager = made["largest_difference_from_eager"]
    rows = [
        (name, f"{from_float32[name]:.2e}", f"{largest[name]:.2e}", f"{from_eager[name]:.2e}") for name in from_float32
    ]
    about = (
        f"Logits of one prompt of {made['prompt_tokens']} tokens behind a full pool, in bfloat16, against the same "
        f"weights in float32; the largest logit is {made['largest_logit']:.2f}. One run, in which nothing is drawn."
    )
    titles = ("", "mean difference from float32", "largest", "largest from eager")
    return "\n".join([grid(titles, rows), "", about])


def gb(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:,.1f} GB"
