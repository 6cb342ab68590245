"""What is known of the licences of models: their code, and each file of weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from apex_reward.errors import UsageError

Licence = dict[str, Any]
HUB = "https://huggingface.co/"
UNKNOWN = "not known"


def licence(part: str, name: str, commercial: bool | None, source: str) -> Licence:
    """One part's licence.

    Args:
        part: which code or which weights.
        name: the licence in words.
        commercial: whether it allows commercial use; None where that is not clear.
        source: where the licence is stated.
    """
    return {"part": part, "licence": name, "commercial": commercial, "source": source}


CODE = licence("code of apex-reward", "Apache-2.0", True, "LICENSE")
MUQ = licence("MuQ weights", "CC BY-NC 4.0", False, f"{HUB}OpenMuQ/MuQ-large-msd-iter")
CLAP = licence("CLAP weights", "Apache-2.0", True, f"{HUB}laion/larger_clap_music")


def mert(hub_id: str) -> Licence:
    """MERT's weights, of which copies of the card state different licences."""
    stated = "CC BY-NC 4.0, an older copy of the card MIT; read the card"
    return licence(f"{hub_id} weights", stated, None, HUB + hub_id)


def apex_licences(origin: str, encoder: str) -> list[Licence]:
    """Code, predictor and encoder of an APEX model.

    Args:
        origin: what the predictor was loaded from.
        encoder: hub id, folder or embedded name of the encoder.
    """
    if encoder == "apex-tiny":
        return [CODE, licence("apex-tiny weights", "Apache-2.0", True, "LICENSE")]
    if origin == "amaai-lab/apex":
        own = licence("APEX weights", "Apache-2.0", True, HUB + origin)
    else:
        own = licence("predictor weights", UNKNOWN, None, origin or UNKNOWN)
    known = encoder.startswith("m-a-p/MERT")
    return [
        CODE, own, mert(encoder) if known else licence("encoder weights", UNKNOWN, None, encoder)
    ]  # fmt: skip


def licences_of(models: Iterable[Any]) -> list[Licence]:
    """The licences of all parts of some models, each part once; a model may state none."""
    found: list[Licence] = []
    for model in models:
        kind = f"{type(model).__module__}:{type(model).__qualname__}"
        own = getattr(model, "licences", None) or [licence(model.name, UNKNOWN, None, kind)]
        found += [dict(one) for one in own if one not in found]
    return found


def check_commercial(licences: Iterable[Licence]) -> None:
    """Refuse parts that do not allow commercial use, or whose licence is not clear.

    Raises:
        UsageError: naming each such part with its licence and where it is stated.
    """
    refused = [one for one in licences if one["commercial"] is not True]
    if refused:
        parts = "; ".join(f"{one['part']}: {one['licence']} ({one['source']})" for one in refused)
        raise UsageError(f"not clearly free for commercial use: {parts}")


def stated(licences: Iterable[Licence]) -> str:
    """The licences of all parts but this package's code, in one line."""
    parts = [f"{one['part']}: {one['licence']}" for one in licences if one != CODE]
    return "; ".join(parts) or UNKNOWN
