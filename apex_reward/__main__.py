"""`python -m apex_reward`: the command, for launchers that start modules."""

from apex_reward.cli import main

main()
