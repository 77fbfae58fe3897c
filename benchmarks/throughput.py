"""How long does an update take, and what of a run is updating? SACAE, TD3AE, stock agents and the paper's own update.

    python -m benchmarks.throughput

Side by side in one run, in turns: an update, its sampling included, of ``SACAE`` in each mode, of ``TD3AE``, of
Stable-Baselines3's SAC and TD3 with ``CnnPolicy`` and as wide MLPs, and of an unfused transcription of SAC-AE from the
paper (``benchmarks/paper_transcription.py``). With ``--reference CHECKOUT``, a copy of denisyarats/pytorch_sac_ae on
GitHub, the authors' own. Then the same over batch and image size, the memory of an update, each agent in a process of
its own, and where the time of whole DMC runs goes. Nothing else should run meanwhile. Table, summary and plots go to
``benchmarks/results/throughput/``.
"""

import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import psutil
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from benchmarks.official_parity import import_official, make_official
from benchmarks.paper_transcription import PaperSACAE, sample
from benchmarks.records import in_new_process, quartiles, write_json
from rl_ae import precision
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.files import write_atomically
from rl_ae.provenance import describe_machine
from rl_ae.sb3 import SACAE, TD3AE, FrameReplayBuffer
from rl_ae.sb3.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "throughput"

ACTIONS = 6
HIDDEN = 1024
N_STACK = 3
#: Transitions in the replay buffers, as many as the largest batch at least: sampling is the same from more of them.
TRANSITIONS = 600
#: Updates between two looks at the clock: actor and targets take part in every second one.
UPDATES = 2
#: The environment of whole runs.
ENV = "shimmy:dm_control/cartpole-swingup-v0"
EDGE = 84
BATCH_SIZE = 128
#: What everything is compared with.
UNFUSED = "paper's update, unfused"
OFFICIAL = "authors' code"


@dataclasses.dataclass
class Arguments:
    """What to measure.

    Attributes:
        rounds: Times that every agent has its turn.
        batches: Batch sizes, at 84×84.
        edges: Image sizes, at batches of 128.
        sweep_rounds: Turns at every other batch and size.
        steps: Steps of the whole runs that are looked at; 0 for none.
        compile: SACAE and TD3AE compiled, too.
        threads: Of torch; as many as there are cores if omitted.
        reference: Checkout of the authors' repository, whose update is timed as well.
        results: Folder of the results.
    """

    rounds: int = 12
    batches: tuple[int, ...] = (32, 64, 128, 256, 512)
    edges: tuple[int, ...] = (48, 64, 84, 128)
    sweep_rounds: int = 3
    steps: int = 60
    compile: bool = False
    threads: int | None = None
    reference: Path | None = None
    results: Path = RESULTS


# ---------------------------------------------------------------------- who updates


