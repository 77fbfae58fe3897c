"""A pretrained autoencoder in SAC-AE: frozen, fine-tuned by the critic, or with its own loss going on.

    rl-ae pretrain --data … --out eyes
    python examples/reuse_in_sac_ae.py eyes/autoencoder --env CarRacing-v3 --how frozen

The agent copies the weights once: what it saves does not need the folder.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from stable_baselines3.common.evaluation import evaluate_policy

from rl_ae import Autoencoder
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import count_frame_channels
from rl_ae.sb3 import SACAE, FrameReplayBuffer

#: What trains the encoder → the arguments that say so.
MODES: dict[str, dict[str, Any]] = {
    "frozen": {"freeze_encoder": True},  # nothing does
    "fine-tuned": {"decoder_update_interval": 0},  # the critic's loss
    "joint": {},  # the critic's loss and reconstruction, as in SAC-AE from scratch
}


def main(
    model: Annotated[Path, tyro.conf.Positional],
    env: str,
    how: Literal["frozen", "fine-tuned", "joint"] = "frozen",
    steps: int = 10_000,
    learning_starts: int = 1_000,
    action_repeat: int = 1,
    grayscale: bool = False,
    episodes: int = 3,
    out: Path = Path("reused_sac_ae.zip"),
    seed: int = 0,
) -> SACAE:
    """Train, evaluate and save.

    Args:
        model: Folder of the autoencoder.
        env: Id of an environment, its frames like those the autoencoder was trained on.
        how: What trains the encoder.
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
    agent = SACAE(
        "CnnPolicy",
        make_pixel_env(env, pixels),
        autoencoder=model,
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs={"n_stack": pixels.frame_stack},
        learning_starts=learning_starts,
        policy_kwargs={"net_arch": [256, 256]},
        buffer_size=max(steps, 1_000),
        seed=seed,
        **MODES[how],
    )
    agent.learn(steps, progress_bar=True)
    mean, std = evaluate_policy(agent, make_pixel_env(env, pixels, training=False), n_eval_episodes=episodes)
    print(f"{how} encoder, {steps} steps: return {mean:.1f} ± {std:.1f}")
    agent.save(out)
    return agent


if __name__ == "__main__":
    tyro.cli(main)
