"""Does SQ-VAE use more of its codebook than VQ-VAE, and reconstruct better, with as many codes?

    python -m benchmarks.codes --steps 3000 --seeds 0

Trains each variant on the same batches of CarRacing's frames (the extras ``box2d`` and ``quantized``), one after the
other. What is measured
is measured on frames of other episodes and with the most likely codes. Frames and runs stay in ``--runs``: finished
runs are not run again, a killed one goes on from its last checkpoint. Curves, table, summary and pictures of all
finished runs go to ``benchmarks/results/codes/`` after every run; ``--report`` only writes those.
"""

import dataclasses
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.fitting import Fit
from benchmarks.frames import SIZE, Frames, load_frames, progress_bar
from benchmarks.records import write_json, write_rows
from rl_ae import Autoencoder, FSQConfig, SQVAEConfig, VQVAEConfig
from rl_ae.analysis.figures import last_frame
from rl_ae.configs import QuantizedConfig
from rl_ae.files import write_atomically
from rl_ae.losses import perplexity, psnr
from rl_ae.pixels import to_unit

RESULTS = Path(__file__).parent / "results" / "codes"

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


# ---------------------------------------------------------------------- the fits


def frames_of(arguments: Arguments) -> Frames:
    """The frames in the folder of the runs, collected if there are none."""
    return load_frames(arguments.runs / "frames.npz", "car_racing", arguments.frames, arguments.held_out)


def fit_of(arguments: Arguments, variant: str, seed: int) -> Fit:
    """A variant's and seed's, as far as it has got."""
    config = VARIANTS[variant].config.for_shape((3, *SIZE))
    return Fit(arguments.runs / f"{variant}_{seed}", variant, config, seed, BATCH_SIZE)


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


def finished(arguments: Arguments) -> list[dict[str, Any]]:
    """What all runs reached that have as many steps, in the order of VARIANTS and seeds."""
    records = [json.loads(path.read_text()) for path in arguments.runs.glob("*/summary.json")]
    records = [record for record in records if record["steps"] == arguments.steps]
    return sorted(records, key=lambda record: (list(VARIANTS).index(record["variant"]), record["seed"]))


def summarise(fit: Fit, arguments: Arguments) -> dict[str, Any]:
    """What a trained run reached, and how to run it again."""
    last = fit.rows[-1]
    return {
        "variant": fit.variant,
        "seed": fit.seed,
        "steps": fit.learner.step,
        **{name: last[name] for name in SCORES},
        "command": f"python -m benchmarks.codes --variants {fit.variant} --seeds {fit.seed} "
        f"--steps {fit.learner.step} --frames {arguments.frames} --held-out {arguments.held_out}",
        "config": VARIANTS[fit.variant].config.to_dict(),
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
        fit = fit_of(arguments, variant, firsts[variant])
        rows[variant] = fit.learner.autoencoder.eval().reconstruct(shown)
    tiles = [np.concatenate(list(last_frame(images, frame_channels=3)), axis=1) for images in rows.values()]

    figure = Figure(figsize=(SHOWN + 1.5, len(tiles) + 4.5), layout="constrained")
    pictures, plots = figure.subfigures(2, 1, height_ratios=(len(tiles), 4.5))
    axes = pictures.subplots()
    axes.imshow(np.concatenate(tiles), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(SIZE[0] * (np.arange(len(tiles)) + 0.5), list(rows))
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
    frames, curves = frames_of(arguments), []
    for record in records:
        variant, seed = record["variant"], record["seed"]
        curves.append(fit_of(arguments, variant, seed).rows)
        write_rows(arguments.results / f"{variant}_seed{seed}.csv", curves[-1], CURVE_COLUMNS)
    text = table(records)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    write_json(arguments.results / "summary.json", {"mean_frame_psnr": frames.mean_frame_psnr(), "runs": records})
    plot(records, curves, frames.held_out, arguments)
    return text


def train_all(arguments: Arguments) -> None:
    """Train and report every run that is not finished, seed by seed."""
    frames = frames_of(arguments)
    pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    with progress_bar(len(pairs) * arguments.steps, "step") as bar:
        for variant, seed in pairs:
            fit = fit_of(arguments, variant, seed)
            bar.initial += fit.learner.step  # not of this session: no part of its rate
            bar.n += fit.learner.step
            if fit.is_finished(arguments.steps):
                continue
            bar.set_postfix_str(f"{variant}, seed {seed}")
            fit.train(
                arguments.steps,
                frames.train,
                lambda autoencoder: measure(autoencoder, frames.held_out),
                CURVE_EVERY,
                bar.update,
            )
            write_json(fit.summary, summarise(fit, arguments))
            report(arguments)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.report:
        train_all(arguments)
    print(report(arguments))


if __name__ == "__main__":
    main()
