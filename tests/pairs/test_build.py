"""The whole builder against loops: pairs, accounting, order, splits, bad input."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward import build_pairs
from apex_reward.errors import DataError, UsageError
from apex_reward.pairs import build as builder
from apex_reward.pairs.strategies import STRATEGIES
from tests.pairs import reference
from tests.support import write_wav

grid = st.integers(0, 8).map(lambda number: number / 2)
score = st.one_of(grid, grid, grid, st.sampled_from([None, math.nan, math.inf]))


@st.composite
def candidate_rows(draw):
    """Candidates with ties, gaps, lone candidates, absent axes, flags, groups; any order."""
    rows = []
    for prompt in range(draw(st.integers(1, 4))):
        for song in range(draw(st.integers(1, 6))):
            row = {"prompt_id": prompt, "audio": f"{prompt}/{song}.wav", "musicality": draw(score)}
            if draw(st.integers(0, 9)):
                row["clarity"] = draw(score)
            row["coherence"] = draw(grid)
            row["flags"] = draw(st.sampled_from([[], [], ["silent"], ["clipped", "silent"]]))
            row["group"] = draw(st.sampled_from([None, "a", "b", "c", "d"]))
            row["duration"] = draw(st.sampled_from([None, 10.0, 11.0, 14.0]))
            row["loudness"] = draw(st.sampled_from([None, -14.0, -15.0, -20.0]))
            rows.append(row)
    # An axis that no row names at all is an error of its own, tested below.
    rows.append({"prompt_id": 99, "audio": "99/0.wav", "musicality": 1.0, "clarity": 1.0})
    return draw(st.permutations(rows))


@st.composite
def choices(draw):
    """A strategy with options that go with it."""
    strategy = draw(st.sampled_from(sorted(STRATEGIES)))
    options = {"strategy": strategy, "axis": "musicality"}
    if strategy in ("mrsd", "pareto"):
        options["axes"] = ["clarity"]
    if strategy in ("margin", "mrsd"):
        options["quantile"] = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    if strategy == "top-bottom":
        options["top_k"] = draw(st.integers(1, 3))
    if strategy == "two-axis":
        options["threshold"] = {"musicality": draw(grid), "clarity": draw(grid)}
    filters = {
        "min_margin": st.sampled_from([0.5, 1.5]),
        "protect": st.just({"coherence": 0.5}),
        "drop_flags": st.sampled_from([["silent"], ["clipped"]]),
        "chosen_floor": st.sampled_from([2.0, "q0.5"]),
        "rejected_ceiling": st.sampled_from([1.5, "q0.75"]),
        "match_duration": st.sampled_from([0.0, 1.0, 3.0]),
        "match_loudness": st.sampled_from([0.0, 1.0, 6.0]),
        "max_pairs_per_prompt": st.integers(1, 3),
        "max_pairs_per_candidate": st.integers(1, 2),
    }
    # Two at a time: all together leave no pair to look at.
    for name in draw(st.lists(st.sampled_from(sorted(filters)), max_size=2, unique=True)):
        options[name] = draw(filters[name])
    return options


@settings(max_examples=300, deadline=None)
@given(rows=candidate_rows(), options=choices())
def test_agrees_with_loops_and_accounts_for_every_candidate(rows, options):
    pairs, dropped = build_pairs(rows, **options)
    found = [(pair["prompt_id"], pair["chosen"], pair["rejected"]) for pair in pairs]
    named = {name: options[name] for name in options if name not in ("axis", "axes", "strategy")}
    named.setdefault("protect", {})
    axes = [options["axis"], *options.get("axes", [])]
    axes += [name for name in options.get("threshold", {}) if name not in axes]
    assert set(found) == reference.build(rows, options["strategy"], axes, **named)
    assert len(found) == len(set(found))

    by_audio = {row["audio"]: row for row in rows}
    members = {song for pair in found for song in pair[1:]}
    reasons = [row for row in dropped if row["kind"] == "candidate"]
    assert members | {row["audio"] for row in reasons} == set(by_audio)
    assert len(members) + len(reasons) == len(rows)
    assert all(row["reason"] and row["prompt_id"] is not None for row in dropped)
    for pair in pairs:
        a, b = by_audio[pair["chosen"]], by_audio[pair["rejected"]]
        assert pair["margin"] == a["musicality"] - b["musicality"]
        assert (pair["chosen_musicality"], pair["rejected_musicality"]) == (
            a["musicality"],
            b["musicality"],
        )


@settings(max_examples=60, deadline=None)
@given(rows=candidate_rows(), options=choices(), share=st.sampled_from([0.0, 0.3, 0.6]))
def test_split_keeps_prompts_and_groups_apart(rows, options, share):
    pairs, _ = build_pairs(rows, test_share=share, seed=3, **options)
    group = {row["audio"]: row.get("group") for row in rows}
    sides = {"train": set(), "test": set()}
    for pair in pairs:
        own = {("prompt", pair["prompt_id"])}
        own |= {("group", group[pair[side]]) for side in ("chosen", "rejected")}
        sides[pair["split"]] |= own - {("group", None)}
    assert not sides["train"] & sides["test"]
    assert sum(pair["split"] == "test" for pair in pairs) <= round(share * len(pairs))


@settings(max_examples=60, deadline=None)
@given(rows=candidate_rows(), options=choices(), data=st.data())
def test_input_order_does_not_show(rows, options, data):
    # Some audio is listed twice, with other scores the second time.
    again = [{**row, "musicality": 2.25} for row in rows[: data.draw(st.integers(0, 3))]]
    twice = [*rows, *again]
    other = data.draw(st.permutations(twice))
    assert json.dumps(build_pairs(twice, **options)) == json.dumps(build_pairs(other, **options))


def test_groups_of_chosen_and_of_rejected_songs_hold_pairs_together():
    rows = [
        {
            "prompt_id": prompt,
            "audio": f"{prompt}/{side}.wav",
            "musicality": float(side),
            # The rejected song of a prompt is by the artist of the next prompt's chosen one, in
            # chains of four prompts.
            "group": f"artist {prompt + 1 - side}" if (prompt + 1 - side) % 4 else None,
        }
        for prompt in range(80)
        for side in (0, 1)
    ]
    pairs, _ = build_pairs(rows, axis="musicality", test_share=0.5)
    sides = [{p["split"] for p in pairs if p["prompt_id"] // 4 == chain} for chain in range(20)]
    assert all(len(side) == 1 for side in sides)
    assert sum(side == {"test"} for side in sides) == 10


def songs(*scores: float, **columns: object) -> list[dict]:
    return [
        {"prompt_id": 1, "audio": f"{n}.wav", "musicality": value, **columns}
        for n, value in enumerate(scores)
    ]


def reasons_of(dropped: list[dict]) -> Counter:
    return Counter(row["reason"] for row in dropped if row["kind"] == "candidate")


def test_the_columns_of_a_pair():
    rows = songs(1.0, 4.0, prompt="slow piano", tokens=[1, 2], clarity=3.0)
    pairs, dropped = build_pairs(rows, strategy="pareto", axis="musicality", axes=["clarity"])
    assert dropped == []
    assert pairs == [
        {
            "prompt": "slow piano",
            "prompt_id": 1,
            "chosen": "1.wav",
            "rejected": "0.wav",
            "chosen_musicality": 4.0,
            "rejected_musicality": 1.0,
            "chosen_clarity": 3.0,
            "rejected_clarity": 3.0,
            "margin": 3.0,
            "strategy": "pareto",
            "split": "train",
            "chosen_tokens": [1, 2],
            "rejected_tokens": [1, 2],
        }
    ]


def test_a_pair_below_the_margin_is_a_row_and_so_are_its_candidates():
    pairs, dropped = build_pairs(songs(1.0, 1.25), axis="musicality", min_margin=0.5)
    assert pairs == []
    assert dropped == [
        {
            "kind": "candidate",
            "prompt_id": 1,
            "audio": f"{n}.wav",
            "reason": "pairs dropped (margin below 0.5)",
        }
        for n in range(2)
    ] + [
        {
            "kind": "pair",
            "prompt_id": 1,
            "audio": "1.wav > 0.wav",
            "reason": "margin below 0.5",
        }
    ]


def test_floor_and_ceiling_are_inclusive():
    rows = songs(1.0, 2.0, 3.0, 4.0)
    options = {"strategy": "all", "axis": "musicality"}
    floor, _ = build_pairs(rows, chosen_floor=3.0, **options)
    assert {pair["chosen_musicality"] for pair in floor} == {3.0, 4.0}
    ceiling, _ = build_pairs(rows, rejected_ceiling=2.0, **options)
    assert {pair["rejected_musicality"] for pair in ceiling} == {1.0, 2.0}
    # The quantile 2/3 of 1, 2, 3, 4 is 3.
    quantile, dropped = build_pairs(rows, chosen_floor="q0.6666666666666666", **options)
    assert quantile == floor
    assert dropped[-1]["reason"] == "chosen below the floor 3 (q0.6666666666666666)"


def test_agreement_of_members_is_kept_and_may_be_asked_for():
    rows = songs(1.0, 2.0, 3.0)
    for row, (first, second) in zip(rows, [(1.0, 1.0), (0.0, 4.0), (2.0, 4.0)], strict=True):
        row |= {"musicality_member0": first, "musicality_member1": second}
    pairs, _ = build_pairs(rows, strategy="all", test_share=0)
    found = {(pair["chosen_musicality"], pair["rejected_musicality"]): pair for pair in pairs}
    shares = {key: pair["agreement"] for key, pair in found.items()}
    assert shares == {(2.0, 1.0): 0.5, (3.0, 1.0): 1.0, (3.0, 2.0): 0.5}  # equal is not above
    pairs, dropped = build_pairs(rows, strategy="all", test_share=0, min_agreement=0.6)
    assert [pair["margin"] for pair in pairs] == [2.0]
    reasons = [row["reason"] for row in dropped if row["kind"] == "pair"]
    assert reasons == ["agreement below 0.6"] * 2
    with pytest.raises(DataError, match=r"no columns musicality_member0 and on.*score --members"):
        build_pairs(songs(1.0, 2.0), min_agreement=0.6)


def test_each_drop_names_its_reason():
    rows = [
        *songs(1.0, 2.0, 2.0, 4.0),
        {"prompt_id": 2, "audio": "alone.wav", "musicality": 3.0},
        {"prompt_id": 3, "audio": "nan.wav", "musicality": math.nan},
        {"prompt_id": 3, "audio": "x.wav", "musicality": 1.0, "flags": ["silent"]},
        {"prompt_id": 3, "audio": "y.wav", "musicality": 1.0, "error": "is empty (0 bytes)"},
        {"prompt_id": None, "audio": "z.wav", "musicality": 1.0},
        {"prompt_id": 3, "audio": None, "musicality": 1.0},
        {"prompt_id": 4, "audio": "tie1.wav", "musicality": 1.0},
        {"prompt_id": 4, "audio": "tie2.wav", "musicality": 1.0},
        {"prompt_id": 1, "audio": "3.wav", "musicality": 4.0},
    ]
    pairs, dropped = build_pairs(rows, axis="musicality", drop_flags=["silent"])
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("3.wav", "0.wav")]
    assert reasons_of(dropped) == {
        "not selected by best-worst": 2,
        "only usable candidate of its prompt": 1,
        "no musicality": 1,
        "flag silent": 1,
        "not scored: is empty (0 bytes)": 1,
        "no prompt": 1,
        "no audio path": 1,
        "ties with every other candidate on musicality": 2,
        "duplicate audio: the same file is listed twice": 1,
    }


def test_rows_with_a_text_join_the_id_that_others_give_that_text():
    rows = [
        {"prompt_id": 7, "prompt": "piano", "audio": "a.wav", "musicality": 1.0},
        {"prompt": "piano", "audio": "b.wav", "musicality": 3.0},
        {"prompt": "techno", "audio": "c.wav", "musicality": 1.0},
        {"prompt": "techno", "audio": "d.wav", "musicality": 2.0},
    ]
    pairs, _ = build_pairs(rows, axis="musicality")
    assert [(p["prompt_id"], p["prompt"], p["chosen"]) for p in pairs] == [
        ("7", "piano", "b.wav"),
        ("techno", "techno", "d.wav"),
    ]


def test_one_text_under_two_ids_stays_on_one_side():
    rows = [
        {"prompt_id": n, "prompt": f"text {n // 2}", "audio": f"{n}{s}.wav", "musicality": s}
        for n in range(40)
        for s in (1.0, 2.0)
    ]
    pairs, _ = build_pairs(rows, axis="musicality", test_share=0.5)
    sides = {(pair["prompt"], pair["split"]) for pair in pairs}
    assert len(sides) == 20
    assert Counter(pair["split"] for pair in pairs) == {"train": 20, "test": 20}


def test_a_mix_is_an_axis_under_its_own_text():
    rows = songs(1.0, 5.0, 3.0, score_likes=50.0)
    rows[2]["score_likes"] = 100.0
    mix = "musicality=1,score_likes=2"
    pairs, _ = build_pairs(rows, axis=mix)
    # 0: 0 + 2 x 0.5, 1: 1 + 2 x 0.5, 2: 0.5 + 2 x 1.
    assert pairs[0]["chosen"] == "2.wav"
    assert pairs[0][f"chosen_{mix}"] == pytest.approx(2.5)
    assert pairs[0]["margin"] == pytest.approx(1.5)
    rows[1]["musicality"] = None
    assert build_pairs(rows, axis=mix)[1][-1]["reason"] == f"no {mix}"


@pytest.mark.parametrize("kind", ["list", "arrow", "datasets", "csv", "parquet", "jsonl"])
def test_every_source_gives_the_same_pairs(kind, tmp_path):
    from datasets import Dataset

    from apex_reward.files.tables import write_table

    rows = [
        {
            "prompt_id": n % 5,
            "audio": f"{n}.wav",
            "musicality": n / 3,
            "flags": ["silent"] * (n < 2),
        }
        for n in range(20)
    ]
    path = tmp_path / f"candidates.{kind}"
    if kind == "list":
        source = rows
    elif kind == "arrow":
        source = pa.Table.from_pylist(rows)
    elif kind == "datasets":
        source = Dataset.from_list(rows)
    else:
        write_table(path, rows)
        source = path
    expected = build_pairs(rows, axis="musicality", drop_flags="silent")
    assert len(expected[0]) == 5
    assert build_pairs(source, axis="musicality", drop_flags="silent") == expected


def test_a_long_jsonl_is_read_in_blocks_of_any_types(tmp_path, monkeypatch):
    monkeypatch.setattr("apex_reward.pairs.reading.JSONL_BLOCK", 3)
    rows = [{"prompt_id": n // 4, "audio": f"{n}.wav", "musicality": n} for n in range(12)]
    rows[4]["musicality"] = 4.5
    rows[9]["prompt_id"] = "2"
    rows[10]["tokens"] = [1, 2]
    for row in rows[5:]:
        row["flags"] = []
    rows[11]["flags"] = ["silent"]
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, dropped = build_pairs(path, axis="musicality", drop_flags=["silent"])
    found = [(pair["prompt_id"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert found == [("0", "3.wav", "0.wav"), ("1", "7.wav", "4.wav"), ("2", "10.wav", "8.wav")]
    assert len(pairs) * 2 + len(dropped) == 12


def test_columns_that_nobody_asks_for_may_hold_anything():
    rows = songs(1.0, 2.0)
    rows[0]["note"], rows[1]["note"] = 3, {"a": ["b"]}
    assert len(build_pairs(rows, axis="musicality")[0]) == 1
    with pytest.raises(DataError, match="column 'note' holds string values; an axis needs numbers"):
        build_pairs(rows, axis="note")


def test_audio_may_be_path_objects_and_ids_of_two_types():
    rows = [{**row, "audio": Path(row["audio"])} for row in songs(1.0, 2.0)]
    rows[1]["prompt_id"] = "1"
    (pair,), _ = build_pairs(rows, axis="musicality")
    assert (pair["prompt_id"], pair["chosen"], pair["rejected"]) == ("1", "1.wav", "0.wav")


def test_missing_columns_are_listed_together():
    with pytest.raises(DataError) as caught:
        build_pairs([{"song": "a", "loud": 1.0}], strategy="pareto", axis="x", axes=["y"])
    text = str(caught.value)
    for part in ("no column 'audio'", "'prompt_id' or 'prompt'", "no column 'x'", "no column 'y'"):
        assert part in text
    assert "the numeric columns are loud" in text


def test_no_candidates_is_an_error():
    with pytest.raises(DataError, match="the table has no rows"):
        build_pairs([], axis="musicality")


def test_contradictory_options_are_listed_together():
    with pytest.raises(UsageError) as caught:
        build_pairs(
            songs(1.0, 2.0),
            strategy="best-worst",
            axis="musicality",
            top_k=2,
            quantile=1.5,
            threshold={"musicality": 2.0},
            min_margin=-1.0,
            max_pairs_per_prompt=0,
            test_share=1.0,
            chosen_floor="high",
            balance_axes=True,
        )
    for part in (
        "--top-k is read by top-bottom only",
        "--quantile is read by margin and mrsd only",
        "--quantile is 1.5",
        "--threshold is read by two-axis only",
        "--min-margin is -1.0",
        "--max-pairs-per-prompt is 0",
        "--test-share is 1.0",
        "--chosen-floor 'high'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy 'best' is not one of best-worst, all"),
        ({"strategy": "two-axis", "threshold": {"a": 1.0}}, "twice, once per axis; 1 given"),
        ({"axes": ["clarity"]}, "--axes is read by mrsd and pareto and two-axis only"),
        ({"protect": {"musicality": 1.0}}, "is the primary axis"),
        ({"balance_axes": True}, "--balance-axes needs a second axis"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UsageError, match=message):
        build_pairs(songs(1.0, 2.0), **{"axis": "musicality", **options})


def test_a_prompt_of_too_many_candidates_is_an_error(monkeypatch):
    monkeypatch.setattr(builder, "MOST_PER_PROMPT", 3)
    with pytest.raises(DataError, match=r"more than 3 usable candidates in one prompt \(1\)"):
        build_pairs(songs(1.0, 2.0, 3.0, 4.0), axis="musicality")


def test_blocks_of_prompts_do_not_change_the_pairs(monkeypatch):
    random = np.random.default_rng(0)
    rows = [
        {"prompt_id": int(p), "audio": f"{n}.wav", "musicality": float(random.normal())}
        for n, p in enumerate(random.integers(0, 30, 200))
    ]
    whole = build_pairs(rows, strategy="all", axis="musicality", min_margin=0.5)
    monkeypatch.setattr(builder, "CELLS_AT_ONCE", 1)
    assert build_pairs(rows, strategy="all", axis="musicality", min_margin=0.5) == whole


def test_balance_is_applied_before_the_limits():
    rows = [
        {"prompt_id": p, "audio": f"{p}{s}.wav", "musicality": m, "clarity": c}
        for p, leads in enumerate([(3, 1), (4, 1), (5, 1), (1, 4)])
        for s, (m, c) in enumerate([(0, 0), leads])
    ]
    pairs, dropped = build_pairs(
        rows, strategy="pareto", axis="musicality", axes=["clarity"], balance_axes=True
    )
    assert [pair["prompt_id"] for pair in pairs] == [2, 3]
    assert Counter(row["reason"] for row in dropped if row["kind"] == "pair") == {"axis balance": 2}


def test_audio_is_compared_by_sound(tmp_path):
    import soundfile

    song = write_wav(tmp_path / "b.wav", seconds=0.5, seed=1)
    samples, rate = soundfile.read(song, dtype="int16")
    soundfile.write(tmp_path / "b.wav", samples, rate, subtype="PCM_16")
    soundfile.write(tmp_path / "c.flac", samples, rate, subtype="PCM_16")
    write_wav(tmp_path / "a.wav", seconds=0.5, seed=2)
    write_wav(tmp_path / "d.wav", seconds=0.75, seed=3)
    (tmp_path / "e.mp3").write_text("not a song")
    rows = [
        {"prompt_id": 1, "audio": str(tmp_path / name), "musicality": float(n)}
        for n, name in enumerate(["a.wav", "b.wav", "c.flac", "d.wav", "e.mp3", "gone.wav"])
    ]
    pairs, dropped = build_pairs(rows, axis="musicality")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == (
        str(tmp_path / "gone.wav"),
        str(tmp_path / "a.wav"),
    )
    reasons = {row["audio"].rsplit("/", 1)[1]: row["reason"] for row in dropped}
    assert reasons["c.flac"] == f"duplicate audio: sounds the same as {tmp_path / 'b.wav'}"
    assert reasons["e.mp3"].startswith("unreadable audio: is not audio that can be decoded")
    assert reasons["b.wav"] == reasons["d.wav"] == "not selected by best-worst"


def test_durations_and_loudness_are_measured_where_they_are_not_given(tmp_path):
    import soundfile

    tone = 0.1 * np.sin(2 * np.pi * 997 * np.arange(24_000) / 24_000)
    for name, gain, seconds in (("a", 1, 1), ("b", 4, 1), ("c", 1.1, 1), ("d", 1, 3), ("e", 0, 1)):
        soundfile.write(tmp_path / f"{name}.wav", gain * np.tile(tone, seconds), 24_000)
    rows = [
        {"prompt_id": 1, "audio": str(tmp_path / f"{name}.wav"), "musicality": float(n)}
        for n, name in enumerate("abcde")
    ]
    loud, dropped = build_pairs(rows, strategy="all", axis="musicality", match_loudness=2.0)
    assert {p["chosen"][-5] + p["rejected"][-5] for p in loud} == {"ca", "da", "dc"}
    assert [r["reason"] for r in dropped if r["audio"].endswith("/e.wav")] == ["no loudness"]
    long, _ = build_pairs(rows, strategy="all", axis="musicality", match_duration=0.5)
    assert all("d.wav" not in pair["chosen"] + pair["rejected"] for pair in long)
    assert len(long) == 6
