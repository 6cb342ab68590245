"""Small generators, built and trained in seconds, for recipes that name no model of their own."""
