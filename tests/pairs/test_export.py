"""Exports: TRL's trainers take a step on them, the files load with their real readers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest
from datasets import Audio, load_dataset

from apex_reward import build_pairs
from apex_reward.errors import DataError
from apex_reward.files.songs_inside import undecoded
from apex_reward.files.tables import read_jsonl
from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.export import summary, write_folder
from apex_reward.pairs.forms import tangoflux_rows, to_kto, to_trl
from apex_reward.pairs.options import PairOptions

WORDS = ["calm", "fast", *map(str, range(12))]


def candidates(tokens: str) -> list[dict]:
    """Four prompts of three songs whose tokens are `text`, `ids` or none."""
    rows = []
    for prompt in range(4):
        for song in range(3):
            ids = [song, prompt, 11 - song]
            row = {
                "prompt_id": prompt,
                "prompt": f"calm {prompt}",
                "audio": f"{prompt}-{song}.wav",
                "musicality": float(song),
                "duration": 10.0 + song,
            }
            if tokens != "none":
                row["tokens"] = ids if tokens == "ids" else " ".join(map(str, ids))
            rows.append(row)
    return rows


def tiny_language_model():
    """A Llama of a few thousand weights and a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer


def trained_step(trainer_name: str, dataset, folder: Path):
    """One optimiser step of a TRL trainer; its log and how far the weights moved."""
    import trl

    model, tokenizer = tiny_language_model()
    config = getattr(trl, f"{trainer_name}Config")(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        max_length=32,
        disable_tqdm=True,
    )
    before = model.lm_head.weight.detach().clone()
    trainer = getattr(trl, f"{trainer_name}Trainer")(
        model=model,
        ref_model=copy.deepcopy(model),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    prepared = trainer.train_dataset
    trainer.train()
    moved = (trainer.model.lm_head.weight.detach() - before).abs().max().item()
    return prepared, trainer.state.log_history[0], moved


@pytest.mark.parametrize("tokens", ["ids", "text"])
def test_dpo_trainer_takes_a_step(tokens, tmp_path):
    pairs, _ = build_pairs(candidates(tokens), axis="musicality", test_share=0.0)
    dataset = to_trl(pairs)
    prepared, log, moved = trained_step("DPO", dataset, tmp_path)
    # Before the first step policy and reference agree: the loss is log 2.
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert moved > 1e-3
    number = {word: n for n, word in enumerate(WORDS, start=3)}
    for pair, row in zip(pairs, prepared, strict=True):
        assert row["prompt_ids"] == [number[word] for word in pair["prompt"].split()]
        for side in ("chosen", "rejected"):
            given = pair[f"{side}_tokens"]
            words = given.split() if tokens == "text" else list(map(str, given))
            assert row[f"{side}_ids"][:3] == [number[word] for word in words]


@pytest.mark.parametrize("tokens", ["ids", "text"])
def test_kto_trainer_takes_a_step(tokens, tmp_path):
    pairs, _ = build_pairs(candidates(tokens), strategy="all", axis="musicality", test_share=0.0)
    dataset = to_kto(pairs)
    # Three songs a prompt: the best is chosen, the worst rejected; the middle one is both and left
    # out.
    assert sorted(dataset["label"]) == [False] * 4 + [True] * 4
    prepared, log, moved = trained_step("KTO", dataset, tmp_path)
    assert log["loss"] == pytest.approx(0.5, abs=0.01)
    assert moved > 1e-3
    assert len(prepared) == 8


def test_ids_are_kept_beside_their_text():
    pairs, _ = build_pairs(candidates("ids"), axis="musicality")
    row = to_trl(pairs)[0]
    assert row["chosen"] == " 2 0 9"
    assert row["chosen_ids"] == [2, 0, 9]


def test_without_tokens_the_sides_are_songs():
    pairs, _ = build_pairs(candidates("none"), axis="musicality")
    dataset = to_trl(pairs)
    assert isinstance(dataset.features["chosen"], Audio)
    assert undecoded(dataset, "chosen", "rejected")[0]["chosen"] == {
        "bytes": None,
        "path": "0-2.wav",
    }
    completions = undecoded(to_kto(pairs), "completion")["completion"]
    assert [song["path"] for song in completions[:2]] == ["0-2.wav", "0-0.wav"]
    mixed = [{**pairs[0], "chosen_tokens": "1", "rejected_tokens": "2"}, pairs[1]]
    with pytest.raises(DataError, match="1 of 2 pairs have the tokens of both songs"):
        to_trl(mixed)


def test_a_space_goes_only_where_two_words_meet():
    pair = {"prompt_id": 0, "prompt": "fast:", "chosen_tokens": "<a1><a2>", "rejected_tokens": "7"}
    assert to_trl([pair])[0] == {"prompt": "fast:", "chosen": "<a1><a2>", "rejected": "7"}
    assert to_trl([{**pair, "prompt": "fast"}])[0]["rejected"] == " 7"
    assert to_trl([{**pair, "prompt": "fast"}])[0]["chosen"] == "<a1><a2>"


def built(tokens: str = "ids", **options):
    return build(read_candidates(candidates(tokens)), PairOptions(axis="musicality", **options))


def test_the_folder_holds_the_same_pairs_three_times(tmp_path):
    write_folder(built(), tmp_path)
    expected = build_pairs(candidates("ids"), axis="musicality")
    assert read_jsonl(tmp_path / "pairs.jsonl") == expected[0]
    assert pyarrow.parquet.read_table(tmp_path / "pairs.parquet").to_pylist() == expected[0]
    assert read_jsonl(tmp_path / "dropped.jsonl") == expected[1]
    counts = json.loads((tmp_path / "summary.json").read_text())
    assert (counts["n_candidates"], counts["n_candidates_paired"], counts["n_pairs"]) == (12, 8, 4)
    assert counts["dropped_candidates"] == {"not selected by best-worst": 4}


@pytest.mark.parametrize("form", ["trl", "kto"])
def test_datasets_reads_both_splits(form, tmp_path):
    write_folder(built(test_share=0.25), tmp_path, form)
    loaded = load_dataset(str(tmp_path / form), cache_dir=str(tmp_path / "cache"))
    assert json.loads((tmp_path / "summary.json").read_text())["n_test"] == 1
    pairs, _ = build_pairs(candidates("ids"), axis="musicality", test_share=0.25)
    convert = to_trl if form == "trl" else to_kto
    for split, count in (("train", 3), ("test", 1)):
        of_split = [pair for pair in pairs if pair["split"] == split]
        assert len(of_split) == count
        assert loaded[split].to_list() == convert(of_split).to_list()


def test_tangoflux_json_is_read_as_its_trainer_reads_it(tmp_path):
    write_folder(built("none", test_share=0.25), tmp_path, "tangoflux")
    files = {split: str(tmp_path / "tangoflux" / f"{split}.json") for split in ("train", "test")}
    loaded = load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = [*loaded["train"], *loaded["test"]]
    assert sorted(row["chosen"] for row in rows) == [f"{n}-2.wav" for n in range(4)]
    assert sorted(row["reject"] for row in rows) == [f"{n}-0.wav" for n in range(4)]
    assert {row["captions"] for row in rows} == {f"calm {n}" for n in range(4)}
    assert {row["duration"] for row in rows} == {10.0}
    assert tangoflux_rows([{"chosen": "a", "rejected": "b", "prompt": "p"}]) == [
        {"chosen": "a", "reject": "b", "captions": "p", "duration": None}
    ]


@pytest.mark.parametrize("form", ["folder", "trl", "kto", "tangoflux"])
def test_the_bytes_repeat_for_any_input_order(form, tmp_path):
    options = PairOptions(strategy="all", axis="musicality", test_share=0.25, seed=5)
    written = []
    for name, rows in (("a", candidates("ids")), ("b", candidates("ids")[::-1])):
        write_folder(build(read_candidates(rows), options), tmp_path / name, form)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files})
    assert written[0] == written[1]
    assert len(written[0]) == {"folder": 4, "tangoflux": 6}.get(form, 7)


