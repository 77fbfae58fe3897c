"""Does SAC-AE learn Pendulum from pixels within minutes? Three seeds of the demo's preset.

    python -m benchmarks.pendulum_pixels --seeds 0 1 2

Each seed is trained and evaluated by the command line, in processes of its own and one after the other. The runs stay
in ``--runs``, curves and summary go to ``benchmarks/results/pendulum_pixels/``. Finished seeds are not run again.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.pictures import write_atomically

RESULTS = Path(__file__).parent / "results" / "pendulum_pixels"


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        seeds: Training seeds.
        runs: Folder of the runs.
        preset: Settings, a preset of rl-ae train.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    runs: Path = Path("runs/pendulum_pixels")
    preset: str = "pendulum"


def run_seed(seed: int, runs: Path, preset: str) -> dict:
    """Train and evaluate one seed; what it reached."""
    run = runs / f"{preset}_{seed}"
    cli = [sys.executable, "-m", "rl_ae.cli"]
    subprocess.run([*cli, "train", "--preset", preset, "--seed", str(seed), "--run", run, "--resume"], check=True)
    subprocess.run([*cli, "evaluate", run], check=True)

    rows = read_curve(run / "curve.csv")
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / f"seed{seed}.csv", lambda path: path.write_bytes((run / "curve.csv").read_bytes()))
    evaluation = json.loads((run / "evaluation.json").read_text())
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    config = json.loads((run / "config.json").read_text())
    return {
        "seed": seed,
        "command": f"rl-ae train --preset {preset} --seed {seed} && rl-ae evaluate RUN",
        "steps": evaluation["step"],
        "frames": evaluation["step"] * config["config"]["pixels"]["action_repeat"],
        "training_seconds": state["extra"]["seconds"],
        "episodes": len(rows),
        **{name: evaluation[name] for name in ("random_mean_return", "mean_return", "std_return", "returns")},
        **{name: evaluation[name] for name in ("psnr", "mean_frame_psnr")},
        "versions": config["versions"],
    }


def table(records: list[dict]) -> str:
    """The summary as Markdown."""
    lines = [
        "| seed | random | trained (10 fixed starts) | PSNR | mean frame | steps | frames | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['seed']} | {r['random_mean_return']:.0f} | {r['mean_return']:.0f} ± {r['std_return']:.0f} "
        f"| {r['psnr']:.1f} dB | {r['mean_frame_psnr']:.1f} dB | {r['steps']:,} | {r['frames']:,} "
        f"| {r['training_seconds']:.0f} s |"
        for r in records
    ]
    return "\n".join(lines)


def plot(records: list[dict]) -> None:
    """Training returns of all seeds over steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for record in records:
        rows = read_curve(RESULTS / f"seed{record['seed']}.csv")
        axes.plot([row["step"] for row in rows], [row["return"] for row in rows], ".-", label=f"seed {record['seed']}")
    axes.axhline(np.mean([record["random_mean_return"] for record in records]), color="gray", ls=":", label="random")
    axes.set(
        title="SAC-AE on Pendulum from pixels (48×48 grey, action repeat 2)",
        xlabel="agent steps",
        ylabel="return of training episodes",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomically(RESULTS / "curves.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    records = [run_seed(seed, arguments.runs, arguments.preset) for seed in arguments.seeds]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")}
    summary = json.dumps({"hardware": machine, "seeds": records}, indent=2)
    write_atomically(RESULTS / "summary.json", lambda path: path.write_text(summary + "\n"))
    plot(records)
    print(table(records))


if __name__ == "__main__":
    main()
