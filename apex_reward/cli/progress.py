"""Progress of long work, as `apex_reward.cli.common` shows it."""

from apex_reward.cli.common import kept_rows as kept_rows
from apex_reward.cli.common import progress_updates as progress_updates
from apex_reward.cli.common import resumable as resumable
