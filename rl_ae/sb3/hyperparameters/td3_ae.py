"""TD3-AE's settings by environment, SAC-AE's but for what TD3 does not have; the zoo reads ``hyperparams``."""

import dataclasses

from rl_ae.sb3.hyperparameters.sac_ae import DMC
from rl_ae.sb3.run_config import PENDULUM, RunConfig
from rl_ae.sb3.zoo import zoo_settings

AGENT = dataclasses.replace(
    PENDULUM.agent, ent_coef_learning_rate=None, actor_update_interval=None, target_update_interval=None
)

hyperparams = {
    config.env: zoo_settings(config)
    for config in (dataclasses.replace(PENDULUM, algo="td3_ae", agent=AGENT), *DMC, RunConfig(env="default"))
}
