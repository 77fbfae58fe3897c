"""Autoencoders inside Stable-Baselines3 agents."""

from rl_ae.sb3.agent import NonFiniteError
from rl_ae.sb3.auxiliary import AuxiliaryLossCallback
from rl_ae.sb3.extractor import AutoencoderExtractor
from rl_ae.sb3.policies import SACAEPolicy, TD3AEPolicy
from rl_ae.sb3.probe_callback import ProbeCallback
from rl_ae.sb3.replay import FrameReplayBuffer
from rl_ae.sb3.sac_ae import SACAE
from rl_ae.sb3.td3_ae import TD3AE
from rl_ae.sb3.wrappers import LatentObservation, VecLatentObservation

__all__ = [
    "SACAE",
    "TD3AE",
    "AutoencoderExtractor",
    "AuxiliaryLossCallback",
    "FrameReplayBuffer",
    "LatentObservation",
    "NonFiniteError",
    "ProbeCallback",
    "SACAEPolicy",
    "TD3AEPolicy",
    "VecLatentObservation",
]
