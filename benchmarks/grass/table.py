"""Training steps, losses at equal tokens, and memory that was told before, by method."""

from tables import Figures, grid, interval, medians, mib, ms

NAMES = {
    "adamw": "AdamW (torch)",
    "adamw-onednn": "AdamW (torch), linear layers by oneDNN",
    "grass": "Grass",
    "galore": "GaLore (galore-torch)",
}


def table(figures: Figures) -> str:
    model = figures["model"]
    rows = []
    for key, name in NAMES.items():
        one = figures["methods"][key]
        rows.append(
            (
                name,
                ms(one),
                f"{one['refresh_extra_ms']:,.0f} ms" if one["refresh_extra_ms"] else "",
                f"{one['amortised_ms']:,.0f} ms",
                "" if key == "grass" else f"{figures['grass_against'][key]:.2f}x",
                mib(one["gradient_bytes"]),
                mib(one["state_bytes"]),
            )
        )
    titles = ("", "step", "refresh adds", "a step, refreshes counted", "Grass takes", "gradients", "optimizer state")
    about = (
        f"{model['layers']} Llama blocks, d {model['size']:,}, {model['tokens']:,} tokens, rank {model['rank']}, "
        f"a refresh every {model['gap']} steps. {medians(figures)}"
    )
    return "\n".join([grid(titles, rows), "", about])


def name_of(method: str) -> str:
    if not method.startswith("grass-"):
        name, *scale = method.split("-scale")
        known = {"galore": "GaLore", "apollo": "APOLLO", "lora": "LoRA", "adamw": "AdamW"}[name]
        return known + "".join(f", {part} of the rate for linear layers" for part in scale)
    _, selection, on_refresh, *more = method.split("-")
    changed = "".join(f", {part.replace('scale', 'scale ').replace('twice', 'twice the rank')}" for part in more)
    return f"Grass, `{selection}`, `{on_refresh}`{changed}"


def quality(figures: Figures) -> str:
    methods, setup = figures["methods"], figures["setup"]
    rows = []
    for method, one in methods.items():
        if "diverged" in one:
            rows.append((name_of(method), f"diverged with {one['diverged']} of {setup['seeds']} seeds", *[""] * 4))
            continue
        rows.append(
            (
                name_of(method),
                interval(one["test"], one["stderr"], 4),
                f"{100 * (one['test'] / methods['adamw']['test'] - 1):+.1f} %",
                f"{one['lr']:g}",
                mib(one["gradient_bytes"]),
                mib(one["state_bytes"]),
            )
        )
    about = (
        f"A random Llama, d {setup['size']:,}, {setup['layers']} layers, trained from scratch on {setup['tokens']:,} "
        f"tokens of real text, {setup['steps']} steps, the same for all; rank {setup['rank']}, a refresh every "
        f"{setup['gap']} steps. Learning rates were chosen on validation, from powers of two; means over "
        f"{setup['seeds']} seeds with one standard error, on documents of which no other part has any."
    )
    titles = ("", "test loss", "against AdamW", "best learning rate", "gradients", "optimizer state")
    return "\n".join([grid(titles, rows), "", about])


def recall(figures: Figures) -> str:
    methods, setup, start = figures["methods"], figures["setup"], figures["start"]
    rows = [
        (
            {"adamw": "AdamW", "grass": "Grass"}[method],
            interval(one["test"], one["stderr"], 4),
            f"{100 * (one['test'] / methods['adamw']['test'] - 1):+.1f} %",
            f"{one['exact_match']:.3f}",
            f"{one['lr']:g}",
            mib(one["gradient_bytes"]),
            mib(one["state_bytes"]),
        )
        for method, one in methods.items()
        if one is not None
    ]
    fewest, most = setup["facts"]
    about = (
        f"The checkpoint `tiny` learns to recall biographies of {fewest} to {most} facts through a full pool, in "
        f"{setup['steps']} steps, the same for both; before, the loss of its answers is {start['loss']:.4f}, and "
        f"{start['exact_match']:.3f} are right. Embeddings are frozen, all other weights learn; rank {setup['rank']}, "
        f"a refresh every {setup['gap']} steps, moments kept. Learning rates were chosen on validation, from powers of "
        f"two; means over {setup['seeds']} seeds with one standard error, on episodes that no run learns from."
    )
    titles = (
        "",
        "loss of answers",
        "against AdamW",
        "exact match",
        "best learning rate",
        "gradients",
        "optimizer state",
    )
    return "\n".join([grid(titles, rows), "", about])


def losses(figures: Figures) -> dict[str, tuple[float, float]]:
    """What a picture of `quality` shows: mean and standard error."""
    return {
        name_of(method).replace("`", ""): (one["test"], one["stderr"])
        for method, one in figures["methods"].items()
        if "diverged" not in one
    }


def memory(figures: Figures) -> str:
    rows = [
        (
            f"{case['model']}, {NAMES[case['method']]}" + (", checkpointing" if case["checkpointing"] else ""),
            f"{case['batch']} x {case['tokens']}",
            mib(case["predicted_bytes"]),
            mib(case["measured_bytes"]),
            f"{case['ratio']:.3f}",
        )
        for case in figures["cases"]
    ]
    about = f"The peak of a process over one step, once measured; rank {figures['rank']}, {figures['dtype']}."
    return "\n".join([grid(("", "tokens", "predicted", "measured", "predicted / measured"), rows), "", about])
