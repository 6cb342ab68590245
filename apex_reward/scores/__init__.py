"""Heads, scores, and how they become one scalar reward."""
