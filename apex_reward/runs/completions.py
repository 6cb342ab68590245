"""Every completion of an RL run with its reward and scores, in a file that grows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apex_reward.files.tables import json_line, read_jsonl, write_text
from apex_reward.rewards.groups import everywhere
from apex_reward.rewards.stacks.trl import ApexRewardFunction


class CompletionLog:
    """A reward function for TRL that keeps what it was asked.

    A row has `step` (completed before it was generated), `prompt`, `reward`, a column per head,
    `reward_raw`, `flags` and `ids`; of several processes the main one writes the rows of all.

    Args:
        function: what rewards.
        path: of the JSON lines.
        writes: whether this process writes.
        resume: keep the rows of a former run; `keep_until` drops those that come again.
    """

    def __init__(
        self,
        function: ApexRewardFunction,
        path: str | Path,
        *,
        writes: bool = True,
        resume: bool = False,
    ) -> None:
        self.function, self.path, self.writes = function, Path(path), writes
        self.__name__ = function.__name__
        self.rows: list[dict[str, Any]] = []
        if resume and self.path.exists():
            self.rows = read_jsonl(self.path)
        self.keep_until(float("inf"))

    def keep_until(self, step: float) -> None:
        """Drop the rows of a step and after it."""
        self.rows = [row for row in self.rows if row["step"] < step]
        if self.writes:
            write_text(self.path, "".join(map(json_line, self.rows)))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """As `ApexRewardFunction`."""
        logged: dict[str, list[Any]] = {}

        def keep(name: str, values: list[Any]) -> None:
            logged[name.rpartition("/")[2]] = values
            if log_extra is not None:
                log_extra(name, values)

        rewards = self.function(prompts, completions, completion_ids, log_extra=keep, **columns)
        step = 0 if trainer_state is None else trainer_state.global_step
        rows = [
            {
                "step": step,
                "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
                "reward": reward,
                **{name: values[i] for name, values in logged.items()},
                "ids": list(completion_ids[i]),
            }
            for i, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True))
        ]
        gathered, _ = everywhere(rows)
        self.rows += gathered
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(map(json_line, gathered)))
        return rewards

    def by_step(self) -> list[list[dict[str, Any]]]:
        """The rows of each step, in order."""
        found: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(row["step"], []).append(row)
        return [found[step] for step in sorted(found)]


def flagged_share(steps: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Share of the decoded songs that trip a guard."""
    flags = [row["flags"] for rows in steps for row in rows if row["flags"] is not None]
    return sum(map(bool, flags)) / max(1, len(flags))


def undecodable_share(steps: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Share of the completions that give no song."""
    rows = [row for rows in steps for row in rows]
    return sum(row["flags"] is None for row in rows) / max(1, len(rows))
