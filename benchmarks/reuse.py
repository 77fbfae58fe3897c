"""Do eyes that were trained first save steps, and seconds? Pretrained and frozen against from scratch.

    OMP_NUM_THREADS=1 python -m benchmarks.reuse pendulum --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.reuse cartpole-swingup --seeds 0 1 2

``rl-ae collect`` plays at random, ``rl-ae pretrain`` learns an autoencoder of single frames from it, once for all
seeds. Then two agents learn on the same environment: SAC-AE from scratch, its encoder learning with the policy; and
Stable-Baselines3's SAC, which sees the frozen encoder's latents of the last three frames
(:class:`~rl_ae.sb3.LatentObservation`). Everything stays in ``--runs``: a run from scratch that was killed goes on, and
what is finished is not run again. Curves, table, summary and plot go to ``--results`` after every run.
"""

import dataclasses
import functools
import json
import shlex
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback

from benchmarks.learning import solved_at
from benchmarks.presets import SAC_AE_FAST, apply
from benchmarks.records import write_json, write_rows
from benchmarks.suites import SUITES
from rl_ae import cli
from rl_ae.files import write_atomically
from rl_ae.pretraining import Pretraining
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.sb3 import LatentObservation
from rl_ae.sb3.callbacks import LearningCurve, Progress, Row, read_curve
from rl_ae.sb3.memory import keep_freed_memory
from rl_ae.sb3.run_config import PENDULUM, RunConfig
from rl_ae.sb3.runs import Run, train_run

RESULTS = Path(__file__).parent / "results" / "reuse"
SCRATCH, FROZEN = "scratch", "frozen"
LABELS = {SCRATCH: "SAC-AE from scratch", FROZEN: "SAC on latents of a frozen encoder"}
#: Frames whose latents the agent sees, as many as the one from scratch sees of the frames themselves.
STACK = 3
#: SAC-AE's step size, batch, discount, first temperature and τ in SAC; its networks are Stable-Baselines3's, 256 wide.
SAC_ARGUMENTS = {
    "learning_rate": 1e-3,
    "batch_size": 128,
    "gamma": 0.99,
    "ent_coef": "auto_0.1",
    "tau": 0.01,
    "learning_starts": 1_000,
}
EVALUATION_SEED = 10_000
#: Steps of a frozen agent for each of one from scratch: they take a fraction of the time.
FROZEN_STEPS = 2
#: Steps between two points of a plotted curve.
BIN = 500


class Task(NamedTuple):
    """What is learned.

    Attributes:
        scratch: The agent from scratch; the frozen one sees the same pixels.
        collect: Flags of ``rl-ae collect``.
        pretrain: Flags of ``rl-ae pretrain``.
        goals: Returns whose steps and seconds are told.
    """

    scratch: RunConfig
    collect: str
    pretrain: str
    goals: tuple[float, ...]


