"""Folders of CLAP in transformers' layout: read strictly, written whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from apex_reward.errors import CheckpointError
from apex_reward.model.encoders.clap import ClapEncoder
from apex_reward.model.files import (
    check_tensors,
    local_path,
    read_config,
    read_weights,
    weight_file,
)
from apex_reward.model.folder import check_unused

PUBLISHED_CLAP = "laion/larger_clap_music"
# Index tables that follow from the configuration; files of some versions hold them.
DERIVED = ("position_ids", "token_type_ids", "relative_position_index")


def load_clap(name: str | Path = PUBLISHED_CLAP, **hub: Any) -> ClapEncoder:
    """Both towers, the tokenizer and the mel's settings from a folder or hub id.

    Args:
        name: transformers' layout: `config.json` of model_type clap, `preprocessor_config.json`,
            the tokenizer's files and the weights.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: nothing there, another kind of model, a CLAP with fusion, or any file or
            tensor that is missing, extra or misshapen.
    """
    folder = local_path(name, **hub)
    kind = read_config(folder).get("model_type") if folder.is_dir() else "file"
    if kind != "clap":
        raise CheckpointError(
            f"{folder} describes a {kind!r}; expected a folder of model_type 'clap' in "
            f"transformers' layout, such as {PUBLISHED_CLAP}"
        )
    tokenizer, extractor = _text_and_mel(folder)
    model = ClapModel(ClapConfig.from_pretrained(folder))
    file = weight_file(folder)
    content = read_weights(file)
    expected = model.state_dict()
    derived = {key: value for key, value in expected.items() if key.endswith(DERIVED)}
    found = {key: value for key, value in content.items() if not key.endswith(DERIVED)}
    check_tensors(file, {**found, **derived}, expected)
    model.load_state_dict({**found, **derived})
    return ClapEncoder(model, tokenizer, extractor)


def save_clap(encoder: ClapEncoder, folder: str | Path) -> None:
    """Write the same layout, whole or not at all."""
    with whole_folder(folder) as temporary:
        write_clap(encoder, temporary)


def write_clap(encoder: ClapEncoder, folder: Path) -> None:
    """Write the same layout into a folder."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    encoder.extractor.save_pretrained(folder)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place once all is written.

    Raises:
        UsageError: something is there already.
    """
    target = check_unused(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _text_and_mel(folder: Path) -> tuple[Any, ClapFeatureExtractor]:
    if not (folder / "preprocessor_config.json").is_file():
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'} does not exist; it holds the mel's settings "
            "(copy it from the hub's repository)"
        )
    try:
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer or mel settings that can be read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return tokenizer, extractor
