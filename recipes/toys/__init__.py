"""Small generators for recipes that name no model of their own, and what teaches apex-tiny."""
