"""``rl-ae``: train, evaluate and look inside from the command line."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from rl_ae.pretraining import PretrainConfig, pretrain
from rl_ae.sb3.collecting import CollectConfig, collect
from rl_ae.sb3.datasets import MinariFrames
from rl_ae.sb3.export import POLICY_FILE, TOLERANCE, export_run
from rl_ae.sb3.inspecting import inspect_model
from rl_ae.sb3.memory import keep_freed_memory
from rl_ae.sb3.playing import EPISODES, STEPS
from rl_ae.sb3.probing import CEILING_UPDATES, ProbeSource, format_table, probe
from rl_ae.sb3.run_config import PRESETS, RunConfig
from rl_ae.sb3.runs import EVALUATION_EPISODES, Run, evaluate_run, train_run
from rl_ae.sb3.show import TRAVERSED, FrameSource, Kind, show


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that was given no folder: runs/<algo>_<env>_<seed>."""
    return Path("runs") / f"{config.algo}_{config.env}_{config.seed}".replace("/", "-").replace(":", "-")


def train(config: RunConfig, folder: Path, resume: bool) -> None:
    """Train an agent in a folder."""
    keep_freed_memory()
    finished = train_run(config, folder, resume)
    print(f"{finished.folder}: checkpoint/, curve.csv, curve.png, reconstructions.png, logs/ for TensorBoard")
    print(f"next: rl-ae evaluate {finished.folder}")


def evaluate(
    run: Annotated[Path, tyro.conf.Positional], episodes: int = EVALUATION_EPISODES, device: str = "auto"
) -> None:
    """Evaluate a run's checkpoint from fixed starts, beside a random policy, and film it.

    Args:
        run: Folder of the run.
        episodes: Episodes to play.
        device: Where the agent runs.
    """
    record = evaluate_run(run, episodes, device)
    print(
        f"return over {episodes} episodes: "
        f"random policy {record['random_mean_return']:.1f} ± {record['random_std_return']:.1f} → "
        f"trained policy {record['mean_return']:.1f} ± {record['std_return']:.1f}"
    )
    if record["psnr"] is not None:
        print(
            f"reconstruction: {record['psnr']:.1f} dB PSNR; "
            f"the mean frame, a blind baseline, reaches {record['mean_frame_psnr']:.1f} dB"
        )
    print(f"{run}:")
    for path in sorted(run.iterdir()):
        print(f"  {path.name}{'/' if path.is_dir() else ''}")


def show_command(
    kind: Annotated[Kind, tyro.conf.Positional],
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    source: Annotated[FrameSource, tyro.conf.arg(name="")],
    out: Path | None = None,
    rows: int = TRAVERSED,
    seed: int = 0,
) -> None:
    """Draw what an autoencoder sees: reconstructions, traversals of its latent, an interpolation, samples, or a film.

    Args:
        kind: Frames above their reconstructions; what each dimension of the latent does to a frame; what lies between
            two frames, the first and the last; samples of the prior; a film of the episode beside what the latents
            alone decode to; or a film of a walk through the prior.
        model: Folder of a run, or of an autoencoder written by save_pretrained or rl-ae export.
        source: Where frames come from.
        out: Picture to write, or film, .mp4 or .gif; show_<kind> in the model's folder if omitted.
        rows: Latent dimensions whose traversals are drawn, the most active ones.
        seed: Of the episode that is played, of samples and of the walk.
    """
    print(show(kind, model, source, out, rows, seed))


