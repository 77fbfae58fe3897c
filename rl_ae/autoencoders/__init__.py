"""Autoencoders, one family a file."""

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.autoencoders.deterministic import ConvAutoencoder, DeterministicOutput

__all__ = ["Autoencoder", "ConvAutoencoder", "DeterministicOutput", "Encoder"]
