"""Does SQ-VAE use more of its codebook than VQ-VAE, and reconstruct better, with as many codes?

    python -m benchmarks.codes --steps 3000 --seeds 0

Drives CarRacing (the extras ``box2d`` and ``quantized``) with random actions, which are held for a while so that the
car leaves the start, and trains each variant on the same batches of its frames, one after the other. What is measured
is measured on frames of other episodes and with the most likely codes. Frames and runs stay in ``--runs``: finished
runs are not run again, a killed one goes on from its last checkpoint. Curves, table, summary and pictures of all
finished runs go to ``benchmarks/results/codes/`` after every run; ``--report`` only writes those.
"""

import dataclasses
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.records import write_json, write_rows
from rl_ae import Autoencoder, FSQConfig, SQVAEConfig, VQVAEConfig, create_learner
from rl_ae.analysis.figures import last_frame
from rl_ae.configs import QuantizedConfig
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.losses import perplexity, psnr
from rl_ae.pixels import to_unit
from rl_ae.sb3.pictures import write_atomically

RESULTS = Path(__file__).parent / "results" / "codes"

PIXELS = PixelConfig(size=(64, 64), frame_stack=1, action_repeat=4)
#: Decisions an action is held for, and those in which the camera comes down to the car at the start of an episode.
HELD, ZOOM = 5, 15
#: Frames of an episode that are kept. Short episodes: left to random actions, the car ends on the grass.
EPISODE_FRAMES = 50
#: Seed of the first held-out episode; those to train on count from 0.
HELD_OUT_SEED = 1_000_000

CODES, CODE_DIM = 512, 16
#: For all variants: three times the default, at which SQ-VAE's variance is still far from settled after 3,000 updates.
LEARNING_RATE = 3e-3
RATES = {"encoder_learning_rate": LEARNING_RATE, "decoder_learning_rate": LEARNING_RATE}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is compared.

    Attributes:
        config: With trunk, learning rates and target of all others.
        remark: What the table says about it.
    """

    config: QuantizedConfig
    remark: str


VARIANTS: dict[str, Variant] = {
    "sqvae": Variant(SQVAEConfig(codes=CODES, code_dim=CODE_DIM, **RATES), "optimal Gaussian"),
    "vqvae": Variant(VQVAEConfig(codes=CODES, code_dim=CODE_DIM, **RATES), "squared error"),
    "vqvae_optimal": Variant(
        VQVAEConfig(codes=CODES, code_dim=CODE_DIM, likelihood="optimal_gaussian", **RATES), "optimal Gaussian"
    ),
    "vqvae_replaced": Variant(
        VQVAEConfig(codes=CODES, code_dim=CODE_DIM, dead_code_threshold=1.0, **RATES),
        "squared error, dead codes replaced",
    ),
    "fsq": Variant(FSQConfig(levels=(8, 8, 8), **RATES), "squared error, levels 8, 8, 8"),
}
BATCH_SIZE = 16
CURVE_EVERY = 250  # updates between two evaluations, each with a checkpoint
CURVE_COLUMNS = ("step", "psnr", "perplexity", "used_codes", "seconds")
#: Column of a summary → its heading in the table, and the format of a number there.
SCORES = {
    "psnr": ("PSNR, dB", ".2f"),
    "perplexity": ("perplexity", ".1f"),
    "used_codes": ("codes used", ".0f"),
    "seconds": ("training, s", ",.0f"),
}
#: Held-out frames in the picture.
SHOWN = 10


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        variants: Names in VARIANTS.
        seeds: Training seeds.
        steps: Updates of every run; a run with fewer goes on.
        runs: Folder of the frames and the runs.
        report: Only write the results of the finished runs.
        results: Folder of the results.
        frames: Frames to train on.
        held_out: Frames to measure on, of other episodes.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0,)
    steps: int = 3_000
    runs: Path = Path("runs/codes")
    report: bool = False
    results: Path = RESULTS
    frames: int = 3_000
    held_out: int = 500

    def __post_init__(self) -> None:
        unknown = set(self.variants) - VARIANTS.keys()
        if unknown:
            raise ValueError(f"expected variants among {list(VARIANTS)}, got {sorted(unknown)}")
        if min(self.steps, self.frames, self.held_out) < 1:
            raise ValueError(f"expected steps, frames and held_out ≥ 1, got {self}")


# ---------------------------------------------------------------------- the frames


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames of CarRacing, (N, 3, 64, 64), ``uint8``.

    Attributes:
        train: To train on.
        held_out: Of other episodes.
    """

    train: Tensor
    held_out: Tensor


