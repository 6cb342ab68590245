"""Pages on which people listen: blind votes, comparisons by name, and scores of single songs."""
