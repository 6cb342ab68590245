"""The whole builder against loops: pairs, accounting, order, splits, bad input."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward import build_pairs
from apex_reward.errors import DataError, UsageError
from apex_reward.pairs import build as builder
from apex_reward.pairs.strategies import STRATEGIES
from tests.pairs import reference
from tests.pairs.rows import candidate_rows, choices, songs
from tests.support import write_wav


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
    quantile, _ = build_pairs(rows, chosen_floor="q0.6666666666666666", **options)
    assert quantile == floor
    _, dropped = build_pairs(rows, chosen_floor=5.0, **options)
    assert {row["reason"] for row in dropped} == {"no partner left (chosen below the floor 5)"}


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
    assert [(r["audio"], r["reason"]) for r in dropped] == [
        ("1.wav", "no partner left (agreement below 0.6)")
    ]
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


def prompts_of_two_lengths(count: int) -> list[dict]:
    """Prompts whose best song is long and whose worst is short; two songs of each length."""
    random = np.random.default_rng(0)
    return [
        {
            "prompt_id": prompt,
            "audio": f"{prompt}/{song}.wav",
            "musicality": song + float(random.uniform(0, 0.5)),
            "duration": 30.0 if song in (0, 2) else 60.0,
        }
        for prompt in range(count)
        for song in range(4)
    ]


@pytest.mark.parametrize("strategy", ["best-worst", "all", "top-bottom", "margin"])
def test_a_constraint_leaves_every_prompt_its_pairs(strategy):
    rows = prompts_of_two_lengths(200)
    pairs, _ = build_pairs(rows, strategy, match_duration=1.0, test_share=0)
    assert len({pair["prompt_id"] for pair in pairs}) == 200
    seconds = {row["audio"]: row["duration"] for row in rows}
    assert all(seconds[pair["chosen"]] == seconds[pair["rejected"]] for pair in pairs)
    limited, _ = build_pairs(
        rows, strategy, match_duration=1.0, test_share=0, max_pairs_per_prompt=1
    )
    assert len(limited) == 200


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_as_a_function_is_the_strategy_of_that_name(name):
    random = np.random.default_rng(1)
    rows = [
        {"prompt_id": n // 8, "audio": f"{n}.wav", "musicality": m, "clarity": c}
        for n, (m, c) in enumerate(random.uniform(1, 5, (80, 2)).tolist())
    ]
    options: dict = {"axis": "musicality", "min_margin": 0.2}
    if name == "two-axis":
        options |= {"threshold": {"musicality": 3.0, "clarity": 2.0}, "protect": {"musicality": 1}}
    by_name = build_pairs(rows, name, **options)
    assert by_name[0]
    assert build_pairs(rows, STRATEGIES[name], **options) == by_name
    place = f"apex_reward.pairs.strategies:{STRATEGIES[name].__name__}"
    assert build_pairs(rows, place, **options) == by_name


def test_a_function_of_another_shape_is_named():
    with pytest.raises(UsageError, match=r"strategy half returns shape \(1,\) for 1 prompts of 2"):
        build_pairs(songs(1.0, 2.0), half)


def half(values, settings):
    return np.zeros(len(values), bool)


def test_prompts_that_differ_in_case_or_spaces_are_one_prompt():
    texts = ["Calm piano 3", "calm  piano 3 "]
    rows = [{"prompt": t, "audio": f"{n}.wav", "musicality": n} for n, t in enumerate(texts)]
    (pair,), dropped = build_pairs(rows)
    assert (pair["prompt_id"], pair["chosen"], dropped) == ("Calm piano 3", "1.wav", [])


@pytest.mark.parametrize("shared", ["file", "text"])
def test_prompts_that_share_a_file_or_a_text_are_on_one_side(shared, tmp_path):
    rows = []
    for prompt in range(40):
        chain = prompt // 2
        for song in range(3):
            audio = f"{prompt}/{song}.wav"
            if song == 2 and shared == "file":
                # The same file under two names, in no pair of the second prompt.
                (tmp_path / f"{chain}.wav").write_bytes(b"")
                link = tmp_path / f"{prompt}-link.wav"
                link.symlink_to(tmp_path / f"{chain}.wav")
                audio = str(link) if prompt % 2 else str(tmp_path / f"{chain}.wav")
            text = f"Tune {chain}" if prompt % 2 else f" tune  {chain}"
            rows.append({"prompt_id": prompt, "audio": audio, "musicality": float(song)})
            if shared == "text":
                rows[-1]["prompt"] = text
    for path in tmp_path.glob("*.wav"):
        if not path.is_symlink():
            write_wav(path, seconds=0.1, seed=int(path.stem))
    pairs, _ = build_pairs(rows, test_share=0.3)
    side = {pair["prompt_id"]: pair["split"] for pair in pairs}
    assert len(side) == 40
    assert all(side[2 * chain] == side[2 * chain + 1] for chain in range(20))
    assert Counter(side.values()) == {"train": 28, "test": 12}


def test_a_balanced_set_is_neutral_in_its_rulers():
    random = np.random.default_rng(2)
    rows = []
    for n in range(1200):
        length, loud = float(random.uniform(20, 60)), float(random.uniform(-24, -8))
        row = {
            "prompt_id": n // 2,
            "audio": f"{n}.wav",
            "duration": length,
            "rulers.loudness": loud,
        }
        score = 0.05 * length + 0.1 * loud + float(random.normal())
        rows.append({**row, "musicality": score, "rulers.crest": float(random.uniform(5, 20))})
    by_audio = {row["audio"]: row for row in rows}

    def share(pairs, name):
        more = [by_audio[p["chosen"]][name] > by_audio[p["rejected"]][name] for p in pairs]
        return sum(more) / len(more)

    before, _ = build_pairs(rows)
    assert share(before, "duration") > 0.6
    pairs, dropped = build_pairs(rows, balance=("length", "loudness"), max_pairs_per_prompt=1)
    assert len(pairs) > 200
    assert share(pairs, "duration") == pytest.approx(0.5, abs=0.05)
    assert share(pairs, "rulers.loudness") == pytest.approx(0.5, abs=0.05)
    gone = [row for row in dropped if row["kind"] == "pair"]
    assert {row["reason"] for row in gone} == {"balance of length, loudness"}
    assert len(gone) == 600 - len(pairs)
    with pytest.raises(DataError, match="no column 'rulers.width' to balance"):
        build_pairs(rows, balance=["width"])


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


def test_prompts_beside_lone_candidates_are_split_one_by_one():
    """Four lone songs, then three prompts of two: the pairs of any two prompts can part."""
    rows = [{"prompt_id": f"a{n}", "audio": f"{n}.wav", "musicality": 1.0} for n in range(4)]
    rows += [
        {"prompt_id": f"b{n}", "audio": f"{n}/{take}.wav", "musicality": take}
        for n in range(3)
        for take in (0.0, 1.0)
    ]
    sides = []
    for seed in range(20):
        pairs, _ = build_pairs(rows, axis="musicality", test_share=0.4, seed=seed)
        assert [pair["prompt_id"] for pair in pairs] == ["b0", "b1", "b2"]
        sides.append([pair["split"] for pair in pairs])
        assert sorted(sides[-1]) == ["test", "train", "train"]
    assert {side.index("test") for side in sides} == {0, 1, 2}