def drive(first_seed: int, count: int, after_frame: Callable[[], Any]) -> np.ndarray:
    """Frames (count, 3, 64, 64), ``uint8``, of episodes with tracks and actions seeded from a number upwards."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window, and none is needed
    env = make_pixel_env("CarRacing-v3", PIXELS)
    frames: list[np.ndarray] = []
    for seed in itertools.count(first_seed):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        for decision in range(ZOOM + EPISODE_FRAMES):
            if decision % HELD == 0:  # gas on average, and the brake now and then
                brake = 0.2 if rng.random() < 0.2 else 0.0
                action = np.array([rng.uniform(-0.6, 0.6), rng.uniform(0.0, 1.0), brake], np.float32)
            frame, _, terminated, truncated, _ = env.step(action)
            if decision >= ZOOM:
                frames.append(frame)
                after_frame()
            if len(frames) == count:
                env.close()
                return np.stack(frames)
            if terminated or truncated:  # it has left the field
                break
    raise AssertionError("seeds never end")


def load_frames(arguments: Arguments) -> Frames:
    """The frames in the folder of the runs, collected if there are none.

    Raises:
        ValueError: If there are more or fewer.
    """
    path, expected = arguments.runs / "frames.npz", (arguments.frames, arguments.held_out)
    if not path.exists():
        with progress_bar(sum(expected), "frame") as bar:
            train = drive(0, arguments.frames, bar.update)
            held_out = drive(HELD_OUT_SEED, arguments.held_out, bar.update)
        write_atomically(path, lambda file: np.savez_compressed(file, train=train, held_out=held_out))
    with np.load(path) as arrays:
        frames = Frames(torch.from_numpy(arrays["train"]), torch.from_numpy(arrays["held_out"]))
    if (found := (len(frames.train), len(frames.held_out))) != expected:
        raise ValueError(f"{path} holds {found} frames, expected {expected}; use another --runs")
    return frames


def mean_frame_psnr(frames: Frames) -> float:
    """PSNR of the training frames' mean on the held-out ones: what needs no codes."""
    mean = to_unit(frames.train).mean(dim=0)
    return psnr((to_unit(frames.held_out) - mean).square().mean()).item()


def progress_bar(total: int, unit: str) -> Any:
    interval = 0.1 if sys.stderr.isatty() else 30.0  # a log file needs no animation
    return tqdm(total=total, unit=unit, dynamic_ncols=True, mininterval=interval, smoothing=0)


# ---------------------------------------------------------------------- one run


