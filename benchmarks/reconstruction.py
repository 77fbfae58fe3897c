"""How well does each autoencoder describe real frames, of episodes it has not seen?

    python -m benchmarks.reconstruction --sources car_racing cheetah-run --steps 5000

Trains each variant on the same batches of one-frame 64×64 images (the extras ``box2d`` and ``dmc``; ``quantized`` and
``diffusion`` for the variants that need them), one after the other, with a latent of 32 numbers or 64 codes. What is
measured is measured on frames of other episodes, beside rulers: the training frames' mean, and their principal
components, as many as a latent has numbers or codes. Frames and runs stay in ``--runs``: finished runs are not run
again, a killed one goes on from its last checkpoint. Curves, table, summary and pictures of all finished runs go to
``benchmarks/results/reconstruction/<source>/`` after every run; ``--report`` only writes those. The frames a second are
measured then, of all runs one after the other.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.codes import RATES
from benchmarks.fitting import Fit
from benchmarks.frames import SIZE, SOURCES, Frames, load_frames, progress_bar
from benchmarks.records import write_json, write_rows
from rl_ae import (
    Autoencoder,
    ConvVAEConfig,
    DiffusionConfig,
    FlowConfig,
    HierarchicalConfig,
    PyramidConfig,
    RAEConfig,
    SQVAEConfig,
    VQVAEConfig,
    WorldModelsConfig,
)
from rl_ae.analysis.figures import last_frame
from rl_ae.autoencoders import VAE, DiffusionVAE, Encoder, FlowVAE, HierarchicalVAE, PyramidVAE, VAEDecoder
from rl_ae.autoencoders.diffusion import DiffusionLikelihood
from rl_ae.autoencoders.flow import FlowLikelihood
from rl_ae.autoencoders.pyramid import LEVELS, level_channels, level_sizes
from rl_ae.configs import COMPACT_CONV, AutoencoderConfig
from rl_ae.diagnostics import level_log_prob
from rl_ae.files import write_atomically
from rl_ae.latents import GaussianLatent, HierarchicalLatent, QuantizedLatent, StochasticLatent
from rl_ae.likelihoods import Likelihood
from rl_ae.logistic_mixture import LogisticMixture
from rl_ae.losses import bits_per_dimension, psnr
from rl_ae.pixels import to_unit
from rl_ae.provenance import describe_machine

RESULTS = Path(__file__).parent / "results" / "reconstruction"
SHAPE = (3, *SIZE)
LATENT_DIM = 32


# ---------------------------------------------------------------------- a decoder that sees the encoder's maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkippingConfig(PyramidConfig):
    """A pyramid whose decoder is shown the encoder's maps.

    Attributes:
        skip_dropout: Probability, in training, of an image being decoded without them.
    """

    skip_dropout: float = 0.5


class SkippingLatent(GaussianLatent):
    """A Gaussian, and the encoder's maps, which follow it in modes and samples.

    Attributes:
        skips: (B, C, h, w) by level.
    """

    skips: dict[str, Tensor]

    @property
    def mode(self) -> Tensor:
        return self._joined(self.mu)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._joined(super().sample(generator))

    def _joined(self, z: Tensor) -> Tensor:
        return torch.cat([z, *(self.skips[level].flatten(start_dim=1) for level in LEVELS)], dim=1)


class SkippingPyramid(PyramidVAE):
    """A pyramid that decodes latents alone, (B, D), or with the encoder's maps behind them."""

    config_type: ClassVar[type[PyramidConfig]] = SkippingConfig

    @classmethod
    def make_decoder(cls, config: SkippingConfig, encoder: Encoder) -> VAEDecoder:
        return super().make_decoder(config, encoder, LEVELS, config.skip_dropout)

    def encode(self, observations: Tensor) -> SkippingLatent:
        encoding = self.encoder.encode(observations)
        latent = SkippingLatent(*encoding.latent)
        latent.skips = encoding.skips
        return latent

    def likelihood(self, z: Tensor) -> LogisticMixture:
        return self.output(self.decoder(z[:, : self.latent_dim], self._skips(z[:, self.latent_dim :])))

    def _skips(self, joined: Tensor) -> dict[str, Tensor]:
        """The maps behind latents, by level; none if there are none."""
        if joined.shape[1] == 0:
            return {}
        channels = level_channels(self.config.base_channels)
        shapes = {level: (channels[level], *size) for level, size in level_sizes(self.observation_shape[1:]).items()}
        parts = joined.split([math.prod(shape) for shape in shapes.values()], dim=1)
        return {level: part.unflatten(1, shape) for (level, shape), part in zip(shapes.items(), parts, strict=True)}


