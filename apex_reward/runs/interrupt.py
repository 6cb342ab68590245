"""Ctrl-C without loss: the step is finished and saved, and the run prints how to resume it.

A second Ctrl-C ends the run at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from apex_reward.rewards.groups import everywhere

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the run is asked to end: true from the first Ctrl-C (or SIGTERM) on.

    with Interrupt() as interrupt:
        for step in range(steps):
            ...
            if interrupt.asked():
                break

    Outside the main thread it stays false, because no signal can be caught there.
    """

    def __init__(self) -> None:
        self._asked = False
        self._former: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether any process is asked to end. All processes must call it at the same step."""
        return any(everywhere([self._asked])[0])

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        text = "\nending after this step; press Ctrl-C again to end at once"
        print(text, file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)


class InterruptCallback(TrainerCallback):
    """Ends a trainer after the step in which the run is asked to end, with a checkpoint.

        with Interrupt() as interrupt:
            trainer.add_callback(InterruptCallback(interrupt))
            trainer.train()

    Attributes:
        stopped: whether it ended the training.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if asked."""
        if self.interrupt.asked():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Print how to resume a training that was stopped."""
        if self.stopped and state.is_world_process_zero:
            print(how_to_go_on(args.output_dir))


def how_to_go_on(output_dir: str) -> str:
    """The last message of an ended run: where its files are, and the option that resumes it."""
    checkpoint = get_last_checkpoint(output_dir)
    if checkpoint is None:
        return f"ended early; the files are in {output_dir}, without a checkpoint to resume from"
    return (
        f"ended early; the files are in {output_dir}. Go on with the same command and "
        f"--resume_from_checkpoint {checkpoint}"
    )