class Images(gym.Env[Any, Any]):
    """Spaces of stacked frames, and noise in them."""

    def __init__(self, edge: int) -> None:
        self.observation_space = spaces.Box(0, 255, (3 * N_STACK, edge, edge), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTIONS,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


class Transitions(NamedTuple):
    """Transitions of stacked frames, as arrays."""

    frames: np.ndarray
    next_frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray


@functools.lru_cache(maxsize=1)
def make_transitions(edge: int) -> Transitions:
    """Transitions of noise: (N, 9, H, W) frames."""
    rng = np.random.default_rng(0)
    single = rng.integers(0, 256, (TRANSITIONS + N_STACK, 3, edge, edge), dtype=np.uint8)
    stacks = np.concatenate([single[i : i + TRANSITIONS + 1] for i in range(N_STACK)], axis=1)
    actions = rng.uniform(-1, 1, (TRANSITIONS, ACTIONS)).astype(np.float32)
    rewards = rng.normal(size=(TRANSITIONS, 1)).astype(np.float32)
    return Transitions(stacks[:-1], stacks[1:], actions, rewards, np.zeros_like(rewards))


Update = Callable[[], Any]


def make_unfused(edge: int, batch_size: int) -> Update:
    """An update of the transcription."""
    torch.manual_seed(0)
    paper = PaperSACAE(3 * N_STACK, edge, ACTIONS, filters=32, latent_dim=50, hidden=HIDDEN)
    paper.make_optimizers()
    transitions, count = make_transitions(edge), iter(range(sys.maxsize))

    def update() -> None:
        noise = torch.randn(2, batch_size, ACTIONS)
        batch = sample(*transitions, batch_size)
        paper.update(next(count), batch, noise, actor_every=2, target_every=2, decoder_every=1)

    return update


def make_authors(reference: Path, edge: int, batch_size: int) -> Update:
    """An update of the authors' code, with its own replay buffer and without a log."""
    torch.manual_seed(0)
    agent = make_official(reference, (3 * N_STACK, edge, edge))
    agent.train()
    device, shape = torch.device("cpu"), (3 * N_STACK, edge, edge)
    buffer = import_official(reference, "utils").ReplayBuffer(shape, (ACTIONS,), TRANSITIONS, batch_size, device)
    for frames, next_frames, action, reward, done in zip(*make_transitions(edge), strict=True):
        buffer.add(frames, action, reward, next_frames, bool(done))
    count = iter(range(1, sys.maxsize))  # at step 0 it logs histograms
    return lambda: agent.update(buffer, Silence(), next(count))


class Silence:
    """A logger that does not."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def fill(agent: OffPolicyAlgorithm, edge: int) -> None:
    """Put the transitions into an agent's replay buffer."""
    assert agent.replay_buffer is not None
    for frames, next_frames, action, reward, done in zip(*make_transitions(edge), strict=True):
        agent.replay_buffer.add(frames[None], next_frames[None], action[None], reward, done, [{}])


def make_agent(algorithm: type[OffPolicyAlgorithm], edge: int, batch_size: int, **kwargs: Any) -> Update:
    """An update of an agent as ``learn`` makes it."""
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]}, "buffer_size": TRANSITIONS}
    if issubclass(algorithm, SACAE | TD3AE):
        settings |= {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": {"n_stack": N_STACK}}
    agent = algorithm("CnnPolicy", Images(edge), seed=0, **{**settings, **kwargs})
    agent._setup_learn(0)  # so that there is a logger
    fill(agent, edge)
    return lambda: agent.train(gradient_steps=1, batch_size=batch_size)


Subject = TypeVar("Subject")

#: Who is compared: name → maker of an update from image size and batch size.
SUBJECTS: dict[str, Callable[[int, int], Update]] = {
    UNFUSED: make_unfused,
    "SACAE paper fp32": functools.partial(make_agent, SACAE, update="paper", precision="fp32"),
    "SACAE paper bf16": functools.partial(make_agent, SACAE, update="paper", precision="bf16"),
    "SACAE fused fp32": functools.partial(make_agent, SACAE, update="fused", precision="fp32"),
    "SACAE fused bf16": functools.partial(make_agent, SACAE, update="fused", precision="bf16"),
    "TD3AE paper fp32": functools.partial(make_agent, TD3AE, update="paper", precision="fp32"),
    "TD3AE fused bf16": functools.partial(make_agent, TD3AE, update="fused", precision="bf16"),
    "SB3 SAC": functools.partial(make_agent, SAC),
    "SB3 TD3": functools.partial(make_agent, TD3),
}
COMPILED: dict[str, Callable[[int, int], Update]] = {
    "SACAE fused bf16, compiled": functools.partial(make_agent, SACAE, update="fused", precision="bf16", compile=True),
    "TD3AE fused bf16, compiled": functools.partial(make_agent, TD3AE, update="fused", precision="bf16", compile=True),
}


def measurable(table: Mapping[str, Subject]) -> dict[str, Subject]:
    """What this processor can measure: without instructions for bfloat16 those in it would compute in fp32."""
    fast = precision.has_fast_bf16(torch.device("cpu"))
    return {name: subject for name, subject in table.items() if fast or "bf16" not in name}


#: Those whose growth is drawn.
GROWING = (UNFUSED, "SACAE paper fp32", "SACAE fused fp32", "SACAE fused bf16", "SB3 SAC")


def subjects(arguments: Arguments) -> dict[str, Callable[[int, int], Update]]:
    """All that are compared, the authors' code among them if there is a checkout."""
    chosen = measurable(SUBJECTS)
    if arguments.compile:
        chosen |= measurable(COMPILED)
    if arguments.reference is not None:
        chosen[OFFICIAL] = functools.partial(make_authors, arguments.reference)
    return chosen


# ---------------------------------------------------------------------- time and memory of an update


def time_updates(
    makers: dict[str, Callable[[int, int], Update]], edge: int, batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds an update of each, by rounds in which all take turns."""
    updates = {name: make(edge, batch_size) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for update in updates.values():
        for _ in range(UPDATES):
            update()
    for index in tqdm(range(rounds), f"{edge}×{edge}, batches of {batch_size}", leave=False, disable=None):
        for name in np.roll(list(updates), index):
            start = time.perf_counter()
            for _ in range(UPDATES):
                updates[name]()
            seconds[name].append((time.perf_counter() - start) / UPDATES)
    return seconds


def measure_memory(name: str, arguments: Arguments) -> float:
    """Bytes by which the process grows at most while a new agent makes its first updates."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    keep_freed_memory()
    update = subjects(arguments)[name](EDGE, BATCH_SIZE)
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2 * UPDATES):
        update()
    done.set()
    watcher.join()
    return float(peak - before)


# ---------------------------------------------------------------------- whole runs


class Clock:
    """Seconds by part; what a part calls counts for the part that is called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = time.perf_counter()

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._stamp()
            self._running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._stamp()
                self._running.pop()

        return timed

    def _stamp(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now


Part = Literal["environment", "acting", "storing", "sampling", "updating", "rest"]
PARTS: tuple[Part, ...] = ("environment", "acting", "storing", "sampling", "updating", "rest")


def whole_run(algorithm: type[OffPolicyAlgorithm], steps: int, **kwargs: Any) -> dict[str, float]:
    """Milliseconds a step that each part of a run on rendered DMC takes, with an update each step."""
    env = make_pixel_env(
        ENV,
        PixelConfig(action_repeat=8),
        render_kwargs={"height": EDGE, "width": EDGE, "camera_id": 0},
    )
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]}, "buffer_size": 1_000}
    if issubclass(algorithm, SACAE | TD3AE):
        settings |= {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": {"n_stack": N_STACK}}
        settings["catch_up_updates"] = 0
    warm_up = 10
    agent = algorithm(
        "CnnPolicy", env, batch_size=BATCH_SIZE, learning_starts=5, train_freq=1, seed=0, **{**settings, **kwargs}
    )
    agent.learn(warm_up)
    clock = Clock()
    assert agent.env is not None and agent.replay_buffer is not None
    for owner, method, part in (
        (agent.env, "step", "environment"),
        (agent, "_sample_action", "acting"),
        (agent, "_store_transition", "storing"),
        (agent, "train", "updating"),
        # with what turns frames into floats
        (agent, "_sample", "sampling") if hasattr(agent, "_sample") else (agent.replay_buffer, "sample", "sampling"),
    ):
        setattr(owner, method, clock.part(part, getattr(owner, method)))
    start = time.perf_counter()
    agent.learn(steps, reset_num_timesteps=False)
    elapsed = time.perf_counter() - start
    env.close()
    clock.seconds["rest"] = elapsed - sum(clock.seconds.values())
    return {part: 1e3 * clock.seconds[part] / steps for part in PARTS}


RUNS: dict[str, Callable[[int], dict[str, float]]] = {
    "SACAE paper fp32": lambda steps: whole_run(SACAE, steps, update="paper", precision="fp32"),
    "SACAE fused bf16": lambda steps: whole_run(SACAE, steps, update="fused", precision="bf16"),
    "TD3AE fused bf16": lambda steps: whole_run(TD3AE, steps, update="fused", precision="bf16"),
    "SB3 SAC": lambda steps: whole_run(SAC, steps),
    "SB3 TD3": lambda steps: whole_run(TD3, steps),
}


# ---------------------------------------------------------------------- the report


def update_table(seconds: dict[str, list[float]], memory: dict[str, float]) -> str:
    """Quartiles of the times, of the ratios within a round, and the memory, as Markdown."""
    lines = [
        f"| update, {EDGE}×{EDGE}×9, batches of {BATCH_SIZE} | seconds | updates/s | speed-up over the unfused one "
        "| peak memory |",
        "|---|---|---|---|---|",
    ]
    unfused = np.array(seconds[UNFUSED])
    for name, own in seconds.items():
        low, middle, high = quartiles(own)
        slow, ratio, fast = quartiles(unfused / np.array(own))
        lines.append(
            f"| {name} | {middle:.3f} ({low:.3f}–{high:.3f}) | {1 / middle:.2f} "
            f"| **{ratio:.2f}** ({slow:.2f}–{fast:.2f}) | {memory[name] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def run_table(runs: dict[str, dict[str, float]]) -> str:
    """Where the time of a step goes, as Markdown."""
    lines = [
        f"| a step of cartpole-swingup, ms | {' | '.join(PARTS)} | steps/s | frames/s |",
        "|" + "---|" * (len(PARTS) + 3),
    ]
    for name, parts in runs.items():
        total = sum(parts.values())
        cells = [f"{parts[part]:.0f} ({parts[part] / total:.0%})" for part in PARTS]
        lines.append(f"| {name} | {' | '.join(cells)} | {1e3 / total:.2f} | {8e3 / total:.1f} |")
    return "\n".join(lines)


def plot(growth: dict[str, dict[str, dict[str, list[float]]]], arguments: Arguments) -> None:
    """Seconds an update over batch size and over image size."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (what, by_size) in zip(figure.subplots(1, 2), growth.items(), strict=True):
        sizes = [int(size) for size in by_size]
        for name in next(iter(by_size.values())):
            low, middle, high = np.array([quartiles(seconds[name]) for seconds in by_size.values()]).T
            axes.errorbar(sizes, middle, yerr=[middle - low, high - middle], fmt=".-", capsize=2, label=name)
        axes.set(xlabel=what, ylabel="seconds an update", xscale="log", yscale="log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    write_atomically(arguments.results / "growth.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    keep_freed_memory()  # as rl-ae train does, and for all that is timed
    makers = subjects(arguments)
    seconds = time_updates(makers, EDGE, BATCH_SIZE, arguments.rounds)
    memory = {name: in_new_process(measure_memory, name, arguments) for name in tqdm(makers, "memory", disable=None)}
    growing = {name: makers[name] for name in GROWING if name in makers}
    growth = {
        f"batch size, {EDGE}×{EDGE}×9": {
            str(size): time_updates(growing, EDGE, size, arguments.sweep_rounds) for size in arguments.batches
        },
        f"height and width, batches of {BATCH_SIZE}": {
            str(edge): time_updates(growing, edge, BATCH_SIZE, arguments.sweep_rounds) for edge in arguments.edges
        },
    }
    runs = {}
    if arguments.steps > 0:
        runs = {name: run(arguments.steps) for name, run in tqdm(measurable(RUNS).items(), "whole runs", disable=None)}
    text = "\n\n".join([update_table(seconds, memory), *([run_table(runs)] if runs else [])])
    summary = {
        "command": f"python -m benchmarks.throughput {' '.join(sys.argv[1:])}".strip().replace(
            str(arguments.reference), "CHECKOUT"
        ),
        **describe_machine(),
        "seconds": seconds,
        "bytes": memory,
        "growth": growth,
        "milliseconds_a_step": runs,
    }
    write_json(arguments.results / "summary.json", summary)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    plot(growth, arguments)
    print(text)


if __name__ == "__main__":
    main()
