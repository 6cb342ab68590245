"""The Ray engine of extraction: shards as rows of a Ray data set, actors that hold the encoder.

Every machine must see the audio and the output folder under the same paths (a shared file system).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apex_reward.data.extract import ExtractSettings, Shard, extract_shards
from apex_reward.errors import UsageError


class ShardActor:
    """Holds the encoder in a Ray worker; a call extracts one shard.

    Args:
        threads: of the CPU; as many as the starting process has, because sums over another number
            of threads differ in their last bits.
    """

    def __init__(
        self, shards: Sequence[Shard], settings: ExtractSettings, output: Path, threads: int
    ) -> None:
        import torch

        from apex_reward.data.encoder import load_encoder

        torch.set_num_threads(threads)
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_encoder(settings.encoder, device)
        self.shards, self.output = shards, output
        self.settings = replace(settings, workers=0)
        self.teacher = settings.loaded_teacher()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self.shards[int(row["item"])]
        extract_shards(self.model, [shard], self.settings, self.output, self.teacher)
        return {"songs": len(shard.songs)}


def extract_with_ray(
    shards: Sequence[Shard],
    settings: ExtractSettings,
    output: Path,
    on_song: Callable[[], None],
) -> None:
    """Extract shards on a Ray cluster: the one that `RAY_ADDRESS` names, else this machine."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(
            "the engine 'ray' needs Ray Data: pip install 'apex-reward[ray]'"
        ) from error
    import torch

    from apex_reward.data.encoder import encoder_config

    if not shards:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    actors = min(max(1, settings.workers), len(shards))
    gpus = float(ray.cluster_resources().get("GPU", 0))
    encoder = encoder_config(settings.encoder).encoder_name or settings.encoder
    local = replace(settings, audio_dir=settings.audio_dir.resolve(), encoder=encoder)
    rows = ray.data.from_items(list(range(len(shards))), override_num_blocks=len(shards))
    actor: Any = ShardActor
    done = rows.map(
        actor,
        fn_constructor_args=(list(shards), local, output.resolve(), torch.get_num_threads()),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=min(1.0, gpus / actors) if gpus else 0,
    )
    for row in done.iter_rows():
        for _ in range(row["songs"]):
            on_song()
