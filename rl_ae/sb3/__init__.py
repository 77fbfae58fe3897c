"""Autoencoders inside Stable-Baselines3 agents."""

from rl_ae.sb3.extractor import AutoencoderExtractor
from rl_ae.sb3.policies import SACAEPolicy
from rl_ae.sb3.replay import FrameReplayBuffer
from rl_ae.sb3.sac_ae import SACAE, NonFiniteError

__all__ = ["SACAE", "AutoencoderExtractor", "FrameReplayBuffer", "NonFiniteError", "SACAEPolicy"]
