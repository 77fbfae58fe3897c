"""Presets: who learns, and with which settings; each with the source of its values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from rl_ae.sb3.algorithms import ALGORITHMS
from rl_ae.sb3.run_config import RunConfig


class Preset(NamedTuple):
    """Settings of an algorithm.

    Attributes:
        algo: The algorithm.
        source: Where the values come from.
        agent: Fields of :class:`~rl_ae.sb3.run_config.AgentConfig`.
        pixels: Fields of :class:`~rl_ae.envs.PixelConfig`.
        run: Fields of :class:`~rl_ae.sb3.run_config.RunConfig`.
    """

    algo: str
    source: str
    agent: Mapping[str, Any] = {}
    pixels: Mapping[str, Any] = {}
    run: Mapping[str, Any] = {}

    def variant(self, source: str, **agent: Any) -> "Preset":
        """The same with other settings of the agent."""
        return self._replace(source=source, agent={**self.agent, **agent})


SAC_AE_PAPER = Preset(
    "sac_ae",
    "SAC-AE's code (arXiv 1910.01741): every default of SACAE; 84×84, all updates and losses as there, in fp32. Replay "
    "holds 100,000 transitions, all of such a run, instead of 1,000,000",
    agent={"autoencoder": "rae", "update": "paper", "precision": "fp32"},
    pixels={"size": (84, 84)},
)
SAC_AE_FAST = Preset(
    "sac_ae",
    "ours, for two cores: 64×64, patches of 4×4 pixels and two convolutions of stride 2, critic and representation in "
    "one update; all else is the paper's",
    agent={"autoencoder": "rae_patch"},
    pixels={"size": (64, 64)},
)
SAC_AE_SHIFT = SAC_AE_FAST.variant(
    "sac_ae_fast with DrQ's random shift (arXiv 2004.13649), 4 of 84 pixels in proportion; the decoder returns the "
    "frame that was not shifted",
    augmentation="random_shift",
)
#: SB3's own agents on the same pixels, with MLPs and batches as SAC-AE has them.
_STOCK = {"net_arch": (1024, 1024), "batch_size": 128, "buffer_size": 100_000, "learning_starts": 1_000}
#: A data-efficient DQN after DrQ(ε) (arXiv 2108.13264; Dopamine's labs/atari_100k/configs/DrQ_eps.gin): an update a
#: step, batches of 32, 10-step returns, ε down to 0.01 in 5,000 of 100,000 steps, learning from step 1,600. Not
#: as there: no dueling and double heads and no augmentation, which SB3's DQN has not; for want of a double head the
#: target follows with τ = 0.01 instead of being copied at every step; Adam's ε is torch's, not 1.5e-4.
_DQN_100K = {
    "learning_rate": 1e-4,
    "buffer_size": 100_000,
    "learning_starts": 1_600,
    "batch_size": 32,
    "train_freq": 1,
    "n_steps": 10,
    "target_update_interval": 1,
    "tau": 0.01,
    "exploration_fraction": 0.05,
    "exploration_final_eps": 0.01,
}
#: SAC of CALE (arXiv 2410.23810; Dopamine's labs/cale/configs/sac_cale_100k.gin) at 100k, without its ε-greedy
#: exploration and with torch's ε in Adam: its trunk is SAC-AE's, its actor does not train it.
_CALE_100K = {
    "autoencoder": "rae",
    "net_arch": (512,),
    "learning_rate": 1e-4,
    "ent_coef_learning_rate": 1e-4,
    "batch_size": 32,
    "n_steps": 10,
    "gamma": 0.99,
    "tau": 0.005,
    "encoder_tau": 0.005,
    "target_update_interval": 1,
    "actor_update_interval": 1,
    "target_entropy": -1.5,
    "catch_up_updates": 0,
}

PRESETS = {
    "sac_ae_paper": SAC_AE_PAPER,
    "sac_ae_fast": SAC_AE_FAST,
    "sac_ae_shift": SAC_AE_SHIFT,
    "sac_ae_shift_both": SAC_AE_SHIFT.variant(
        "sac_ae_shift, but what was shifted is decoded", reconstruct_shifted=True
    ),
    "sac_pixels": SAC_AE_FAST.variant(
        "sac_ae_fast without its decoder: SAC from pixels, SAC-AE's ablation", decoder_update_interval=0
    ),
    "sac_pixels_shift": SAC_AE_SHIFT.variant("sac_ae_shift without its decoder, as DrQ", decoder_update_interval=0),
    "td3_ae_fast": SAC_AE_FAST._replace(algo="td3_ae", source="sac_ae_fast, with TD3's settings of TD3AE"),
    "sac": Preset("sac", "Stable-Baselines3's defaults, MLPs and batches as SAC-AE", _STOCK, {"size": (64, 64)}),
    "td3": Preset("td3", "the same; SAC-AE's exploration noise", {**_STOCK, "action_noise": 0.1}, {"size": (64, 64)}),
    "sac+rae": Preset(
        "sac",
        "sac with SAC-AE's compact encoder and its reconstruction as an auxiliary loss",
        {**_STOCK, "autoencoder": "rae_compact"},
        {"size": (64, 64)},
        {"auxiliary": True},
    ),
    "ppo": Preset("ppo", "Stable-Baselines3's defaults", pixels={"size": (64, 64)}),
    "ppo+rae": Preset(
        "ppo",
        "the same with an auxiliary loss",
        {"autoencoder": "rae_compact"},
        {"size": (64, 64)},
        {"auxiliary": True},
    ),
    "atari100k": Preset("dqn", "after DrQ(ε), see _DQN_100K", _DQN_100K),
    "atari100k+rae": Preset(
        "dqn",
        "atari100k with SAC-AE's trunk and its reconstruction as an auxiliary loss",
        {**_DQN_100K, "autoencoder": "rae_compact"},
        run={"auxiliary": True},
    ),
    "cale100k": Preset("sac_ae", "CALE's SAC with a reconstruction, see _CALE_100K", _CALE_100K, {"reward_scale": 0.1}),
    "random": Preset("random", "uniform actions"),
    "sac_ae_smoke": SAC_AE_FAST.variant(
        "small, to see that it runs", net_arch=(64,), learning_starts=100, catch_up_updates=50, batch_size=32
    )._replace(pixels={}),
}

#: The ablations of the SAC-AE paper (arXiv 1910.01741, sections 4 to 6), as variants of the compact preset.
ABLATIONS = {
    **{
        f"vae_beta_{beta:g}": SAC_AE_FAST.variant(f"β-VAE, β = {beta:g}", autoencoder="vae", beta=beta)
        for beta in (0.0, 1e-3, 1e-2, 1e-1, 1.0)
    },
    "vae_beta_0.01_sampled": SAC_AE_FAST.variant(
        "β-VAE whose critic reads a sample of the latent", autoencoder="vae", beta=1e-2, critic_latent="sample"
    ),
    "actor_gradient": SAC_AE_FAST.variant("the actor's loss trains the encoder too", actor_trains_trunk=True),
    "actor_latent": SAC_AE_FAST.variant("the actor reads the critic's latent", actor_input="latent"),
    **{
        f"decoder_every_{interval}": SAC_AE_FAST.variant("seldom reconstructed", decoder_update_interval=interval)
        for interval in (10, 100)
    },
}
PRESETS |= ABLATIONS

#: Family of a suite → algorithm → the preset of it that is run unless another is named.
DEFAULTS: dict[str, dict[str, str]] = {
    "dmc": {"sac_ae": "sac_ae_fast", "td3_ae": "td3_ae_fast", "sac": "sac", "td3": "td3", "ppo": "ppo"},
    "atari": {"dqn": "atari100k", "ppo": "ppo"},
    "cale": {"sac_ae": "cale100k", "td3_ae": "td3_ae_fast", "sac": "sac", "td3": "td3"},
    "gym": {"sac_ae": "sac_ae_fast", "td3_ae": "td3_ae_fast", "sac": "sac", "td3": "td3"},
    "smoke": {"sac_ae": "sac_ae_smoke"},
}


def preset_of(family: str, algo: str, name: str | None) -> tuple[str, Preset]:
    """A preset with its name: the named one, or the default one of an algorithm.

    Raises:
        ValueError: If there is none of that name, it is of another algorithm, or the algorithm has none here.
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algo!r}, expected one of {sorted(ALGORITHMS)}")
    if name is None:
        name = "random" if algo == "random" else DEFAULTS[family].get(algo)
        if name is None:
            fitting = sorted(preset for preset in PRESETS if PRESETS[preset].algo == algo)
            raise ValueError(f"{algo} has no preset for {family}: name one with --preset, of {fitting}")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}, expected one of {sorted(PRESETS)}")
    if PRESETS[name].algo != algo:
        raise ValueError(f"the preset {name!r} is of {PRESETS[name].algo}, got --algo {algo}")
    return name, PRESETS[name]


def apply(preset: Preset, config: RunConfig, changes: Mapping[str, Any], seed: int) -> RunConfig:
    """A task's run with who learns.

    Args:
        preset: Settings.
        config: Of the task.
        changes: Fields of :class:`~rl_ae.sb3.run_config.AgentConfig` that override the preset's.
        seed: Training seed.

    Raises:
        ValueError: If a field is unknown, or a number is out of range.
    """
    known = {field.name for field in dataclasses.fields(config.agent)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"unknown settings {unknown}, expected some of {sorted(known)}")
    return dataclasses.replace(
        config,
        algo=preset.algo,  # type: ignore[arg-type]
        seed=seed,
        agent=dataclasses.replace(config.agent, **{**preset.agent, **changes}),
        pixels=dataclasses.replace(config.pixels, **preset.pixels),
        **preset.run,
    )
