"""Songs of files, bytes and arrays as streams of blocks, decoded ahead of the model. No torch."""

from apex_reward.audio.decoding.decode import (
    DecodedSong,
    decode_song,
    song_of,
    song_of_bytes,
)
from apex_reward.audio.decoding.hearing import BLOCK_SECONDS, DecodeSettings, SongFacts
from apex_reward.audio.decoding.pool import decode_songs
from apex_reward.audio.decoding.sounds import SoundFacts, sound_facts

__all__ = [
    "BLOCK_SECONDS",
    "DecodeSettings",
    "DecodedSong",
    "SongFacts",
    "SoundFacts",
    "decode_song",
    "decode_songs",
    "song_of",
    "song_of_bytes",
    "sound_facts",
]
