"""``moving_dot:MovingDot-v0``: the dot of all tests, for those that need an id, and the state behind the frames."""

import gymnasium as gym
import numpy as np
from conftest import DotEnv


class MovingDot(DotEnv):
    """The dot, whose speed is a state of its own and whose colour never changes."""

    def reset(self, *, seed=None, options=None):
        self.velocity = np.zeros(2)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        before = self.position
        result = super().step(action)
        self.velocity = self.position - before
        return result

    def simulator_state(self):
        row, column = map(float, self.position)
        down, right = map(float, self.velocity)
        return {
            "positions": {"row": row, "column": column, "colour": 1.0},
            "velocities": {"down": down, "right": right},
        }


gym.register("MovingDot-v0", lambda **kwargs: MovingDot((1, 16, 16), episode_length=25))
