"""The baseline every table starts with: uniform actions, as an agent that learns nothing."""

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor


class UniformPolicy(BasePolicy):
    """Draws actions from their space, whatever the observation.

    Args:
        observation_space: Any.
        action_space: Any that can be sampled; its seed is that of the draws.
        lr_schedule: As every policy's; nothing is learned.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Schedule | None = None
    ) -> None:
        super().__init__(observation_space, action_space)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        count = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        return torch.as_tensor(np.stack([self.action_space.sample() for _ in range(count)]))


class RandomAgent(OffPolicyAlgorithm):
    """Acts uniformly at random, in any space of actions.

    Args:
        policy: ``"CnnPolicy"`` or any other of the names that agents have for theirs, or a class.
        env: Any environment.
        seed: Of the actions.
        device: As every agent's.
        verbose: As every agent's.
        _init_setup_model: As every agent's.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), UniformPolicy
    )

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=0.0,
            buffer_size=1,  # SB3's loop wants one
            learning_starts=0,
            gradient_steps=0,
            seed=seed,
            device=device,
            verbose=verbose,
            sde_support=False,
        )
        if _init_setup_model:
            self._setup_model()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Learn nothing."""
