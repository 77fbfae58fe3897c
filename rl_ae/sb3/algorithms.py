"""Algorithms by the names that configurations have of them: ours, Stable-Baselines3's, and the random one."""

from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_ae.sb3.agent import AutoencoderAgent
from rl_ae.sb3.random_agent import RandomAgent
from rl_ae.sb3.sac_ae import SACAE
from rl_ae.sb3.td3_ae import TD3AE

#: Those that train an autoencoder themselves.
AUTOENCODER_AGENTS: dict[str, type[AutoencoderAgent]] = {"sac_ae": SACAE, "td3_ae": TD3AE}
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    **AUTOENCODER_AGENTS,
    "sac": SAC,
    "td3": TD3,
    "dqn": DQN,
    "ppo": PPO,
    "random": RandomAgent,
}
