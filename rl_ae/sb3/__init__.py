"""Autoencoders inside Stable-Baselines3 agents."""

from rl_ae.sb3.extractor import AutoencoderExtractor
from rl_ae.sb3.policies import SACAEPolicy
from rl_ae.sb3.sac_ae import SACAE, NonFiniteError
from rl_ae.sb3.wrappers import LatentObservation, VecLatentObservation

__all__ = [
    "SACAE",
    "AutoencoderExtractor",
    "LatentObservation",
    "NonFiniteError",
    "SACAEPolicy",
    "VecLatentObservation",
]
