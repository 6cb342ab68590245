"""`apex-reward compare`: what a fine-tune changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.cli.common import (
    SCORE,
    Folder,
    add_command,
    progress_bar,
    show_failures,
)
from apex_reward.cli.rewards import RewardOptions, RunOptions, build_reward, check_reachable
from apex_reward.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from apex_reward.rewards.reward import Reward


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, compare, panel=SCORE)


def compare(
    before: str,
    after: str,
    /,
    asked: RewardOptions,
    running: RunOptions,
    *,
    output: Folder,
    holdout: Annotated[list[str] | None, "MODEL"] = None,
    reference: Annotated[list[str] | None, "SONGS"] = None,
    seed: int = 0,
) -> int:
    """Compare songs before and after a fine-tune, paired by prompt.

    A prompt is a file's path in its folder without ending and without a trailing _<digits>; a list
    has it in its column `prompt`. The page has the reward, held-out rewards, rulers, guards and
    diversity of both sides, the songs that moved most, and a verdict in words.

    Example: apex-reward compare base/ tuned/ --model apex-tiny --mix aesthetics --output compared

    Args:
        before: folder, glob or list of songs before the fine-tune.
        after: the songs after it.
        output: folder to write: metrics.json, report.html and report.md.
        holdout: a model that the fine-tune did not use. Repeat it for more.
        reference: songs for the distances; repeat it for more.
        seed: random seed of the bootstrap.
    """
    check_reachable(asked)
    from apex_reward.compare.figures import compare_songs
    from apex_reward.compare.report import summary, write_comparison
    from apex_reward.compare.songs import Judges, measure_songs
    from apex_reward.model.licences import check_commercial, licences_of
    from apex_reward.report.document import print_blocks
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring import find_audio

    sources = [before, after]
    total = sum(len(find_audio([source])) for source in sources)
    others = find_audio(reference) if reference else []
    reward = build_reward(asked, running)
    held = [load_reward_model(name, device=running.device) for name in holdout or ()]
    if asked.commercial:
        check_commercial(licences_of(held))
    judges = Judges(reward, asked.rewarded, Reward(held) if held else None, running.device)
    with progress_bar() as bar:
        steps = total * len(judges.kinds) + len(others)
        task = bar.add_task("songs", total=steps)
        (first, failed), (second, more) = (
            measure_songs(source, judges, running.processes, lambda: bar.advance(task))
            for source in sources
        )
        vectors, missing = _vectors(reward, others, running.processes)
    metrics = compare_songs(first, second, vectors, seed=seed)
    metrics["failed"] = len({*failed, *more, *missing})
    write_comparison(output, metrics, first, second)
    print_blocks(summary(metrics))
    typer.echo(f"{output}: listen to the songs that moved most in report.html")
    return show_failures([*failed, *more, *missing])


def _vectors(reward: Reward, paths: list[str], workers: int) -> tuple[Tensor | None, list[str]]:
    """Embeddings of the reference songs, and a line for each that cannot be read."""
    import torch

    from apex_reward.rewards.engine import EngineSettings

    if not paths:
        return None, []
    if not reward.parts.encoders:
        raise DataError("--reference needs a reward with an encoder, such as --model apex-tiny")
    settings = EngineSettings(reward.loudness, batch_segments=reward.batch_segments, scored=False)
    prompts = [""] * len(paths) if reward.model.reads_text else None
    found, failed = [], []
    for result in reward.results(paths, prompts, workers=workers, settings=settings):
        if result.error is not None:
            failed.append(f"{result.path}: {result.error}")
            continue
        vector = reward.parts.song_vectors([f.to(reward.parts.device) for f in result.features])
        assert vector is not None
        found.append(vector[0].detach().float().cpu())
    if len(found) < 2:
        raise DataError(f"the reference has {len(found)} readable songs; expected at least 2")
    return torch.stack(found), failed
