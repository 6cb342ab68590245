"""Encoders, with the rate and the windows of each."""
