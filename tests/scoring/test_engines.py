"""Work shared by ranks and by Ray actors: the bytes of one process, after any kill too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from apex_reward.arena.score import score_battles
from apex_reward.cli import app
from apex_reward.errors import ApexError, UsageError
from apex_reward.model import ApexReward
from apex_reward.rewards.reward import Reward
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores
from apex_reward.scoring import Engine, Input, ScoreSettings, job, score_to_file
from apex_reward.scoring.engines import BlockActor, Share, share_of_launch, shared_out
from tests.ranks import launched
from tests.support import tiny_model, write_wav

SEGMENTS = ScoreSettings(rewarded=True, segments=True)


@pytest.fixture(autouse=True, scope="module")
def blocks_of_two() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "block_songs", lambda batch_segments: 2)
        yield


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def reward(model: ApexReward) -> Reward:
    return Reward(model, "overall")


@pytest.fixture(scope="module")
def alone(
    reward: Reward, songs: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of one process."""
    folder = tmp_path_factory.mktemp("alone")
    score_to_file(reward, listed(songs), folder / "f.csv", SEGMENTS)
    return everything(folder)


def listed(songs: list[str]) -> list[Input]:
    return [Input(song, {"prompt_id": str(number)}) for number, song in enumerate(songs)]


def score(reward: Reward, songs: list[str], output: Path, share: Share, **options: Any) -> None:
    engine = Engine(share=share)
    score_to_file(reward, listed(songs), output, SEGMENTS, engine=engine, **options)


def test_failed_songs_are_no_crash_to_a_launcher() -> None:
    assert Engine(share=Share(0, 2)).ended(1) == 0
    assert Engine().ended(1) == 1


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_write_the_bytes_of_one_process(
    alone: dict[str, bytes], reward: Reward, songs: list[str], tmp_path: Path, processes: int
) -> None:
    seen_by = tmp_path / "seen"
    seen_by.mkdir()

    def work(share: Share) -> None:
        seen: list[str] = []
        score(reward, songs, tmp_path / "out" / "f.csv", share, workers=share.rank,
              on_row=lambda row, fresh: seen.append(row["path"]))  # fmt: skip
        (seen_by / str(share.rank)).write_text("\n".join(seen))

    assert launched(processes, work) == [0] * processes
    assert everything(tmp_path / "out") == alone
    assert (seen_by / "0").read_text().split("\n") == songs
    assert (seen_by / "1").read_text() == ""


def killed(reward: Reward, songs: list[str], output: Path, dies: int) -> list[int]:
    """Wait statuses of two ranks, of which one is killed behind its first block."""
    write = job.write_text

    def work(share: Share) -> None:
        def write_and_die(path: Path, text: str) -> None:
            write(path, text)
            os.kill(os.getpid(), signal.SIGKILL)

        if share.rank == dies:
            job.write_text = write_and_die
        score(reward, songs, output, share)

    return launched(2, work)


@pytest.mark.parametrize(("dies", "resumed"), [(0, 2), (1, 1), (1, 3)])
def test_a_killed_rank_and_a_resume_with_any_number_give_the_same_bytes(
    alone: dict[str, bytes],
    reward: Reward,
    songs: list[str],
    tmp_path: Path,
    dies: int,
    resumed: int,
) -> None:
    output = tmp_path / "out" / "f.csv"
    statuses = killed(reward, songs, output, dies)
    assert os.WIFSIGNALED(statuses[dies])
    assert statuses[1 - dies] != 0
    assert not output.exists()
    done = sorted(path.name for path in (output.parent / "f.csv.partial.blocks").iterdir())
    assert f"{dies:06d}.jsonl" in done
    assert f"{dies + 2:06d}.jsonl" not in done
    assert launched(resumed, lambda share: score(reward, songs, output, share, resume=True)) == (
        [0] * resumed
    )
    assert everything(output.parent) == alone


