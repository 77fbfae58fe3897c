"""Autoencoders, one family a file."""

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.autoencoders.deterministic import ConvAutoencoder, DeterministicOutput, VectorAutoencoder
from rl_ae.autoencoders.diffusion import DiffusionLikelihood, DiffusionVAE
from rl_ae.autoencoders.flow import FlowLikelihood, FlowVAE
from rl_ae.autoencoders.gaussian import VAE, BurgessVAE, ConvVAE, GaussianOutput, VectorVAE, WorldModelsVAE
from rl_ae.autoencoders.hierarchical import HierarchicalOutput, HierarchicalVAE
from rl_ae.autoencoders.pyramid import PyramidEncoding, PyramidVAE, VAEDecoder, VAEEncoder
from rl_ae.autoencoders.quantized import FSQVAE, SQVAE, VQVAE, QuantizedOutput, StochasticOutput

__all__ = [
    "FSQVAE",
    "SQVAE",
    "VAE",
    "VQVAE",
    "Autoencoder",
    "BurgessVAE",
    "ConvAutoencoder",
    "ConvVAE",
    "DeterministicOutput",
    "DiffusionLikelihood",
    "DiffusionVAE",
    "Encoder",
    "FlowLikelihood",
    "FlowVAE",
    "GaussianOutput",
    "HierarchicalOutput",
    "HierarchicalVAE",
    "PyramidEncoding",
    "PyramidVAE",
    "QuantizedOutput",
    "StochasticOutput",
    "VAEDecoder",
    "VAEEncoder",
    "VectorAutoencoder",
    "VectorVAE",
    "WorldModelsVAE",
]
