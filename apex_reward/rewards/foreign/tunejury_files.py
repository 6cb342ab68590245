"""TuneJury's files: the published ones, and folders of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HubertConfig

from apex_reward.errors import CheckpointError
from apex_reward.model.config import MERT_95M
from apex_reward.model.encoders.clap import ClapEncoder
from apex_reward.model.encoders.clap_files import (
    PUBLISHED_CLAP,
    load_clap,
    whole_folder,
    write_clap,
)
from apex_reward.model.encoders.mert import MertEncoder
from apex_reward.model.encoders.mert_songs import whole_song_mert
from apex_reward.model.files import check_tensors, local_path, read_weights
from apex_reward.model.folder import read_folder, write_folder
from apex_reward.model.published import read_encoder_config, read_encoder_state
from apex_reward.rewards.foreign.tunejury import TuneJury

MODEL_TYPE = "apex_reward_tunejury"
PUBLISHED_MERT = "m-a-p/MERT-v1-330M"
PARTS = ("mert.", "head.")


def compose_tunejury(
    predictor: str | Path,
    encoder: str | Path | None = None,
    clap: str | Path | None = None,
    **hub: Any,
) -> TuneJury:
    """`TuneJury.from_published`: see there."""
    file, head = _published_head(local_path(predictor, **hub))
    folder = local_path(encoder or PUBLISHED_MERT, **hub)
    mert = whole_song_mert(HubertConfig(**{**MERT_95M, **read_encoder_config(folder)}))
    mert.load_state_dict(read_encoder_state(folder, mert.state_dict()))
    towers = load_clap(clap or PUBLISHED_CLAP, **hub)
    return _composed(file, head, mert, towers)


def save_tunejury(model: TuneJury, folder: str | Path) -> None:
    """`TuneJury.save_pretrained`: see there."""
    tensors = {n: value for n, value in model.state_dict().items() if n.startswith(PARTS)}
    settings = model.mert.config.to_diff_dict()
    with whole_folder(folder) as temporary:
        write_folder(temporary, {"model_type": MODEL_TYPE, "mert": settings}, tensors)
        (temporary / "clap").mkdir()
        write_clap(model.clap, temporary / "clap")


def load_tunejury(name: str | Path, **hub: Any) -> TuneJury:
    """`TuneJury.from_pretrained`: see there."""
    if str(name) == "tunejury":
        raise CheckpointError(
            "tunejury has no folder on the hub that can be read as it is: fetch its .pt from "
            "github.com/yonghyunk1m/TuneJury, run `apex-reward import --kind tunejury`, and name "
            "the folder (tunejury:FOLDER)"
        )
    folder = local_path(name, **hub)
    config, file, content = read_folder(folder, MODEL_TYPE)
    mert = whole_song_mert(HubertConfig(**config.get("mert", {})))
    found = _under("mert.", content)
    check_tensors(file, found, mert.state_dict())
    mert.load_state_dict(found)
    return _composed(file, _under("head.", content), mert, load_clap(folder / "clap"))


def _composed(
    file: Path, head: dict[str, Tensor], mert: MertEncoder, clap: ClapEncoder
) -> TuneJury:
    model = TuneJury(clap, mert, _widths(file, head))
    check_tensors(file, head, model.head.state_dict())
    model.head.load_state_dict(head)
    return model


def _published_head(path: Path) -> tuple[Path, dict[str, Tensor]]:
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(files) != 1:
        raise CheckpointError(f"{path} holds {len(files)} .pt files; name TuneJury's own")
    content = read_weights(files[0])
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not any(str(k).startswith("net.") for k in content):
        raise CheckpointError(
            f"{files[0]} is not TuneJury's head: expected tensors named net.0.weight, ..."
        )
    return files[0], dict(content)


def _widths(file: Path, head: Mapping[str, Any]) -> list[int]:
    """Widths of the hidden layers, from the batch norms' means."""
    means = {
        int(name.split(".")[1]): len(value)
        for name, value in head.items()
        if name.startswith("net.") and name.endswith(".running_mean") and value.ndim == 1
    }
    if not means:
        raise CheckpointError(f"{file} has no net.N.running_mean; is it TuneJury's head?")
    return [means[index] for index in sorted(means)]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
