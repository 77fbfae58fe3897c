"""Losses: pure terms, and thin modules that weigh them."""

from rl_ae.losses.base import LossBreakdown, weigh
from rl_ae.losses.latent import RAELoss, latent_l2
from rl_ae.losses.reconstruction import psnr, squared_error

__all__ = ["LossBreakdown", "RAELoss", "latent_l2", "psnr", "squared_error", "weigh"]
