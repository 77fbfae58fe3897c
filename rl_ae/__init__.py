"""Autoencoders as feature extractors and auxiliary losses for Stable-Baselines3.

This package imports torch and numpy only; what needs Stable-Baselines3 lives in :mod:`rl_ae.sb3`.
"""

from rl_ae.autoencoders import Autoencoder, ConvAutoencoder, Encoder
from rl_ae.configs import CONFIGS, AutoencoderConfig, ConvConfig, RAEConfig
from rl_ae.factory import create_autoencoder, create_encoder, create_learner, resolve_config
from rl_ae.latents import DeterministicLatent, Latent
from rl_ae.learner import RepresentationLearner

__version__ = "0.1.0"

__all__ = [
    "CONFIGS",
    "Autoencoder",
    "AutoencoderConfig",
    "ConvAutoencoder",
    "ConvConfig",
    "DeterministicLatent",
    "Encoder",
    "Latent",
    "RAEConfig",
    "RepresentationLearner",
    "create_autoencoder",
    "create_encoder",
    "create_learner",
    "resolve_config",
]
