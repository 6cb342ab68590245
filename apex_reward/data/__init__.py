"""From counts and audio to training shards: labels, filters, splits, extraction."""
