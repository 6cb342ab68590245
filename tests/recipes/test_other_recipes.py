"""Reward back-propagation and best-of-N: single steps by hand; short runs raise the reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from apex_reward.audio import load_audio
from apex_reward.files.tables import read_jsonl
from tests.pipelines import BUILDERS, small_pipeline
from tests.recipes.support import mean, recipe_module, run
from tests.support import tiny_model


class OneWeight(torch.nn.Module):
    """A generator of songs of two samples, each equal to its weight."""

    sample_rate = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, prompts: list[str], random: torch.Generator) -> torch.Tensor:
        return self.weight.expand(len(prompts), 2)


def test_a_step_clips_the_gradient_of_all_its_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gradients of -10 and 9 average to -0.5, within the limit of 1; clipped apart they give 1."""
    recipe, gains = recipe_module("reward_backprop"), iter((5.0, -4.5))

    def guarded(reward: object, waveforms: torch.Tensor, *rest: object) -> tuple[torch.Tensor, ...]:
        values = torch.zeros(len(waveforms))
        return values, values, torch.full_like(waveforms, next(gains))

    monkeypatch.setattr(recipe, "guarded_gradient", guarded)
    climb, generator = object.__new__(recipe.Climb), OneWeight()
    climb.own = recipe.Settings(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=1.0
    )
    climb.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    climb.generator, climb.reward, climb.prompts = generator, None, ["a"]
    climb.parameters, climb.start = [generator.weight], [torch.zeros(1)]
    climb.wrapped, climb.optimizer = climb.accelerator.prepare(
        generator, torch.optim.SGD([generator.weight], lr=0.1)
    )
    climb.random = torch.Generator().manual_seed(0)
    assert climb.climb()["grad_norm"] == pytest.approx(0.5)
    assert generator.weight.item() == pytest.approx(0.05)


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_gradient_reaches_pipelines_of_diffusers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_pipeline(kind).save_pretrained(tmp_path / "pipeline")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("low calm\nhigh lively\n")
    history, _ = run(
        "reward_backprop", tmp_path / "run", "--pipeline", tmp_path / "pipeline",
        "--prompts", tmp_path / "prompts.txt", "--reward_model", tmp_path / "reward",
        "--audio_seconds", 0.2, "--sampler_steps", 2, "--last", 1, "--max_steps", 2,
        "--per_device_train_batch_size", 2, "--learning_rate", 1e-2,
    )  # fmt: skip
    assert all(row["grad_norm"] > 0 for row in history)
    assert "adapters on 100% of the attention weights" in capsys.readouterr().out
    song = load_audio(tmp_path / "run" / "audio" / "after_0.wav")
    assert song.duration == pytest.approx(0.2, abs=0.01)
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(bool(weight.any()) for weight in adapter.values())


def test_the_spread_is_of_songs_that_different_candidates_gave() -> None:
    """Orthogonal songs: the best ones of two draws without a shared candidate are 1 apart."""
    recipe = recipe_module("best_of_n")
    groups = [
        [
            {"reward": float(i), "reward_spread": None, "flags": "", "embedding": torch.eye(4)[i]}
            for i in range(4)
        ]
        for _ in range(2)
    ]
    reference = torch.eye(4)
    one, two, four = (
        recipe.best_of(n, groups, reference, 5, np.random.default_rng(0)) for n in (1, 2, 4)
    )
    assert one["embedding_spread"] == two["embedding_spread"] == pytest.approx(1.0)
    assert four["embedding_spread"] is None
    assert (one["reward"], four["reward"]) == (1.5, 3.0)
    assert 2 < two["reward"] < 3


@pytest.mark.slow
def test_backpropagation_raises_the_reward_of_unseen_prompts(tmp_path: Path) -> None:
    words = ["--max_steps", 8, "--holdout-steps", 8, "--save_steps", 7]
    history, summary = run("reward_backprop", tmp_path, *words)
    assert summary["reward_after"] > summary["reward_before"] + summary["reward_std_before"]
    assert summary["reward_after"] == pytest.approx(history[-1]["held_out"], abs=1e-4)
    assert summary["guard_rate_before"] == 0
    # Climbing without guards raises the steady noise up to the guard's limit: some songs trip it.
    assert summary["guard_rate_after"] <= 0.6
    assert all(row["grad_norm"] > 0 and row["guard_price"] == 0 for row in history)
    assert history[-1]["apex/distance"] == pytest.approx(summary["distance_after"], rel=1e-3)
    assert [row["step"] for row in history if row["held_out"] is not None] == [8]
    before, after = (load_audio(tmp_path / "audio" / f"{n}_0.wav") for n in ("before", "after"))
    assert before.duration == after.duration == 4.0
    assert abs(before.samples - after.samples).max() > 0.01
    # From a checkpoint the run goes on as if it had not stopped.
    again = ["--resume_from_checkpoint", tmp_path / "checkpoint-7", "--max_steps", 8]
    resumed, _ = run("reward_backprop", tmp_path, *again, "--holdout-steps", 8)
    assert [row["step"] for row in resumed] == list(range(1, 9))
    assert resumed[-1]["reward"] == pytest.approx(history[-1]["reward"], abs=1e-5)
    assert resumed[-1]["held_out"] == pytest.approx(history[-1]["held_out"], abs=1e-4)


@pytest.mark.slow
def test_best_of_more_is_better(tmp_path: Path) -> None:
    history, summary = run("best_of_n", tmp_path, "--num_generations", 4)
    assert [row["step"] for row in history] == [1, 2, 4]
    rewards = [row["reward"] for row in history]
    assert rewards == sorted(rewards)
    rows = read_jsonl(tmp_path / "candidates.jsonl")
    assert len(rows) == 40
    assert rewards[0] == pytest.approx(mean(rows, "reward"), abs=0.08)
    best = [max(row["reward"] for row in rows if row["prompt"] == p) for p in range(10)]
    assert rewards[-1] == pytest.approx(sum(best) / 10, abs=1e-6)
    assert history[-1]["kl_bound"] == pytest.approx(0.6363, abs=1e-4)
    assert [row["embedding_spread"] is None for row in history] == [False, False, True]
    assert history[0]["embedding_spread"] > 0
    assert summary["distance_after"] < summary["distance_before"]
