"""A page where anybody drops songs and sees what a reward hears: the Try page of `listen`.

REWARD names the model, MIX the mix, LOUDNESS the LUFS; the Space's settings set them.
"""

import os

import uvicorn

from apex_reward import Reward
from apex_reward.listen.app import try_app

reward = Reward(
    os.environ.get("REWARD", "apex-tiny"),
    mix=os.environ.get("MIX"),
    loudness=float(os.environ.get("LOUDNESS", "-18")),
    guards="flag",
)
app = try_app(reward)

if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=int(os.environ.get("PORT", "7860")))
