"""The fixtures of this folder."""

from tests.songs_fixtures import model, songs

__all__ = ["model", "songs"]
