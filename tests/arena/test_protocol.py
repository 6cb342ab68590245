import numpy as np
import pytest
from joblib import parallel_config
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from apex_reward.arena.battles import battles_of
from apex_reward.arena.protocol import (
    PUBLISHED_RULE_AUCS,
    antisymmetric_features,
    grouped_folds,
    make_classifier,
    out_of_fold,
    out_of_fold_odd,
    published_features,
    run_protocol,
    write_table3,
)
from apex_reward.errors import DataError
from apex_reward.files.tables import read_table
from apex_reward.scores.apex import HEADS, head_range
from tests.arena.paper_script import largest_gap, paper_battles, table3
from tests.arena.simulate import simulate_heads


def swapped(rows):
    """The same battles with A and B exchanged."""
    other = {"A": "B", "B": "A"}
    result = []
    for row in rows:
        turned = {**row, "preference": other[row["preference"]]}
        for head in HEADS:
            turned[f"{head}_a"], turned[f"{head}_b"] = row[f"{head}_b"], row[f"{head}_a"]
        result.append(turned)
    return result


def test_the_simulated_set_has_the_paper_s_proportions():
    battles = battles_of(paper_battles())
    assert len(battles) == 1259
    assert (battles.a_won.sum(), (~battles.a_won).sum()) == (674, 585)
    assert (battles.instrumental == 1).sum() == 780
    assert (battles.instrumental == 0).sum() == 479


def test_fast_rows_equal_a_plain_scikit_learn_script():
    rows = paper_battles()
    done = run_protocol(battles_of(rows), classifiers=["LR"])
    assert largest_gap(done["published"], table3(rows, ["LR"])) < 1e-12


@pytest.mark.filterwarnings("ignore:.*probability.*")
@pytest.mark.slow
def test_every_row_equals_a_plain_scikit_learn_script_on_a_smaller_set():
    rows = paper_battles(160, a_won=86, instrumental=99)
    done = run_protocol(battles_of(rows))
    names = ["LR", "RF", "XGB", "AdaB", "SVM"]
    assert list(done["published"]["with_aesthetics"]) == names
    assert largest_gap(done["published"], table3(rows, names)) < 1e-12


@pytest.mark.filterwarnings("ignore:.*probability.*")
def test_the_published_svm_is_ranked_by_its_probabilities():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 2))
    a_won = rng.random(60) < 1 / (1 + np.exp(-2 * features[:, 0]))
    rows = np.arange(60)
    folds = [(rows[rows % 2 != k], rows[rows % 2 == k]) for k in range(2)]
    with parallel_config("sequential"):
        score, chosen = out_of_fold("SVM", features, a_won, folds)
    assert 0 < score.min() < score.max() < 1
    expected = np.empty(60)
    for train, test in folds:
        label = a_won[train].astype(int)
        with parallel_config("sequential"):
            best = make_classifier("SVM", 1.0).fit(features[train], label).best_params_
        options = {name.removeprefix("svc__"): value for name, value in best.items()}
        scaler = StandardScaler().fit(features[train])
        svc = SVC(class_weight="balanced", random_state=42, probability=True, **options)
        svc.fit(scaler.transform(features[train]), label)
        expected[test] = svc.predict_proba(scaler.transform(features[test]))[:, 1]
        assert (chosen[test] == svc.predict(scaler.transform(features[test]))).all()
    np.testing.assert_array_equal(score, expected)


def test_honest_rules_are_one_minus_the_published_ones():
    done = run_protocol(battles_of(paper_battles()), classifiers=[])
    for rule, cells in done["published"]["rules"].items():
        for stratum in ("overall", "instrumental", "vocal"):
            honest = done["honest"]["rules"][rule][f"auc_{stratum}"]
            assert honest == pytest.approx(1 - cells[f"auc_{stratum}"], abs=1e-12)
    for rule, value in PUBLISHED_RULE_AUCS.items():
        assert f"{rule} {value:.3f} -> {1 - value:.3f}" in done["rules_line"]


def test_published_constants_are_the_paper_s(shared_folder):
    table = read_table(shared_folder / "reference" / "paper_tables" / "table3.csv").to_pylist()
    rules = {row["model"]: row["auc_overall"] for row in table if row["section"] == "rules"}
    assert rules == PUBLISHED_RULE_AUCS


def test_antisymmetric_features_change_sign_and_the_published_ones_do_not():
    rows = simulate_heads(40)
    here, there = battles_of(rows), battles_of(swapped(rows))
    for aesthetics, width in ((True, 30), (False, 9)):
        features = antisymmetric_features(here, aesthetics=aesthetics)
        assert features.shape == (40, width)
        np.testing.assert_array_equal(
            features, -antisymmetric_features(there, aesthetics=aesthetics)
        )
    assert published_features(here).shape == (40, 31)
    assert (published_features(here) != -published_features(there)).any()


