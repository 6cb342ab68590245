"""Where the encoder's time goes, stage by stage: transformers' float32 modules against ours.

    python benchmarks/encoder.py [--seconds 30] [--device cuda]
                                 [--output benchmarks/results/encoder.md]

One segment, random weights of the published size, one thread. On a CPU all figures are processor
time (the least of the repeats, taken in turn), which other programs disturb less than wall time.
The matrix rate is that of a large product of the number type. `gradient.py` has gradients.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from clock import work_clock
from floor import matmul_rate, segment_work
from result_file import write_result
from torch import Tensor
from torch.profiler import profile
from transformers import HubertModel

from apex_reward.model import ApexConfig
from apex_reward.model.encoders.front_end import frame_features
from apex_reward.model.encoders.mert import MertEncoder
from apex_reward.report.markdown import markdown_table

SIZE = 1536
STAGES = ("stage", "published float32", "float32", "bfloat16", "ratio float32", "ratio bfloat16")
OPERATIONS = {
    "attention": ("_scaled_dot_product", "_softmax"),
    "matrix products": ("mm", "addmm", "bmm"),
    "activations": ("gelu",),
    "copies and casts": ("copy_", "cat", "fill_"),
    "norms": ("native_layer_norm",),
}
Ways = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_device(options.device)
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
    text = (
        f"One segment of {options.seconds:g} s, published size, random weights; processor seconds."
        f"\n\n{markdown_table(STAGES, rows)}\n\n{shares(options.seconds, rows[0])}\n\n"
        f"{compiled(encoders.bfloat16, samples)}\n\n"
        f"Where the time goes:\n\n{markdown_table(*spent(encoders, samples))}"
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


def least(ways: Ways, repeats: int) -> dict[str, float]:
    """The least processor time of each, taken in turn after one run that warms up."""
    found, device = dict.fromkeys(ways, float("inf")), torch.get_default_device()
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, run in ways.items():
                started = work_clock(device)
                run()
                if turn > 0:
                    found[name] = min(found[name], work_clock(device) - started)
    return found


def shares(seconds: float, whole_segment: tuple[str, ...]) -> str:
    """The work of a segment and at what share of the matrix rate it is done."""
    device = torch.get_default_device()
    total = segment_work(ApexConfig(segment_seconds=seconds), str(device))
    parts = []
    for dtype, spent in zip((torch.float32, torch.bfloat16), whole_segment[2:4], strict=True):
        rate = matmul_rate(SIZE, dtype, device, work_clock)
        share = total / float(spent) / rate
        parts.append(
            f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s, of which the segment takes {share:.0%}"
        )
    return f"Work: {total / 1e9:.0f} GFLOP. Matrix rate: {'; '.join(parts)}."


def spent(of: Encoders, samples: Tensor) -> tuple[list[str], list[list[str]]]:
    """The table of each kind of operation's time, and of the exponentials that attention needs."""
    taken = {"float32": kinds_of(of.float32, samples), "bfloat16": kinds_of(of.bfloat16, samples)}
    totals = {dtype: sum(kinds.values()) for dtype, kinds in taken.items()}
    alone = exponentials(of.float32, samples)
    lines = {kind: [taken[dtype][kind] for dtype in taken] for kind in [*OPERATIONS, "others"]}
    lines["exponentials of the attention, alone"] = [alone, alone]
    rows = [
        [
            kind,
            *(f"{t:.2f} ({t / total:.0%})" for t, total in zip(ts, totals.values(), strict=True)),
        ]
        for kind, ts in lines.items()
    ]
    return ["operations", *(f"{dtype}, s" for dtype in taken)], rows


def kinds_of(encoder: MertEncoder, samples: Tensor) -> Counter[str]:
    """Seconds of each kind of operation in one pass."""
    on_gpu = samples.device.type == "cuda"
    with torch.no_grad():
        encoder(samples)
        with profile() as profiled:
            encoder(samples)
    kinds: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kinds[kind_of(event.key)] += spent / 1e6
    return kinds


def compiled(encoder: MertEncoder, samples: Tensor) -> str:
    """What torch.compile makes of a layer in bfloat16."""
    hidden = frames_like(encoder, samples).bfloat16()
    plain = encoder.encoder.layers[0]
    layer = copy.deepcopy(plain)
    layer.compile(dynamic=False)
    started = time.perf_counter()
    with torch.no_grad():
        layer(hidden)
    spent = time.perf_counter() - started
    found = least({"plain": lambda: plain(hidden), "compiled": lambda: layer(hidden)}, 5)
    return (
        f"torch.compile of one layer in bfloat16: {spent:.0f} s, less where its cache has the "
        f"kernels; then {found['compiled'] / found['plain']:.2f} of the time."
    )


def kind_of(operator: str) -> str:
    name = operator.removeprefix("aten::").rstrip("_")
    for kind, starts in OPERATIONS.items():
        if any(name.startswith(start.rstrip("_")) for start in starts):
            return kind
    return "others"


def exponentials(encoder: MertEncoder, samples: Tensor) -> float:
    """Seconds of as many as the softmaxes of all layers and heads take, in a tensor that fits."""
    config = encoder.config
    rows = config.num_hidden_layers * config.num_attention_heads
    scores = torch.randn(frames_like(encoder, samples).shape[1] ** 2 // 16)
    return 16 * rows * least({"exp": scores.exp}, 3)["exp"]


if __name__ == "__main__":
    main()
