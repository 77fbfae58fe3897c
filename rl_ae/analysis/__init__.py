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
from rl_ae.analysis.probes import fit_ridge, plot_scores, probe_mlp, probe_ridge, split_episodes

__all__ = [
    "DCI",
    "MIG",
    "SAP",
    "FactorVAEScore",
    "Traversal",
    "concentration",
    "dci",
    "factor_vae_score",
    "fit_ridge",
    "mig",
    "plot_interpolation",
    "plot_reconstructions",
    "plot_samples",
    "plot_scores",
    "plot_traversals",
    "probe_mlp",
    "probe_ridge",
    "sap",
    "split_episodes",
    "traverse",
    "walk_prior",
]
