"""Guards: measures of the ways a policy games a music reward, and what to do when one trips.

A measure is a pure function of one waveform; a `Guard` is a measure with limits in its units and
an action; `Guards` holds several. The reward model hears silence, loops or noise as readily as
music, so a policy that finds them will use them.
"""

from apex_reward.rewards.guards.guard import (
    DEFAULT_GUARDS,
    UNFAMILIAR,
    Action,
    Combine,
    Guard,
    Guards,
    as_guards,
)
from apex_reward.rewards.guards.measures import (
    Measure,
    band_limit,
    clipped_share,
    dc_offset,
    duration,
    inaudible_share,
    loop_correlation,
    loudness,
    mono_loss,
    near_silence,
    noise_floor,
    silent_share,
)

__all__ = [
    "DEFAULT_GUARDS",
    "UNFAMILIAR",
    "Action",
    "Combine",
    "Guard",
    "Guards",
    "Measure",
    "as_guards",
    "band_limit",
    "clipped_share",
    "dc_offset",
    "duration",
    "inaudible_share",
    "loop_correlation",
    "loudness",
    "mono_loss",
    "near_silence",
    "noise_floor",
    "silent_share",
]
