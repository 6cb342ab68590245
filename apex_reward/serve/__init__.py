"""A `Reward` behind HTTP: the server, and the client that is a `RewardModel`."""
