"""A `Reward` behind HTTP; the client is `apex_reward.rewards.foreign.remote`."""
