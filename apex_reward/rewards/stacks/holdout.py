"""When to stop: a held-out reward that turns while the trained one rises.

What is optimised stops telling the truth somewhere (L. Gao et al., arXiv 2210.10760). Songs of
prompts that nothing is trained on, judged by a reward that nothing is trained on (another model of
a panel, a gold reward), say where.

The rule looks at trends, not at single values: of the latest w judgements, for every w of at least
`shortest`, it takes Kendall's test against a falling trend (exact, one-sided: how often would w
values without a trend be as well ordered downwards?). It fires where the held-out reward falls with
p below `alpha` over some window in which the trained reward rises with p below 0.05. One noisy
judgement orders nothing, and two rewards that fall together are no gaming.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerCallback

from apex_reward.errors import expect
from apex_reward.files.tables import write_table
from apex_reward.report.charts import draw_curves

RISES = 0.05
Measure = Callable[[Any], float | Sequence[float]]


@dataclass(frozen=True)
class Turn:
    """Where a held-out reward turned.

    Attributes:
        step: at which the rule fired.
        since: the first step of the window that shows it best.
        p_value: of Kendall's test over that window.
        fell: from the mean of the window's first half to that of its second, below 0.
    """

    step: int
    since: int
    p_value: float
    fell: float

    def __str__(self) -> str:
        return (
            f"the held-out reward has fallen since step {self.since} (by {-self.fell:.3g}, p = "
            f"{self.p_value:.2g}) while the trained reward rises: the reward is being gamed; take "
            f"a checkpoint from about step {self.since}"
        )


class StopRule:
    """The rule of this module, for a loop of one's own.

        rule = StopRule()
        turn = rule.add(step, training=mean_reward, held_out=held_out_reward)
        if turn is not None:
            break

    Args:
        alpha: a window's largest p; the docs give the false alarms of whole runs.
        shortest: judgements in a window, at least 4.

    Raises:
        UsageError: either out of range.
    """

    def __init__(self, alpha: float = 1e-4, shortest: int = 8) -> None:
        expect(0 < alpha < 1, "alpha", alpha, "a share above 0 and below 1")
        expect(shortest >= 4, "shortest", shortest, "at least 4")
        self.alpha, self.shortest = alpha, shortest
        self.rows: list[dict[str, Any]] = []
        self.turn: Turn | None = None

    def add(self, step: int, training: float, held_out: float) -> Turn | None:
        """Take one judgement.

        Args:
            step: rising from call to call.
            training: mean reward of what was trained on since the last judgement.
            held_out: mean held-out reward of the same held-out prompts every time, best from the
                same random numbers.

        Returns:
            The turn at the step where the rule fires first, which `turn` keeps; else None.
        """
        row: dict[str, Any] = {"step": step, "reward": training, "holdout": held_out}
        self.rows.append(row)
        trained, held = (np.array([one[name] for one in self.rows]) for name in list(row)[1:])
        # Of the windows of at least `shortest` judgements, the shortest first.
        falls, rises = (falling_p(values)[self.shortest - 1 :] for values in (held, -trained))
        row["p_value"] = float(falls.min()) if len(falls) else None
        shown = np.where(rises < RISES, falls, 1.0)
        if self.turn is not None or shown.min(initial=1.0) >= self.alpha:
            return None
        best = int(shown.argmin())
        size = best + self.shortest
        window = held[-size:]
        fell = window[size // 2 :].mean() - window[: size // 2].mean()
        self.turn = Turn(step, self.rows[-size]["step"], float(shown[best]), float(fell))
        return self.turn


def falling_p(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Of the last 1, 2, ... N values: how often are values without a trend as well ordered down?

    Kendall's test against a falling trend, exact; a tie counts as half a rise.

    Args:
        values: (N,).

    Returns:
        (N,) in (0, 1]; the first is 1.
    """
    x = np.asarray(values, np.float64)
    rises = np.triu(np.heaviside(x[None] - x[:, None], 0.5), 1).sum(axis=1)
    counts = np.ceil(rises[::-1].cumsum()).astype(int)  # of the windows that end at the end
    return np.array([_rising_pairs(size)[count] for size, count in enumerate(counts, 1)])


