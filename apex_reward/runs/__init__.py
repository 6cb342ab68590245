"""What training runs share: settings, stopping in time, what a run leaves, a policy of tokens."""
