"""Analysis: what a representation holds, measured on arrays and drawn."""

from rl_ae.analysis.disentanglement import (
    DCI,
    MIG,
    SAP,
    FactorVAEScore,
    concentration,
    dci,
    factor_vae_score,
    mig,
    sap,
)
from rl_ae.analysis.figures import (
    Traversal,
    plot_interpolation,
    plot_reconstructions,
    plot_samples,
    plot_traversals,
    traverse,
    walk_prior,
)

__all__ = [
    "DCI",
    "MIG",
    "SAP",
    "FactorVAEScore",
    "Traversal",
    "concentration",
    "dci",
    "factor_vae_score",
    "mig",
    "plot_interpolation",
    "plot_reconstructions",
    "plot_samples",
    "plot_traversals",
    "sap",
    "traverse",
    "walk_prior",
]
