"""Many files decoded ahead of the model, crash-proof and without torch."""

from apex_reward.audio.decoding.decode import DecodedSong, DecodeSettings, decode_song
from apex_reward.audio.decoding.pool import decode_songs

__all__ = ["DecodeSettings", "DecodedSong", "decode_song", "decode_songs"]
