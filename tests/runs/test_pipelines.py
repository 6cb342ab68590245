"""Pipelines of diffusers: their lengths, their attention, fresh noise, and adapters that load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableAudio3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model

from apex_reward.errors import UsageError
from apex_reward.runs import pipelines
from apex_reward.runs.pipelines import (
    PIPELINES,
    AudioPipeline,
    PipelineForm,
    adapted_share,
    form_of,
)
from tests.pipelines import BUILDERS, RATE, small_pipeline

PROMPTS, SEEDS = ["low calm", "high lively"], [3, 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every small pipeline as a folder."""
    root = tmp_path_factory.mktemp("pipelines")
    for kind in BUILDERS:
        small_pipeline(kind).save_pretrained(root / kind)
    return {kind: str(root / kind) for kind in BUILDERS}


@pytest.mark.parametrize("kind", BUILDERS)
def test_length_share_noise_and_adapters(
    kind: str, folders: dict[str, str], tmp_path: Path
) -> None:
    generator = AudioPipeline(folders[kind], 0.12, 3, last=1, guidance=1.0)
    assert generator.share == 1.0
    random = torch.Generator().manual_seed(0)
    first, second = (generator(PROMPTS, random) for _ in range(2))
    assert first.shape[1] == pytest.approx(0.12 * RATE, abs=1)
    assert float((first - second).detach().abs().mean()) > 1e-3
    first.square().mean().backward()
    weights = dict(generator.named_parameters())
    moved = {name for name, w in weights.items() if w.grad is not None and bool(w.grad.any())}
    assert moved == {name for name in weights if "lora_B" in name}

    # As training leaves them, then loaded by the libraries themselves.
    with torch.no_grad():
        for name, weight in weights.items():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
        trained = generator.songs(PROMPTS, SEEDS)
    generator.save_pretrained(tmp_path)
    form = form_of(generator.pipeline)
    options = {form.length: 0.12, "num_inference_steps": 3, "guidance_scale": 1.0}
    options |= {"output_type": "pt", **({"lyrics": ["", ""]} if kind == "AceStepPipeline" else {})}

    def songs_of(pipeline: DiffusionPipeline) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        if not form.alone:
            return pipeline(PROMPTS, generator=generators, **options).audios
        pairs = zip(PROMPTS, generators, strict=True)
        return torch.cat([pipeline(p, generator=g, **options).audios for p, g in pairs])

    plain = DiffusionPipeline.from_pretrained(folders[kind])
    before = songs_of(plain)
    assert float((before - trained).abs().mean()) > 1e-4
    if hasattr(plain, "load_lora_weights"):
        plain.load_lora_weights(tmp_path)
        torch.testing.assert_close(songs_of(plain), trained)
        plain.unload_lora_weights()
    plain.transformer = PeftModel.from_pretrained(plain.transformer, str(tmp_path)).eval()
    torch.testing.assert_close(songs_of(plain), trained)


def test_the_random_path_of_stable_audio_is_new_at_every_step(folders: dict[str, str]) -> None:
    generator = AudioPipeline(folders["StableAudioPipeline"], 0.05, 3, last=1, guidance=1.0)
    scheduler, random = generator.pipeline.scheduler, torch.Generator()

    def one_step() -> tuple[torch.Tensor, torch.Tensor]:
        songs = generator(PROMPTS, random).detach()
        return songs, scheduler.noise_sampler(scheduler.sigmas[0], scheduler.sigmas[1])

    random.manual_seed(0)
    np.random.seed(1)
    songs, noise = one_step()
    _, other = one_step()
    assert float((noise - other).abs().mean()) > 0.5
    assert float((noise[0] - noise[1]).abs().mean()) > 0.5
    random.manual_seed(0)
    np.random.seed(2)
    again, noise_again = one_step()
    torch.testing.assert_close(again, songs)
    torch.testing.assert_close(noise_again, noise)


def test_a_song_of_longcat_does_not_depend_on_its_neighbours(folders: dict[str, str]) -> None:
    generator = AudioPipeline(folders["LongCatAudioDiTPipeline"], 0.12, 2)
    with torch.no_grad():
        both = generator.songs(["low", "high lively"], SEEDS)
        torch.testing.assert_close(generator.songs(["low"], SEEDS[:1]), both[:1])


def test_what_does_not_fit_is_refused(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(StableAudio3Pipeline):
        pass

    assert form_of(Own.__new__(Own)) is PIPELINES["StableAudio3Pipeline"]
    with pytest.raises(UsageError, match="dict is not an audio pipeline of the table.*AceStep"):
        form_of({})
    with pytest.raises(UsageError, match="songs of at most 30 s; 31 s were asked for"):
        AudioPipeline(folders["LongCatAudioDiTPipeline"], 31, 2)
    with pytest.raises(UsageError, match="AceStepPipeline uses earlier steps.*guidance_scale 1"):
        AudioPipeline(folders["AceStepPipeline"], 1, 2, guidance=7, policy_gradient=True)

    # The names of Stable Audio 1 reach a fifth of Stable Audio 3's attention.
    wrong = PipelineForm("duration", attention=("to_q", "to_k", "to_v", "to_out.0"))
    monkeypatch.setitem(pipelines.PIPELINES, "StableAudio3Pipeline", wrong)
    with pytest.raises(UsageError, match=r"adapters on 1\d% of the attention weights.*50%"):
        AudioPipeline(folders["StableAudio3Pipeline"], 0.1, 2)
    short = PipelineForm("duration", attention=("to_qkv", "to_q", "to_kv", "to_out"))
    monkeypatch.setitem(pipelines.PIPELINES, "StableAudio3Pipeline", short)
    generator = AudioPipeline(folders["StableAudio3Pipeline"], 0.1, 2)
    generator.seconds = 2.0
    with pytest.raises(UsageError, match="gave songs of 0.10 s; 2 s were asked for"):
        generator.songs(PROMPTS, SEEDS)


def test_the_share_counts_weights() -> None:
    """Stable Audio 3, by hand: to_qkv 5, to_out 1, to_q 2, to_kv 3, to_out 1, of width squared."""
    for targets, share in ((["to_q"], 2 / 12), (["to_qkv", "to_kv"], 8 / 12), (["to_out"], 2 / 12)):
        transformer = small_pipeline("StableAudio3Pipeline").transformer
        adapted = get_peft_model(transformer, LoraConfig(target_modules=targets))
        assert adapted_share(adapted) == pytest.approx(share)


def test_the_guide_has_the_whole_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "generators.md").read_text()
    for kind, form in PIPELINES.items():
        (row,) = [
            line for line in page.splitlines() if line.startswith("|") and f"`{kind}`" in line
        ]
        cells = [form.length, ".".join(form.rate), form.callback, *form.attention]
        assert all(f"`{cell}`" in row for cell in cells)
