"""Lists of distances as people write them: `0,5,…,20p`."""

import re
from typing import TYPE_CHECKING

from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from remanence.model.model import MemoryModel

DISTANCES = "0,0.25p,0.5p,0.75p,1p,1.5p,2p,3p,5p"
FORMS = "write 0,5,10 for numbers of writes, 2p for 2·N/K, 0..20 for a range, 0,5,…,20p for steps of 5"
_ELLIPSIS = re.compile(r"…|\.{2,3}")


def writes_per_pool(model: "MemoryModel") -> int:
    """N/K, the writes that make as many slots as the pool has.

    Raises:
        InvalidInputError: the model writes text slots, which are in no pool.
    """
    if not model.slots_per_write:
        raise InvalidInputError(
            f"{model.name} writes text slots, which are in no pool, and this measures pools; name a model with a "
            "learned writer, such as --model tiny"
        )
    return model.slots // model.slots_per_write


def parse_distances(text: str, per_pool: int) -> list[int]:
    """Distances in writes, ascending, each once.

    `20p` means 20 times `per_pool`, which is N/K. `0..20` counts by
    one; `0,5,…,20p` goes on in steps of 5. The number behind an ellipsis is always included.

    Raises:
        InvalidInputError: anything else; says what is understood.
    """
    found: list[int] = []
    going_on = False
    for item in _ELLIPSIS.sub(",…,", text).split(","):
        item = item.strip()
        if item == "…":
            if not found or going_on:
                raise InvalidInputError(f"in distances {text!r}, an ellipsis must stand between numbers; {FORMS}")
            going_on = True
        elif item:
            last = _distance(item, text, per_pool)
            if going_on:
                step = found[-1] - found[-2] if len(found) > 1 else 1
                if step < 1 or last <= found[-1]:
                    raise InvalidInputError(f"distances {text!r} do not rise towards {item}; {FORMS}")
                found += range(found[-1] + step, last, step)
            found.append(last)
            going_on = False
    if not found or going_on:
        raise InvalidInputError(f"distances {text!r} lack a number at the end; {FORMS}")
    return sorted(set(found))


def _distance(item: str, text: str, per_pool: int) -> int:
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*p", item)
    if match is None:
        raise InvalidInputError(f"{item!r} in distances {text!r} is no number of writes; {FORMS}")
    whole, pools = match.groups()
    return int(whole) if whole else round(float(pools) * per_pool)
