"""Moving a reward off a device: nothing stays behind, and a small card holds one of two members."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from apex_reward import Reward
from apex_reward.errors import UsageError
from apex_reward.rewards.foreign.audiobox import Audiobox
from apex_reward.rewards.foreign.clap import Clap
from apex_reward.rewards.foreign.lyrics import Lyrics, PipelineTranscriber
from apex_reward.rewards.panel import Members
from apex_reward.rewards.stacks.trl import ApexRewardFunction
from apex_reward.rewards.stacks.verl import ApexNativeReward
from tests.clap_support import write_tiny_clap
from tests.muq_support import tiny_songeval
from tests.rewards.foreign.test_judge import judge as tiny_judge
from tests.support import tiny_model

RATE = 24_000


class Card:
    """Counts the bytes of weights on a device that does not exist, and refuses too many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.budget = float("inf")
        self.blocks: list[tuple[StorageWeakRef, int]] = []
        self.where = "cuda"
        monkeypatch.setattr(nn.Module, "to", lambda module, device: self.move(module, str(device)))
        place = property(lambda members: torch.device(self.where))
        monkeypatch.setattr(Members, "device", place)

    @property
    def used(self) -> int:
        return sum(size for block, size in self.blocks if not block.expired())

    def allocate(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        size = copy.untyped_storage().nbytes()
        if self.used + size > self.budget:
            raise MemoryError(f"{self.used} bytes are in use, {size} more asked for")
        self.blocks.append((StorageWeakRef(copy.untyped_storage()), size))
        return copy

    def move(self, module: nn.Module, device: str) -> nn.Module:
        """`Module.to` with this card as `cuda`; every move makes a copy."""
        return module._apply(self.allocate if device == "cuda" else Tensor.clone)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def size_of(model: Any) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def tensors_in(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that an object holds, in whatever attribute."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    inner = (
        thing.values() if isinstance(thing, dict)
        else thing if isinstance(thing, (list, tuple, set))
        else vars(thing).values()
        if type(thing).__module__.startswith(("apex_reward", "torch.nn", "transformers"))
        and hasattr(thing, "__dict__") and not isinstance(thing, (type, Tensor))
        else ()
    )  # fmt: skip
    for item in list(inner):
        yield from tensors_in(item, seen)


@pytest.mark.parametrize("make", [tiny_model, tiny_songeval, tiny_judge, "clap"])
def test_no_tensor_stays_behind(make: Callable[[], Any] | str, tmp_path: Any) -> None:
    model = Clap.from_pretrained(write_tiny_clap(tmp_path)) if isinstance(make, str) else make()
    reward = Reward(model, "overall")
    reward.judge([0.1 * torch.ones(RATE)], ["sad"], sample_rate=RATE)  # may fill caches
    weights = itertools.chain(model.parameters(), model.buffers())
    blocks = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
    assert reward.to("meta") is reward
    left = [t for t in tensors_in(model, set()) if t.device.type != "meta"]
    assert left == []
    gc.collect()
    assert all(block.expired() for block in blocks)


def test_a_card_for_the_policy_and_one_of_two_members(card: Card) -> None:
    policy = nn.Linear(100, 100)
    first, second = (Reward(tiny_model(seed), "aesthetics") for seed in (0, 1))
    one = size_of(first.model)
    card.move(policy, "cuda")
    card.budget = size_of(policy) + one
    for reward in (first, second):
        reward.offload()
    assert card.used == size_of(policy)
    for reward in (first, second, first):
        reward.onload()
        assert card.used == card.budget
        reward.offload()
        assert card.used == size_of(policy)
    first.onload()
    with pytest.raises(MemoryError, match="more asked for"):
        second.onload()


def test_offload_twice_and_onload_twice_change_nothing(card: Card) -> None:
    reward = Reward(tiny_model(), "aesthetics")
    weights = {name: w.clone() for name, w in reward.model.state_dict().items()}
    for move in (reward.onload, reward.offload, reward.offload):
        move()
        assert card.used == 0
    for _ in range(2):
        reward.onload()
        assert card.used == size_of(reward.model)
    torch.testing.assert_close(dict(reward.model.state_dict()), weights)


def test_the_function_of_trl_is_on_the_device_only_while_it_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Reward(tiny_model(), "aesthetics")
    songs = [0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    events: list[str] = []
    reward = Reward(tiny_model(), "aesthetics")
    for name in ("offload", "onload", "results"):
        method = getattr(Reward, name)

        def noted(self: Reward, *args: Any, name: str = name, do: Any = method, **more: Any) -> Any:
            events.append(name)
            return do(self, *args, **more)

        monkeypatch.setattr(Reward, name, noted)
    function = ApexRewardFunction(
        reward, decode=lambda completions: songs, sample_rate=RATE, offload=True
    )
    assert events == ["offload"]
    rewards = function(["a", "b"], ["", ""])
    assert events == ["offload", "onload", "results", "offload"]
    expected = ApexRewardFunction(plain, decode=lambda completions: songs, sample_rate=RATE)
    assert rewards == pytest.approx(expected(["a", "b"], ["", ""]))
    events.clear()
    monkeypatch.setattr(type(function.judge), "__call__", lambda *a, **k: {}["failed"])
    with pytest.raises(KeyError):
        function(["a", "b"], ["", ""])
    assert events == ["onload", "offload"]


def test_models_around_another_package_move_what_they_hold() -> None:
    network, words = nn.Linear(2, 2), nn.Linear(2, 2)
    predictor = SimpleNamespace(model=network, device=torch.device("cpu"))
    transcriber = object.__new__(PipelineTranscriber)
    transcriber._pipeline = SimpleNamespace(model=words, device=torch.device("cpu"))
    panel = {"audiobox": Audiobox(predictor), "lyrics": Lyrics(transcriber)}
    Members(panel).to("meta")
    assert {w.device.type for w in (*network.parameters(), *words.parameters())} == {"meta"}
    assert predictor.device.type == transcriber._pipeline.device.type == "meta"
    Members({"lyrics": Lyrics(lambda samples, rate: "")}).to("meta")


def test_a_closed_native_reward_holds_nothing() -> None:
    native = ApexNativeReward("apex-tiny", "cpu", mix="aesthetics")
    model: Any = native.judge.reward.model
    blocks = [StorageWeakRef(w.untyped_storage()) for w in model.parameters()]
    del model
    native.close()
    gc.collect()
    assert all(block.expired() for block in blocks)
    with pytest.raises(UsageError, match="is closed"):
        native.infer(None)
