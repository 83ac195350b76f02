"""What is recalled by distance, and what the retriever finds."""

from remanence.evaluation.intervals import share_text
from tables import Figures, grid, interval

NAMES = {
    "longterm": "pool and long-term",
    "pool": "pool",
    "context": "context",
    "fact": "that text alone",
    "bm25": "BM25",
    "none": "none",
}


def table(figures: Figures) -> str:
    score = figures.get("score", "exact_match")
    line = {point["distance"]: f"{point['line']:.3f}" for point in figures["survival"]}
    curves = {name: figures["curves"][name] for name in NAMES if name in figures["curves"]}
    names = [NAMES[name] for name in curves]
    for name, points in figures.get("unlisted", {}).get("curves", {}).items():
        if name != "none":
            curves[f"{name}, unlisted"] = points
            names.append(f"{NAMES[name]}, unlisted people")
    rows = [
        [
            f"{points[0]['distance']:,}",
            *(share_text(point[score], point["samples"]) for point in points),
            *([line[points[0]["distance"]]] if line else []),
        ]
        for points in zip(*curves.values(), strict=True)
    ]
    asked = f"questions of {figures['data']}" if "data" in figures else "held-out people"
    about = (
        f"{score.replace('_', ' ').capitalize()} and the interval that holds 95 %, {figures['samples']} {asked}, "
        f"N = {figures['n']}, K = {figures['k']}"
    )
    if "attributes_per_biography" in figures:
        about += f", {figures['attributes_per_biography']} facts per biography"
    if "chance" in figures:
        about += f"; guessing gets {figures['chance']:.3f}"
    if "unlisted" in figures:
        about += ". Unlisted: people whose names and values stand on no list, made of words that no training saw"
    titles = ["distance, in writes", *names, *(["survival line"] if line else [])]
    return "\n".join([grid(titles, rows), "", f"{about}."])


def retrieval(figures: Figures) -> str:
    titles = ["distance", "slots per layer", "all layers"]
    titles += [f"layer {layer}" for layer in range(len(figures["points"][0]["layers"]))]
    rows = [
        [
            f"{point['distance']:,}",
            f"{point['longterm']:,}",
            interval(point["share"], point["stderr"]),
            *(f"{share:.2f}" for share in point["layers"]),
            f"{point['random']:.3f}",
        ]
        for point in figures["points"]
    ]
    about = (
        f"Share of the slots of the write asked about that are among the K0 = {figures['k0']} retrieved, with one "
        f"standard error, {figures['samples']} held-out people."
    )
    return "\n".join([grid([*titles, "by chance"], rows), "", about])
