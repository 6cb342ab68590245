"""Reward models of others, each natively or through its own package."""
