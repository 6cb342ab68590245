"""The seven heads: their names, order and ranges, and the `Scores` they are returned in.

Shape key: B = batch of songs, H = number of heads (2 or 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Task = Literal["popularity", "full"]

POPULARITY_HEADS = ("score_streams", "score_likes")
AESTHETIC_HEADS = ("coherence", "musicality", "memorability", "clarity", "naturalness")
HEADS = POPULARITY_HEADS + AESTHETIC_HEADS


def task_heads(task: str) -> tuple[str, ...]:
    """The heads of a task, in order: `popularity` has the first two, `full` all seven.

    >>> task_heads("popularity")
    ('score_streams', 'score_likes')
    """
    if task not in get_args(Task):
        raise UsageError(f"task is {task!r}; expected 'popularity' or 'full'")
    return POPULARITY_HEADS if task == "popularity" else HEADS


def head_range(head: str) -> tuple[float, float]:
    """Lowest and highest value a head can take.

    >>> head_range("score_likes"), head_range("clarity")
    ((0.0, 100.0), (1.0, 5.0))
    """
    if head in POPULARITY_HEADS:
        return 0.0, 100.0
    if head in AESTHETIC_HEADS:
        return 1.0, 5.0
    raise UsageError(f"{head!r} is not a head; the heads are {', '.join(HEADS)}")


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of songs, one (B,) tensor per head; higher is better.

    The popularity heads lie in [0, 100], the aesthetic ones in [1, 5]. A model of task
    `popularity` leaves the aesthetic heads None. Tensors stay on the autograd graph.
    """

    score_streams: Tensor
    score_likes: Tensor
    coherence: Tensor | None = None
    musicality: Tensor | None = None
    memorability: Tensor | None = None
    clarity: Tensor | None = None
    naturalness: Tensor | None = None

    @classmethod
    def from_stack(cls, values: Tensor, heads: Sequence[str] | None = None) -> Scores:
        """Build from a (B, H) tensor with columns in head order (or in the order of `heads`)."""
        names = heads or (HEADS if values.shape[-1] == len(HEADS) else POPULARITY_HEADS)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise UsageError(
                f"scores have shape {tuple(values.shape)}; expected (B, {len(names)}) "
                f"for the heads {', '.join(names)}"
            )
        return cls(**dict(zip(names, values.unbind(dim=1), strict=True)))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that are present, in head order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def __getitem__(self, head: str) -> Tensor:
        """The (B,) scores of one head, by name; raises UsageError where the head is absent."""
        value: Tensor | None = getattr(self, head) if head in HEADS else None
        if value is None:
            raise UsageError(f"no head {head!r} in these scores; present: {', '.join(self.heads)}")
        return value

    def __len__(self) -> int:
        return int(self.score_streams.shape[0])

    def stack(self) -> Tensor:
        """All present heads as one (B, H) tensor in head order."""
        import torch

        return torch.stack([self[head] for head in self.heads], dim=1)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Scores:
        """The same scores with `function` applied to every head's tensor (`.detach`, `.cpu`)."""
        return Scores(**{head: function(self[head]) for head in self.heads})

    def rows(self) -> list[dict[str, float]]:
        """One JSON-ready dict per song, keys in head order."""
        return list(self._iterate_rows())

    def _iterate_rows(self) -> Iterator[dict[str, float]]:
        for values in self.stack().detach().cpu().tolist():
            yield dict(zip(self.heads, values, strict=True))
