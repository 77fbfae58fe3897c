"""A pretrained encoder in Stable-Baselines3's own PPO and SAC, through the features extractor.

    rl-ae pretrain --data … --out eyes
    python examples/reuse_in_stock_agents.py eyes/autoencoder --env CarRacing-v3 --algo ppo --freeze

The agent's file names the folder of the autoencoder and is loaded where that is.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy

from rl_ae import Autoencoder
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import count_frame_channels
from rl_ae.sb3 import AutoencoderExtractor, FrameReplayBuffer


def main(
    model: Annotated[Path, tyro.conf.Positional],
    env: str,
    algo: Literal["ppo", "sac"] = "ppo",
    freeze: bool = False,
    steps: int = 10_000,
    learning_starts: int = 1_000,
    n_steps: int = 1_024,
    batch_size: int = 64,
    action_repeat: int = 1,
    grayscale: bool = False,
    episodes: int = 3,
    out: Path = Path("reused_stock.zip"),
    seed: int = 0,
) -> PPO | SAC:
    """Train, evaluate and save.

    Args:
        model: Folder of the autoencoder.
        env: Id of an environment, its frames like those the autoencoder was trained on.
        algo: Who learns.
        freeze: Let nothing train the encoder; else the agent's own loss does.
        steps: Agent steps.
        learning_starts: Random ones among them, at the start (sac).
        n_steps: Of a rollout (ppo), a multiple of the batch size.
        batch_size: Of a minibatch.
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
    policy_kwargs = {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": model, "freeze": freeze},
        "net_arch": [256, 256],
    }
    training = make_pixel_env(env, pixels)
    agent: PPO | SAC
    if algo == "ppo":
        agent = PPO(
            "CnnPolicy", training, n_steps=n_steps, batch_size=batch_size, policy_kwargs=policy_kwargs, seed=seed
        )
    else:
        agent = SAC(
            "CnnPolicy",
            training,
            replay_buffer_class=FrameReplayBuffer,
            replay_buffer_kwargs={"n_stack": pixels.frame_stack},
            learning_starts=learning_starts,
            batch_size=batch_size,
            buffer_size=max(steps, 1_000),
            policy_kwargs=policy_kwargs,
            seed=seed,
        )
    agent.learn(steps, progress_bar=True)
    mean, std = evaluate_policy(agent, make_pixel_env(env, pixels, training=False), n_eval_episodes=episodes)
    print(f"{algo}, {'frozen' if freeze else 'fine-tuned'} encoder, {steps} steps: return {mean:.1f} ± {std:.1f}")
    agent.save(out)
    return agent


if __name__ == "__main__":
    tyro.cli(main)
