"""How much memory does image replay take, and how fast is it, beside Stable-Baselines3's buffer?

    python -m benchmarks.replay

Fills ``FrameReplayBuffer`` with random frames and measures by how much that grows the process's resident memory, each
buffer in a process of its own; what Stable-Baselines3's ``ReplayBuffer`` takes is computed, because it hardly fits.
Then times ``add`` and ``sample`` of both, in turns and on the same transitions, with one thread. Table, summary, data
and plot go to ``benchmarks/results/replay/``.
"""

import dataclasses
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from tqdm import tqdm

from benchmarks.records import in_new_process, write_json, write_rows
from rl_ae.files import write_atomically
from rl_ae.sb3 import FrameReplayBuffer
from rl_ae.sb3.memory import bytes_per_step

RESULTS = Path(__file__).parent / "results" / "replay"

N_STACK = 3
FRAME = (3, 84, 84)
IMAGES = spaces.Box(0, 255, (N_STACK * FRAME[0], *FRAME[1:]), np.uint8)
BOTH = spaces.Dict({"camera": IMAGES, "vector": spaces.Box(-1, 1, (8,))})
ACTIONS = spaces.Box(-1, 1, (6,))
BATCH_SIZE = 128


@dataclasses.dataclass
class Arguments:
    """What to measure.

    Attributes:
        transitions: Of the buffers whose memory is measured.
        n_envs: Environments, for both measurements.
        episodes: Steps of an episode, for the memory.
        timed_transitions: Of the buffers that are timed; both kinds are in memory at once.
        rounds: Batches that are timed.
        results: Folder of the results.
    """

    transitions: int = 100_000
    n_envs: tuple[int, ...] = (1, 8)
    episodes: tuple[int, ...] = (1_000, 100, 10)
    timed_transitions: int = 10_000
    rounds: int = 400
    results: Path = RESULTS


# ---------------------------------------------------------------------- what is stored


def frames(seed: int) -> Iterator[np.ndarray]:
    """Frames of random bytes, cut from a few megabytes of them."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(FRAME))
    pool = rng.integers(0, 256, 200 * size, dtype=np.uint8)
    while True:
        for start in rng.integers(0, len(pool) - size, 1_000):
            yield pool[start : start + size].reshape(FRAME)


def transitions(n_envs: int, episode: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(observation, next observation, done) of environments that are stacked and padded as by ``VecFrameStack``."""
    new = frames(seed)
    while True:
        stacks = np.zeros((n_envs, *IMAGES.shape), np.uint8)
        stacks[:, -FRAME[0] :] = [next(new) for _ in range(n_envs)]
        for step in range(1, episode + 1):
            moved = np.concatenate([stacks[:, FRAME[0] :], [next(new) for _ in range(n_envs)]], axis=1)
            yield stacks, moved, step == episode
            stacks = moved


def rest(n_envs: int, done: bool) -> tuple[Any, ...]:
    """Actions, rewards, dones and infos."""
    return np.zeros((n_envs, 6), np.float32), np.zeros(n_envs), np.full(n_envs, done), [{}] * n_envs


# ---------------------------------------------------------------------- memory


