"""A pretrained encoder as a wrapper: the agent sees latents, and they are all that its replay buffer holds.

    rl-ae pretrain --data … --out eyes
    python examples/reuse_as_latents.py eyes/autoencoder --env CarRacing-v3

Every frame is encoded once, no update runs a convolution, and any algorithm learns with ``"MlpPolicy"``. One frame
shows no velocity, so the agent sees the latents of the last three side by side.
"""

from pathlib import Path
from typing import Annotated

import gymnasium as gym
import tyro
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

from rl_ae import Autoencoder
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import count_frame_channels
from rl_ae.sb3 import LatentObservation


def main(
    model: Annotated[Path, tyro.conf.Positional],
    env: str,
    latents: int = 3,
    steps: int = 10_000,
    learning_starts: int = 1_000,
    action_repeat: int = 1,
    grayscale: bool = False,
    episodes: int = 3,
    out: Path = Path("reused_latents.zip"),
    seed: int = 0,
) -> SAC:
    """Train, evaluate and save.

    Args:
        model: Folder of the autoencoder.
        env: Id of an environment, its frames like those the autoencoder was trained on.
        latents: In a row, that the agent sees; 1 for an autoencoder of stacks.
        steps: Agent steps.
        learning_starts: Random ones among them, at the start.
        action_repeat: Environment frames a step.
        grayscale: The autoencoder's channels are grey frames, though 3 divides their number.
        episodes: Of the evaluation.
        out: File of the agent.
        seed: Of everything.
    """
    channels, height, width = Autoencoder.from_pretrained(model).observation_shape
    frame_channels = count_frame_channels(channels, 1 if grayscale else None)
    pixels = PixelConfig(
        size=(height, width),
        grayscale=frame_channels == 1,
        frame_stack=channels // frame_channels,
        action_repeat=action_repeat,
    )

    def make_env(training: bool) -> gym.Env:
        encoded = LatentObservation(make_pixel_env(env, pixels, training), model)
        return FlattenObservation(FrameStackObservation(encoded, latents))

    agent = SAC("MlpPolicy", make_env(training=True), learning_starts=learning_starts, seed=seed)
    agent.learn(steps, progress_bar=True)
    mean, std = evaluate_policy(agent, make_env(training=False), n_eval_episodes=episodes)
    numbers = agent.observation_space.shape[0]
    print(f"SAC on {numbers} numbers instead of {latents * channels * height * width}: return {mean:.1f} ± {std:.1f}")
    agent.save(out)
    return agent


if __name__ == "__main__":
    tyro.cli(main)
