"""The paper's Music Arena experiment (Table 3) beside an honest form of every figure.

Published: the paper's features, StratifiedKFold(10, shuffle, seed 42) over the rows in their order,
out-of-fold AUC and F1 with "A preferred" as the positive class, rules that predict A where B scores
higher. Honest: the folds keep a prompt together and do not depend on the order of rows, the
features are antisymmetric, the sides of training battles are swapped at random and a prediction is
half the difference between a battle's and its mirror image's, so that no model can learn the
position; rules predict the higher-scored side. The published SVM is ranked by `predict_proba`, as
the paper's notebook does: Platt's fit differs from fold to fold, so over folds it does not rank as
the decision function, which the honest form uses.

Shape key: N = battles, P = features, S = scores (10, or 3 without aesthetics).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from apex_reward.arena.battles import Battles, BoolArray
from apex_reward.arena.heldout import Fold
from apex_reward.errors import DataError, listed
from apex_reward.files.tables import json_ready, write_table, write_text
from apex_reward.metrics import FloatArray, auc
from apex_reward.report.cells import cell
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS

FOLDS = 10
SEED = 42
RULES: dict[str, tuple[str, ...]] = {
    "Likes": ("score_likes",),
    "Streams": ("score_streams",),
    "Aesth.": AESTHETIC_HEADS,
    "All": HEADS,
}
CLASSIFIERS = ("LR", "RF", "XGB", "AdaB", "SVM")
SECTIONS = {"without_aesthetics": False, "with_aesthetics": True}
PUBLISHED_RULE_AUCS = {"Likes": 0.518, "Streams": 0.557, "Aesth.": 0.527, "All": 0.535}
STRATA = ("overall", "instrumental", "vocal")
COLUMNS = tuple(f"{measure}_{stratum}" for measure in ("auc", "f1") for stratum in STRATA)
_TINY = 1e-9  # the paper's guard against a division by zero
Cells = Mapping[str, float | None]


def run_protocol(
    battles: Battles,
    *,
    classifiers: Iterable[str] = CLASSIFIERS,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Table 3 in both forms: `published` and `honest` -> section -> row -> figures.

    Figures are `auc_overall`, `auc_instrumental`, `auc_vocal` and the same of `f1`; None where a
    stratum has no battles of both outcomes. Battles that are undecided or lack a head are left
    out (`n` is the number of the others).

    Raises:
        DataError: an absent head, or fewer battles won by a side than folds.
    """
    if absent := [head for head in HEADS if head not in battles.scores]:
        raise DataError(
            "the classifiers need the seven heads of both sides as columns NAME_a, NAME_b; "
            f"absent: {listed(absent)}. `apex-reward arena score` writes them"
        )
    complete = np.all([np.isfinite(battles.difference(head)) for head in HEADS], axis=0)
    decided = battles.select(battles.decided & complete)
    even = decided.sorted()
    folds, (honest_folds, grouped_by) = published_folds(decided), grouped_folds(even)
    names, notes = list(classifiers), []
    if "XGB" in names and importlib.util.find_spec("xgboost") is None:
        names.remove("XGB")
        notes = ["XGB is left out: install it with `pip install 'apex-reward[xgboost]'`"]
    published, honest = {"rules": _rules(decided, -1.0)}, {"rules": _rules(decided, 1.0)}
    for section, aesthetics in SECTIONS.items():
        plain = published_features(decided, aesthetics=aesthetics)
        odd = antisymmetric_features(even, aesthetics=aesthetics)
        published[section], honest[section] = {}, {}
        for name in names:
            progress(f"{name}, {section.replace('_', ' ')}")
            score, chosen = out_of_fold(name, plain, decided.a_won, folds)
            published[section][name] = _cells(score, chosen, decided)
            score = out_of_fold_odd(name, odd, even.a_won, honest_folds)
            honest[section][name] = _cells(score, score > 0, even)
    return {
        "n": len(decided),
        "a_won": int(decided.a_won.sum()),
        "instrumental": int((decided.instrumental == 1).sum()),
        "vocal": int((decided.instrumental == 0).sum()),
        "folds": FOLDS,
        "seed": SEED,
        "grouped_by": grouped_by,
        "notes": notes,
        "published": published,
        "honest": honest,
        "rules_line": _rules_line(published["rules"], honest["rules"]),
    }


