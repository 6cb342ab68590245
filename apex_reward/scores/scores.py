"""`Scores`: the heads of a batch of songs, under any names.

Shape key: B = batch of songs, H = heads, M = members of an ensemble, h = heads of one ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.scores.apex import apex_heads, known_heads
from apex_reward.scores.head import Head

MOST_SHOWN = 20
# Names of an ensemble's heads, and the (M, B, h) scores of its members.
Ensembles = tuple[tuple[tuple[str, ...], Tensor], ...]


class Scores(Mapping[str, Tensor]):
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
        UsageError: no head, tensors that are not (B,) of one length, names that differ from
            those of `heads`, or members of another shape.

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
        self._values = dict(values)
        self.heads: tuple[Head, ...] = tuple(known_heads(values) if heads is None else heads)
        if members is None:
            members = ()
        self.ensembles: Ensembles = (
            members if isinstance(members, tuple) else ((tuple(self._values), members),)
        )
        names = [head.name for head in self.heads]
        if names != list(self._values) or not names:
            raise UsageError(
                f"scores for {', '.join(self._values) or 'no head'}; "
                f"the heads are {', '.join(names) or 'none'}"
            )
        shapes = {tuple(value.shape) for value in self._values.values()}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise UsageError(
                f"scores have shapes {', '.join(map(str, sorted(shapes)))}; expected (B,) each"
            )
        for own, tensor in self.ensembles:
            if tuple(tensor.shape[1:]) != (self.songs, len(own)):
                raise UsageError(
                    f"members have shape {tuple(tensor.shape)}; expected (M, {self.songs}, "
                    f"{len(own)})"
                )

    @classmethod
    def from_stack(
        cls,
        values: Tensor,
        heads: Sequence[Head | str] | None = None,
        members: Tensor | None = None,
    ) -> Scores:
        """Build from a (B, H) tensor with a column per head, in the order of `heads`.

        None takes APEX's heads: all seven, or the first two where there are two columns.
        """
        heads = apex_heads(values.shape[-1]) if heads is None else heads
        named = [head.name if isinstance(head, Head) else head for head in heads]
        if values.ndim != 2 or values.shape[1] != len(named):
            raise UsageError(
                f"scores have shape {tuple(values.shape)}; expected (B, {len(named)}) "
                f"for the heads {', '.join(named)}"
            )
        ranged = [head for head in heads if isinstance(head, Head)]
        columns = dict(zip(named, values.unbind(dim=1), strict=True))
        return cls(columns, ranged if len(ranged) == len(named) else None, members)

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
        return tuple(self._values)

    @property
    def songs(self) -> int:
        """B, the number of songs."""
        return int(next(iter(self._values.values())).shape[0])

    def __getitem__(self, head: str) -> Tensor:
        """The (B,) scores of one head; raises UsageError where it is absent."""
        try:
            return self._values[head]
        except KeyError:
            raise UsageError(
                f"no head {head!r} in these scores; present: {', '.join(self._values)}"
            ) from None

    def get(self, head: str, default: Any = None) -> Any:
        """The (B,) scores of one head, or `default` where it is absent."""
        return self._values.get(head, default)

    def __contains__(self, head: object) -> bool:
        return head in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        """The number of heads, as of any mapping; `songs` is the batch's size."""
        return len(self._values)

    def __getattr__(self, name: str) -> Tensor:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"no head {name!r} in these scores; present: {', '.join(values)}")

    def __repr__(self) -> str:
        return f"Scores({', '.join(self._values)}; {self.songs} songs)"

    def _repr_html_(self) -> str:
        """A table for notebooks, a row per song."""
        rows = self.rows()[:MOST_SHOWN]
        names = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else self._values))
        lines = ["".join(f"<td>{value:.3f}</td>" for value in row.values()) for row in rows]
        table = "".join(f"<tr>{line}</tr>" for line in (names, *lines))
        left = f"<p>{len(rows)} of {self.songs} songs.</p>" if self.songs > len(rows) else ""
        return f"<table>{table}</table>{left}"

    def stack(self) -> Tensor:
        """All heads as one (B, H) tensor in head order."""
        return torch.stack(list(self._values.values()), dim=1)

    @property
    def members(self) -> Tensor | None:
        """(M, B, H) scores of each member of one ensemble that gives all heads; else None."""
        whole = [tensor for own, tensor in self.ensembles if len(own) == len(self)]
        return whole[0] if whole else None

    @property
    def std(self) -> Scores | None:
        """Spread of the members of each head's ensemble (population standard deviation).

        0 for heads without an ensemble; None where there is no ensemble at all.
        """
        if not self.ensembles:
            return None
        spread = {name: torch.zeros_like(value) for name, value in self._values.items()}
        for own, tensor in self.ensembles:
            spread |= zip(own, tensor.std(dim=0, correction=0).unbind(dim=1), strict=True)
        return Scores(spread, [Head(head.name, 0.0) for head in self.heads])

    def member(self, index: int, ensemble: int | None = None) -> Scores:
        """The scores of one member of every ensemble, or of one ensemble only.

        Heads without such a member keep their values.
        """
        if not self.ensembles:
            raise UsageError("these scores are of one model; there are no members")
        values = dict(self._values)
        for number, (own, tensor) in enumerate(self.ensembles):
            if ensemble in (None, number) and index < len(tensor):
                values |= zip(own, tensor[index].unbind(dim=1), strict=True)
        return Scores(values, self.heads)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Scores:
        """The same scores with `function` applied to every head's tensor (`.detach`, `.cpu`)."""
        return Scores(
            {name: function(value) for name, value in self._values.items()},
            self.heads,
            tuple((own, function(tensor)) for own, tensor in self.ensembles),
        )

    def song(self, index: int) -> Scores:
        """The scores of one song, (1,) each."""
        return Scores(
            {name: value[index : index + 1] for name, value in self._values.items()},
            self.heads,
            tuple((own, tensor[:, index : index + 1]) for own, tensor in self.ensembles),
        )

    def renamed(self, prefix: str) -> Scores:
        """The same scores under the names `prefix.head`, as in a panel."""
        return Scores(
            {f"{prefix}.{name}": value for name, value in self._values.items()},
            [Head(f"{prefix}.{head.name}", head.low, head.high) for head in self.heads],
            tuple(
                (tuple(f"{prefix}.{name}" for name in own), tensor)
                for own, tensor in self.ensembles
            ),
        )

    def rows(self) -> list[dict[str, float]]:
        """One JSON-ready dict per song: the heads in order, then `<head>_std` with an ensemble."""
        rows = [
            dict(zip(self._values, values, strict=True))
            for values in self.stack().detach().cpu().tolist()
        ]
        spread = self.std
        if spread is not None:
            names = [f"{name}_std" for name in self._values]
            for row, values in zip(rows, spread.stack().detach().cpu().tolist(), strict=True):
                row.update(zip(names, values, strict=True))
        return rows
