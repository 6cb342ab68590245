"""Reading checkpoints: every tensor exactly once, nothing executed, errors that name the tensor."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apex_reward import ApexReward
from apex_reward.errors import CheckpointError
from apex_reward.model import save_predictor
from apex_reward.model.checkpoint import load_parts
from tests.support import published_predictor_state, tiny_model, write_best_model

WAVE = torch.sin(torch.arange(30_000) / 20)[None] * 0.3


def scores(model):
    with torch.no_grad():
        return model(WAVE, 24_000).stack()


@pytest.fixture
def saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BIAS = "predictor.shared.0.block.0.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), "missing: predictor.shared.0.block.0.bias"),
        (lambda t: t.update(extra=torch.ones(1)), "not expected: extra"),
        (lambda t: t.update({BIAS: torch.ones(7)}), "shared.0.block.0.bias"),
        (lambda t: t.pop("encoder.encoder.layer_norm.bias"), "encoder.layer_norm.bias"),
    ],
)
def test_a_saved_folder_must_fit_exactly(saved, change, message):
    _, folder = saved
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        ApexReward.from_pretrained(folder)


def test_predictor_folder_is_composed_with_the_encoder_it_names(saved, tmp_path):
    model, folder = saved
    config = model.config
    config.encoder_name = str(folder)
    save_predictor(tmp_path / "predictor", config, model.predictor, model.pooling)
    names = load_file(tmp_path / "predictor" / "model.safetensors")
    assert not any(name.startswith("encoder.") for name in names)
    assert torch.equal(scores(ApexReward.from_pretrained(tmp_path / "predictor")), scores(model))
    other = tiny_model(seed=9)
    other.save_pretrained(tmp_path / "other")
    swapped = ApexReward.from_pretrained(tmp_path / "predictor", encoder=tmp_path / "other")
    assert torch.equal(swapped.encoder(WAVE), other.encoder(WAVE))
    assert torch.equal(swapped.predictor(torch.ones(1, 32)), model.predictor(torch.ones(1, 32)))


def test_predictor_folder_without_a_named_encoder_says_so(saved, tmp_path):
    model, _ = saved
    save_predictor(tmp_path / "predictor", model.config, model.predictor, model.pooling)
    with pytest.raises(CheckpointError, match="--encoder"):
        ApexReward.from_pretrained(tmp_path / "predictor")


def test_encoder_of_another_width_is_refused(saved, tmp_path):
    model, _ = saved
    save_predictor(tmp_path / "predictor", model.config, model.predictor, model.pooling)
    tiny_model(width=16).save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"shared\.0\.block\.0\.weight takes.* 32.* gives 16"):
        ApexReward.from_pretrained(tmp_path / "predictor", encoder=tmp_path / "narrow")


@pytest.mark.parametrize("prefix", ["", "model.", "apex.predictor."])
@pytest.mark.parametrize("shared", [2, 3])
@pytest.mark.parametrize("task", ["full", "popularity"])
def test_published_predictor_under_any_prefix(tmp_path, prefix, shared, task):
    state = {prefix + n: v for n, v in published_predictor_state(task, shared).items()}
    aggregator = {
        "x.aggregator.weight": torch.full((1, 4, 1), 0.25),
        "x.aggregator.bias": torch.ones(1),
    }
    torch.save({**state, **aggregator}, tmp_path / "pytorch_model.bin")
    config, predictor, pooling, _ = load_parts(tmp_path / "pytorch_model.bin")
    assert (config.task, config.shared) == (task, shared)
    assert torch.equal(pooling.weight, torch.full((1, 4, 1), 0.25))
    wanted = published_predictor_state(task, shared)
    assert all(torch.equal(value, wanted[n]) for n, value in predictor.state_dict().items())


def test_published_pooling_constants_stand_in_where_the_file_has_none(tmp_path):
    pooling = load_parts(write_best_model(tmp_path / "best_model.pt", "full", 2)).pooling
    assert pooling.weight.flatten().tolist() == pytest.approx(
        [0.3822692632675171, 0.4150039553642273, -0.11713624000549316, 0.45930564403533936], abs=0
    )
    assert pooling.bias.item() == -0.10955178737640381
    torch.manual_seed(42)
    made = torch.nn.Conv1d(4, 1, 1)
    assert torch.equal(made.weight, pooling.weight)
    assert torch.equal(made.bias, pooling.bias)


W = "shared.0.block.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("shared.1.block.1.running_var"), "missing: shared.1.block.1.running_var"),
        (lambda s: s.update(spare=torch.ones(1)), "not expected: spare"),
        (lambda s: s.update({"shared.0.block.0.bias": torch.ones(3)}), r"bias has shape \(3,\)"),
        (lambda s: s.update({W: torch.ones(9, 768)}), r"0\.weight has shape \(9, 768\)"),
        (lambda s: s.update({W: s[W] * torch.nan}), "NaN"),
        (lambda s: s.update({W: "text"}), "str"),
        (lambda s: s.clear(), "not an APEX predictor"),
    ],
)
def test_published_predictor_must_fit_exactly(tmp_path, change, message):
    state = published_predictor_state("full", 2)
    change(state)
    path = write_best_model(tmp_path / "best_model.pt", "full", 2, model_state=state)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_parts(path)
    assert str(path) in str(caught.value)


def test_a_checkpoint_whose_words_and_tensors_differ(tmp_path):
    path = tmp_path / "best_model.pt"
    write_best_model(path, "full", 2, task="popularity")
    with pytest.raises(CheckpointError, match="states task 'popularity'"):
        load_parts(path)


class Attack:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_bytes(pickle.dumps(Attack())),
        lambda p: torch.save({"model_state": Attack()}, p),
        lambda p: p.write_text("no checkpoint"),
        lambda p: p.write_bytes(b""),
        lambda p: torch.save([1, 2], p),
        lambda p: p.write_bytes(write_best_model(p, "full", 2).read_bytes()[:1000]),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best_model.pt"
    write(path)
    with pytest.raises(CheckpointError, match="best_model.pt"):
        load_parts(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "describes a 'bert'"),
        ({"deepnorm": True}, "deepnorm"),
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt"),
        ({"sample_rate": 16_000}, "sample_rate 16000"),
    ],
)
def test_encoders_that_would_be_computed_wrongly_are_refused(tmp_path, change, message):
    golden = json.loads((Path(__file__).parents[1] / "golden" / "mert_config.json").read_text())
    (tmp_path / "mert").mkdir()
    (tmp_path / "mert" / "config.json").write_text(json.dumps({**golden, **change}))
    best = write_best_model(tmp_path / "best_model.pt", "full", 2)
    with pytest.raises(CheckpointError, match=message):
        ApexReward.from_published(best, tmp_path / "mert")


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="does not exist"):
        ApexReward.from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="does not exist"):
        ApexReward.from_pretrained("nothing-of-this-name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        ApexReward.from_pretrained(tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="--model FOLDER.*apex-reward demo"):
        ApexReward.from_pretrained("amaai-lab/apex")


HUB = ("revision", "cache_dir", "token", "local_files_only")


def test_hub_repository_is_composed_with_the_encoder_it_names(tmp_path, monkeypatch):
    """Both hub repositories as local snapshots, in the published layouts."""
    from tests.support import write_mert_folder

    small = {"conv_dim": [8] * 7, "intermediate_size": 16, "num_hidden_layers": 12}
    hub = {"amaai-lab/apex": tmp_path / "apex", "m-a-p/MERT-v1-95M": tmp_path / "mert"}
    write_mert_folder(hub["m-a-p/MERT-v1-95M"], small)
    hub["amaai-lab/apex"].mkdir()
    (tmp_path / "apex" / "config.json").write_text(
        json.dumps({"model_type": "apex", "mert_model_name": "m-a-p/MERT-v1-95M"})
    )
    state = {"predictor." + n: v for n, v in published_predictor_state("full", 2).items()}
    torch.save(state, tmp_path / "apex" / "pytorch_model.bin")
    asked, lacking = [], []

    def snapshot_download(hub_id, **options):
        asked.append((hub_id, {key: options[key] for key in HUB if key in options}))
        if hub_id in lacking and "revision" in options:
            raise OSError("no such revision")
        return str(hub[hub_id])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda hub_id, **options: [])
    options = {"revision": "v1", "cache_dir": "c", "token": "t", "local_files_only": True}
    model = ApexReward.from_pretrained("amaai-lab/apex", **options, segment_tail="drop")
    assert asked == [("amaai-lab/apex", options), ("m-a-p/MERT-v1-95M", options)]
    assert model.config.segment_tail == "drop"
    assert torch.equal(
        model.predictor.get_parameter("shared.0.block.0.weight"),
        published_predictor_state("full", 2)["shared.0.block.0.weight"],
    )
    lacking.append("m-a-p/MERT-v1-95M")
    with pytest.warns(
        UserWarning, match="encoder m-a-p/MERT-v1-95M has no revision 'v1'; its main"
    ):
        ApexReward.from_pretrained("amaai-lab/apex", **options)
    assert asked[-1] == ("m-a-p/MERT-v1-95M", {k: v for k, v in options.items() if k != "revision"})


def test_an_ensemble_is_read_in_parts_only(tmp_path):
    model = tiny_model(members=2, familiar=True)
    model.familiar.mean.fill_(0.25)
    model.save_pretrained(tmp_path / "model")
    parts = load_parts(tmp_path / "model")
    assert parts.familiar.mean.unique().tolist() == [0.25]
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(parts.predictor.state_dict()[name], value)
    assert not parts.predictor.training