def inspect_command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    source: Annotated[FrameSource, tyro.conf.arg(name="")],
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Write one page about what an autoencoder sees over an episode, what its latent holds, and how it was trained.

    Args:
        model: Folder of a run, or of an autoencoder written by save_pretrained or rl-ae export.
        source: Where frames come from.
        out: Page to write; inspection.html in the model's folder if omitted.
        seed: Of the episode that is played.
    """
    print(inspect_model(model, source, out, seed))


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = None,
    onnx: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """Save the policy of a run as ONNX, and its autoencoder for Autoencoder.from_pretrained or another agent.

    Args:
        run: Folder of the run.
        folder: Where to; must be empty if it exists. RUN/export if omitted.
        onnx: Write policy.onnx, which needs the extra "export".
        tolerance: How far its actions may differ from those of the agent.
    """
    folder = run / "export" if folder is None else folder
    latency = export_run(run, folder, onnx, tolerance)
    print(f"{folder}: the autoencoder, config.json and model.safetensors")
    if latency is not None:
        print(
            f"{folder / POLICY_FILE}: encoder and actor, for onnxruntime; one observation takes "
            f"{1e3 * latency.onnx:.2f} ms, and {1e3 * latency.predict:.2f} ms in predict"
        )
    print(f"next: rl-ae train --env … --autoencoder {folder}")


def collect_command(
    config: Annotated[CollectConfig, tyro.conf.arg(name="")],
    out: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")],
    workers: int = 1,
) -> None:
    """Collect episodes of an environment as a data set of Minari; the same command again goes on where it was ended.

    Args:
        config: The collection.
        out: Where to: a folder, or the data set's id in Minari, like carracing/brownian-v0.
        workers: Processes that collect.
    """
    done = collect(config, out, workers)
    counts = f"{done.episodes} episodes, {done.frames:,} frames, {done.size / 1e6:,.1f} MB"
    print(f"{done.folder}: {counts}; in Minari {done.name}")
    print(f"next: rl-ae pretrain --data {out}")


def pretrain_command(
    data: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")],
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")] = PretrainConfig(),
    out: Path | None = None,
    resume: bool = False,
    frame_stack: int = 1,
    size: tuple[int, int] | None = None,
    grayscale: bool = False,
    key: str | None = None,
) -> None:
    """Train an autoencoder on a data set, without an agent.

    Args:
        data: A data set of Minari with images: its folder, or its id.
        config: How.
        out: Folder to write; runs/pretrain_<autoencoder>_<seed> if omitted.
        resume: Continue what is in the folder, if there is anything.
        frame_stack: Frames an observation.
        size: (H, W) that frames are shrunk to; as they are if omitted.
        grayscale: Frames of one channel.
        key: Of observations with several images, which.
    """
    source = MinariFrames(data, frame_stack, size, grayscale, key)
    if config.frame_channels is None and source.frame_channels == 1:  # three of which look like a coloured frame
        config = dataclasses.replace(config, frame_channels=1)
    if out is None:
        out = Path("runs") / f"pretrain_{Path(config.autoencoder).name}_{config.seed}"
    files = pretrain(source, config, out, resume=resume)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # Fabric starts this command for every device of a machine
        return
    validations = [row for row in files.read_metrics() if "validation_total" in row]
    if validations:
        best = min(validations, key=lambda row: row["validation_total"])
        print(
            f"held-out episodes, step {best['step']:.0f}: "
            + ", ".join(
                f"{name.removeprefix('validation_')} {value:.4g}"
                for name, value in best.items()
                if "validation" in name
            )
        )
    print(f"{files.folder}: autoencoder/, metrics.csv, pictures, logs/ for TensorBoard")
    print(f"next: rl-ae train --env … --autoencoder {files.autoencoder}")


def probe_command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    source: Annotated[ProbeSource, tyro.conf.arg(name="")],
    episodes: int = EPISODES,
    steps: int = STEPS,
    ceiling_updates: int = CEILING_UPDATES,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Ask whether a latent holds the simulator's state, beside controls: a table, a CSV file and a bar chart.

    Args:
        model: Folder of a run, or of an autoencoder written by save_pretrained or rl-ae export.
        source: Where frames and states come from.
        episodes: To play, with held random actions, and a run's own agent's without --env; a quarter is held out.
        steps: Most decisions of each.
        ceiling_updates: Gradient steps of the same trunk on the states themselves; 0 for no such ceiling.
        out: Folder for probe.csv, probe.json and probe.png; the model's if omitted.
        seed: Of starts, actions, split and networks.
    """
    report = probe(model, source, episodes=episodes, steps=steps, ceiling_updates=ceiling_updates, out=out, seed=seed)
    print(format_table(report.summaries))
    if report.dropped:
        print(f"without a score, because constant: {', '.join(report.dropped)}")
    print(f"{report.folder}: probe.csv, probe.json, probe.png")


_PRESET_HELP = f"Settings to start from; flags override them. One of: {', '.join(PRESETS)}."


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``rl-ae``."""
    # environments drawn with SDL ask for a display and for sound unless told that there is none
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # it would swallow SIGTERM
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

        commands: dict[str, Callable[..., None]] = {
            "train": train_command,
            "evaluate": evaluate,
            "show": show_command,
            "probe": probe_command,
            "inspect": inspect_command,
            "export": export,
            "collect": collect_command,
            "pretrain": pretrain_command,
        }
        tyro.extras.subcommand_cli_from_dict(commands, args=given, prog="rl-ae")
    except (ValueError, ImportError, MemoryError, OSError, FloatingPointError) as error:
        sys.exit(f"rl-ae: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"\nrl-ae: {interrupt or 'stopped'}")


def _default_config(arguments: list[str]) -> RunConfig:
    """What flags override: the run to resume, a preset, or the plain defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    if known.preset is not None and known.preset not in PRESETS:
        raise ValueError(f"unknown preset {known.preset!r}, expected one of {sorted(PRESETS)}")
    if known.preset is not None:
        return PRESETS[known.preset]
    if known.resume and known.run is not None and Run(known.run).config.exists():
        return Run(known.run).read_config()
    return RunConfig(env=tyro.MISSING)


if __name__ == "__main__":
    main()
