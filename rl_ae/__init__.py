"""Autoencoders as feature extractors and auxiliary losses for Stable-Baselines3.

This package loads neither Stable-Baselines3 nor Gymnasium; what needs them lives in :mod:`rl_ae.sb3`. Its names are
loaded when they are asked for, so that :mod:`rl_ae.losses` alone needs nothing but torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_ae.autoencoders import Autoencoder, Encoder
    from rl_ae.configs import (
        CONFIGS,
        AEConfig,
        AutoencoderConfig,
        BetaBConfig,
        BetaHConfig,
        BTCVAEConfig,
        ConvConfig,
        ConvVAEConfig,
        DiffusionConfig,
        FactorConfig,
        FlowConfig,
        FSQConfig,
        HierarchicalConfig,
        PyramidConfig,
        RAEConfig,
        SQVAEConfig,
        VAEConfig,
        VQVAEConfig,
        WorldModelsConfig,
    )
    from rl_ae.factory import create_autoencoder, create_encoder, create_learner, create_loss, resolve_config
    from rl_ae.latents import (
        DeterministicLatent,
        GaussianLatent,
        HierarchicalLatent,
        Latent,
        QuantizedLatent,
        StochasticLatent,
    )
    from rl_ae.learner import RepresentationLearner

__version__ = "0.1.0"

#: Where the names below are, from the bottom up.
_MODULES = ("latents", "configs", "autoencoders", "learner", "factory")

__all__ = [
    "CONFIGS",
    "AEConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "BTCVAEConfig",
    "BetaBConfig",
    "BetaHConfig",
    "ConvConfig",
    "ConvVAEConfig",
    "DeterministicLatent",
    "DiffusionConfig",
    "Encoder",
    "FSQConfig",
    "FactorConfig",
    "FlowConfig",
    "GaussianLatent",
    "HierarchicalConfig",
    "HierarchicalLatent",
    "Latent",
    "PyramidConfig",
    "QuantizedLatent",
    "RAEConfig",
    "RepresentationLearner",
    "SQVAEConfig",
    "StochasticLatent",
    "VAEConfig",
    "VQVAEConfig",
    "WorldModelsConfig",
    "create_autoencoder",
    "create_encoder",
    "create_learner",
    "create_loss",
    "resolve_config",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            if hasattr(loaded := import_module(f"rl_ae.{module}"), name):
                return getattr(loaded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