_SHARES = np.ones(1)  # of each number of rising pairs, for as many values as _DISTRIBUTIONS has
_DISTRIBUTIONS = [np.ones(1)]


def _rising_pairs(count: int) -> npt.NDArray[np.float64]:
    """Distribution function of the number of rising pairs of `count` values in random order.

    The distribution of n values is that of n - 1 values plus a uniform number from 0 to n - 1.
    """
    global _SHARES
    for size in range(len(_DISTRIBUTIONS) + 1, count + 1):
        _SHARES = np.convolve(_SHARES, np.full(size, 1 / size))
        _DISTRIBUTIONS.append(np.minimum(1.0, np.cumsum(_SHARES)))
    return _DISTRIBUTIONS[count - 1]


class HoldoutCallback(TrainerCallback):
    """The rule in a trainer of transformers or TRL.

        held_out = HoldoutCallback(lambda model: judge(songs_of(model), prompts).known, every=10)
        trainer = GRPOTrainer(..., callbacks=[held_out])

    At the first log that comes `every` or more steps after the last judgement, `measure` is called;
    `holdout/reward` is added to the logged row and to the trainer's `log_history`. A turn is warned
    of, and ends the training where `stop` is set. (`first_of(trainer)` puts it before the trackers,
    so that they get the figure too.)

    Args:
        measure: of the model in training: held-out rewards of the held-out prompts, or their mean.
            It is called on every process.
        every: steps between two judgements.
        column: the logged reward that is trained on.
        stop: whether a turn ends the training.
        rule: None takes `StopRule()`.
        output: folder that gets `holdout.jsonl` and `holdout.png` at the end.
        formats: of the picture.
    """

    def __init__(
        self,
        measure: Measure,
        every: int = 10,
        *,
        column: str = "reward",
        stop: bool = False,
        rule: StopRule | None = None,
        output: str | Path | None = None,
        formats: Sequence[str] = ("png",),
    ) -> None:
        expect(every >= 1, "every", every, "at least 1 step")
        self.measure, self.every, self.column, self.stop = measure, every, column, stop
        self.rule = rule or StopRule()
        self.output, self.formats = output, formats
        self._last = 0
        self._since: list[float] = []

    def first_of(self, trainer: Any) -> HoldoutCallback:
        """Put it before the trainer's other callbacks, trackers among them."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A run that goes on takes up the judgements that it has logged."""
        self._last = state.global_step
        seen: list[float] = []
        for row in state.log_history:
            if self.column in row:
                seen.append(row[self.column])
            if "holdout/reward" in row and seen:
                self.rule.add(row["step"], float(np.mean(seen)), row["holdout/reward"])
                self._last, seen = row["step"], []

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **_: Any
    ) -> None:
        """Judge where it is time."""
        if not logs or self.column not in logs:
            return
        self._since.append(float(logs[self.column]))
        if state.global_step - self._last < self.every:
            return
        held_out = float(np.mean(self.measure(model)))
        turn = self.rule.add(state.global_step, float(np.mean(self._since)), held_out)
        self._last, self._since = state.global_step, []
        logs["holdout/reward"] = held_out
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1]["holdout/reward"] = held_out
        if turn is not None:
            warnings.warn(f"step {turn.step}: {turn}", stacklevel=2)
            if self.stop:
                control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write table and picture."""
        if self.output is not None and self.rule.rows and state.is_world_process_zero:
            write_holdout(self.rule, self.output, self.formats)


def write_holdout(rule: StopRule, output: str | Path, formats: Sequence[str] = ("png",)) -> None:
    """Write `holdout.jsonl`, a row per judgement, and a picture of both rewards into a folder."""
    folder = Path(output)
    write_table(folder / "holdout.jsonl", rule.rows)
    note = "" if rule.turn is None else f"turned: step {rule.turn.since} to {rule.turn.step}"
    panels = {"trained reward": ["reward"], "held-out reward": ["holdout"]}
    draw_curves(rule.rows, panels, folder / "holdout", note, formats)
