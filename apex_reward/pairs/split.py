"""Train and test splits that never put one prompt or one group on both sides.

Shape key: M = pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def split_pairs(
    labels: Sequence[Sequence[Hashable | None]], test_share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Which pairs are test pairs.

    Pairs that share any label (the prompt's id, the prompt's text, a group of either song) are
    connected, directly or through others, and stay on one side. Connected sets are taken in
    seeded random order into the test split as long as they fit into its share.

    Args:
        labels: columns of M labels each; None is no label. Equal labels connect, in one column or
            in two: (kind, value) tells a group and a prompt of the same name apart.
        test_share: share of the pairs, in [0, 1). The split never exceeds it by rounding up more
            than half a pair; it can fall short where the connected sets are large.
        seed: of the order in which sets are taken.

    Returns:
        (M,) True for test pairs.
    """
    component = connected(labels)
    if not component.size:
        return np.zeros(0, bool)
    sizes = np.bincount(component)
    room = round(test_share * component.size)
    test = np.zeros(len(sizes), bool)
    for number in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[number] <= room:
            test[number] = True
            room -= int(sizes[number])
    return test[component]


def connected(labels: Sequence[Sequence[Hashable | None]]) -> npt.NDArray[np.int64]:
    """(M,) number of each pair's connected set, in order of first appearance."""
    size = len(labels[0]) if labels else 0
    parent = list(range(size))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[Hashable, int] = {}
    for column in labels:
        for item, label in enumerate(column):
            if label is None:
                continue
            a, b = root(first.setdefault(label, item)), root(item)
            # The smaller root wins, so that sets are numbered by their first member.
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(i), len(numbers)) for i in range(size)], np.int64)