# ---------------------------------------------------------------------- what is compared

_GAUSSIAN = {"latent_dim": LATENT_DIM}
VARIANTS: dict[str, AutoencoderConfig] = {
    "rae": RAEConfig(conv=COMPACT_CONV, target_bits=None, **_GAUSSIAN),
    "conv_vae": ConvVAEConfig(likelihood="optimal_gaussian", **_GAUSSIAN),  # else it says next to nothing of a frame
    "wm_vae": WorldModelsConfig(**_GAUSSIAN),
    "pyramid": PyramidConfig(**_GAUSSIAN),
    "pyramid_skips": SkippingConfig(skip_dropout=0.0, **_GAUSSIAN),
    "pyramid_skip_dropout": SkippingConfig(skip_dropout=0.5, **_GAUSSIAN),
    "hierarchical": HierarchicalConfig(halvings=4, groups=(4, 1), latent_channels=1),  # 4·2·2 + 4·4 numbers
    "vqvae": VQVAEConfig(dead_code_threshold=1.0, **RATES),
    "sqvae": SQVAEConfig(**RATES),
    "flow": FlowConfig(target_bits=8, **_GAUSSIAN),
    "diffusion": DiffusionConfig(**_GAUSSIAN),
}
BATCH_SIZE = 16  # more updates in the same time
COOLDOWN = 0.2  # of all updates: 500 of them gave World Models' VAE a decibel
CURVE_EVERY = 500  # updates between two evaluations, each with a checkpoint
CURVE_COLUMNS = ("step", "psnr", "psnr_latent", "kl", "bits", "seconds")
#: Column of a summary → its heading in the table, and the format of a number there.
SCORES = {
    "numbers": ("numbers or codes", ",.0f"),
    "psnr": ("PSNR, dB", ".2f"),
    "psnr_latent": ("from the latent alone, dB", ".2f"),
    "kl": ("KL or code length, nats", ".1f"),
    "bits": ("bits/dim", ".3f"),
    "parameters": ("parameters", ",.0f"),
    "frames_per_second": ("frames/s", ",.0f"),
    "seconds": ("training, s", ",.0f"),
}
#: Held-out frames in the picture.
SHOWN = 10


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        sources: Where frames come from.
        variants: Names in VARIANTS.
        seeds: Training seeds.
        steps: Updates of every run, in whose last fifth the step sizes fall to 0.
        runs: Folder of the frames and the runs.
        report: Only write the results of the finished runs.
        results: Folder of the results.
        frames: Frames to train on.
        held_out: Frames to measure on, of other episodes.
    """

    sources: tuple[Literal["car_racing", "cheetah-run"], ...] = tuple(SOURCES)  # type: ignore[assignment]
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0,)
    steps: int = 5_000
    runs: Path = Path("runs/reconstruction")
    report: bool = False
    results: Path = RESULTS
    frames: int = 5_000
    held_out: int = 500

    def __post_init__(self) -> None:
        unknown = set(self.variants) - VARIANTS.keys()
        if unknown:
            raise ValueError(f"expected variants among {list(VARIANTS)}, got {sorted(unknown)}")
        if min(self.steps, self.held_out) < 1 or self.frames < LATENT_DIM or min(self.seeds) < 0:
            raise ValueError(f"expected steps and held_out ≥ 1, frames ≥ {LATENT_DIM} and seeds ≥ 0, got {self}")


# ---------------------------------------------------------------------- what is measured


@torch.no_grad()
def measure(autoencoder: Autoencoder, frames: Frames) -> dict[str, float]:
    """PSNR of the latents' modes, KL of a draw, and bits a number of held-out frames.

    Bits are those of the latent and of the frame's 256 levels given a draw of it, or given its codes, and never given
    skips: exact for mixtures of logistics, bounds for a flow and a diffusion model. Where a mean is all that is
    decoded, levels have the probabilities of a Gaussian around it, of the mean squared error of the frames that were
    trained on.
    """
    training = autoencoder.training
    autoencoder.eval()
    generator = torch.Generator().manual_seed(0)
    sample = to_unit(frames.train[:: max(len(frames.train) // 200, 1)])
    z = told(autoencoder, autoencoder.encode(sample), generator)
    sigma = (autoencoder.decode(z) - sample).square().mean().sqrt()
    columns: dict[str, list[Tensor]] = {"squares": [], "squares_latent": [], "kl": [], "nats": []}
    for batch in frames.held_out.split(100):
        images = to_unit(batch)
        latent = autoencoder.encode(images)
        z = told(autoencoder, latent, generator)
        likelihood = autoencoder.likelihood(z)
        columns["squares"].append(squared_errors(autoencoder.decode(latent.mode), images))
        columns["squares_latent"].append(
            squared_errors(autoencoder.decode(latent.mode[:, : autoencoder.latent_dim]), images)
        )
        columns["kl"].append(code_length(autoencoder, latent, z))
        columns["nats"].append(-level_log_probability(likelihood, images, sigma, generator))
    autoencoder.train(training)
    means = {name: torch.cat(parts).mean() for name, parts in columns.items()}
    return {
        "psnr": psnr(means["squares"]).item(),
        "psnr_latent": psnr(means["squares_latent"]).item(),
        "kl": means["kl"].item(),
        "bits": bits_per_dimension(means["kl"] + means["nats"], SHAPE).item(),
    }


def told(autoencoder: Autoencoder, latent: Any, generator: torch.Generator) -> Tensor:
    """What :func:`code_length` counts, (B, D): a draw, without skips; codes, which are no mixture of some."""
    z: Tensor = latent.mode if isinstance(latent, QuantizedLatent | StochasticLatent) else latent.sample(generator)
    return z[:, : autoencoder.latent_dim]


def squared_errors(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean over an image's numbers, (B,)."""
    return (decoded - images).square().mean(dim=(1, 2, 3))


