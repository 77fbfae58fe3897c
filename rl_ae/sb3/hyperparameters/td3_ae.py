"""TD3-AE's settings by environment; the zoo reads ``hyperparams``. Copy this file to write your own."""

from rl_ae.sb3.hyperparameters.sac_ae import DMC
from rl_ae.sb3.run_config import PENDULUM_TD3, RunConfig
from rl_ae.sb3.zoo import zoo_settings

hyperparams = {config.env: zoo_settings(config) for config in (PENDULUM_TD3, *DMC, RunConfig(env="default"))}