class Run:
    """One variant and seed: its files, its learner, its curve.

    Args:
        folder: Made if it is not there.
        variant: Name in VARIANTS.
        seed: Of weights, batches and noise.

    Attributes:
        learner: In the state of the last checkpoint, or fresh.
        rows: The curve so far.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, variant: str, seed: int) -> None:
        self.folder, self.variant, self.seed = folder, variant, seed
        config = VARIANTS[variant].config
        settings = json.loads(
            json.dumps({"variant": variant, "seed": seed, "batch_size": BATCH_SIZE, "config": config.to_dict()})
        )
        path = folder / "run.json"
        if not path.exists():
            write_json(path, settings)
        elif (found := json.loads(path.read_text())) != settings:
            raise ValueError(f"{folder} holds another run: expected {settings}, got {found}; use another --runs")

        torch.manual_seed(seed)
        self.learner = create_learner(config, PIXELS.observation_shape)
        self.rows: list[dict[str, float]] = []
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.learner.load_state_dict(state["learner"])
            self.rows = state["rows"]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def train(self, steps: int, frames: Frames, after_step: Callable[[], Any]) -> None:
        """Train on to a step, measuring on the way.

        Raises:
            ValueError: If the run is beyond it.
            FloatingPointError: If a loss is not finite.
        """
        learner = self.learner
        if learner.step > steps:
            raise ValueError(f"{self.folder} is at step {learner.step}, beyond {steps}; use another --runs")
        seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        while learner.step < steps:
            started = time.monotonic()
            # of batch and noise; a generator for each step, so that there is none to be stored
            rng = np.random.default_rng((self.seed, learner.step))
            torch.manual_seed(int(rng.integers(2**31)))
            batch = frames.train[rng.integers(len(frames.train), size=BATCH_SIZE)]
            metrics = learner.update(to_unit(batch))
            if not math.isfinite(metrics["total"]):
                raise FloatingPointError(f"{self.folder}: {metrics} at step {learner.step}")
            seconds += time.monotonic() - started
            if learner.step == steps or learner.step % CURVE_EVERY == 0:
                measured = measure(learner.autoencoder, frames.held_out)
                self.rows.append({"step": learner.step, **measured, "seconds": round(seconds, 1)})
                state = {"learner": learner.state_dict(), "rows": self.rows}
                write_atomically(self.checkpoint, lambda path, state=state: torch.save(state, path))
            after_step()


@torch.no_grad()
def measure(autoencoder: Autoencoder, frames: Tensor) -> dict[str, float]:
    """PSNR over all frames (N, 3, 64, 64), and how many codes they take, from the most likely codes."""
    training = autoencoder.training
    autoencoder.eval()
    squares, indices = [], []
    for batch in frames.split(100):
        images = to_unit(batch)
        squares.append((autoencoder.reconstruct(images) - images).square().mean(dim=(1, 2, 3)))
        indices.append(autoencoder.encode(images).indices)
    autoencoder.train(training)
    chosen = torch.cat(indices)
    return {
        "psnr": psnr(torch.cat(squares).mean()).item(),
        "perplexity": perplexity(chosen, CODES).item(),
        "used_codes": len(chosen.unique()),
    }


# ---------------------------------------------------------------------- the report


def run_folder(arguments: Arguments, variant: str, seed: int) -> Path:
    return arguments.runs / f"{variant}_{seed}"


def finished(arguments: Arguments) -> list[dict[str, Any]]:
    """What all runs reached that have as many steps, in the order of VARIANTS and seeds."""
    records = [json.loads(path.read_text()) for path in arguments.runs.glob("*/summary.json")]
    records = [record for record in records if record["steps"] == arguments.steps]
    return sorted(records, key=lambda record: (list(VARIANTS).index(record["variant"]), record["seed"]))


def summarise(run: Run, arguments: Arguments) -> dict[str, Any]:
    """What a trained run reached, and how to run it again."""
    last = run.rows[-1]
    return {
        "variant": run.variant,
        "seed": run.seed,
        "steps": run.learner.step,
        **{name: last[name] for name in SCORES},
        "command": f"python -m benchmarks.codes --variants {run.variant} --seeds {run.seed} "
        f"--steps {run.learner.step} --frames {arguments.frames} --held-out {arguments.held_out}",
        "config": VARIANTS[run.variant].config.to_dict(),
        "batch_size": BATCH_SIZE,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"gymnasium {version('gymnasium')}, vector-quantize-pytorch {version('vector-quantize-pytorch')}",
    }


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    headings = ["variant", "settings", "seeds", "steps", *(heading for heading, _ in SCORES.values())]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for variant in dict.fromkeys(record["variant"] for record in records):
        same = [record for record in records if record["variant"] == variant]
        cells = [variant, VARIANTS[variant].remark, str(len(same)), f"{same[0]['steps']:,}"]
        for name, (_, form) in SCORES.items():
            values = [record[name] for record in same]
            spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):{form}}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def plot(
    records: list[dict[str, Any]], curves: list[list[dict[str, float]]], held_out: Tensor, arguments: Arguments
) -> None:
    """Held-out frames above what each variant's first seed makes of them, and the curves of all runs."""
    shown = to_unit(held_out[np.linspace(0, len(held_out) - 1, SHOWN).round()])
    firsts = {record["variant"]: record["seed"] for record in reversed(records)}
    variants = [variant for variant in VARIANTS if variant in firsts]
    rows = {"frame": shown}
    for variant in variants:
        run = Run(run_folder(arguments, variant, firsts[variant]), variant, firsts[variant])
        rows[variant] = run.learner.autoencoder.eval().reconstruct(shown)
    tiles = [np.concatenate(list(last_frame(images, frame_channels=3)), axis=1) for images in rows.values()]

    figure = Figure(figsize=(SHOWN + 1.5, len(tiles) + 4.5), layout="constrained")
    pictures, plots = figure.subfigures(2, 1, height_ratios=(len(tiles), 4.5))
    axes = pictures.subplots()
    axes.imshow(np.concatenate(tiles), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(PIXELS.size[0] * (np.arange(len(tiles)) + 0.5), list(rows))
    axes.tick_params(length=0)
    for axes, (name, label) in zip(
        plots.subplots(1, 2), (("psnr", "PSNR, dB"), ("perplexity", f"perplexity, of {CODES} codes")), strict=True
    ):
        for record, curve in zip(records, curves, strict=True):
            first = record["seed"] == firsts[record["variant"]]
            axes.plot(
                [row["step"] for row in curve],
                [row[name] for row in curve],
                color=f"C{variants.index(record['variant'])}",
                label=record["variant"] if first else None,
            )
        axes.set(xlabel="updates", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(arguments.results / "codes.png", lambda path: figure.savefig(path, dpi=128))


def report(arguments: Arguments) -> str:
    """Write curves, table, summary and picture of the finished runs; returns the table.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    records = finished(arguments)
    if not records:
        raise FileNotFoundError(f"no finished run of {arguments.steps} steps in {arguments.runs}")
    frames, curves = load_frames(arguments), []
    for record in records:
        variant, seed = record["variant"], record["seed"]
        curves.append(Run(run_folder(arguments, variant, seed), variant, seed).rows)
        write_rows(arguments.results / f"{variant}_seed{seed}.csv", curves[-1], CURVE_COLUMNS)
    text = table(records)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    write_json(arguments.results / "summary.json", {"mean_frame_psnr": mean_frame_psnr(frames), "runs": records})
    plot(records, curves, frames.held_out, arguments)
    return text


def train_all(arguments: Arguments) -> None:
    """Train and report every run that is not finished, seed by seed."""
    frames = load_frames(arguments)
    pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    with progress_bar(len(pairs) * arguments.steps, "step") as bar:
        for variant, seed in pairs:
            run = Run(run_folder(arguments, variant, seed), variant, seed)
            bar.initial += run.learner.step  # not of this session: no part of its rate
            bar.n += run.learner.step
            if run.summary.exists() and json.loads(run.summary.read_text())["steps"] == arguments.steps:
                continue
            bar.set_postfix_str(f"{variant}, seed {seed}")
            run.train(arguments.steps, frames, bar.update)
            write_json(run.summary, summarise(run, arguments))
            report(arguments)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.report:
        train_all(arguments)
    print(report(arguments))


if __name__ == "__main__":
    main()
