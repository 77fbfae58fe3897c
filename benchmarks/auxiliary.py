"""Does a stock agent learn at least as well with the auxiliary loss as without it?

    OMP_NUM_THREADS=1 python -m benchmarks.auxiliary --seeds 0 1 2

Stable-Baselines3's DQN on CartPole from pixels (the extra ``demo``), with the same encoder, alone and with
``AuxiliaryLossCallback``; one run after the other, in one thread. Runs stay in ``--runs``: a finished one is not run
again, a killed one starts anew. Curves, table, summary and plot of all finished runs go to
``benchmarks/results/auxiliary/`` after every run; ``--report`` only writes those.
"""

import dataclasses
import json
import os
import platform
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from benchmarks.records import write_json, write_rows
from rl_ae import ConvConfig, RAEConfig
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.files import write_atomically
from rl_ae.sb3 import AutoencoderExtractor, AuxiliaryLossCallback
from rl_ae.sb3.evaluation import play_episode, start_seeds

RESULTS = Path(__file__).parent / "results" / "auxiliary"

ENV = "CartPole-v1"
#: The middle of the track, without the sky above the pole and the ground: at 12° the pole's tip is 5 pixels aside.
PIXELS = PixelConfig(size=(24, 64), grayscale=True, action_repeat=2, crop=(150, 170, 450, 320))
#: Small, for one core; the background is white.
AUTOENCODER = RAEConfig(
    latent_dim=32,
    conv=ConvConfig(filters=(16, 32, 32), kernel_size=4, strides=(2, 2, 2), padding=1),
    input_centre=1.0,
)
AGENT = {
    "learning_rate": 5e-4,
    "buffer_size": 20_000,
    "learning_starts": 500,
    "batch_size": 32,
    "train_freq": 2,
    "target_update_interval": 250,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.04,
    "gamma": 0.98,
}
POLICY = {
    "features_extractor_class": AutoencoderExtractor,
    "features_extractor_kwargs": {"autoencoder": AUTOENCODER},
    "net_arch": [64],
}
#: Variant → arguments of the callback, or none. The autoencoder's own rate, twice the agent's, and an update for each
#: of its did worse than none: after 10,000 steps of one seed DQN earned 25 so, 147 alone, and 218 with these.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "callback": {"learning_rate": 2e-4, "updates_per_agent_update": 0.5},
}
LABELS = {"alone": "DQN", "callback": "DQN with the auxiliary loss"}

CURVE_EVERY = 500  # steps
CURVE_COLUMNS = ("step", "return", "psnr", "gradient_cosine", "seconds")
#: Episodes whose mean is the return of a row.
LAST_EPISODES = 20
#: Of the deterministic evaluation in the end.
EPISODES = 10


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        variants: Names in VARIANTS.
        seeds: Training seeds.
        steps: Agent steps of every run.
        runs: Folder of the runs.
        report: Only write the results of the finished runs.
        results: Folder of the results.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 20_000
    runs: Path = Path("runs/auxiliary")
    report: bool = False
    results: Path = RESULTS

    def __post_init__(self) -> None:
        if unknown := [variant for variant in self.variants if variant not in VARIANTS]:
            raise ValueError(f"unknown variants {unknown}, expected some of {list(VARIANTS)}")
        if self.steps < 1:
            raise ValueError(f"steps must be ≥ 1, got {self.steps}")


