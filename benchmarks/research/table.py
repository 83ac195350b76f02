"""Rules of eviction against each other."""

from remanence.evaluation.intervals import share_text
from tables import Figures, grid


def table(figures: Figures) -> str:
    parts = []
    for model in dict.fromkeys(result["model"] for result in figures["results"]):
        results = [result for result in figures["results"] if result["model"] == model]
        distances = [point["distance"] for point in results[0]["points"]]
        rows = [
            (
                result["eviction"],
                *(share_text(point["exact_match"], figures["questions"]) for point in result["points"]),
            )
            for result in results
        ]
        parts.append(grid((f"`{model}`: who leaves", *(f"{d:,}" for d in distances)), rows))
    about = (
        f"Exact match by distance in writes, {figures['questions']} questions each about one memory, and the interval "
        "that holds 95 %."
    )
    return "\n\n".join([*parts, about])
