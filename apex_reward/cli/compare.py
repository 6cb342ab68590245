"""`apex-reward compare` and `apex-reward distance`: what tells two sets of songs apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from apex_reward.cli import rewards
from apex_reward.cli.common import File, Folder, counting, print_table, show, show_failures
from apex_reward.errors import DataError
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from torch import Tensor

    from apex_reward import Reward

UNBIASED_SONGS = 10
"""The unbiased form needs at least this many songs in each set."""
DEFAULT_MODELS = {"mert": "apex-tiny", "muq": "songeval", "clap": "clap"}


def compare(
    before: str,
    after: str,
    /,
    asked: rewards.RewardOptions,
    running: rewards.RunOptions,
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
    rewards.check_reachable(asked)
    from apex_reward import Reward, load_reward_model
    from apex_reward.compare.figures import compare_songs
    from apex_reward.compare.report import summary, write_comparison
    from apex_reward.compare.songs import judges, measure_songs
    from apex_reward.model.licences import check_commercial, licences_of
    from apex_reward.report.document import print_blocks
    from apex_reward.scoring import find_audio

    sources = [before, after]
    total = sum(len(find_audio([source])) for source in sources)
    others = find_audio(reference) if reference else []
    reward = rewards.build_reward(asked, running)
    held = [load_reward_model(name, device=running.device) for name in holdout or ()]
    if asked.commercial:
        check_commercial(licences_of(held))
    kinds = judges(reward, Reward(held) if held else None, running.device)
    vectors, workers = None, running.processes
    with counting("songs", total * len(kinds) + len(others)) as step:
        (first, failed), (second, more) = (
            measure_songs(source, kinds, asked.rewarded, workers, step) for source in sources
        )
        failed = [*failed, *more]
        if others:
            vectors = _vectors("reference", reward, others, workers, failed, step)
    metrics = compare_songs(first, second, vectors, seed=seed)
    metrics["failed"] = len(set(failed))
    write_comparison(output, metrics, first, second)
    print_blocks(summary(metrics))
    typer.echo(f"{output}: listen to the songs that moved most in report.html")
    return show_failures(failed)


def distance(
    songs: list[str],
    /,
    *,
    reference: Annotated[list[str], "SONGS"],
    embedding: Literal["mert", "muq", "clap"] = "mert",
    metric: Literal["frechet", "kernel"] = "frechet",
    model: Annotated[str | None, "MODEL", "-m"] = None,
    output: File | None = None,
    device: Annotated[str | None, "NAME"] = None,
    commercial: bool = False,
) -> int:
    """Measure the distance between two sets of songs, and how varied each set is.

    The distance falls towards 0 as the sets sound alike. The kernel distance is unbiased and may
    be negative; for the Frechet distance the table also has it without its small-sample bias. The
    diversity is the effective number of different songs. A reward that rises together with the
    distance is being gamed.

    Example: apex-reward distance made/ --reference real/ --embedding muq

    Args:
        songs: files, folders, globs or lists.
        reference: the set to compare with; repeat it for more.
        embedding: encoder of the songs.
        metric: the Frechet distance, or the kernel distance with the reference's median distance.
        model: model with that encoder. None: apex-tiny, songeval or clap.
        output: write the figures as JSON.
        device: cpu, cuda, cuda:1 or mps. None: a GPU if there is one.
        commercial: refuse a model whose licences do not clearly allow commercial use.
    """
    from apex_reward import Reward, RewardMix, load_reward_model
    from apex_reward.files.tables import write_json
    from apex_reward.model.licences import check_commercial
    from apex_reward.rewards import distance as distances
    from apex_reward.scoring import find_audio

    sets = {"songs": find_audio(songs), "reference": find_audio(reference)}
    name = model or DEFAULT_MODELS[embedding]
    encoder = load_reward_model(name, device=device)
    reward = Reward(encoder, RewardMix({encoder.heads[0].name: 1.0}, "none"))  # no mix is read
    if commercial:
        check_commercial(reward.licences())
    workers = rewards.decoding_processes(None)
    failed: list[str] = []
    with counting("encoding", sum(map(len, sets.values()))) as step:
        a, b = (
            _vectors(side, reward, files, workers, failed, step) for side, files in sets.items()
        )
    width = distances.kernel_bandwidth(b)
    measured: dict[str, float | None]
    if metric == "kernel":
        measured = {"distance": distances.kernel_distance(a, b), "bandwidth": width}
    else:
        measured = {"distance": distances.frechet_distance(a, b), "distance_unbiased": None}
        if min(len(a), len(b)) >= UNBIASED_SONGS:
            measured["distance_unbiased"] = distances.frechet_distance(a, b, unbiased=True)
        else:
            show(f"The unbiased distance needs {UNBIASED_SONGS} songs in each set.")
    figures = {
        "embedding": embedding,
        "model": name,
        "metric": metric,
        "songs": len(a),
        "reference": len(b),
        "failed": len(failed),
        **measured,
        "diversity": distances.vendi_diversity(a, width),
        "diversity_reference": distances.vendi_diversity(b, width),
    }
    print_table(f"{metric.capitalize()} distance", list(figures), [list(figures.values())])
    if output is not None:
        write_json(output, figures)
    return show_failures(failed)


def _vectors(
    name: str, reward: Reward, paths: Sequence[str], workers: int, failed: list[str],
    on_song: Callable[[], None],
) -> Tensor:  # fmt: skip
    """Embeddings (N, W) of the songs that can be read; raises DataError for fewer than two.

    Args:
        name: of the set of songs.
        failed: gets a line for each other song.
    """
    from apex_reward.rewards.distance import song_embeddings

    found = song_embeddings(reward, paths, workers=workers, failed=failed, on_song=on_song)
    if len(found) < 2:
        show_failures(failed)
        usable = counted(len(found), "readable file")
        raise DataError(f"{name}: {usable}; a distance needs at least 2")
    return found
