"""Guards as plain data: how a reward file holds them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.rewards.guards.guard import Guard
    from apex_reward.rewards.guards.measures import Measure


def entry(guard: Guard, defaults: Mapping[str, Guard]) -> dict[str, Any]:
    """One guard as a dictionary; limits at infinity are None."""
    known = defaults.get(guard.name)
    own: dict[str, Any] = {}
    if known is None or (known.measure, known.unit, known.combine) != (
        guard.measure,
        guard.unit,
        guard.combine,
    ):
        address = None if guard.measure is None else _address(guard.name, guard.measure)
        own = {"measure": address, "unit": guard.unit, "combine": guard.combine}
    return {
        "name": guard.name,
        **own,
        "low": guard.low if math.isfinite(guard.low) else None,
        "high": guard.high if math.isfinite(guard.high) else None,
        "action": guard.action,
        "penalty": guard.penalty,
    }


def entries(saved: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The guards of a saved dictionary, its form checked."""
    unknown = sorted(set(saved) - {"guards", "veto_reward"})
    found = saved.get("guards")
    if unknown or not isinstance(found, Sequence) or isinstance(found, str):
        raise UsageError(
            "saved guards have the keys "
            f"{', '.join(map(str, saved)) or 'none'}; expected guards (a list) and veto_reward"
        )
    for one in found:
        if not isinstance(one, Mapping) or "name" not in one:
            raise UsageError(f"a saved guard is {one!r}; expected a mapping with a name")
    return found


def settings(
    saved: Mapping[str, Any], defaults: Mapping[str, Guard], kind: type[Guard]
) -> dict[str, Any]:
    """Arguments of `Guard` from one saved dictionary, what is missing from the default guard."""
    name = saved["name"]
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(saved) - set(names))
    if unknown:
        raise UsageError(
            f"saved guard {name} has {', '.join(unknown)}; expected {', '.join(names)}"
        )
    if name not in defaults and not {"measure", "unit"} <= set(saved):
        raise UsageError(
            f"no guard {name}; the guards are {', '.join(defaults)}, and one of your own needs "
            "measure (package.module:NAME, or null) and unit"
        )
    known = vars(defaults[name]) if name in defaults else {}
    arguments = {**known, **saved}
    if isinstance(arguments["measure"], str):
        arguments["measure"] = _imported(name, arguments["measure"])
    for key, none in (("low", -math.inf), ("high", math.inf)):
        if arguments.get(key) is None:
            arguments[key] = none
    return arguments


def _address(name: str, measure: Measure) -> str:
    """`package.module:NAME` of a function, checked to lead back to it."""
    module = getattr(measure, "__module__", None)
    function = getattr(measure, "__qualname__", None)
    found = getattr(sys.modules.get(module or ""), function or "", None)
    if module == "__main__" or found is not measure:
        raise UsageError(
            f"the measure of guard {name} is {function or measure!r} of {module}, which cannot be "
            "imported by that name; define it at the top level of a module of its own"
        )
    return f"{module}:{function}"


def _imported(name: str, address: str) -> Measure:
    module, _, function = address.partition(":")
    try:
        found: Measure = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"the measure of guard {name} is {address!r}, expected package.module:NAME of a "
            f"function that can be imported here: {error}"
        ) from error
    return found