def test_kto_gives_a_song_of_a_prompt_one_label():
    pairs, _ = build_pairs(candidates("none"), strategy="all", axis="musicality", test_share=0.0)
    rows = undecoded(to_kto(pairs), "completion").to_list()
    labels = {row["completion"]["path"]: row["label"] for row in rows}
    assert len(labels) == len(rows) == 8
    assert labels == {f"{p}-{s}.wav": s == 2 for p in range(4) for s in (0, 2)}
    assert summary(built(strategy="all"))["n_candidates_chosen_and_rejected"] == 4


@pytest.mark.parametrize("form", ["folder", "trl", "kto", "tangoflux"])
def test_no_pairs_still_writes_every_file(form, tmp_path):
    write_folder(built(chosen_floor=9.0), tmp_path, form)
    assert read_jsonl(tmp_path / "pairs.jsonl") == []
    assert len(read_jsonl(tmp_path / "dropped.jsonl")) == 12
    assert pyarrow.parquet.read_table(tmp_path / "pairs.parquet").num_rows == 0
    shard = "data/train-00000-of-00001.parquet"
    ending = {"trl": shard, "kto": shard, "tangoflux": "train.json"}.get(form)
    assert ending is None or (tmp_path / form / ending).exists()


def test_jkstep_documents_keep_the_prompts_of_a_split(tmp_path):
    write_folder(built("none", test_share=0.25), tmp_path, "jkstep")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for split in ("train", "test"):
        document = json.loads((tmp_path / "jkstep" / f"{split}.json").read_text())
        assert sorted(document) == ["metadata", "pairs", "version"]
        of_split = [row for row in rows if row["split"] == split]
        for pair, row in zip(document["pairs"], of_split, strict=True):
            assert (pair["chosen"], pair["rejected"]) == (row["chosen"], row["rejected"])
            assert pair["caption"] == row["prompt"]
            assert pair["group_id"] == pair["holdout_group"] == str(row["prompt_id"])
            assert pair["metadata"]["margin"] == row["margin"]
            assert (pair["pair_weight"], pair["lyrics"]) == (1.0, "")


def test_tangoflux_results_are_candidates(tmp_path):
    groups = [
        [{"id": g, "sample": n, "path": f"{g}_{n}.wav", "captions": f"song {g}", "clap": n / 10}
         for n in range(3)]
        for g in range(2)
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(groups))
    pairs, _ = build_pairs(str(tmp_path / "results.json"), strategy="best-worst", axis="clap")
    assert [(p["prompt"], p["chosen"], p["rejected"]) for p in pairs] == [
        ("song 0", "0_2.wav", "0_0.wav"),
        ("song 1", "1_2.wav", "1_0.wav"),
    ]
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="not TangoFlux's results.json; expected a list of lists"):
        build_pairs(str(tmp_path / "other.json"), strategy="best-worst", axis="clap")
