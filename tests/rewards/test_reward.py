"""`Reward`: the graph, caution, panels, prompts, one clear error for each wrong use."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apex_reward import ApexReward, Head, Panel, Reward, Scores, load_reward_model
from apex_reward.errors import ApexError, DataError, UsageError
from apex_reward.rewards.guards import Guards
from apex_reward.scores.mix import RewardMix
from tests.support import golden_song, guards_of, tiny_model

RATE = 24_000


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def songs(*seconds: float) -> list[Tensor]:
    return [torch.tensor(golden_song(n, RATE, 1, s)[0]) for n, s in enumerate(seconds, 1)]


class Words:
    """Reads text: how long the prompt is, and the peak of the song."""

    name = "words"
    heads = (Head("letters", 0, 100),)
    sample_rate = RATE
    differentiable = False
    reads_text = True

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        return Scores({"letters": torch.tensor([float(len(p)) for p in prompts])})


class Three:
    """An ensemble of three whose members say power times 1, 2 and 6."""

    name = "three"
    heads = (Head("power", 0, 10),)
    sample_rate = RATE
    differentiable = True
    reads_text = False
    factors = (1.0, 2.0, 6.0)

    @property
    def members(self) -> int:
        return len(self.factors)

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        power = waveforms.square().mean(dim=-1)
        members = torch.stack([factor * power for factor in self.factors])[:, :, None]
        return Scores.from_members(members, self.heads)


def test_the_short_form_and_the_object_agree(model: ApexReward) -> None:
    (wave,) = songs(1.3)
    for loudness in (None, -18.0):
        reward = Reward(model, "musicality=1", loudness=loudness)
        short = model.reward(wave[None], RATE, mix="musicality=1", loudness=loudness)
        assert torch.equal(reward(wave[None], RATE), short)
        (row,) = reward.judge([wave], sample_rate=RATE)
        assert row["reward_raw"] == pytest.approx(short.item(), abs=1e-5)


def test_judge_of_ragged_songs_equals_the_padded_batch(model: ApexReward) -> None:
    waves = songs(0.4, 1.7, 1.1)
    reward = Reward(model, "overall", loudness=-20.0)
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    values = reward(padded, RATE, lengths=[len(w) for w in waves])
    rows = reward.judge(waves, sample_rate=RATE)
    assert [row["reward_raw"] for row in rows] == pytest.approx(values.tolist(), abs=1e-5)
    stereo = torch.stack([waves[0], waves[0]])
    assert reward.judge([stereo], sample_rate=RATE)[0]["reward"] == pytest.approx(
        rows[0]["reward"], abs=1e-6
    )


def test_caution_by_hand_and_its_gradient() -> None:
    wave = torch.full((1, 4), 2.0, dtype=torch.float64)
    mix = RewardMix({"power": 1.0}, "none")
    # Members say 4, 8 and 24: mean 12, population std sqrt(224 / 3).
    assert Reward(Three(), mix)(wave, RATE).item() == pytest.approx(12.0)
    cautious = Reward(Three(), mix, caution=0.5)
    assert cautious(wave, RATE).item() == pytest.approx(12 - 0.5 * (224 / 3) ** 0.5)
    (row,) = cautious.judge([wave[0].float()], sample_rate=RATE)
    assert row["power_std"] == pytest.approx((224 / 3) ** 0.5, rel=1e-6)
    assert list(row)[4:8] == ["power", "power_std", "reward_raw", "reward"]
    noise = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cautious(x, RATE), (noise,))
    silent = torch.zeros(1, 4, requires_grad=True)
    cautious(silent, RATE).sum().backward()
    assert silent.grad is not None
    assert torch.equal(silent.grad, torch.zeros(1, 4))


def test_an_ensemble_states_its_members_whatever_the_order_of_its_heads() -> None:
    """The floor and the columns of rows depend on the number; without it songs fell below."""

    class Silent(Three):
        members = 1  # type: ignore[assignment]

    wave = torch.full((4,), 0.5)
    (row,) = Reward(Silent(), "power=1", caution=9.0).judge([wave], sample_rate=RATE)
    assert row["error"] == "three gave scores of 3 members; its attribute `members` is 1"

    class Swapped(Three):
        heads = (Head("other", 0, 10), Head("power", 0, 10))

        def __call__(self, *args: Any, **kwargs: Any) -> Scores:
            own = (Head("power", 0, 10), Head("other", 0, 10))
            members = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]], [[5.0, 2.0]]])
            return Scores.from_members(members, own)

    (row,) = Reward(Swapped(), "power=1").judge([wave], sample_rate=RATE)
    assert (row["power"], row["other"], row["other_std"]) == (3.0, 2.0, 0.0)
    assert row["power_std"] == pytest.approx((8 / 3) ** 0.5)


def test_a_panel_names_its_heads_and_runs_a_shared_encoder_once(
    model: ApexReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = tiny_model(3)
    panel = Panel({"a": model, "b": twin})
    assert [head.name for head in panel.heads[:2]] == ["a.score_streams", "a.score_likes"]
    assert len(panel.encoders) == 1
    calls = []
    real = model.encoder.forward
    monkeypatch.setattr(
        model.encoder, "forward", lambda *args: calls.append(len(args[0])) or real(*args)
    )
    monkeypatch.setattr(twin.encoder, "forward", lambda *args: pytest.fail("ran twice"))
    (wave,) = songs(0.5)
    reward = Reward(panel, "a.clarity=1,b.clarity=2")
    value = reward(wave[None], RATE)
    assert calls == [1]
    monkeypatch.undo()
    alone = model.reward(wave[None], RATE, mix="clarity=3")
    assert value.item() == pytest.approx(alone.item(), abs=1e-6)
    other = Panel({"a": model, "b": tiny_model(4)})
    assert len(other.encoders) == 2


def test_panels_join_ensembles_and_single_models(model: ApexReward) -> None:
    (wave,) = songs(0.5)
    scores = Panel([model, Three()])(wave[None], RATE)
    assert [(own, len(members)) for own, members in scores.ensembles] == [(("three.power",), 3)]
    assert scores.std is not None
    assert scores.std["apex.clarity"].item() == 0
    power = wave.square().mean().item()
    assert scores.std["three.power"].item() == pytest.approx(power * (14 / 3) ** 0.5, rel=1e-4)


def test_each_ensemble_of_a_panel_has_its_own_mean_and_spread() -> None:
    """Two members beside three: none is repeated in a mean, a spread or a reward."""
    two = Three()
    two.name, two.factors = "two", (1.0, 3.0)
    wave = torch.full((16,), 0.5)  # of power 0.25
    reward = Reward([two, Three()], RewardMix({"two.power": 1.0}, "none"))
    (row,) = reward.judge([wave], sample_rate=RATE)
    assert [row["two.power"], row["two.power_std"]] == pytest.approx([0.5, 0.25])
    assert [row["three.power"], row["reward_raw"]] == pytest.approx([0.75, 0.5])
    assert reward(wave[None], RATE).item() == pytest.approx(0.5)


def test_prompts_reach_the_models_that_read_them(model: ApexReward) -> None:
    reward = Reward([model, Words()], "words.letters=1,apex.clarity=0")
    waves = songs(0.3, 0.4)
    rows = reward.judge(waves, ["sad", "a happy song"], sample_rate=RATE)
    assert [row["reward"] for row in rows] == pytest.approx([0.03, 0.12])
    lyrics = reward.judge(waves[:1], [{"prompt": "four", "lyrics": "la"}], sample_rate=RATE)
    assert lyrics[0]["words.letters"] == 4
    with pytest.raises(UsageError, match="words judges songs by their prompts and none were given"):
        reward.judge(waves, sample_rate=RATE)
    with pytest.raises(UsageError, match="1 prompts for 2 songs"):
        reward.judge(waves, ["one"], sample_rate=RATE)
    with pytest.raises(UsageError, match="words is not differentiable"):
        reward(waves[0][None].clone().requires_grad_(), RATE, prompts=["p"])


def test_a_bad_song_is_a_row_and_leaves_the_others_alone(model: ApexReward, tmp_path: Path) -> None:
    (tmp_path / "t.mp3").write_text("no audio")
    good = songs(0.5)[0]
    items = [good, str(tmp_path / "t.mp3"), torch.tensor([0.0, float("nan")]), torch.zeros(0),
             torch.full((50,), 3e4)]  # fmt: skip
    rows = Reward(model).judge(items, sample_rate=RATE)
    assert rows[0]["error"] is None
    for row, reason in zip(
        rows[1:], ["is not audio", "NaN or infinite", "no audio samples", "peaks at 30000"],
        strict=True,
    ):  # fmt: skip
        assert reason in row["error"]
        assert row["reward"] is None
    (alone,) = Reward(model).judge([good], sample_rate=RATE)
    assert alone == rows[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Reward([m, m]), "two models of a panel are called apex"),
        (lambda m: Reward(m, "tempo=1"), "unknown head tempo; this model has: "),
        (lambda m: Reward(m, caution=-1), "caution is -1"),
        (lambda m: Reward(object()), "lacks name, heads"),
        (lambda m: Reward([]), "at least one"),
        (lambda m: Reward("no/such/model/here"), "does not exist"),
        (lambda m: Reward(m).judge([torch.zeros(9)]), "pass sample_rate="),
        (lambda m: m.reward(torch.zeros(96_000, 2), RATE), "96000 songs of 2 samples"),
        (lambda m: Reward(m, RewardMix({"clarity": 1}, "group")).judge([]), "normalised by group"),
        (lambda m: load_reward_model("apex-tiny", dtype="int8"), "dtype is 'int8'"),
        (lambda m: load_reward_model("no_module_here:Thing"), "package.module:Class"),
    ],
)
def test_wrong_uses_are_named(model: ApexReward, make: Any, message: str) -> None:
    with pytest.raises(ApexError, match=message):
        make(model)


def test_files_that_are_no_reward_list_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(DataError, match="does not exist"):
        Reward.load(path)
    path.write_text("mix: overall\nspeed: 3\nloudness: loud\n")
    with pytest.raises(DataError, match="unknown key 'speed'.*\n.*names no model.*\n.*loud"):
        Reward.load(path)
    path.write_text("models: apex-tiny\nmix: clarity=1\nloudness: -20\nguards: penalty\n")
    reward = Reward.load(path)
    assert (str(reward.mix), reward.loudness) == ("clarity=1", -20)
    assert reward.guards == Guards.default("penalty")


def test_save_and_load_keep_every_number(tmp_path: Path) -> None:
    mix = RewardMix({"clarity": 1.0, "score_likes": -0.2}, "zscore",
                    {"clarity": (3.0, 0.5), "score_likes": (40.0, 9.0)})  # fmt: skip
    guards = guards_of(["dc", "silence"], "veto").limit("dc", high=0.5)
    reward = Reward("apex-tiny", mix, loudness=-16.5, guards=guards, caution=0.25)
    reward.save(tmp_path / "r.yaml")
    again = Reward.load(tmp_path / "r.yaml")
    assert again.mix == mix
    assert again.guards == guards
    assert (again.loudness, again.caution) == (-16.5, 0.25)
    panel = Reward({"x": "apex-tiny", "y": "apex-tiny"}, "x.clarity=1")
    panel.save(tmp_path / "p.yaml")
    assert [h.name for h in Reward.load(tmp_path / "p.yaml").heads] == [h.name for h in panel.heads]


def test_a_reward_pickles_and_threads_agree(model: ApexReward) -> None:
    from concurrent.futures import ThreadPoolExecutor

    waves = songs(0.4, 0.9)
    reward = Reward(model, "overall")
    expected = reward.judge(waves, sample_rate=RATE)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: reward.judge(waves, sample_rate=RATE), range(8)))
    assert all(rows == expected for rows in found)
    assert pickle.loads(pickle.dumps(Reward(Three(), "power=1"))).members == 3
