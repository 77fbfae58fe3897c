"""Does it learn, and as well in each mode? A task, some modes and seeds, and the curves.

    python -m benchmarks.learning pendulum --seeds 0 1 2
    python -m benchmarks.learning pendulum --modes paper_fp32 fused_bf16 --seeds 0 1 2

Each run is trained and evaluated by ``rl-ae``, in processes of its own and one after the other. The runs stay in
``--runs`` and resume; finished ones are not run again, ``--report`` runs none. Curves, table, summary and plot, of
these runs and of all that are in the results already, go to ``benchmarks/results/<task>/``.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.records import write_json
from rl_ae import precision
from rl_ae.files import write_atomically
from rl_ae.provenance import describe_machine
from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.runs import Run

RESULTS = Path(__file__).parent / "results"


class Task(NamedTuple):
    """What is learned.

    Attributes:
        flags: Of ``rl-ae train``.
        title: Of the plot.
        solved: A return that counts as solved.
    """

    flags: str
    title: str
    solved: float


TASKS = {
    "pendulum": Task("--preset pendulum", "SAC-AE, Pendulum from pixels: 48×48 grey, action repeat 2", -300.0),
    "pendulum_td3": Task("--preset pendulum_td3", "TD3-AE, Pendulum from pixels: 48×48 grey, action repeat 2", -300.0),
    # 50,000 frames
    "cartpole_swingup": Task(
        "--preset cartpole_swingup --steps 6250", "SAC-AE, DMC cartpole-swingup: 64×64, action repeat 8", 200.0
    ),
}
#: Mode → further flags of ``rl-ae train``.
MODES = {
    "default": "",
    "paper_fp32": "--update paper --precision fp32",
    "paper_bf16": "--update paper --precision bf16",
    "fused_fp32": "--update fused --precision fp32",
    "fused_bf16": "--update fused --precision bf16",
}
#: Training episodes whose mean return is the one that counts as solved.
EPISODES = 5


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        task: A task.
        modes: How updates are made; default is what the task's preset says.
        seeds: Training seeds.
        runs: Folder of the runs.
        report: Train nothing, and report the runs that are finished.
        results: Folder of the results.
    """

    task: Annotated[Literal["pendulum", "pendulum_td3", "cartpole_swingup"], tyro.conf.Positional]
    modes: tuple[Literal["default", "paper_fp32", "paper_bf16", "fused_fp32", "fused_bf16"], ...] = ("default",)
    seeds: tuple[int, ...] = (0, 1, 2)
    runs: Path = Path("runs/learning")
    report: bool = False
    results: Path = RESULTS


def run_seed(arguments: Arguments, mode: str, seed: int) -> dict[str, Any] | None:
    """Train and evaluate a seed where that is not done yet; what it reached, ``None`` if it may not be run."""
    task = TASKS[arguments.task]
    run = Run(arguments.runs / arguments.task / f"{mode}_{seed}")
    flags = " ".join(part for part in (task.flags, MODES[mode], f"--seed {seed}") if part)
    if not run.evaluation.exists():
        if arguments.report:
            return None
        cli = [sys.executable, "-m", "rl_ae.cli"]
        subprocess.run([*cli, "train", *shlex.split(flags), "--run", run.folder, "--resume"], check=True)
        subprocess.run([*cli, "evaluate", run.folder], check=True)
    curve = arguments.results / arguments.task / f"{mode}_seed{seed}.csv"
    write_atomically(curve, lambda path: path.write_bytes(run.curve.read_bytes()))

    config, evaluation = run.read(), json.loads(run.evaluation.read_text())
    rows = read_curve(run.curve)
    return {
        "mode": mode,
        "seed": seed,
        "command": f"rl-ae train {flags} && rl-ae evaluate RUN",
        "steps": rows[-1]["step"],
        "frames": rows[-1]["frames"],
        "training_seconds": rows[-1]["seconds"],
        "solved_at_step": solved_at(rows, task.solved),
        "sessions": config["sessions"],
        "evaluation": evaluation,
    }


def solved_at(rows: list[dict[str, float]], goal: float) -> float | None:
    """The first step at which the last episodes of training return as much on average; ``None`` if none does."""
    finished = [row for row in rows if np.isfinite(row["return"])]
    for last in range(EPISODES, len(finished) + 1):
        if np.mean([row["return"] for row in finished[last - EPISODES : last]]) >= goal:
            return finished[last - 1]["step"]
    return None


