"""Why each candidate or pair was dropped: one reason each, the first that applied."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Ledger:
    """Reasons of `size` things; those without a reason are still in.

    A reason reads `category` or `category: detail`; counts are by category.
    """

    def __init__(self, size: int) -> None:
        self._texts = [""]
        self._number = {"": 0}
        self.codes = np.zeros(size, np.int32)
        """Number of each reason, in order of first use; 0 for what is still in."""

    @property
    def open(self) -> Mask:
        """True for what has not been dropped."""
        return self.codes == 0

    def text(self, code: int) -> str:
        """The reason of a number."""
        return self._texts[code]

    def drop(self, which: Mask, reason: str) -> None:
        """Drop the marked ones that are still in."""
        self.codes[which & self.open] = self._code(reason)

    def drop_one(self, position: int, reason: str) -> None:
        """Drop one, if it is still in."""
        if not self.codes[position]:
            self.codes[position] = self._code(reason)

    def reasons(self) -> list[str]:
        """The reason of each, "" for what is still in."""
        return [self._texts[code] for code in self.codes.tolist()]

    def counts(self) -> dict[str, int]:
        """How many were dropped, by category, in the order in which categories first applied."""
        numbers = np.bincount(self.codes, minlength=len(self._texts)).tolist()
        counts: Counter[str] = Counter()
        for text, number in zip(self._texts[1:], numbers[1:], strict=True):
            if number:
                counts[text.partition(": ")[0]] += number
        return dict(counts)

    def _code(self, reason: str) -> int:
        if reason not in self._number:
            self._number[reason] = len(self._texts)
            self._texts.append(reason)
        return self._number[reason]
