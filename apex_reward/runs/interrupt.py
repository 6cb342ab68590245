"""Ctrl-C that loses nothing: the step is finished, and what was done is saved.

The run says how to go on; a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from apex_reward.rewards.groups import everywhere

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody asked the run to end; true from the first Ctrl-C (or SIGTERM) on.

    with Interrupt() as interrupt:
        for step in range(steps):
            ...
            if interrupt.asked():
                break

    Outside the main thread, where no signal can be caught, it stays false.
    """

    def __init__(self) -> None:
        self._asked = False
        self._former: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether any process was asked; with several, all must call it at the same step."""
        flags, _ = everywhere([self._asked])
        return any(flags)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nending after this step; once more ends at once", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)


class InterruptCallback(TrainerCallback):
    """Ends a trainer after the step in which somebody asked, with a checkpoint to go on from."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop where asked."""
        if self.interrupt.asked():
            self.stopped = control.should_save = control.should_training_stop = True


def how_to_go_on(output_dir: str) -> str:
    """The words that an ended run says: what was kept, and which option takes it up again."""
    found = get_last_checkpoint(output_dir)
    if found is None:
        return f"ended early; what was done is in {output_dir}, without a checkpoint to go on from"
    return (
        f"ended early; what was done is in {output_dir}. Go on with the same command and "
        f"--resume_from_checkpoint {found}"
    )