# ---------------------------------------------------------------------- the report


def modes_of(records: list[dict[str, Any]]) -> list[str]:
    """The modes there are records of."""
    return list(dict.fromkeys(record["mode"] for record in records))


def table(task: Task, records: list[dict[str, Any]]) -> str:
    """A row a run, and the mean and standard deviation over the seeds of each mode, as Markdown."""
    lines = [
        "| mode | seed | random policy | trained policy (10 fixed starts) | mean return in training | step of "
        f"{task.solved:.0f} | PSNR | mean frame | steps | frames | training |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for mode in modes_of(records):
        same = [record for record in records if record["mode"] == mode]
        for record in same:
            result = record["evaluation"]
            solved = "–" if record["solved_at_step"] is None else f"{record['solved_at_step']:,}"
            lines.append(
                f"| {mode} | {record['seed']} | {result['random_mean_return']:.0f} "
                f"| {result['mean_return']:.0f} ± {result['std_return']:.0f} | {record['training_return']:.0f} "
                f"| {solved} | {result['psnr']:.1f} dB | {result['mean_frame_psnr']:.1f} dB "
                f"| {record['steps']:,} | {record['frames']:,} | {record['training_seconds']:.0f} s |"
            )
        evaluations = [record["evaluation"]["mean_return"] for record in same]
        training = [record["training_return"] for record in same]
        lines.append(
            f"| {mode} | all | | **{np.mean(evaluations):.0f} ± {np.std(evaluations):.0f}** "
            f"| **{np.mean(training):.0f} ± {np.std(training):.0f}** | | | | | | |"
        )
    return "\n".join(lines)


def plot(arguments: Arguments, records: list[dict[str, Any]]) -> None:
    """Training returns over steps: each seed thin, the mean of a mode's seeds thick."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, mode in enumerate(modes_of(records)):
        curves = [read_finished(arguments, record) for record in records if record["mode"] == mode]
        for rows in curves:
            axes.plot([r["step"] for r in rows], [r["return"] for r in rows], color=f"C{index}", lw=0.8, alpha=0.4)
        steps = np.linspace(0, max(rows[-1]["step"] for rows in curves), 21)[1:]
        smooth = [
            [np.mean([r["return"] for r in rows if step - steps[0] < r["step"] <= step] or [np.nan]) for step in steps]
            for rows in curves
        ]
        axes.plot(steps, np.mean(smooth, axis=0), color=f"C{index}", lw=2, label=f"{mode}, mean of {len(curves)} seeds")
    random = np.mean([record["evaluation"]["random_mean_return"] for record in records])
    axes.axhline(random, color="gray", ls=":", label="random policy")
    axes.set(title=TASKS[arguments.task].title, xlabel="agent steps", ylabel="return of training episodes")
    axes.legend()
    axes.grid(alpha=0.3)
    path = arguments.results / arguments.task / "curves.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=120))


def read_finished(arguments: Arguments, record: dict[str, Any]) -> list[dict[str, float]]:
    """The rows of a record's curve in which an episode has ended."""
    rows = read_curve(arguments.results / arguments.task / f"{record['mode']}_seed{record['seed']}.csv")
    return [row for row in rows if np.isfinite(row["return"])]


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    in_bf16 = [mode for mode in arguments.modes if "bf16" in mode]
    if in_bf16 and not arguments.report and not precision.has_fast_bf16(torch.device("cpu")):
        raise SystemExit(f"this processor has no bfloat16 instructions: {in_bf16} would compute in fp32")
    path = arguments.results / arguments.task / "summary.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    by_run = {(record["mode"], record["seed"]): record for record in known}
    hardware = {**describe_machine(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    for mode in arguments.modes:
        for seed in arguments.seeds:
            record = run_seed(arguments, mode, seed)
            if record is not None:
                by_run[mode, seed] = {**record, "hardware": hardware}
    records = sorted(by_run.values(), key=lambda record: (list(MODES).index(record["mode"]), record["seed"]))
    if not records:
        raise SystemExit(f"no finished run in {arguments.runs / arguments.task}")
    for record in records:
        record["training_return"] = float(np.mean([row["return"] for row in read_finished(arguments, record)]))
    write_json(path, {"runs": records})
    plot(arguments, records)
    text = table(TASKS[arguments.task], records)
    write_atomically(path.with_name("table.md"), lambda file: file.write_text(text + "\n"))
    print(text)


if __name__ == "__main__":
    main()
