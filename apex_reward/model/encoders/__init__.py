"""Encoders and how each hears a song."""
