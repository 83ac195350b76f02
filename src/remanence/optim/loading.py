"""Whether the state of an optimizer that was saved fits the one at hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from remanence.optim import moments


def require_own(groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]) -> None:
    """Before anything is changed.

    Raises:
        ValueError: it is of another model, of other groups, of another optimizer, or of a version that is not read.
    """

    def refuse(what: str, there: Any, here: Any) -> None:
        raise ValueError(
            f"this state is of another model or of other groups: {what} is {there} there and {here} here; "
            "make the groups as they were made then"
        )

    for mine, saved in zip(groups, state_dict["param_groups"], strict=False):
        for key in ("names", "rank"):
            if mine.get(key) != saved.get(key):
                refuse(key, saved.get(key), mine.get(key))
        along = [group.get("selection") == "subspace" for group in (mine, saved)]
        if along[0] != along[1]:
            refuse("selection", repr(saved.get("selection")), repr(mine.get("selection")))
        for parameter, number in zip(mine["params"], saved["params"], strict=False):
            held = state_dict["state"].get(number)
            if not held:
                continue
            if lacking := sorted({"steps", *moments.MOMENTS} - set(held)):
                raise ValueError(
                    f"this state has no {lacking[0]!r}: it is of another optimizer, or of a version that this one "
                    "does not read; train on from the weights alone"
                )
            if held["exp_avg"].shape != parameter.shape:
                refuse("the shape of a moment", list(held["exp_avg"].shape), list(parameter.shape))
