"""Audio in: decode, resample, segment, loudness."""

from apex_reward.audio.load import AUDIO_ENDINGS, Waveform, load_audio, save_wav

__all__ = ["AUDIO_ENDINGS", "Waveform", "load_audio", "save_wav"]