def _sides(battles: Battles, aesthetics: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, S, 2) scores of A and of B, (N, S) differences, (N, 1) instrumental flags.

    The seven heads (or the two of popularity), then the means of the popularity heads, of the
    aesthetic ones and of all, each on its own scale. An unknown flag is 0.
    """
    heads = HEADS if aesthetics else POPULARITY_HEADS
    groups = [POPULARITY_HEADS, AESTHETIC_HEADS, HEADS] if aesthetics else [POPULARITY_HEADS]
    columns = [battles.scores[head] for head in heads]
    columns += [np.mean([battles.scores[head] for head in group], axis=0) for group in groups]
    sides = np.stack(columns, axis=1)
    flag = (battles.instrumental == 1).astype(np.float64)[:, None]
    return sides, sides[..., 0] - sides[..., 1], flag


def published_features(battles: Battles, *, aesthetics: bool = True) -> FloatArray:
    """(N, 3S + 1), the paper's: 31 columns, or 10 without aesthetics.

    Differences, ratios a / (b + 1e-9), instrumental flag, differences times the flag.
    """
    sides, difference, flag = _sides(battles, aesthetics)
    ratio = sides[..., 0] / (sides[..., 1] + _TINY)
    return np.hstack([difference, ratio, flag, difference * flag])


def antisymmetric_features(battles: Battles, *, aesthetics: bool = True) -> FloatArray:
    """(N, 3S) that change sign when A and B are swapped.

    Differences, differences over the sum of magnitudes, differences times the instrumental flag.
    """
    sides, difference, flag = _sides(battles, aesthetics)
    relative = difference / (np.abs(sides).sum(axis=-1) + _TINY)
    return np.hstack([difference, relative, difference * flag])


def make_classifier(name: str, positive_weight: float) -> Any:
    """An unfitted classifier with the paper's settings.

    Args:
        name: one of `CLASSIFIERS`.
        positive_weight: balancing would take battles that B won over battles that A won; the paper
            has the reverse for XGBoost, 674 / 585, and so does its protocol here.
    """
    trees: dict[str, Any] = {"n_estimators": 300, "random_state": SEED}
    if name == "XGB":
        from xgboost import XGBClassifier

        boosted = {"learning_rate": 0.05, "max_depth": 4, "eval_metric": "logloss"}
        return XGBClassifier(**trees, **boosted, scale_pos_weight=positive_weight)
    svc = SVC(class_weight="balanced", random_state=SEED)
    pipeline = Pipeline([("scaler", StandardScaler()), ("svc", svc)])
    grid = {"C": [0.01, 0.1, 1, 10], "kernel": ["linear", "rbf"], "gamma": ["scale", "auto"]}
    grid = {f"svc__{option}": values for option, values in grid.items()}
    return {
        "LR": LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"),
        "RF": RandomForestClassifier(max_depth=4, class_weight="balanced", **trees),
        "AdaB": AdaBoostClassifier(learning_rate=0.05, **trees),
        "SVM": GridSearchCV(pipeline, grid, cv=5, scoring="roc_auc", n_jobs=-1),
    }[name]


def published_folds(decided: Battles) -> list[Fold]:
    """Train and test rows of the paper's folds; DataError with fewer battles than folds."""
    wins = int(decided.a_won.sum())
    if min(wins, len(decided) - wins) < FOLDS:
        raise DataError(
            f"{FOLDS} stratified folds need at least {FOLDS} battles won by each side; "
            f"A won {wins}, B won {len(decided) - wins}"
        )
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    return list(splitter.split(np.zeros(len(decided)), decided.a_won))


def grouped_folds(decided: Battles) -> tuple[list[Fold], str]:
    """Stratified folds that keep a prompt together, and what they are grouped by.

    Without prompts, or with fewer prompts than folds, every battle is a group of its own.
    """
    groups, grouped_by = decided.clusters, "prompt"
    if not decided.has_prompts or len(np.unique(groups)) < FOLDS:
        groups, grouped_by = np.arange(len(decided)), "battle"
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    folds = list(splitter.split(np.zeros(len(decided)), decided.a_won, groups))
    return [fold for fold in folds if len(fold[1])], grouped_by


