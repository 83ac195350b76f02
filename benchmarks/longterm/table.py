"""Long-term memory against the plain path."""

from tables import Figures, grid, medians, mib, ms

Row = tuple[str, str, str, str]


def table(figures: Figures) -> str:
    rows = [row for part, rows_of in PARTS.items() if part in figures for row in rows_of(figures[part])]
    about = [medians(figures)]
    if "resident" in figures:
        about.insert(0, kept(figures["resident"]))
    return "\n".join([grid(("", "Remanence", "plain path", "plain / Remanence"), rows), "", *about])


def scoring(part: Figures) -> list[Row]:
    scored: list[Row] = [
        (
            f"score one layer, M = {row['slots']:,}",
            ms(row["remanence"]),
            ms(row["reference"]),
            f"{row['ratio']:.2f}x",
        )
        for row in part["by_slots"]
    ]
    moved = [(row["slots"], row["bytes_to_device"]) for row in part["by_slots"]]
    return scored + [
        (
            f"to the device at a prompt, one layer, M = {slots:,}",
            mib(count["remanence"]),
            mib(count["reference"]),
            f"{count['reference'] / count['remanence']:.1f}x",
        )
        for slots, count in moved
    ]


def append(part: Figures) -> list[Row]:
    few, many = part["slots"]
    plain = part.get("reference")
    rows: list[Row] = []
    for tier in ("host", "disk"):
        rows += [
            (
                f"append {part['slots_per_write']} slots to one layer, {tier}, M = {slots:,}",
                ms(part[tier][name]),
                ms(plain[name]) if plain else "no room",
                f"{plain[name]['median_ms'] / part[tier][name]['median_ms']:.1f}x" if plain else "",
            )
            for slots, name in ((few, "few"), (many, "many"))
        ]
        rows += [
            (
                f"append, {tier}, M = {many:,} against M = {few:,}, {name}",
                f"{part[tier][key]:.2f}x",
                f"{plain['ratio']:.2f}x" if plain and key == "ratio" else "",
                "",
            )
            for name, key in (("median", "ratio"), ("mean, making room included", "mean_ratio"))
        ]
    return rows


def gather(part: Figures) -> list[Row]:
    return [
        (
            f"gather {part['retrieved']:,} of {part['slots']:,} slots of one layer, {tier}",
            ms(part[tier]),
            ms(part["reference"]),
            f"{part['reference']['median_ms'] / part[tier]['median_ms']:.2f}x",
        )
        for tier in ("device", "host", "disk")
    ]


def first_token(part: Figures, what: str = "first token") -> list[Row]:
    about = f"{what}, N = {part['slots']:,}, M = {part['longterm_slots']:,}, K0 = {part['retrieved']:,}"
    again = part["reference"]["median_ms"] / part["again"]["median_ms"]
    return [
        (about, ms(part["remanence"]), ms(part["reference"]), f"{part['ratio']:.2f}x"),
        (
            f"{about}, the prompt before read the same memory",
            ms(part["again"]),
            ms(part["reference"]),
            f"{again:.2f}x",
        ),
    ]


def first_token_published(part: Figures) -> list[Row]:
    return first_token(part, f"first token, {part['layers']} layers of the published size (d {part['size']:,})")


PARTS = {
    "scoring": scoring,
    "append": append,
    "gather": gather,
    "first_token": first_token,
    "first_token_full": first_token,
    "first_token_published": first_token_published,
}


def kept(part: Figures) -> str:
    return (
        f"Disk tier, {part['slots']:,} slots in each of {part['layers']} layers: "
        f"{mib(part['slot_bytes_on_disk'])} on disk; resident memory grew by {mib(part['growth_bytes'])}, of "
        f"which {mib(part['retrieval_keys_bytes'])} are retrieval keys, "
        f"{mib(part['bookkeeping_bytes'])} bookkeeping and {mib(part['beside_bytes'])} anything else."
    )
