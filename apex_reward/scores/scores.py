"""`Scores`: the heads of a batch of songs, under any names.

Shape key: B = batch of songs, H = heads, M = members of an ensemble, h = heads of one ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.scores.apex import apex_heads, known_heads
from apex_reward.scores.head import Head

MOST_SHOWN = 20
# Names of an ensemble's heads, and the (M, B, h) scores of its members.
Ensembles = tuple[tuple[tuple[str, ...], Tensor], ...]


class Scores(dict[str, Tensor]):
    """Scores of a batch of songs: an ordered mapping of head name to a (B,) tensor.

    Heads are attributes too (`scores.musicality`), where their name is a Python name. Tensors stay
    on the autograd graph. An ensemble's scores are the means over its members; `ensembles` holds
    the scores of each member and `std` their spread.

    Args:
        values: head name to (B,) tensor, in head order.
        heads: the heads with their ranges, in the same order; None takes the ranges of APEX's
            heads by their names and none for others.
        members: (M, B, H) scores of each member of an ensemble; None where there is none. Of
            several ensembles side by side, (M, B, h) tensors with their heads' names.

    Raises:
        UsageError: no head, tensors that are not (B,) of one length, or names that differ from
            those of `heads`.

    >>> import torch
    >>> scores = Scores({"groove": torch.tensor([0.5, 0.75])}, heads=[Head("groove", 0, 1)])
    >>> scores.groove.tolist(), scores["groove"] is scores.groove, len(scores)
    ([0.5, 0.75], True, 1)
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        heads: Sequence[Head] | None = None,
        members: Tensor | Ensembles | None = None,
    ) -> None:
        super().__init__(values)
        self.heads: tuple[Head, ...] = tuple(known_heads(values) if heads is None else heads)
        if isinstance(members, Tensor):
            members = ((self.names, members),)
        self.ensembles: Ensembles = members or ()
        names = ", ".join(head.name for head in self.heads)
        if names != ", ".join(self) or not names:
            raise UsageError(
                f"scores for {', '.join(self) or 'no head'}; the heads are {names or 'none'}"
            )
        shapes = {tuple(value.shape) for value in self.values()}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise UsageError(
                f"scores have shapes {', '.join(map(str, sorted(shapes)))}; expected (B,) each"
            )

    @classmethod
    def from_stack(
        cls, values: Tensor, heads: Sequence[Head] | None = None, members: Tensor | None = None
    ) -> Scores:
        """Build from a (B, H) tensor with a column per head, in the order of `heads`.

        None takes APEX's heads: all seven, or the first two where there are two columns.
        """
        heads = apex_heads(values.shape[-1]) if heads is None else heads
        columns = zip((head.name for head in heads), values.unbind(dim=1), strict=True)
        return cls(dict(columns), heads, members)

    @classmethod
    def from_members(cls, members: Tensor, heads: Sequence[Head]) -> Scores:
        """Build from (M, B, H) scores of an ensemble: the means over its members."""
        return cls.from_stack(members.mean(dim=0), heads, members)

    @classmethod
    def side_by_side(cls, parts: Sequence[Scores]) -> Scores:
        """The heads of several scores of the same songs, in order; each keeps its own members."""
        return cls(
            {name: value for part in parts for name, value in part.items()},
            [head for part in parts for head in part.heads],
            tuple(ensemble for part in parts for ensemble in part.ensembles),
        )

    @classmethod
    def of_songs(cls, parts: Sequence[Scores]) -> Scores:
        """Scores of several batches, one after the other; members where all of them have some."""
        first = parts[0]
        known = all(len(part.ensembles) == len(first.ensembles) for part in parts)
        return cls(
            {name: torch.cat([part[name] for part in parts]) for name in first},
            first.heads,
            tuple(
                (own, torch.cat([part.ensembles[n][1] for part in parts], dim=1))
                for n, (own, _) in enumerate(first.ensembles if known else ())
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The heads' names, in order."""
        return tuple(self)

    @property
    def songs(self) -> int:
        """B, the number of songs."""
        return len(next(iter(self.values())))

    def __missing__(self, head: str) -> Tensor:
        """Raises UsageError where a head is absent."""
        raise UsageError(f"no head {head!r} in these scores; present: {', '.join(self)}")

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"no head {name!r} in these scores; present: {', '.join(self)}")

    def __repr__(self) -> str:
        return f"Scores({', '.join(self)}; {self.songs} songs)"

    def _repr_html_(self) -> str:
        """A table for notebooks, a row per song."""
        rows = self.rows()[:MOST_SHOWN]
        lines = ["".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else self))]
        lines += ["".join(f"<td>{value:.3f}</td>" for value in row.values()) for row in rows]
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        left = f"<p>{len(rows)} of {self.songs} songs.</p>" if self.songs > len(rows) else ""
        return f"<table>{table}</table>{left}"

    def stack(self) -> Tensor:
        """All heads as one (B, H) tensor in head order."""
        return torch.stack(list(self.values()), dim=1)

    @property
    def members(self) -> Tensor | None:
        """(M, B, H) scores of each member of one ensemble that gives all heads; else None."""
        return next((tensor for own, tensor in self.ensembles if len(own) == len(self)), None)

    @property
    def std(self) -> Scores | None:
        """Spread of the members of each head's ensemble (population standard deviation).

        0 for heads without an ensemble; None where there is no ensemble at all.
        """
        if not self.ensembles:
            return None
        spread = {name: torch.zeros_like(value) for name, value in self.items()}
        for own, tensor in self.ensembles:
            spread |= zip(own, tensor.std(dim=0, correction=0).unbind(dim=1), strict=True)
        return Scores(spread, [Head(name, 0.0) for name in self])

    def member(self, index: int, ensemble: int | None = None) -> Scores:
        """The scores of one member of every ensemble, or of one ensemble only.

        Heads without such a member keep their values.
        """
        values = dict(self)
        for number, (own, tensor) in enumerate(self.ensembles):
            if ensemble in (None, number) and index < len(tensor):
                values |= zip(own, tensor[index].unbind(dim=1), strict=True)
        return Scores(values, self.heads)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Scores:
        """The same scores with `function` applied to every head's tensor (`.detach`, `.cpu`)."""
        return self._changed(function, function)

    def renamed(self, prefix: str) -> Scores:
        """The same scores under the names `prefix.head`, as in a panel."""
        return self._changed(lambda value: value, lambda members: members, f"{prefix}.")

    def rows(self) -> list[dict[str, float]]:
        """One JSON-ready dict per song: the heads in order, then `<head>_std` with an ensemble."""
        spread: Mapping[str, Tensor] = self.std or {}
        columns = {**self, **{f"{name}_std": value for name, value in spread.items()}}
        stacked = torch.stack(list(columns.values()), dim=1).detach().cpu().tolist()
        return [dict(zip(columns, values, strict=True)) for values in stacked]

    def _changed(
        self,
        of_value: Callable[[Tensor], Tensor],
        of_members: Callable[[Tensor], Tensor],
        prefix: str = "",
    ) -> Scores:
        return Scores(
            {prefix + name: of_value(value) for name, value in self.items()},
            [replace(head, name=prefix + head.name) for head in self.heads],
            tuple(
                (tuple(prefix + name for name in own), of_members(tensor))
                for own, tensor in self.ensembles
            ),
        )
