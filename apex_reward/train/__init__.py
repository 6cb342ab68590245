"""Train the predictor on shards, evaluate it, and rerun the paper's 24 conditions."""
