"""The paper's Table 3 as a plain scikit-learn script on a battle table: the tests' reference.

Run as a script it compares every figure of the whole protocol, which takes minutes:
`python -m tests.arena.paper_script`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

from tests.arena.simulate import simulate_heads

POPULARITY = ["score_streams", "score_likes"]
AESTHETIC = ["coherence", "musicality", "memorability", "clarity", "naturalness"]


def paper_battles(n: int = 1259, a_won: int = 674, instrumental: int = 780, seed: int = 0):
    """Simulated battles with exactly the paper's proportions of votes and instrumentals."""
    pool = simulate_heads(4 * n, prompts=n // 2, seed=seed)
    won = [row for row in pool if row["preference"] == "A"][:a_won]
    lost = [row for row in pool if row["preference"] == "B"][: n - a_won]
    rows = won + lost
    order = np.random.default_rng(seed).permutation(n)
    flags = np.random.default_rng(seed + 1).permutation(n) < instrumental
    return [{**rows[i], "is_instrumental": bool(flags[i])} for i in order]


def models(positive_weight: float):
    svm = Pipeline(
        [("scaler", StandardScaler()), ("svc", SVC(class_weight="balanced", random_state=42))]
    )
    grid = {
        "svc__C": [0.01, 0.1, 1, 10],
        "svc__kernel": ["linear", "rbf"],
        "svc__gamma": ["scale", "auto"],
    }
    return {
        "LR": LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"),
        "RF": RandomForestClassifier(300, max_depth=4, class_weight="balanced", random_state=42),
        "XGB": XGBClassifier(
            n_estimators=300,
            learning_rate=0.05,
            max_depth=4,
            scale_pos_weight=positive_weight,
            random_state=42,
        ),
        "AdaB": AdaBoostClassifier(n_estimators=300, learning_rate=0.05, random_state=42),
        "SVM": GridSearchCV(svm, grid, cv=5, scoring="roc_auc"),
    }


def fitted_with_probabilities(model, x, y):
    """A classifier fitted to a fold; the SVM's search is by decision value, as with probabilities,
    which its best one alone then gets: they take five fits each and change no choice."""
    fitted = clone(model).fit(x, y)
    if not isinstance(fitted, GridSearchCV):
        return fitted
    best = clone(fitted.best_estimator_).set_params(svc__probability=True)
    return best.fit(x, y)


def table3(rows, names, sections=("without_aesthetics", "with_aesthetics")):
    """section -> model -> the six figures, straight from the paper's description."""
    frame = pd.DataFrame(rows)
    flag = frame.is_instrumental.astype(int)
    y = (frame.preference == "A").astype(int)
    for side in "ab":
        for name, heads in {
            "combined_popularity": POPULARITY,
            "combined_songeval": AESTHETIC,
            "combined_overall": POPULARITY + AESTHETIC,
        }.items():
            frame[f"{name}_{side}"] = frame[[f"{head}_{side}" for head in heads]].mean(axis=1)
    result = {"rules": {}}
    for rule, heads in {
        "Likes": ["score_likes"],
        "Streams": ["score_streams"],
        "Aesth.": AESTHETIC,
        "All": POPULARITY + AESTHETIC,
    }.items():
        margin = sum(frame[f"{head}_b"] - frame[f"{head}_a"] for head in heads) / len(heads)
        result["rules"][rule] = figures(margin, margin > 0, y, flag)
    scores = {
        "without_aesthetics": [*POPULARITY, "combined_popularity"],
        "with_aesthetics": [
            *POPULARITY,
            *AESTHETIC,
            "combined_popularity",
            "combined_songeval",
            "combined_overall",
        ],
    }
    for section in sections:
        used = scores[section]
        columns = {f"diff_{s}": frame[f"{s}_a"] - frame[f"{s}_b"] for s in used}
        columns |= {f"ratio_{s}": frame[f"{s}_a"] / (frame[f"{s}_b"] + 1e-9) for s in used}
        columns["instrumental"] = flag
        columns |= {f"cross_{s}": columns[f"diff_{s}"] * flag for s in used}
        x = pd.DataFrame(columns).to_numpy(float)
        assert x.shape[1] == {"without_aesthetics": 10, "with_aesthetics": 31}[section]
        folds = StratifiedKFold(10, shuffle=True, random_state=42)
        result[section] = {}
        for name in names:
            model = models(y.sum() / (1 - y).sum())[name]
            score, chosen = np.empty(len(y)), np.empty(len(y))
            for train, test in folds.split(x, y):
                fitted = fitted_with_probabilities(model, x[train], y[train])
                score[test] = fitted.predict_proba(x[test])[:, 1]
                chosen[test] = fitted.predict(x[test])
            result[section][name] = figures(score, chosen, y, flag)
    return result


def figures(score, chosen, y, flag):
    parts = {"overall": flag >= 0, "instrumental": flag == 1, "vocal": flag == 0}
    score, chosen = np.asarray(score), np.asarray(chosen).astype(int)
    cells = {f"auc_{name}": roc_auc_score(y[part], score[part]) for name, part in parts.items()}
    return cells | {f"f1_{name}": f1_score(y[part], chosen[part]) for name, part in parts.items()}


def largest_gap(ours, reference):
    """Largest difference over all figures; both must have the same cells."""
    assert {k: set(v) for k, v in ours.items()} == {k: set(v) for k, v in reference.items()}
    return max(
        abs(ours[section][name][cell] - value)
        for section, rows in reference.items()
        for name, cells in rows.items()
        for cell, value in cells.items()
    )


if __name__ == "__main__":
    from apex_reward.arena.battles import battles_of
    from apex_reward.arena.protocol import CLASSIFIERS, run_protocol

    battles = paper_battles()
    done = run_protocol(battles_of(battles), progress=lambda step: print(step, flush=True))
    print({key: done[key] for key in ("n", "a_won", "instrumental", "vocal")}, flush=True)
    print("largest gap:", largest_gap(done["published"], table3(battles, CLASSIFIERS)))