def test_scores_that_always_name_the_winner_are_all_right():
    """Every head of the winner is a tenth of its range above the loser's."""
    rows = paper_battles(160, a_won=86, instrumental=99)
    for n, row in enumerate(rows):
        won = row["preference"].lower()
        for head in HEADS:
            low, high = head_range(head)
            share = 0.2 + 0.05 * (n % 10)
            row[f"{head}_a"] = row[f"{head}_b"] = low + share * (high - low)
            row[f"{head}_{won}"] += 0.1 * (high - low)
    done = run_protocol(battles_of(rows), classifiers=["LR"])
    for section in ("with_aesthetics", "without_aesthetics"):
        honest = done["honest"][section]["LR"]
        assert (honest["f1_overall"], honest["auc_overall"]) == (1.0, 1.0)


def test_an_honest_prediction_cannot_learn_the_position():
    # A wins nine in ten whatever the scores: only a model that knows the position can tell
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 4))
    a_won = rng.random(300) < 0.9
    rows = np.arange(300)
    folds = [(rows[rows % 5 != k], rows[rows % 5 == k]) for k in range(5)]
    score = out_of_fold_odd("LR", features, a_won, folds)
    assert 0.35 < np.mean(score > 0) < 0.65
    mirrored = out_of_fold_odd("LR", -features, ~a_won, folds)
    np.testing.assert_allclose(mirrored, -score, atol=1e-9)


def test_grouped_folds_keep_prompts_together():
    battles = battles_of(simulate_heads(300, prompts=40))
    folds, grouped_by = grouped_folds(battles)
    assert grouped_by == "prompt"
    for train, test in folds:
        assert not set(battles.prompt[train]) & set(battles.prompt[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(300))
    few = [{**row, "prompt": None} for row in simulate_heads(300)]
    assert grouped_folds(battles_of(few))[1] == "battle"


def test_too_few_battles_and_absent_heads_are_refused():
    rows = [row for row in simulate_heads(60) if row["preference"] == "A"][:15]
    rows += [row for row in simulate_heads(60, seed=9) if row["preference"] == "B"][:9]
    for number, row in enumerate(rows):
        row["battle_uuid"] = str(number)
    with pytest.raises(DataError, match=r"at least 10 battles won by each side; A won 15, B won 9"):
        run_protocol(battles_of(rows))
    lacking = [{k: v for k, v in row.items() if "clarity" not in k} for row in simulate_heads(50)]
    with pytest.raises(DataError, match="absent: clarity"):
        run_protocol(battles_of(lacking))


def test_without_xgboost_the_others_run_and_the_message_says_what_to_install(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xgboost" else real(name)
    )
    done = run_protocol(battles_of(simulate_heads(120)), classifiers=["LR", "XGB"])
    assert list(done["published"]["with_aesthetics"]) == ["LR"]
    assert "pip install 'apex-reward[xgboost]'" in done["notes"][0]


def test_unusable_battles_are_left_out_and_unknown_strata_are_null():
    rows = simulate_heads(120, undecided=0.1)
    rows[0]["clarity_a"] = None
    for row in rows:
        row["is_instrumental"] = None
    decided = sum(row["preference"] in "AB" for row in rows[1:])
    done = run_protocol(battles_of(rows), classifiers=["LR"])
    assert done["n"] == decided
    cells = done["published"]["with_aesthetics"]["LR"]
    assert cells["auc_vocal"] is None
    assert cells["f1_instrumental"] is None
    assert cells["auc_overall"] is not None


def test_table_3_is_written_in_the_paper_s_layout(tmp_path, shared_folder):
    done = run_protocol(battles_of(simulate_heads(120)), classifiers=["LR"])
    write_table3(done, tmp_path)
    paper = read_table(shared_folder / "reference" / "paper_tables" / "table3.csv")
    for name in ("table3.csv", "table3_honest.csv"):
        table = read_table(tmp_path / name)
        assert table.column_names == paper.column_names
        rows = [(row["section"], row["model"]) for row in table.to_pylist()]
        paper_rows = [(row["section"], row["model"]) for row in paper.to_pylist()]
        assert rows == [key for key in paper_rows if key[1] in {name for _, name in rows}]
    text = (tmp_path / "table3.md").read_text()
    assert done["rules_line"] in text
    first = done["published"]["with_aesthetics"]["LR"]["auc_overall"]
    second = done["honest"]["with_aesthetics"]["LR"]["auc_overall"]
    assert f"{first:.3f} / {second:.3f}" in text
