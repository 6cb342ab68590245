"""Commands in a child process that has all libraries already."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from apex_reward.cli import main

NOT_CAUGHT = 99


def start(words: list[str], log: Path) -> int:
    """The process of a command, which says all into a file."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the fork itself is not interrupted
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return child
    code = 130  # an interrupt that waited for this process ends it before the command begins
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        code = NOT_CAUGHT
        sys.argv = ["apex-reward", *words]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
