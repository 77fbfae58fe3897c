"""Does memory stay flat? Resident memory over many updates of an agent in its environment.

    python -m benchmarks.soak --algo sac_ae td3_ae --updates 50000

Each agent learns from rendered Pendulum, five updates a step, on small images and networks: what leaks does so per
update, not per pixel. Its replay buffer is full before memory is compared. Results go to ``benchmarks/results/soak/``.
"""

import csv
import dataclasses
import gc
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
import tyro
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback

from rl_ae import RAEConfig
from rl_ae.configs import CONFIGS
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.files import write_atomically
from rl_ae.sb3.agent import AutoencoderAgent
from rl_ae.sb3.runs import ALGORITHMS

RESULTS = Path(__file__).parent / "results" / "soak"
PIXELS = PixelConfig(size=(16, 16), grayscale=True, action_repeat=2, crop=(110, 110, 390, 390), reward_scale=0.1)
AUTOENCODER = dataclasses.replace(CONFIGS["rae_compact"], latent_dim=16)
BUFFER_SIZE = 2_000
UPDATES_A_STEP = 5
MEGABYTE = 1e6


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        algo: The agents.
        updates: Updates of each.
        every: Updates between two measurements.
        seed: Of the agents.
    """

    algo: tuple[Literal["sac_ae", "td3_ae"], ...] = ("sac_ae", "td3_ae")
    updates: int = 50_000
    every: int = 500
    seed: int = 0


class ResidentMemory(BaseCallback):
    """Notes the resident memory of this process.

    Args:
        every: Updates between two notes.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.rows: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        updates = self.model._n_updates
        if updates // self.every > (self.rows[-1][0] // self.every if self.rows else -1):
            gc.collect()
            self.rows.append((updates, psutil.Process().memory_info().rss / MEGABYTE))
        return True


def make_agent(algo: str, seed: int) -> AutoencoderAgent:
    """A small agent on small images that updates at every step."""
    assert isinstance(AUTOENCODER, RAEConfig)
    return ALGORITHMS[algo](
        "CnnPolicy",
        make_pixel_env("Pendulum-v1", PIXELS),
        autoencoder=AUTOENCODER,
        buffer_size=BUFFER_SIZE,
        batch_size=16,
        learning_starts=100,
        gradient_steps=UPDATES_A_STEP,
        policy_kwargs={"net_arch": [32]},
        seed=seed,
        device="cpu",
    )


def soak(algo: str, arguments: Arguments) -> dict[str, object]:
    """Let one agent learn; its growth after the first fifth, when buffer and allocator have settled."""
    memory = ResidentMemory(arguments.every)
    model = make_agent(algo, arguments.seed)
    while model._n_updates < arguments.updates:
        steps = max((arguments.updates - model._n_updates) // UPDATES_A_STEP, 1)
        model.learn(steps, memory, log_interval=10, reset_num_timesteps=False)
    updates, resident = np.array(memory.rows).T
    settled = updates >= arguments.updates / 5
    slope = np.polyfit(updates[settled], resident[settled], 1)[0]
    write_csv(algo, memory.rows)
    return {
        "algo": algo,
        "updates": int(updates[-1]),
        "settled_at": int(updates[settled][0]),
        "megabytes_settled": float(resident[settled][0]),
        "megabytes_end": float(resident[-1]),
        "megabytes_per_1000_updates": 1000.0 * float(slope),
        "buffer_full_at_step": BUFFER_SIZE,
    }


def write_csv(algo: str, rows: list[tuple[int, float]]) -> None:
    """Updates and megabytes."""

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("updates", "megabytes"), *((u, f"{m:.1f}") for u, m in rows)])

    write_atomically(RESULTS / f"{algo}.csv", write)


def table(records: list[dict[str, object]]) -> str:
    """The summary as Markdown."""
    lines = ["| agent | updates | after a fifth | at the end | growth per 1,000 updates |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['algo']} | {r['updates']:,} | {r['megabytes_settled']:.0f} MB | {r['megabytes_end']:.0f} MB "
        f"| {r['megabytes_per_1000_updates']:+.3f} MB |"
        for r in records
    ]
    return "\n".join(lines)


def plot(records: list[dict[str, object]]) -> None:
    """Resident memory over updates."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for record in records:
        rows = np.loadtxt(RESULTS / f"{record['algo']}.csv", delimiter=",", skiprows=1)
        axes.plot(rows[:, 0], rows[:, 1], label=record["algo"])
    axes.set(title="Resident memory", xlabel="updates", ylabel="MB", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomically(RESULTS / "soak.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    records = [soak(algo, arguments) for algo in arguments.algo]
    command = f"python -m benchmarks.soak --algo {' '.join(arguments.algo)} --updates {arguments.updates}"
    versions = {name: version(name) for name in ("torch", "stable-baselines3", "numpy")}
    summary = {"command": command, "versions": {"python": platform.python_version(), **versions}, "agents": records}
    write_atomically(RESULTS / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))
    plot(records)
    print(table(records))


if __name__ == "__main__":
    main()
