"""Does it learn? A task, some seeds, and the curves.

    python -m benchmarks.learning pendulum --seeds 0 1 2

Each seed is trained and evaluated by ``rl-ae``, in processes of its own and one after the other. The runs stay in
``--runs`` and resume; finished ones are not run again. Curves, summary and plot go to ``benchmarks/results/<task>/``.
"""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.pictures import write_atomically
from rl_ae.sb3.runs import Run

RESULTS = Path(__file__).parent / "results"
#: Task → flags of rl-ae train, and the title of its plot.
TASKS = {
    "pendulum": ("--preset pendulum", "SAC-AE, Pendulum from pixels: 48×48 grey, action repeat 2"),
    "pendulum_td3": ("--preset pendulum_td3", "TD3-AE, Pendulum from pixels: 48×48 grey, action repeat 2"),
}


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        task: A task.
        seeds: Training seeds.
        runs: Folder of the runs.
    """

    task: Annotated[Literal["pendulum", "pendulum_td3"], tyro.conf.Positional]
    seeds: tuple[int, ...] = (0, 1, 2)
    runs: Path = Path("runs")


def run_seed(task: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train and evaluate one seed; what it reached."""
    run = Run(runs / f"{task}_{seed}")
    flags = f"{TASKS[task][0]} --seed {seed}"
    cli = [sys.executable, "-m", "rl_ae.cli"]
    subprocess.run([*cli, "train", *shlex.split(flags), "--run", run.folder, "--resume"], check=True)
    subprocess.run([*cli, "evaluate", run.folder], check=True)
    write_atomically(RESULTS / task / f"seed{seed}.csv", lambda path: path.write_bytes(run.curve.read_bytes()))

    config, evaluation = run.read(), json.loads(run.evaluation.read_text())
    rows = read_curve(run.curve)
    return {
        "seed": seed,
        "command": f"rl-ae train {flags} && rl-ae evaluate RUN",
        "steps": rows[-1]["step"],
        "frames": rows[-1]["frames"],
        "training_seconds": rows[-1]["seconds"],
        "sessions": config["sessions"],
        "evaluation": evaluation,
    }


def table(records: list[dict[str, Any]]) -> str:
    """The summary as Markdown."""
    lines = [
        "| seed | random policy | trained policy (10 fixed starts) | PSNR | mean frame | steps | frames | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        result = record["evaluation"]
        lines.append(
            f"| {record['seed']} | {result['random_mean_return']:.0f} "
            f"| {result['mean_return']:.0f} ± {result['std_return']:.0f} "
            f"| {result['psnr']:.1f} dB | {result['mean_frame_psnr']:.1f} dB "
            f"| {record['steps']:,} | {record['frames']:,} | {record['training_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def plot(task: str, records: list[dict[str, Any]]) -> None:
    """Training returns of all seeds over steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for record in records:
        rows = [row for row in read_curve(RESULTS / task / f"seed{record['seed']}.csv") if np.isfinite(row["return"])]
        axes.plot([row["step"] for row in rows], [row["return"] for row in rows], ".-", label=f"seed {record['seed']}")
    random = np.mean([record["evaluation"]["random_mean_return"] for record in records])
    axes.axhline(random, color="gray", ls=":", label="random policy")
    axes.set(title=TASKS[task][1], xlabel="agent steps", ylabel="return of training episodes")
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomically(RESULTS / task / "curves.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    records = [run_seed(arguments.task, seed, arguments.runs) for seed in arguments.seeds]
    hardware = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
    summary = json.dumps({"hardware": hardware, "seeds": records}, indent=2)
    write_atomically(RESULTS / arguments.task / "summary.json", lambda path: path.write_text(summary + "\n"))
    plot(arguments.task, records)
    print(table(records))


if __name__ == "__main__":
    main()
