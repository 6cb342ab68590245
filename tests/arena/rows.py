"""Battles for tests."""

import numpy as np

from apex_reward.arena.words import findings


def row(uuid="1", preference="A", a=1.0, b=0.0, **cells):
    return {"battle_uuid": uuid, "preference": preference, "s_a": a, "s_b": b, **cells}


def words_of(metrics):
    """Tone and text of every finding."""
    return [(words.tone, words.text) for words in findings(metrics)]


def shuffled(rows, seed=0):
    """The same rows in another order."""
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