def measure_memory(size: int, n_envs: int, episode: int) -> list[dict[str, int]]:
    """Growth of the resident memory while a buffer is filled, and a tenth more than filled."""
    process, stream = psutil.Process(), transitions(n_envs, episode)
    for _ in range(100):
        next(stream)  # what making frames takes is there before
    before = process.memory_info().rss
    buffer = FrameReplayBuffer(size, IMAGES, ACTIONS, device="cpu", n_envs=n_envs, n_stack=N_STACK)
    rows = []
    for step in range(1, round(1.1 * size / n_envs) + 1):
        observation, next_observation, done = next(stream)
        buffer.add(observation, next_observation, *rest(n_envs, done))
        if step % (size // n_envs // 50) == 0:
            grown = process.memory_info().rss - before
            rows.append({"episode": episode, "n_envs": n_envs, "transitions": step * n_envs, "bytes": grown})
    return rows


# ---------------------------------------------------------------------- time


@dataclasses.dataclass(frozen=True)
class Case:
    """Two buffers to compare.

    Attributes:
        theirs: Stable-Baselines3's class.
        space: Of the observations.
        kwargs: Arguments of both.
    """

    theirs: type[ReplayBuffer]
    space: spaces.Space[Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "images": Case(ReplayBuffer, IMAGES),
    "images, 3-step returns": Case(NStepReplayBuffer, IMAGES, {"n_steps": 3, "gamma": 0.99}),
    "Dict of images and a vector": Case(DictReplayBuffer, BOTH),
}


def time_in_turns(functions: tuple[Callable[[], Any], ...], first: int) -> list[float]:
    """Seconds of each function; the one that begins changes with ``first``."""
    seconds = [0.0] * len(functions)
    for index in np.roll(np.arange(len(functions)), first):
        start = time.perf_counter()
        functions[index]()
        seconds[index] = time.perf_counter() - start
    return seconds


def measure_time(name: str, n_envs: int, size: int, rounds: int) -> dict[str, Any]:
    """Pairs of seconds (Stable-Baselines3's, ours) of ``add`` into full buffers, and of ``sample``."""
    torch.set_num_threads(1)
    case = CASES[name]
    arguments = {"device": "cpu", "n_envs": n_envs, **case.kwargs}
    buffers = (
        case.theirs(size, case.space, ACTIONS, **arguments),
        FrameReplayBuffer(size, case.space, ACTIONS, n_stack=N_STACK, **arguments),
    )
    rng, adds = np.random.default_rng(0), []
    stream = transitions(n_envs, 100)
    for step in range(2 * size // n_envs):
        *pair, done = next(stream)
        if isinstance(case.space, spaces.Dict):
            pair = [{"camera": images, "vector": rng.normal(size=(n_envs, 8))} for images in pair]
        row = (*pair, *rest(n_envs, done))
        calls = tuple(functools.partial(buffer.add, *row) for buffer in buffers)
        adds.append(time_in_turns(calls, step))
    samples = []
    for index in range(rounds):
        np.random.seed(index)
        calls = tuple(functools.partial(buffer.sample, BATCH_SIZE) for buffer in buffers)
        samples.append(time_in_turns(calls, index))
    return {
        "add while it fills": adds[: len(adds) // 2],
        "add": adds[len(adds) // 2 :],
        "sample": samples[rounds // 10 :],
    }


def summarise(pairs: list[list[float]]) -> dict[str, list[float]]:
    """Quartiles of the microseconds of both, and of the ratio within a pair."""
    theirs, ours = np.array(pairs).T
    quartiles = {"sb3": 1e6 * theirs, "frames": 1e6 * ours, "ratio": ours / theirs}
    return {name: np.quantile(values, [0.25, 0.5, 0.75]).tolist() for name, values in quartiles.items()}


# ---------------------------------------------------------------------- results


def memory_table(records: list[dict[str, int]], arguments: Arguments) -> str:
    each = bytes_per_step(IMAGES, ACTIONS, optimize_memory_usage=False)
    theirs = arguments.transitions * each
    lines = ["| steps an episode | environments | `FrameReplayBuffer` | SB3's `ReplayBuffer` |", "|---|---|---|---|"]
    for record in records:
        lines.append(
            f"| {record['episode']:,} | {record['n_envs']} | {record['bytes'] / 1e9:.2f} GB | {theirs / 1e9:.1f} GB |"
        )
    return "\n".join(lines)


def time_table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| what | buffer | environments | SB3, µs | `FrameReplayBuffer`, µs | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        cells = [record["what"], record["case"], str(record["n_envs"])]
        for name, form in (("sb3", ",.0f"), ("frames", ",.0f"), ("ratio", ".2f")):
            low, middle, high = record[name]
            cells.append(f"{middle:{form}} ({low:{form}}–{high:{form}})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, int]], times: list[dict[str, Any]], arguments: Arguments) -> None:
    """Memory over transitions, and the ratios of the times."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    each = bytes_per_step(IMAGES, ACTIONS, optimize_memory_usage=False)
    left.plot([0, arguments.transitions], [0, arguments.transitions * each / 1e9], "k--", label="SB3, computed")
    for episode in arguments.episodes:
        for n_envs, style in zip(arguments.n_envs, ("-", ":", "-."), strict=False):
            same = [row for row in rows if (row["episode"], row["n_envs"]) == (episode, n_envs)]
            left.plot(
                [row["transitions"] for row in same],
                [row["bytes"] / 1e9 for row in same],
                style,
                color=f"C{arguments.episodes.index(episode)}",
                label=f"episodes of {episode:,}, {n_envs} environment(s)",
            )
    left.set(xlabel="transitions added", ylabel="growth of resident memory, GB", ylim=(0, None))
    left.legend(fontsize="small")
    labels = [f"{record['what']}, {record['case']}, {record['n_envs']} env." for record in times]
    low, middle, high = np.array([record["ratio"] for record in times]).T
    right.barh(labels, middle, xerr=[middle - low, high - middle], color="C0", alpha=0.7)
    right.axvline(1.0, color="k", ls="--")
    right.tick_params(axis="y", labelsize="small")
    right.invert_yaxis()
    right.set(xlabel="time, FrameReplayBuffer / SB3, median and quartiles")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_atomically(arguments.results / "replay.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    memory, rows, times, jobs = [], [], [], []
    jobs += [(episode, n_envs) for episode in arguments.episodes for n_envs in arguments.n_envs]
    for episode, n_envs in tqdm(jobs, "memory", disable=None):
        measured = in_new_process(measure_memory, arguments.transitions, n_envs, episode)
        rows += measured
        memory.append(max(measured, key=lambda row: row["bytes"]))
    for name in tqdm(CASES, "time", disable=None):
        for n_envs in arguments.n_envs:
            pairs = in_new_process(measure_time, name, n_envs, arguments.timed_transitions, arguments.rounds)
            times += [{"what": w, "case": name, "n_envs": n_envs, **summarise(pairs[w])} for w in pairs]
    times.sort(key=lambda record: record["what"] != "sample")
    write_rows(arguments.results / "memory.csv", rows, ("episode", "n_envs", "transitions", "bytes"))
    packages = ("torch", "stable-baselines3", "numpy")
    summary = {
        "command": f"python -m benchmarks.replay {' '.join(sys.argv[1:])}".strip(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "memory": memory,
        "microseconds": times,
    }
    write_json(arguments.results / "summary.json", summary)
    text = f"{memory_table(memory, arguments)}\n\n{time_table(times)}"
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    plot(rows, times, arguments)
    print(text)


if __name__ == "__main__":
    main()
