"""The options of `apex-reward pairs` that say which pairs are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.pairs.options import PairOptions

_choice = partial(typer.Option, rich_help_panel="How pairs are chosen")
_kept = partial(typer.Option, rich_help_panel="What is kept")


@dataclass(frozen=True)
class PairChoices:
    """`PairOptions` as the command line says them."""

    strategy: Annotated[
        str,
        _choice(
            metavar="NAME",
            help="best-worst, all, top-bottom, margin, mrsd, pareto, two-axis, or "
            "package.module:function.",
        ),
    ] = "best-worst"
    axis: Annotated[
        str | None,
        _choice(
            metavar="NAME",
            help="Primary axis: a numeric column, or a mix of heads such as "
            "musicality=1,clarity=0.5 or overall.",
            show_default="musicality",
        ),
    ] = None
    axes: Annotated[
        str | None, _choice(help="Other axes for mrsd, pareto and two-axis.", metavar="A,B")
    ] = None
    min_margin: Annotated[
        float, _choice(help="Smallest difference on the primary axis.", metavar="X")
    ] = 0.0
    min_agreement: Annotated[
        float | None,
        _kept(
            help="Least share of an ensemble's members that put the chosen above the rejected.",
            metavar="SHARE",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        _choice(help="Candidates on each side of top-bottom.", metavar="K", show_default="2"),
    ] = None
    quantile: Annotated[
        float | None,
        _choice(
            help="Of the within-prompt differences.",
            metavar="Q",
            show_default="0.75 for margin, 0.95 for mrsd",
        ),
    ] = None
    threshold: Annotated[
        list[str] | None, _choice(help="For two-axis, given twice.", metavar="NAME=X")
    ] = None
    protect: Annotated[
        list[str] | None,
        _kept(help="Axis of which the chosen may lose at most so much.", metavar="NAME=TOLERANCE"),
    ] = None
    chosen_floor: Annotated[
        str | None, _kept(help="Least primary axis of the chosen: a value, or q0.8.", metavar="X")
    ] = None
    rejected_ceiling: Annotated[
        str | None, _kept(help="Most primary axis of the rejected: a value, or q0.2.", metavar="X")
    ] = None
    match_duration: Annotated[
        float | None, _kept(help="Largest difference of length.", metavar="SECONDS")
    ] = None
    match_loudness: Annotated[
        float | None,
        _kept(help="Largest difference of loudness; measured where not given.", metavar="DB"),
    ] = None
    drop_flags: Annotated[
        str | None, _kept(help="Drop candidates with any of these flags.", metavar="A,B")
    ] = None
    balance_axes: Annotated[
        bool,
        _kept("--balance-axes", help="Equally many pairs for each deciding axis."),
    ] = False
    max_pairs_per_prompt: Annotated[
        int | None, _kept(help="Keep the widest margins of each prompt.", metavar="N")
    ] = None
    max_pairs_per_candidate: Annotated[
        int | None, _kept(help="Keep the widest margins of each candidate.", metavar="N")
    ] = None
    test_share: Annotated[
        float,
        _kept(help="Share of pairs in the split 'test', by whole prompt and group.", metavar="X"),
    ] = 0.1
    seed: Annotated[int, _kept(help="Of the split.", metavar="N")] = 0

    def options(self) -> PairOptions:
        """Read and checked; raises UsageError for what can't be."""
        from apex_reward.pairs.options import PairOptions, as_names

        return PairOptions(
            **{
                **vars(self),
                "axes": as_names(self.axes),
                "drop_flags": as_names(self.drop_flags),
                "threshold": _numbers_by_name("threshold", self.threshold),
                "protect": _numbers_by_name("protect", self.protect),
            }
        )


def _numbers_by_name(option: str, given: list[str] | None) -> dict[str, float]:
    """`NAME=X` texts as a dict; the name may be a mix, so the last `=` counts."""
    numbers: dict[str, float] = {}
    for text in given or []:
        name, _, number = text.rpartition("=")
        try:
            numbers[name.strip()] = float(number)
        except ValueError:
            name = ""
        if not name.strip():
            raise UsageError(f"--{option} is {text!r}; expected NAME=NUMBER")
    return numbers