class Curve(BaseCallback):
    """A row every so many steps: the mean return of the last episodes, and what the encoder's diagnostics say."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar, self.rows, self.returns = bar, [], deque(maxlen=LAST_EPISODES)
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        self.returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        self.bar.update()
        if self.num_timesteps % CURVE_EVERY == 0:
            self.add_row()
        return True

    def add_row(self) -> None:
        """Add a row for the present step."""
        logged = self.logger.name_to_value
        self.rows.append(
            {
                "step": self.num_timesteps,
                "return": round(float(np.mean(self.returns)), 2) if self.returns else float("nan"),
                "psnr": logged.get("train/psnr", float("nan")),
                "gradient_cosine": logged.get("train/gradient_cosine", float("nan")),
                "seconds": round(time.monotonic() - self.started, 1),
            }
        )
        self.bar.set_postfix_str(f"return {self.rows[-1]['return']:.0f}")


def make_env() -> Any:
    return make_pixel_env(ENV, PIXELS)


def run(variant: str, seed: int, steps: int, bar: Any) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train and evaluate; what was reached, and the curve."""
    env = make_env()
    model = DQN("CnnPolicy", env, policy_kwargs=dict(POLICY), seed=seed, device="cpu", **AGENT)
    curve = Curve(bar)
    arguments = VARIANTS[variant]
    auxiliary = [] if arguments is None else [AuxiliaryLossCallback(diagnostics_every=1, **arguments)]
    # the curve first: it reads what was logged before the logger is emptied
    model.learn(steps, callback=[curve, *auxiliary], log_interval=None)
    if not curve.rows or curve.rows[-1]["step"] != model.num_timesteps:
        curve.add_row()
    returns = [play_episode(model, env, start).episode_return for start in start_seeds(EPISODES)]
    env.close()
    record = {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "evaluation": float(np.mean(returns)),
        "evaluation_std": float(np.std(returns)),
        "mean_return": float(np.nanmean([row["return"] for row in curve.rows])),
        "last_return": curve.rows[-1]["return"],
        "psnr": None if arguments is None else curve.rows[-1]["psnr"],
        "seconds": curve.rows[-1]["seconds"],
        "command": f"python -m benchmarks.auxiliary --variants {variant} --seeds {seed} --steps {steps}",
        "agent": AGENT,
        "callback": arguments,
        "autoencoder": AUTOENCODER.to_dict(),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"gymnasium {version('gymnasium')}, stable-baselines3 {version('stable-baselines3')}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    return record, curve.rows


# ---------------------------------------------------------------------- the report


def run_folder(arguments: Arguments, variant: str, seed: int) -> Path:
    return arguments.runs / f"{variant}_{seed}"


def finished(arguments: Arguments) -> list[dict[str, Any]]:
    """What all runs reached that have as many steps, in the order of VARIANTS and seeds."""
    records = [json.loads(path.read_text()) for path in arguments.runs.glob("*/summary.json")]
    records = [record for record in records if record["steps"] == arguments.steps]
    return sorted(records, key=lambda record: (list(VARIANTS).index(record["variant"]), record["seed"]))


def table(records: list[dict[str, Any]]) -> str:
    """A row a run, and the means over seeds, as Markdown."""
    lines = [
        f"| variant | seed | evaluation ({EPISODES} fixed starts) | mean return in training "
        f"| last {LAST_EPISODES} episodes | PSNR | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(record["variant"] for record in records):
        same = [record for record in records if record["variant"] == variant]
        for record in same:
            quality = "–" if record["psnr"] is None else f"{record['psnr']:.1f} dB"
            lines.append(
                f"| {LABELS[variant]} | {record['seed']} | {record['evaluation']:.0f} ± {record['evaluation_std']:.0f} "
                f"| {record['mean_return']:.0f} | {record['last_return']:.0f} | {quality} | {record['seconds']:.0f} s |"
            )
        means = [np.mean([record[name] for record in same]) for name in ("evaluation", "mean_return", "last_return")]
        lines.append(f"| {LABELS[variant]} | mean | {' | '.join(f'**{mean:.0f}**' for mean in means)} | | |")
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], curves: list[list[dict[str, float]]], arguments: Arguments) -> None:
    """Training returns of all runs, thin, and their means over seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for index, variant in enumerate(VARIANTS):
        same = [curve for record, curve in zip(records, curves, strict=True) if record["variant"] == variant]
        for curve in same:
            axes.plot([r["step"] for r in curve], [r["return"] for r in curve], color=f"C{index}", alpha=0.3, lw=1)
        if same:
            steps = [row["step"] for row in same[0]]
            mean = np.mean([[row["return"] for row in curve] for curve in same], axis=0)
            axes.plot(steps, mean, color=f"C{index}", lw=2, label=f"{LABELS[variant]}, mean of {len(same)} seeds")
    axes.set(
        title=f"{ENV} from pixels, action repeat {PIXELS.action_repeat}",
        xlabel="agent steps",
        ylabel=f"return, last {LAST_EPISODES} episodes",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomically(arguments.results / "curves.png", lambda path: figure.savefig(path, dpi=120))


def report(arguments: Arguments) -> str:
    """Write curves, table, summary and plot of the finished runs; returns the table.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    records = finished(arguments)
    if not records:
        raise FileNotFoundError(f"no finished run of {arguments.steps} steps in {arguments.runs}")
    curves = []
    for record in records:
        variant, seed = record["variant"], record["seed"]
        curves.append(json.loads((run_folder(arguments, variant, seed) / "curve.json").read_text()))
        write_rows(arguments.results / f"{variant}_seed{seed}.csv", curves[-1], CURVE_COLUMNS)
    text = table(records)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    write_json(arguments.results / "summary.json", {"runs": records})
    plot(records, curves, arguments)
    return text


def train_all(arguments: Arguments) -> None:
    """Train and report every run that is not finished, seed by seed."""
    done = {(record["variant"], record["seed"]) for record in finished(arguments)}
    pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    for variant, seed in pairs:
        if (variant, seed) in done:
            continue
        folder = run_folder(arguments, variant, seed)
        with tqdm(total=arguments.steps, unit="step", desc=f"{variant}, seed {seed}", mininterval=1.0) as bar:
            record, curve = run(variant, seed, arguments.steps, bar)
        write_json(folder / "curve.json", curve)
        write_json(folder / "summary.json", record)
        report(arguments)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if not arguments.report:
        train_all(arguments)
    print(report(arguments))


if __name__ == "__main__":
    main()
