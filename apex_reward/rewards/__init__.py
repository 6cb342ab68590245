"""Rewards: models, panels, the `Reward` object, guards, gradients and the stacks' adapters."""
