"""Losses: pure terms, and thin modules that weigh them. Usable alone, with torch and nothing else of this package."""

from rl_ae.logistic_mixture import LogisticMixture
from rl_ae.losses.base import Loss, LossBreakdown, weigh
from rl_ae.losses.deterministic import RAELoss, latent_l2
from rl_ae.losses.disentangling import (
    BTCLoss,
    Decomposition,
    Discriminator,
    FactorLoss,
    decompose_kl,
    density_ratio,
    discriminator_loss,
    permute_latents,
    stratified_weights,
)
from rl_ae.losses.gaussian import BetaBLoss, BetaHLoss, VAELoss, active_units, free_nats, kl_standard_normal
from rl_ae.losses.gram import EMATeacher, GramLoss, gram_loss
from rl_ae.losses.quantized import SQLoss, VQLoss, code_kl, commitment, perplexity, quantization_error
from rl_ae.losses.reconstruction import (
    bernoulli_nll,
    bits_per_dimension,
    gaussian_nll,
    laplace_nll,
    logistic_mixture_nll,
    negative_log_likelihood,
    optimal_gaussian_nll,
    psnr,
    squared_error,
)
from rl_ae.losses.schedules import exponential_schedule, linear_schedule

__all__ = [
    "BTCLoss",
    "BetaBLoss",
    "BetaHLoss",
    "Decomposition",
    "Discriminator",
    "EMATeacher",
    "FactorLoss",
    "GramLoss",
    "LogisticMixture",
    "Loss",
    "LossBreakdown",
    "RAELoss",
    "SQLoss",
    "VAELoss",
    "VQLoss",
    "active_units",
    "bernoulli_nll",
    "bits_per_dimension",
    "code_kl",
    "commitment",
    "decompose_kl",
    "density_ratio",
    "discriminator_loss",
    "exponential_schedule",
    "free_nats",
    "gaussian_nll",
    "gram_loss",
    "kl_standard_normal",
    "laplace_nll",
    "latent_l2",
    "linear_schedule",
    "logistic_mixture_nll",
    "negative_log_likelihood",
    "optimal_gaussian_nll",
    "permute_latents",
    "perplexity",
    "psnr",
    "quantization_error",
    "squared_error",
    "stratified_weights",
    "weigh",
]