def out_of_fold(
    name: str, features: FloatArray, a_won: BoolArray, folds: list[Fold]
) -> tuple[FloatArray, BoolArray]:
    """(N,) scores that rise with P(A preferred) and (N,) predictions, each from the fold's fit."""
    score, chosen = np.empty(len(a_won)), np.empty(len(a_won), dtype=np.bool_)
    weight = a_won.sum() / (~a_won).sum()
    for train, test in folds:
        label = a_won[train].astype(int)
        fitted = make_classifier(name, weight).fit(features[train], label)
        if name == "SVM":
            # Searched without probabilities: they take five more fits and change no choice.
            best = clone(fitted.best_estimator_).set_params(svc__probability=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the notebook's own option
                fitted = best.fit(features[train], label)
        score[test] = _scores(fitted, features[test])
        chosen[test] = fitted.predict(features[test]) == 1
    return score, chosen


def out_of_fold_odd(
    name: str, features: FloatArray, a_won: BoolArray, folds: list[Fold]
) -> FloatArray:
    """(N,) scores above zero where A is predicted; a mirrored battle gets minus its score."""
    score = np.empty(len(a_won))
    turned = np.random.default_rng(SEED).random(len(a_won)) < 0.5
    sign = np.where(turned, -1.0, 1.0)[:, None]
    label = (a_won ^ turned).astype(int)
    for train, test in folds:
        fitted = make_classifier(name, 1.0).fit((features * sign)[train], label[train])
        mirrored = _scores(fitted, -features[test])
        score[test] = (_scores(fitted, features[test]) - mirrored) / 2
    return score


def _scores(fitted: Any, features: FloatArray) -> FloatArray:
    if hasattr(fitted, "predict_proba"):
        return np.asarray(fitted.predict_proba(features)[:, 1], dtype=np.float64)
    return np.asarray(fitted.decision_function(features), dtype=np.float64)


def _rules(decided: Battles, sign: float) -> dict[str, Cells]:
    leads = {
        rule: sign * np.mean([decided.difference(head) for head in heads], axis=0)
        for rule, heads in RULES.items()
    }
    return {rule: _cells(lead, lead > 0, decided) for rule, lead in leads.items()}


def _cells(score: FloatArray, chosen: BoolArray, decided: Battles) -> Cells:
    cells: dict[str, float | None] = dict.fromkeys(COLUMNS)
    there = np.isfinite(score), decided.instrumental == 1, decided.instrumental == 0
    for stratum, rows in zip(STRATA, there, strict=True):
        if rows.any():
            won = decided.a_won[rows]
            cells[f"auc_{stratum}"] = json_ready(auc(score[rows], won))
            cells[f"f1_{stratum}"] = float(f1_score(won, chosen[rows], zero_division=0))
    return cells


def _rules_line(published: Mapping[str, Cells], honest: Mapping[str, Cells]) -> str:
    """The rules' figures where the higher-scored side is predicted, in words."""
    here = ", ".join(
        f"{rule} {cell(published[rule]['auc_overall'])} -> {cell(honest[rule]['auc_overall'])}"
        for rule in RULES
    )
    paper = ", ".join(
        f"{rule} {value:.3f} -> {1 - value:.3f}" for rule, value in PUBLISHED_RULE_AUCS.items()
    )
    return (
        "The published rules predict A where B scores higher. Where the higher score wins, an AUC "
        f"becomes one minus itself: in the paper {paper}; on these battles {here}."
    )


def write_table3(result: Mapping[str, Any], folder: Path) -> None:
    """Write `table3.csv` (the published protocol), `table3_honest.csv` and `table3.md` (both)."""
    for form, name in (("published", "table3.csv"), ("honest", "table3_honest.csv")):
        rows = [
            {"section": section, "model": model, **result[form][section][model]}
            for section, model in _rows(result)
        ]
        write_table(folder / name, rows)
    table = markdown_table(*table3_grid(result))
    parts = ["# Table 3", table3_caption(result), table, result["rules_line"], *result["notes"]]
    write_text(folder / "table3.md", "\n\n".join(parts) + "\n")


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(section, model) for section, models in result["published"].items() for model in models]


def table3_grid(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of one table with `published / honest` in every cell."""
    heads = (name.replace("auc", "AUC").replace("f1", "F1").replace("_", " ") for name in COLUMNS)
    rows = []
    for section, model in _rows(result):
        both = [result[form][section][model] for form in ("published", "honest")]
        shown = [" / ".join(cell(cells[name]) for cells in both) for name in COLUMNS]
        rows.append([section.replace("_", " "), model, *shown])
    return ("section", "model", *heads), rows


def table3_caption(result: Mapping[str, Any]) -> str:
    """What the cells of Table 3 are."""
    return (
        f"{result['n']} battles, A won {result['a_won']}; {result['instrumental']} instrumental, "
        f"{result['vocal']} vocal. Each cell: the published protocol, then the honest figure "
        f"(folds grouped by {result['grouped_by']}, antisymmetric features, the higher score wins)."
    )
