"""Where the encoder's time goes, stage by stage: transformers' float32 modules against ours.

    python benchmarks/encoder.py [--seconds 30] [--output benchmarks/results/encoder.md]

One segment, random weights of the published size, one thread. All figures are processor time (the
least of the repeats, taken in turn), which other programs disturb less than wall time. `rate` is
that of a large matrix product of the number type, measured between the repeats.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from result_file import write_result
from torch import Tensor
from transformers import HubertModel

from apex_reward.model import ApexConfig
from apex_reward.model.encoders.front_end import frame_features
from apex_reward.model.encoders.mert import MertEncoder
from apex_reward.model.graph import gradient_settings
from apex_reward.report.markdown import markdown_table

SIZE = 1536
STAGES = ("stage", "published float32", "float32", "bfloat16", "ratio float32", "ratio bfloat16")
GRADIENTS = ("value and gradient", "seconds", "against the forward pass")
Ways = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoders = made_up()
    samples = 0.1 * torch.randn(1, round(24_000 * options.seconds))
    stages = {
        "whole segment": whole,
        "front end": front_end,
        "positions": positions,
        "one of 12 layers": layer,
    }
    rows = []
    for name, ways in stages.items():
        times = least(ways(encoders, samples), options.repeats)
        ratios = [times["published"] / times[dtype] for dtype in ("float32", "bfloat16")]
        rows.append((name, *(f"{t:.2f}" for t in [*times.values(), *ratios])))
        print(rows[-1], flush=True)
    rates = {name: 2 * SIZE**3 / taken / 1e9 for name, taken in least(products(), 5).items()}
    text = (
        f"One segment of {options.seconds:g} s, published size, random weights; processor seconds."
        f"\n\n{markdown_table(STAGES, rows)}\n\nMatrix rate: "
        f"{', '.join(f'{name} {rate:.0f} GFLOP/s' for name, rate in rates.items())}.\n\n"
        f"{markdown_table(GRADIENTS, gradients(options.seconds))}"
    )
    write_result("The encoder, stage by stage", text, options.output)


@dataclass(frozen=True)
class Encoders:
    """The published way's and ours, of equal weights."""

    published: HubertModel
    float32: MertEncoder
    bfloat16: MertEncoder


def made_up() -> Encoders:
    config = ApexConfig()
    ours = own_encoder()
    published = HubertModel(config.encoder_config()).eval().requires_grad_(False)
    published.load_state_dict(ours.state_dict())
    return Encoders(published, ours, copy.deepcopy(ours).bfloat16())


def own_encoder() -> MertEncoder:
    torch.manual_seed(0)
    config = ApexConfig()
    return MertEncoder(config.encoder_config(), config.layers).requires_grad_(False)


def whole(of: Encoders, samples: Tensor) -> Ways:
    return {
        "published": lambda: of.published(samples, output_hidden_states=True),
        "float32": lambda: of.float32(samples),
        "bfloat16": lambda: of.bfloat16(samples),
    }


def front_end(of: Encoders, samples: Tensor) -> Ways:
    return {
        "published": lambda: of.published.feature_extractor(samples),
        "float32": lambda: frame_features(of.float32.feature_extractor, samples, torch.float32),
        "bfloat16": lambda: frame_features(of.bfloat16.feature_extractor, samples, torch.bfloat16),
    }


def positions(of: Encoders, samples: Tensor) -> Ways:
    hidden = frames_like(of.float32, samples)
    return {
        "published": lambda: of.published.encoder.pos_conv_embed(hidden),
        "float32": lambda: of.float32.encoder.pos_conv_embed(hidden),
        "bfloat16": lambda: of.bfloat16.encoder.pos_conv_embed(hidden.bfloat16()),
    }


def layer(of: Encoders, samples: Tensor) -> Ways:
    hidden = frames_like(of.float32, samples)
    return {
        "published": lambda: of.published.encoder.layers[0](hidden),
        "float32": lambda: of.float32.encoder.layers[0](hidden),
        "bfloat16": lambda: of.bfloat16.encoder.layers[0](hidden.bfloat16()),
    }


def frames_like(encoder: MertEncoder, samples: Tensor) -> Tensor:
    count = int(encoder.frame_counts(torch.tensor(samples.shape[1])))
    return torch.randn(1, count, encoder.config.hidden_size)


def products() -> Ways:
    a = torch.randn(SIZE, SIZE)
    b = a.bfloat16()
    return {"float32": lambda: a @ a, "bfloat16": lambda: b @ b}


def least(ways: Ways, repeats: int) -> dict[str, float]:
    """The least processor time of each, taken in turn after one run that warms up."""
    found = dict.fromkeys(ways, float("inf"))
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, run in ways.items():
                started = time.process_time()
                run()
                if turn > 0:
                    found[name] = min(found[name], time.process_time() - started)
    return found


def gradients(seconds: float) -> list[tuple[object, ...]]:
    """Value and waveform gradient each in a process of its own."""
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, settings in {"graph kept": {}, "frugal": {"frugal": True}}.items():
            taken, forward = pool.apply(gradient, (seconds, settings))
            rows.append((name, f"{taken:.1f}", f"{taken / forward:.2f}"))
            print(rows[-1], flush=True)
    return rows


def gradient(seconds: float, settings: dict[str, bool]) -> tuple[float, float]:
    """Processor seconds of value and gradient, and of the forward pass."""
    torch.set_num_threads(1)
    ours = own_encoder()
    samples = 0.1 * torch.randn(1, round(24_000 * seconds))
    leaf = samples.clone().requires_grad_()
    started = time.process_time()
    with gradient_settings(**settings):
        value = ours(leaf).square().sum()
    torch.autograd.grad(value, leaf)
    taken = time.process_time() - started
    forward = least({"forward": lambda: ours(samples)}, 1)["forward"]
    return taken, forward


if __name__ == "__main__":
    main()