def code_length(autoencoder: Autoencoder, latent: Any, z: Tensor) -> Tensor:
    """Nats that a latent takes, (B,): its KL, or the logarithm of the number of codes; infinite for a point."""
    if isinstance(latent, GaussianLatent):
        return latent.kl().sum(dim=1)
    if isinstance(latent, HierarchicalLatent):
        return latent.kl(z).sum(dim=1)
    if isinstance(latent, QuantizedLatent | StochasticLatent):
        return torch.full((len(z),), count_numbers(autoencoder) * math.log(autoencoder.config.codes))
    return torch.full((len(z),), math.inf)


@torch.no_grad()
def count_numbers(autoencoder: Autoencoder) -> int:
    """How many numbers a latent is, or how many codes."""
    latent: Any = autoencoder.encode(torch.zeros(1, *autoencoder.observation_shape))
    codes = isinstance(latent, QuantizedLatent | StochasticLatent)
    return latent.indices[0].numel() if codes else autoencoder.latent_dim


def level_log_probability(likelihood: Likelihood, images: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Log-probability of 8-bit levels in nats, (B,)."""
    if isinstance(likelihood, LogisticMixture):
        return likelihood.log_prob(images)
    if isinstance(likelihood, DiffusionLikelihood):
        return diffusion_level_log_probability(likelihood, images, generator)
    if isinstance(likelihood, FlowLikelihood):
        return level_log_prob(likelihood, images, generator=generator)
    return gaussian_level_log_probability(likelihood.mean, images, sigma)


def diffusion_level_log_probability(
    likelihood: DiffusionLikelihood, images: Tensor, generator: torch.Generator
) -> Tensor:
    """Lower bound of the levels' log-probability, (B,), whose mean is of every noise level alike.

    Of each image there are as many copies as together take every level once: a few levels out of a thousand have
    nearly all the weight, and a batch that misses them says nothing.
    """
    copies = math.ceil(len(likelihood.diffusion.sigmas) / len(images))
    repeated = likelihood._replace(maps=likelihood.maps.repeat(copies, 1, 1, 1), weighting="elbo")
    log_probability = level_log_prob(repeated, images.repeat(copies, 1, 1, 1), generator=generator)
    return log_probability.unflatten(0, (copies, -1)).mean(dim=0)


def gaussian_level_log_probability(mean: Tensor, images: Tensor, sigma: Tensor) -> Tensor:
    """Log-mass of each level's bin under N(mean, σ²), (B,); the outermost bins reach to infinity."""
    levels = (255.0 * images).round().double()
    mean, sigma = mean.double(), sigma.double()
    upper = (((levels + 0.5) / 255.0 - mean) / sigma).where(levels < 255.0, torch.inf)
    lower = (((levels - 0.5) / 255.0 - mean) / sigma).where(levels > 0.0, -torch.inf)
    # on the side where both tails are small, so that their difference keeps its digits
    swapped = lower > 0.0
    upper, lower = torch.where(swapped, -lower, upper), torch.where(swapped, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    mass = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
    return mass.flatten(start_dim=1).sum(dim=1)


def frames_per_second(autoencoder: Autoencoder, frames: Frames) -> float:
    """Frames that are encoded and decoded in a second, the median of five batches of 100."""
    autoencoder.eval()
    images = to_unit(frames.held_out[:100])
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            started = time.perf_counter()
            autoencoder.reconstruct(images)
            seconds.append(time.perf_counter() - started)
    return len(images) / float(np.median(seconds))


def principal_components_psnr(frames: Frames, counts: Sequence[int]) -> dict[int, float]:
    """PSNR of the held-out frames' projections on so many first principal components of the training frames."""
    train, held_out = (to_unit(part).flatten(start_dim=1) for part in (frames.train, frames.held_out))
    mean = train.mean(dim=0)
    torch.manual_seed(0)
    wider = min(2 * max(counts), *train.shape)  # without which the last ones are short of exact
    _, _, components = torch.pca_lowrank(train - mean, q=wider, center=False, niter=4)
    centred = held_out - mean
    scores = centred @ components
    rest = {count: centred - scores[:, :count] @ components[:, :count].T for count in counts}
    return {count: psnr(errors.square().mean()).item() for count, errors in rest.items()}


# ---------------------------------------------------------------------- the fits and the report


def frames_of(arguments: Arguments, source: str) -> Frames:
    """A source's frames in the folder of the runs, collected if there are none."""
    return load_frames(arguments.runs / f"{source}.npz", source, arguments.frames, arguments.held_out)


def fit_of(arguments: Arguments, source: str, variant: str, seed: int) -> Fit:
    """A variant's and seed's, as far as it has got."""
    config = VARIANTS[variant].for_shape(SHAPE)
    return Fit(arguments.runs / source / f"{variant}_{seed}", variant, config, seed, BATCH_SIZE, COOLDOWN)


def finished(arguments: Arguments, source: str) -> list[dict[str, Any]]:
    """What all runs reached that have as many steps, in the order of VARIANTS and seeds."""
    records = [json.loads(path.read_text()) for path in (arguments.runs / source).glob("*/summary.json")]
    records = [record for record in records if record["steps"] == arguments.steps and record["variant"] in VARIANTS]
    return sorted(records, key=lambda record: (list(VARIANTS).index(record["variant"]), record["seed"]))


def summarise(fit: Fit, source: str, frames: Frames) -> dict[str, Any]:
    """What a trained run reached, and how to run it again."""
    autoencoder, last = fit.learner.autoencoder, fit.rows[-1]
    return {
        "variant": fit.variant,
        "seed": fit.seed,
        "steps": fit.learner.step,
        **{name: last[name] if math.isfinite(last[name]) else None for name in CURVE_COLUMNS if name != "step"},
        "numbers": count_numbers(autoencoder),
        "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
        "command": f"python -m benchmarks.reconstruction --sources {source} --variants {fit.variant} "
        f"--seeds {fit.seed} --steps {fit.learner.step} --frames {len(frames.train)} --held-out {len(frames.held_out)}",
        "config": VARIANTS[fit.variant].to_dict(),
        "batch_size": BATCH_SIZE,
        "cooldown": COOLDOWN,
        "machine": describe_machine(),
    }


def table(records: list[dict[str, Any]], rulers: dict[str, float]) -> str:
    """A row a run and a row a ruler, as Markdown."""
    headings = ["variant", "seed", "steps", *(heading for heading, _ in SCORES.values())]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for name, value in rulers.items():
        lines.append(f"| {' | '.join([name, '', '', '', f'{value:.2f}', *[''] * (len(SCORES) - 2)])} |")
    for record in records:
        cells = [record["variant"], str(record["seed"]), f"{record['steps']:,}"]
        for name, (_, form) in SCORES.items():
            cells.append("–" if record[name] is None else f"{record[name]:{form}}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(autoencoder: VAE | HierarchicalVAE) -> Tensor:
    """Images of the prior: means, but of a flow and a diffusion model draws, which alone show what they describe."""
    generator = torch.Generator().manual_seed(0)
    if not isinstance(autoencoder, FlowVAE | DiffusionVAE):
        return autoencoder.sample(SHOWN, generator=generator)
    likelihood = autoencoder.likelihood(torch.randn(SHOWN, LATENT_DIM, generator=generator))
    return likelihood.sample(generator).clamp(0.0, 1.0)


@torch.no_grad()
def plot(arguments: Arguments, source: str, records: list[dict[str, Any]], frames: Frames) -> None:
    """Held-out frames, what each variant's first seed makes of them, and draws from its prior if it has one."""
    shown = to_unit(frames.held_out[np.linspace(0, len(frames.held_out) - 1, SHOWN).round()])
    rows = {"frame": shown}
    first_seeds: dict[str, dict[str, Any]] = {}
    for record in records:
        first_seeds.setdefault(record["variant"], record)
    for name, record in first_seeds.items():
        autoencoder = fit_of(arguments, source, name, record["seed"]).learner.autoencoder.eval()
        mode = autoencoder.encode(shown).mode
        rows[name] = autoencoder.decode(mode[:, : autoencoder.latent_dim])
        if isinstance(autoencoder, SkippingPyramid):
            rows[f"{name}, with skips"] = autoencoder.decode(mode)
        if isinstance(autoencoder, VAE | HierarchicalVAE):
            rows[f"{name}, samples"] = draw(autoencoder)
    tiles = [np.concatenate(list(last_frame(images, frame_channels=3)), axis=1) for images in rows.values()]
    figure = Figure(figsize=(SHOWN + 2.5, len(tiles)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.concatenate(tiles), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(SIZE[0] * (np.arange(len(tiles)) + 0.5), list(rows))
    axes.tick_params(length=0)
    write_atomically(arguments.results / source / "frames.png", lambda path: figure.savefig(path, dpi=100))


def report(arguments: Arguments, source: str) -> str:
    """Write curves, table, summary and picture of a source's finished runs; returns the table.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    records = finished(arguments, source)
    if not records:
        raise FileNotFoundError(f"no finished run of {arguments.steps} steps in {arguments.runs / source}")
    frames, folder = frames_of(arguments, source), arguments.results / source
    for record in records:
        fit = fit_of(arguments, source, record["variant"], record["seed"])
        write_rows(folder / f"{record['variant']}_seed{record['seed']}.csv", fit.rows, CURVE_COLUMNS)
        record["frames_per_second"] = frames_per_second(fit.learner.autoencoder, frames)
    counts = sorted({LATENT_DIM} | {record["numbers"] for record in records if record["numbers"] <= len(frames.train)})
    rulers = {
        "mean frame": frames.mean_frame_psnr(),
        **{
            f"{count} principal components": value for count, value in principal_components_psnr(frames, counts).items()
        },
    }
    text = table(records, rulers)
    write_atomically(folder / "table.md", lambda path: path.write_text(text + "\n"))
    write_json(folder / "summary.json", {"rulers": rulers, "runs": records})
    plot(arguments, source, records, frames)
    return text


def train_all(arguments: Arguments) -> None:
    """Train and report every run that is not finished, source by source and seed by seed."""
    jobs = [
        (source, variant, seed)
        for source in arguments.sources
        for seed in arguments.seeds
        for variant in arguments.variants
    ]
    for source in arguments.sources:
        frames_of(arguments, source)
    for job in jobs:  # what is missing or does not fit is said now, not hours later
        fit_of(arguments, *job).check(arguments.steps)
    with progress_bar(len(jobs) * arguments.steps, "step") as bar:
        for source, variant, seed in jobs:
            fit, frames = fit_of(arguments, source, variant, seed), frames_of(arguments, source)
            bar.initial += fit.learner.step  # not of this session: no part of its rate
            bar.n += fit.learner.step
            if fit.is_finished(arguments.steps):
                continue
            bar.set_postfix_str(f"{source}, {variant}, seed {seed}")
            fit.train(arguments.steps, frames.train, partial(measure, frames=frames), CURVE_EVERY, bar.update)
            write_json(fit.summary, summarise(fit, source, frames))
            report(arguments, source)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.report:
        train_all(arguments)
    for source in arguments.sources:
        print(f"{source}\n\n{report(arguments, source)}\n")


if __name__ == "__main__":
    main()
