"""Losses of a training run as it goes on."""

from tables import Figures, grid

COLUMNS = {
    "language_loss": "plain text",
    "context_loss": "text in context",
    "memory_loss": "through memory",
    "memory_exact_match": "answers right through memory",
}
ROWS = 5


def table(figures: Figures) -> str:
    curve = figures["curve"]
    points = [curve[(len(curve) - 1) * row // (ROWS - 1)] for row in range(ROWS)] if len(curve) > ROWS else curve
    rows = [
        (f"step {point['step']:,}", *(f"{point[name]:.2f}" if name in point else "" for name in COLUMNS))
        for point in points
    ]
    seconds = sum(piece["seconds"] for piece in figures["pieces"])
    about = (
        f"{figures['parameters']:,} parameters, {figures['steps']:,} steps with batches of {figures['scale']:g} of the "
        f"full size, {seconds:,.0f} s; steps left: {figures['steps_left']:,}. "
        "Means over the steps between two rows of the log."
    )
    return "\n".join([grid(("", *COLUMNS.values()), rows), "", about])
