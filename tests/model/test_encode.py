"""Models made of encoders: their prompts, and no mixed devices on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from apex_reward.errors import UsageError
from apex_reward.model.encode import check_prompts, encoded_songs
from apex_reward.model.encoders.clap import ClapEncoder
from apex_reward.model.packing import gradient_settings
from apex_reward.rewards.foreign.clap import Clap
from tests.clap_support import tiny_clap_model, tiny_extractor, tiny_tokenizer
from tests.muq_support import tiny_songeval
from tests.support import tiny_model


def test_a_model_that_reads_text_gets_one_per_song() -> None:
    assert check_prompts("m", True, ["a", "b"], 2) == ["a", "b"]
    assert check_prompts("m", False, ["a", "b"], 5) is None
    with pytest.raises(UsageError, match="^m judges songs by their prompts and none were given"):
        check_prompts("m", True, None, 2)
    with pytest.raises(UsageError, match="^3 prompts for 2 songs; expected a list with one per"):
        check_prompts("m", True, ["a", "b", "c"], 2)
    with pytest.raises(UsageError, match="^one text for 2 songs"):
        check_prompts("m", True, "ab", 2)


def models() -> dict:
    clap = ClapEncoder(tiny_clap_model(), tiny_tokenizer(), tiny_extractor())
    return {
        "pad": tiny_model(), "mask": tiny_model(segment_tail="mask"),
        "ensemble": tiny_model(members=2), "songeval": tiny_songeval(), "clap": Clap(clap),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pad", "mask", "ensemble", "songeval", "clap"])
@pytest.mark.parametrize("graph", ["none", "kept", "recomputed"])
def test_songs_on_a_gpu_are_encoded_there(name: str, graph: str) -> None:
    """Shapes and devices only: a CUDA device without a GPU, where mixed devices raise."""
    model = models()[name]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, gradient_settings(graph_segments=0 if graph == "recomputed" else None):
        model.to("cuda")
        songs = torch.randn(2, 50_000, device="cuda").requires_grad_(graph != "none")
        features = encoded_songs(model.encoders, songs, 44_100, [50_000, 30_000], 1)
        assert [f.device.type for f in features] == ["cuda"]
        if name == "clap":
            values = features[0].sum(dim=1)
        else:
            values = model.score_features(features).stack().sum(dim=1)
        assert values.device.type == "cuda"
        assert values.shape == (2,)
        assert features[0].requires_grad == (graph != "none")