TASKS = {
    "pendulum": Task(
        dataclasses.replace(PENDULUM, steps=4_000),
        "--env Pendulum-v1 --episodes 60 --policy brownian held random --size 48 48 --grayscale "
        "--crop 110 110 390 390 --action-repeat 2",
        "--autoencoder rae_compact --input-centre 1 --output-centre 1 --batch-size 64 --steps 3000",
        (-600.0, -400.0, -300.0),
    ),
    "cartpole-swingup": Task(
        dataclasses.replace(apply(SAC_AE_FAST, SUITES["dmc100k"].config("cartpole-swingup"), {}, seed=0), steps=5_000),
        "--env dmc:cartpole-swingup --episodes 40 --policy brownian held random --size 64 64 --action-repeat 8 "
        "--max-steps 125",
        "--autoencoder rae_compact --batch-size 64 --steps 4000",
        (200.0, 250.0),
    ),
}


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        task: Of TASKS.
        seeds: Training seeds.
        agents: Which of the two.
        steps: Agent steps of a run from scratch; the task's own if omitted.
        runs: Folder of data, eyes and runs.
        results: Folder of the results.
    """

    task: Annotated[Literal["pendulum", "cartpole-swingup"], tyro.conf.Positional]
    seeds: tuple[int, ...] = (0, 1, 2)
    agents: tuple[Literal["scratch", "frozen"], ...] = (FROZEN, SCRATCH)
    steps: int | None = None
    runs: Path = Path("runs/reuse")
    results: Path = RESULTS


# ---------------------------------------------------------------------- what is run


class Eyes(NamedTuple):
    """Who has been pretrained.

    Attributes:
        autoencoder: Its folder.
        costs: Seconds that data and training took, over all sessions, and its PSNR on held-out episodes.
    """

    autoencoder: Path
    costs: dict[str, float]


def train_eyes(task: Task, folder: Path) -> Eyes:
    """Collect and pretrain, as far as that is not done yet."""
    data, eyes, record = folder / "data", Pretraining(folder / "eyes"), folder / "eyes.json"
    costs = json.loads(record.read_text()) if record.exists() else {}
    commands = {
        "collecting": f"collect {task.collect} --out {shlex.quote(str(data))}",
        "pretraining": f"pretrain --data {shlex.quote(str(data))} {task.pretrain} --resume --out "
        f"{shlex.quote(str(eyes.folder))}",
    }
    for name, command in commands.items():
        if name not in costs:
            spent = functools.partial(seconds_since, time.monotonic(), costs.pop(f"{name}, unfinished", 0.0))
            try:
                cli.main(shlex.split(command))
            except BaseException:
                write_json(record, {**costs, f"{name}, unfinished": spent()})
                raise
            costs[name] = spent()
            write_json(record, costs)
    validated = [row for row in eyes.read_metrics() if "validation_total" in row]
    kept = min(validated, key=lambda row: row["validation_total"])
    return Eyes(eyes.autoencoder, {**costs, "held_out_psnr": kept["validation_psnr"]})


def seconds_since(started: float, before: float) -> float:
    """Seconds on the monotonic clock since then, and those spent before."""
    return round(time.monotonic() - started + before, 1)


def see_with(eyes: Path, config: RunConfig, training: bool) -> gym.Env[Any, Any]:
    """The run's environment, seen through a frozen encoder: the latents of the last frames in a row."""
    single = dataclasses.replace(config, pixels=dataclasses.replace(config.pixels, frame_stack=1))
    latents = LatentObservation(single.make_env(training), eyes, device="cpu")
    return FlattenObservation(FrameStackObservation(latents, STACK))


def train_frozen(config: RunConfig, eyes: Path, curve: Path) -> list[Row]:
    """SAC on latents; its curve, written when all is done."""
    rows = read_curve(curve)
    if not rows or rows[-1]["step"] < config.steps:
        evaluations = EvalCallback(
            see_with(eyes, config, training=False),
            n_eval_episodes=config.eval_episodes,
            eval_freq=config.eval_every,
            verbose=0,
            warn=False,
        )
        evaluations.eval_env.seed(EVALUATION_SEED)
        learned = LearningCurve(curve, config.log_every, config.pixels.action_repeat)
        learned.evaluation = evaluations
        agent = SAC("MlpPolicy", see_with(eyes, config, training=True), seed=config.seed, device="cpu", **SAC_ARGUMENTS)
        agent.learn(config.steps, callback=[evaluations, learned, Progress(learned, config.steps)])
        learned.add_row()
        learned.write()
        rows = learned.rows
    return rows


def train_scratch(config: RunConfig, folder: Path) -> list[Row]:
    """SAC-AE; its curve."""
    run = Run(folder)
    rows = read_curve(run.curve)
    if not rows or rows[-1]["step"] < config.steps:
        train_run(config, folder, resume=True)
        rows = read_curve(run.curve)
    return rows


# ---------------------------------------------------------------------- the report


def describe(agent: str, seed: int, rows: list[Row], goals: tuple[float, ...]) -> dict[str, Any]:
    """What a run reached, and when."""
    evaluations = [row["evaluation"] for row in rows if np.isfinite(row["evaluation"])]
    returns = [row["return"] for row in rows if np.isfinite(row["return"])]
    return {
        "agent": agent,
        "seed": seed,
        "steps": rows[-1]["step"],
        "frames": rows[-1]["frames"],
        "seconds": rows[-1]["seconds"],
        "return": float(np.mean(returns)) if returns else None,
        "evaluation": evaluations[-1] if evaluations else None,
        "reached": {f"{goal:g}": reached(rows, goal) for goal in goals},
    }


def reached(rows: list[Row], goal: float) -> dict[str, float] | None:
    """Step, and seconds of training until then, at which the last episodes return as much on average."""
    step = solved_at(rows, goal)
    return next(({"step": step, "seconds": row["seconds"]} for row in rows if row["step"] == step), None)


