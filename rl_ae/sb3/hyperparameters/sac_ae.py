"""SAC-AE's settings by environment; the zoo reads ``hyperparams``. Copy this file to write your own."""

from rl_ae.envs import PixelConfig
from rl_ae.sb3.run_config import PENDULUM, RunConfig
from rl_ae.sb3.zoo import zoo_settings

#: The paper's action repeats (arXiv 1910.01741, as listed by CURL, arXiv 2004.04136, Table 3); its other settings are
#: the algorithm's defaults.
ACTION_REPEATS = {
    "ball_in_cup-catch": 4,
    "cartpole-swingup": 8,
    "cheetah-run": 4,
    "finger-spin": 2,
    "reacher-easy": 4,
    "walker-walk": 2,
}
#: Environment frames of a run on DMC.
FRAMES = 500_000

DMC = [
    RunConfig(env=f"dm_control/{task}-v0", steps=FRAMES // repeat, pixels=PixelConfig(action_repeat=repeat))
    for task, repeat in ACTION_REPEATS.items()
]

hyperparams = {config.env: zoo_settings(config) for config in (PENDULUM, *DMC, RunConfig(env="default"))}
