"""Renew the table in the README from the committed figures: python benchmarks/longterm/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import measured_on, ms, renew  # noqa: E402


def table(figures: dict[str, Any]) -> str:
    scoring, append, gather = figures["scoring"], figures["append"], figures["gather"]
    first, resident = figures["first_token"], figures["resident"]
    rows = []
    for row in scoring["by_slots"]:
        name = f"score one layer, M = {row['slots']:,}"
        rows.append((name, ms(row["remanence"]), ms(row["reference"]), f"{row['ratio']:.2f}x"))
    for row in scoring["by_slots"]:
        moved = row["bytes_to_device"]
        name = f"to the device at a prompt, one layer, M = {row['slots']:,}"
        share = f"{moved['reference'] / moved['remanence']:.1f}x"
        rows.append((name, mib(moved["remanence"]), mib(moved["reference"]), share))
    few, many = append["slots"]
    plain = append.get("reference")
    for tier in ("host", "disk"):
        rows += [
            (
                f"append {append['slots_per_write']} slots to one layer, {tier}, M = {slots:,}",
                ms(append[tier][name]),
                ms(plain[name]) if plain else "no room",
                f"{plain[name]['median_ms'] / append[tier][name]['median_ms']:.1f}x" if plain else "",
            )
            for slots, name in ((few, "few"), (many, "many"))
        ]
        rows += [
            (
                f"append, {tier}, M = {many:,} against M = {few:,}, {name}",
                f"{append[tier][key]:.2f}x",
                f"{plain['ratio']:.2f}x" if plain and key == "ratio" else "",
                "",
            )
            for name, key in (("median", "ratio"), ("mean, making room included", "mean_ratio"))
        ]
    for tier in ("device", "host", "disk"):
        name = f"gather {gather['retrieved']:,} of {gather['slots']:,} slots of one layer, {tier}"
        share = gather["reference"]["median_ms"] / gather[tier]["median_ms"]
        rows.append((name, ms(gather[tier]), ms(gather["reference"]), f"{share:.2f}x"))
    about = f"first token, N = {first['slots']:,}, M = {first['longterm_slots']:,}, K0 = {first['retrieved']:,}"
    again = first["reference"]["median_ms"] / first["again"]["median_ms"]
    rows += [
        (about, ms(first["remanence"]), ms(first["reference"]), f"{first['ratio']:.2f}x"),
        (
            f"{about}, the prompt before read the same memory",
            ms(first["again"]),
            ms(first["reference"]),
            f"{again:.2f}x",
        ),
    ]
    lines = ["| | Remanence | plain path | plain / Remanence |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    kept = (
        f"Disk tier, {resident['slots']:,} slots in each of {resident['layers']} layers: "
        f"{mib(resident['slot_bytes_on_disk'])} on disk; resident memory grew by {mib(resident['growth_bytes'])}, of "
        f"which {mib(resident['retrieval_keys_bytes'])} are retrieval keys, "
        f"{mib(resident['bookkeeping_bytes'])} bookkeeping and {mib(resident['beside_bytes'])} anything else."
    )
    return "\n".join([*lines, "", kept, measured_on(figures)])


def mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    renew("bench:longterm", table(json.loads((HERE / "results.json").read_text())))
