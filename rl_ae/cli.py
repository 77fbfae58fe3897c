"""``rl-ae``: train and evaluate from the command line."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

from rl_ae.sb3.checkpoint import load_agent
from rl_ae.sb3.evaluation import (
    Episode,
    RandomPolicy,
    ReconstructionQuality,
    compare,
    play_episode,
    reconstruction_quality,
    start_seeds,
)
from rl_ae.sb3.pictures import save_reconstructions, save_video, write_atomically
from rl_ae.sb3.run_config import PRESETS, RunConfig
from rl_ae.sb3.runs import Run, train_run


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that was given no folder: runs/<algo>_<env>_<seed>."""
    return Path("runs") / f"{config.algo}_{config.env}_{config.seed}".replace("/", "-").replace(":", "-")


def train(config: RunConfig, folder: Path, resume: bool) -> None:
    """Train an agent in a folder."""
    finished = train_run(config, folder, resume)
    print(f"run: {finished.folder} (curve.csv, curve.png, reconstructions.png, checkpoint/, logs/ for TensorBoard)")
    print(f"next: rl-ae evaluate {finished.folder}")


def evaluate(run: Annotated[Path, tyro.conf.Positional], episodes: int = 10, device: str = "auto") -> None:
    """Evaluate a run's checkpoint from fixed starts, beside a random policy, and film it.

    Args:
        run: Folder of the run.
        episodes: Episodes to play.
        device: Where the agent runs.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be ≥ 1, got {episodes}")
    config = Run(run).read_config()
    with contextlib.closing(config.make_env()) as env:
        _evaluate(run, config, env, episodes, device)


def _evaluate(run: Path, config: RunConfig, env: gym.Env[Any, Any], episodes: int, device: str) -> None:
    model = load_agent(Run(run).checkpoint, device=device, buffer_size=1)
    seeds = start_seeds(episodes)
    random = [play_episode(RandomPolicy(env.action_space, seed), env, seed).episode_return for seed in seeds]
    played = [play_episode(model, env, seed) for seed in seeds]
    quality = reconstruction_quality(model.policy.autoencoder, [episode.observations for episode in played])

    files = _write_evaluation(run, model, config, random, played, quality)
    trained = [episode.episode_return for episode in played]
    print(
        f"return over {episodes} episodes: random policy {np.mean(random):.1f} ± {np.std(random):.1f} → "
        f"trained policy {np.mean(trained):.1f} ± {np.std(trained):.1f}\n"
        f"reconstruction: {quality.psnr:.1f} dB PSNR, the mean frame reaches {quality.mean_frame_psnr:.1f} dB"
    )
    for path in files:
        print(f"  {path}")


def _write_evaluation(
    run: Path,
    model: Any,
    config: RunConfig,
    random: list[float],
    played: list[Episode],
    quality: ReconstructionQuality,
) -> list[Path]:
    trained = [episode.episode_return for episode in played]
    record = {
        "step": model.num_timesteps,
        "returns": trained,
        "mean_return": float(np.mean(trained)),
        "std_return": float(np.std(trained)),
        "random_returns": random,
        "random_mean_return": float(np.mean(random)),
        "psnr": quality.psnr,
        "mean_frame_psnr": quality.mean_frame_psnr,
    }
    frames, reconstructions = compare(played[0].observations, model.policy.autoencoder, config.pixels.frame_channels)
    shown = np.linspace(0, len(frames) - 1, 8).astype(int)
    return [
        write_atomically(run / "evaluation.json", lambda path: path.write_text(json.dumps(record, indent=2))),
        save_reconstructions(run / "evaluation.png", frames[shown], reconstructions[shown]),
        save_video(run / "evaluation", frames, reconstructions, frames_per_second=20),
    ]


_PRESET_HELP = f"Settings to start from; flags override them. One of: {', '.join(PRESETS)}."


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``rl-ae``."""
    # environments drawn with SDL ask for a display and for sound unless told that there is none
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        default = _default_config(given)

        def train_command(
            config: Annotated[RunConfig, tyro.conf.arg(name="")] = default,
            run: Path | None = None,
            resume: bool = False,
            preset: Annotated[str | None, tyro.conf.arg(help=_PRESET_HELP)] = None,
        ) -> None:
            """Train an agent from pixels, in a folder of its own.

            Args:
                config: The run.
                run: Its folder; runs/<algo>_<env>_<seed> if omitted.
                resume: Continue the run in the folder, if there is one, from its last checkpoint.
                preset: See its help.
            """
            if run is None and resume and Run(default_folder(config)).config.exists():
                main([*given, "--run", str(default_folder(config))])  # whose settings are the defaults, then
            else:
                train(config, default_folder(config) if run is None else run, resume)

        tyro.extras.subcommand_cli_from_dict({"train": train_command, "evaluate": evaluate}, args=given, prog="rl-ae")
    except (ValueError, TypeError, ImportError, MemoryError, FloatingPointError) as error:
        sys.exit(f"rl-ae: {error}")
    except KeyboardInterrupt:
        sys.exit("rl-ae: stopped; --resume continues from the last checkpoint")


def _default_config(arguments: list[str]) -> RunConfig:
    """What flags override: the run to resume, a preset, or the plain defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    if known.preset is not None and known.preset not in PRESETS:
        raise ValueError(f"unknown preset {known.preset!r}, expected one of {sorted(PRESETS)}")
    if known.resume and known.run is not None and Run(known.run).config.exists():
        return Run(known.run).read_config()
    return RunConfig(env=tyro.MISSING) if known.preset is None else PRESETS[known.preset]


if __name__ == "__main__":
    main()