def table(task: Task, records: list[dict[str, Any]], costs: dict[str, float]) -> str:
    """A row a run, as Markdown."""
    goals = [f"{goal:g}" for goal in task.goals]
    lines = [
        "| agent | seed | steps | training | " + " | ".join(f"{goal} reached at" for goal in goals) + " | evaluation |",
        "|---|" + "---|" * (len(goals) + 4),
    ]
    for record in records:
        times = [record["reached"].get(goal) for goal in goals]
        cells = ["–" if at is None else f"step {at['step']:,}, {at['seconds']:.0f} s" for at in times]
        evaluation = "–" if record["evaluation"] is None else f"{record['evaluation']:.0f}"
        lines.append(
            f"| {LABELS[record['agent']]} | {record['seed']} | {record['steps']:,} | {record['seconds']:.0f} s | "
            f"{' | '.join(cells)} | {evaluation} |"
        )
    lines.append(
        f"\nThe eyes, once for all seeds: {costs['collecting']:.0f} s of collecting and {costs['pretraining']:.0f} s "
        f"of pretraining; {costs['held_out_psnr']:.1f} dB on episodes held out."
    )
    return "\n".join(lines)


def binned(rows: list[Row]) -> list[tuple[float, float, float]]:
    """Last step, its seconds, and mean return of every so many steps in which episodes ended."""
    found = []
    for start in range(0, int(rows[-1]["step"]), BIN):
        inside = [row for row in rows if start < row["step"] <= start + BIN and np.isfinite(row["return"])]
        if inside:
            mean = float(np.mean([row["return"] for row in inside]))
            found.append((inside[-1]["step"], inside[-1]["seconds"], mean))
    return found


def plot(task_name: str, records: list[dict[str, Any]], costs: dict[str, float], folder: Path) -> None:
    """Returns over steps, and over seconds with those of the eyes."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_step, by_seconds = figure.subplots(1, 2, sharey=True)
    for index, agent in enumerate(LABELS):
        before = costs["collecting"] + costs["pretraining"] if agent == FROZEN else 0.0
        label: str | None = LABELS[agent]
        for record in (record for record in records if record["agent"] == agent):
            steps, seconds, returns = np.reshape(binned(read_curve(folder / record["curve"])), (-1, 3)).T
            by_step.plot(steps, returns, color=f"C{index}", label=label)
            by_seconds.plot(before + seconds, returns, color=f"C{index}")
            label = None
    by_step.set(title=task_name, xlabel="agent steps", ylabel=f"return of training episodes, means of {BIN} steps")
    by_seconds.set(title="with the seconds of the eyes", xlabel="seconds")
    by_step.legend()
    for axes in (by_step, by_seconds):
        axes.grid(alpha=0.3)
    write_atomically(folder / "curves.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    """Run what is not finished, and write down what all runs reached."""
    arguments = tyro.cli(Arguments, description=__doc__)
    keep_freed_memory()
    task, runs, results = TASKS[arguments.task], arguments.runs / arguments.task, arguments.results / arguments.task
    config = dataclasses.replace(task.scratch, steps=arguments.steps or task.scratch.steps)
    eyes = train_eyes(task, runs)
    results.mkdir(parents=True, exist_ok=True)
    summary = results / "summary.json"
    known = json.loads(summary.read_text())["runs"] if summary.exists() else []
    by_run = {(record["agent"], record["seed"]): record for record in known}
    for agent in arguments.agents:
        for seed in arguments.seeds:
            steps = FROZEN_STEPS * config.steps if agent == FROZEN else config.steps
            seeded = dataclasses.replace(config, seed=seed, steps=steps)
            curve = f"{agent}_{seed}.csv"
            record, rows = by_run.get((agent, seed), {}), read_curve(results / curve)
            if rows and record.get("steps", 0) >= steps:
                made = {name: record[name] for name in ("machine", "commit")}
            else:
                made = {"machine": describe_machine(), "commit": git_commit()}
                if agent == FROZEN:
                    rows = train_frozen(seeded, eyes.autoencoder, runs / curve)
                else:
                    rows = train_scratch(seeded, runs / f"{agent}_{seed}")
            rows = [row for row in rows if row["step"] <= steps]  # an older run may have gone on for longer
            write_rows(results / curve, rows, list(rows[0]))
            by_run[agent, seed] = {**describe(agent, seed, rows, task.goals), "curve": curve, **made}
            records = sorted(by_run.values(), key=lambda record: (list(LABELS).index(record["agent"]), record["seed"]))
            write_json(summary, {"eyes": eyes.costs, "runs": records})
            text = table(task, records, eyes.costs)
            write_atomically(results / "table.md", lambda path: path.write_text(text + "\n"))  # noqa: B023
            plot(arguments.task, records, eyes.costs, results)
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