def test_blocks_of_another_run_are_refused_on_every_rank(
    reward: Reward, songs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "f.csv"
    killed(reward, songs, output, 1)
    capfd.readouterr()
    other = Reward(reward.model, "aesthetics")
    assert launched(2, lambda share: score(other, songs, output, share, resume=True)) == [256] * 2
    said = capfd.readouterr().err
    assert "made with other reward" in said
    assert "the first process could not begin" in said


def test_ranks_share_the_songs_of_battles(reward: Reward, songs: list[str], tmp_path: Path) -> None:
    battles = [{"battle_uuid": str(n), "preference": "A"} for n in range(4)]
    pairs = [(songs[n], songs[n + 1]) for n in range(4)]

    def work(share: Share) -> None:
        score_battles(battles, pairs, tmp_path / "two.csv", reward, engine=Engine(share=share))

    assert launched(2, work) == [0, 0]
    score_battles(battles, pairs, tmp_path / "one.csv", reward)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_who_works() -> None:
    assert share_of_launch() == Share()
    assert not Engine().several
    assert Engine("ray").several
    with pytest.raises(UsageError, match="engine is 'spark'; expected one of local, ray"):
        Engine("spark")
    with pytest.raises(UsageError, match="Ray starts its own processes"):
        Engine("ray", Share(1, 2))


@pytest.mark.parametrize(
    ("processes", "device", "expected"),
    [(1, None, (1.0, 1.0)), (3, None, (1.0, 0.5)), (6, None, (0.5, 0.3333)), (2, "cpu", (1, 0))],
)
def test_processes_on_ray_share_processors_and_each_gpu(
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    device: str | None,
    expected: tuple[float, float],
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    assert tuple(shared_out(processes, device).values()) == expected


def test_several_processes_need_a_file(songs: list[str]) -> None:
    refused = CliRunner().invoke(app, ["score", songs[0], "--engine", "ray"])
    assert refused.exit_code == 2
    assert "--engine ray need --output FILE" in refused.output


class DiesOnce:
    """A reward model that takes its process with it, the first time that it hears a long song."""

    name = "dies"
    heads = (Head("seconds", 0, 10),)
    sample_rate = 24_000
    differentiable = False
    reads_text = False

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(
        self, waveforms: torch.Tensor, sample_rate: int, lengths: Any = None, prompts: Any = None
    ) -> Scores:
        seconds = waveforms.shape[-1] / sample_rate
        if seconds > 0.8 and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return Scores({"seconds": torch.full((len(waveforms),), seconds)})


def test_an_actor_says_what_went_wrong(tmp_path: Path) -> None:
    def load(device: str | None) -> Any:
        raise UsageError(f"no weights for {device}")

    with pytest.raises(ApexError, match="^UsageError: no weights for cpu$"):
        BlockActor(load, str(tmp_path), 1, "cpu").score(0)
    with pytest.raises(ApexError, match="Ray's machines must see the files under the same paths"):
        BlockActor(load, str(tmp_path / "gone"), 1, "cpu").score(0)


@pytest.mark.slow
def test_a_killed_ray_actor_s_block_is_done_again(
    model: ApexReward, songs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    # The actors import the model's class from here.
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    mark = tmp_path / "mark"
    reward = Reward([model, DiesOnce(mark)], "apex.clarity=1,dies.seconds=1")
    settings = ScoreSettings(rewarded=True)
    try:
        score_to_file(
            reward, songs, tmp_path / "ray" / "f.jsonl", settings, engine=Engine("ray", actors=2)
        )
    finally:
        ray.shutdown()
    assert int(mark.read_text()) != os.getpid()
    score_to_file(reward, songs, tmp_path / "here" / "f.jsonl", settings)
    assert everything(tmp_path / "ray") == everything(tmp_path / "here")


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    for number in range(5):
        write_wav(tmp_path / "songs" / f"{number}.wav", 0.5 + 0.2 * number, seed=number)
    tiny_model().save_pretrained(tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = ["-m", "apex_reward", "score", "songs", "--model", "model"]
    two = subprocess.run([*launch, *command, "--output", "two.jsonl"], cwd=tmp_path,
                         env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("5 songs") == 1
    reward = Reward(str(tmp_path / "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        score_to_file(reward, [f"songs/{number}.wav" for number in range(5)], "one.jsonl")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
