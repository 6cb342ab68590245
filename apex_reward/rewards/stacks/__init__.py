"""Thin adapters of `Reward` for trainers of others."""
