"""Train and test splits that never put one prompt or one group on both sides.

Shape key: M = pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def split_pairs(labels: Sequence[Labels], test_share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which pairs are test pairs.

    Pairs that share any label (their prompt, its text, a group of either song) are connected,
    directly or through others, and stay on one side. Connected sets are taken in seeded random
    order into the test split as long as they fit into its share.

    Args:
        labels: columns of (M,) numbers; equal numbers connect, in one column or in two, and
            negative ones are no label. Different kinds of labels need different numbers.
        test_share: share of the pairs, in [0, 1). The split exceeds it by rounding at most; it
            falls short where the connected sets are large.
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


def connected(labels: Sequence[Labels]) -> Labels:
    """(M,) number of each pair's connected set, in order of first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(labels[0])
    pairs = np.concatenate([np.flatnonzero(column >= 0) for column in labels])
    _, label = np.unique(
        np.concatenate([column[column >= 0] for column in labels]), return_inverse=True
    )
    # A graph with a node per pair and a node per label.
    nodes = size + int(label.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(pairs), bool), (pairs, size + label)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][:size]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
