"""Audio pipelines of diffusers as generators that a reward trains: one table, one class.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from apex_reward.errors import UsageError
from apex_reward.prompt import prompt_of
from apex_reward.runs.samplers import LastSteps

LEAST_SHARE = 0.5
TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True)
class PipelineForm:
    """How a pipeline of diffusers is run and adapted.

    Attributes:
        length: its argument for the length of a song in seconds.
        rate: the part and the field of its configuration that hold the sample rate.
        callback: its argument for a callback after every step.
        attention: names of the denoiser's attention layers, which LoRA adapts.
        denoiser: the part that is trained.
        longest: seconds above which the pipeline shortens songs without an error.
        alone: a call for every song, because songs of one call depend on each other.
        remembers: its guidance uses earlier steps, whose graphs a policy gradient has freed.
    """

    length: str
    rate: tuple[str, str] = ("vae", "sampling_rate")
    callback: str = "callback_on_step_end"
    attention: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    denoiser: str = "transformer"
    longest: float = float("inf")
    alone: bool = False
    remembers: bool = False


LATENT_UNET = PipelineForm(
    "audio_length_in_s", ("vocoder", "sampling_rate"), callback="callback", denoiser="unet"
)
PIPELINES = {
    "StableAudioPipeline": PipelineForm("audio_end_in_s", callback="callback"),
    "StableAudio3Pipeline": PipelineForm(
        "duration", attention=("to_qkv", "to_q", "to_kv", "to_out")
    ),
    "AceStepPipeline": PipelineForm("audio_duration", remembers=True),
    "LongCatAudioDiTPipeline": PipelineForm(
        "audio_duration_s", ("vae", "sample_rate"), longest=30.0, alone=True
    ),
    "AudioLDM2Pipeline": LATENT_UNET,
    "AudioLDMPipeline": LATENT_UNET,
    "MusicLDMPipeline": LATENT_UNET,
}


def form_of(pipeline: Any) -> PipelineForm:
    """The entry of a pipeline's class, or of the nearest class that it is made from.

    Raises:
        UsageError: there is none.
    """
    for kind in type(pipeline).__mro__:
        if kind.__name__ in PIPELINES:
            return PIPELINES[kind.__name__]
    raise UsageError(
        f"{type(pipeline).__name__} is not an audio pipeline of the table, so its length argument "
        f"and its attention layers are not known; the table has: {', '.join(PIPELINES)}"
    )


def adapted_share(denoiser: nn.Module) -> float:
    """The share of the weights of all attention modules that have an adapter."""
    whole = adapted = 0
    for module in denoiser.modules():
        if not hasattr(module, "set_processor"):
            continue
        for name, weight in module.named_parameters():
            if weight.ndim > 1 and "lora_" not in name:
                whole += weight.numel()
                adapted += weight.numel() * name.endswith("base_layer.weight")
    return adapted / max(1, whole)


class AudioPipeline(nn.Module):
    """An audio pipeline of diffusers with LoRA on the attention of its denoiser.

    Every song has a seed of its own, for its first noise and for the noise of a random scheduler;
    no global generator, NumPy's included, decides anything.
    Do not merge the adapters (`merge_and_unload`) where a layer has weight normalisation: peft
    drops the adapters of such convolutions without a word.

    Args:
        name: hub id or folder.
        seconds: length of the songs.
        steps: of the sampler.
        rank: of the adapters; their alpha is twice that.
        last: number of last steps with gradients; None: all steps, if gradients are on.
        guidance: scale of classifier-free guidance; None takes the pipeline's own.
        policy_gradient: each step has its own graph, which is freed before the next.

    Attributes:
        alone: whether each song is a call of its own.
        policy: the denoiser with its adapters, the only part that is trained.
        share: of the attention weights that the adapters change, in [0.5, 1].
        sample_rate: Hz.

    Raises:
        UsageError: a pipeline that the table lacks, songs longer than it makes, adapters on less
            than half of the attention weights, or a guidance that needs the graphs of earlier
            steps.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        steps: int,
        rank: int = 8,
        last: int | None = None,
        guidance: float | None = None,
        policy_gradient: bool = False,
    ) -> None:
        super().__init__()
        from diffusers import DiffusionPipeline

        self.pipeline = DiffusionPipeline.from_pretrained(name)
        self.pipeline.set_progress_bar_config(disable=True)
        self.form, self.kind = form_of(self.pipeline), type(self.pipeline).__name__
        self.seconds, self.steps, self.last = seconds, steps, last
        self.alone = self.form.alone
        if seconds > self.form.longest:
            most = f"{self.kind} makes songs of at most {self.form.longest:g} s"
            raise UsageError(f"{most}; {seconds:g} s were asked for")
        if policy_gradient and self.form.remembers:
            guidance = 1.0 if guidance is None else guidance
            if guidance > 1:
                raise UsageError(
                    f"the guidance of {self.kind} uses earlier steps, whose graphs are freed; "
                    "give --guidance_scale 1"
                )
        part, field = self.form.rate
        self.sample_rate = int(getattr(self.pipeline, part).config[field])
        self.options: dict[str, Any] = {self.form.length: seconds, "num_inference_steps": steps}
        if guidance is not None:
            self.options["guidance_scale"] = guidance
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False)
        denoiser = getattr(self.pipeline, self.form.denoiser)
        if last is not None and denoiser._supports_gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        layers = list(self.form.attention)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
        self.policy: Any = get_peft_model(denoiser, lora).eval()
        setattr(self.pipeline, self.form.denoiser, self.policy)
        self.share = adapted_share(self.policy)
        if self.share < LEAST_SHARE:
            raise UsageError(f"{self}; at least {LEAST_SHARE:.0%} are needed")

    def __str__(self) -> str:
        calls = ", a call per song" if self.form.alone else ""
        return (
            f"{self.kind}: songs of {self.seconds:g} s at {self.sample_rate} Hz{calls}; adapters "
            f"on {self.share:.0%} of the attention weights ({', '.join(self.form.attention)})"
        )

    def to(self, *args: Any, **kwargs: Any) -> AudioPipeline:
        """Move the whole pipeline."""
        self.pipeline.to(*args, **kwargs)
        return self

    def run(
        self, prompts: Sequence[str], seeds: Sequence[int], output_type: str = "latent"
    ) -> Tensor:
        """What the pipeline makes of B prompts, a seed for each.

        Args:
            output_type: `latent`, or `pt` for songs.
        """
        size = 1 if self.alone else len(prompts)
        parts = [slice(start, start + size) for start in range(0, len(prompts), size)]
        return torch.cat([self._call(list(prompts[p]), list(seeds[p]), output_type) for p in parts])

    def songs(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Songs (B, C, T) of the length that was asked for.

        Raises:
            UsageError: the pipeline gave another length.
        """
        songs = self.run(prompts, seeds, "pt").float()
        wanted, real = round(self.seconds * self.sample_rate), songs.shape[-1]
        if abs(real - wanted) > TOLERANCE_SECONDS * self.sample_rate:
            made = f"{self.kind} gave songs of {real / self.sample_rate:.2f} s"
            raise UsageError(f"{made}; {self.seconds:g} s were asked for")
        return songs[..., :wanted]

    def forward(self, prompts: Sequence[str], random: torch.Generator) -> Tensor:
        """Songs (B, T) with fresh noise, their seeds drawn from `random`."""
        seeds = torch.randint(2**31, (len(prompts),), generator=random).tolist()
        songs = self.songs(prompts, seeds)
        return songs.mean(dim=1) if songs.ndim == 3 else songs

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapters for peft, and for the pipeline's own loader where it has one.

        `PeftModel.from_pretrained(pipeline.transformer, folder)` loads the first,
        `pipeline.load_lora_weights(folder)` the second.
        """
        self.policy.save_pretrained(str(folder))
        if hasattr(self.pipeline, "save_lora_weights"):
            prefix = "base_model.model."
            named = get_peft_model_state_dict(self.policy).items()
            self.pipeline.save_lora_weights(
                folder,
                transformer_lora_layers={name.removeprefix(prefix): w for name, w in named},
                transformer_lora_adapter_metadata=self.policy.peft_config["default"].to_dict(),
            )

    def _call(self, prompts: list[str], seeds: list[int], output_type: str) -> Tensor:
        options = {**self.options, "output_type": output_type}
        # A pipeline's call shuts gradients off; what is inside is run instead.
        call = inspect.unwrap(type(self.pipeline).__call__)
        if "lyrics" in inspect.signature(call).parameters:
            options["lyrics"] = [prompt_of(prompt).lyrics or "" for prompt in prompts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with ExitStack() as stack:
            if self.last is not None:
                after = stack.enter_context(LastSteps(self.steps, self.last))
                options[self.form.callback] = after
                if self.form.callback == "callback":
                    options["callback_steps"] = 1
            made: Tensor = call(self.pipeline, prompts, generator=generators, **options).audios
        return made
