"""Which autoencoder finds the factors behind the sprites?

    python -m benchmarks.disentanglement --variants vae factor btcvae --seeds 0 1 2 --steps 20000

Trains each variant on :mod:`benchmarks.sprites`, one after the other, the first seed of all variants first. The runs
stay in ``--runs``: finished ones are not run again, a killed one goes on from its last checkpoint. Curves, scores,
table and traversals of all finished runs go to ``benchmarks/results/disentanglement/`` after every run; ``--report``
only writes those.
"""

import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.records import write_json, write_rows
from benchmarks.sprites import Factors, Sprites
from rl_ae import CONFIGS, Autoencoder, AutoencoderConfig, create_learner
from rl_ae.analysis import dci, factor_vae_score, mig, sap
from rl_ae.configs import GaussianConfig
from rl_ae.files import write_atomically
from rl_ae.losses import active_units

RESULTS = Path(__file__).parent / "results" / "disentanglement"

#: For all variants.
SHARED: dict[str, Any] = {"latent_dim": 10, "encoder_learning_rate": 1e-3, "decoder_learning_rate": 1e-3}
#: For the variational ones: losses in nats, as in the papers whose weights these are.
VARIATIONAL: dict[str, Any] = {"likelihood": "bernoulli", "per_element": False}
#: Name in CONFIGS → what differs from its defaults. The weights are those the papers use on dSprites, but for some that
#: are chosen for the short budget: FactorVAE's (γ = 35 in the paper, and a discriminator of 1,000 hidden units that
#: learns at 1e-4), and the steps over which the capacity of ``beta_b`` rises (100,000).
VARIANTS: dict[str, dict[str, Any]] = {
    "vae": {},
    "beta_h": {"beta": 4.0},
    "beta_b": {"gamma": 100.0, "final_capacity": 25.0, "capacity_steps": 20_000},
    "factor": {"gamma": 20.0, "discriminator_hidden": 512, "discriminator_learning_rate": 3e-4},
    "btcvae": {"beta": 6.0, "encoder_learning_rate": 5e-4, "decoder_learning_rate": 5e-4},
    "conv_vae": {},
    "wm_vae": {"free_nats": 5.0},  # half a nat a dimension, as in the paper
    "ae": {},
    "rae": {},
}
BATCH_SIZE = 32
CURVE_EVERY = 500
CHECKPOINT_EVERY = 1_000  # a multiple of CURVE_EVERY: no row spans two sessions
#: Of the factors that all runs are evaluated on; no training seed.
EVALUATION_SEED = 1_000_003
#: Values of a latent in a traversal, and their ends for Gaussian ones: where the prior has 95 % of its mass.
TRAVERSED, PRIOR_SPAN = 11, (-2.0, 2.0)
#: Nats below which a dimension is not labelled with a factor: above what the estimate is too high by.
LEAST_INFORMATION = 0.3

CURVE_COLUMNS = ("step", "reconstruction", "kl", "total", "seconds")
#: Column of scores.csv → its heading in the table, and the format of a number there.
SCORES = {
    "mig": ("MIG", ".3f"),
    "factor_vae": ("FactorVAE", ".3f"),
    "dci_disentanglement": ("DCI disentanglement", ".3f"),
    "dci_completeness": ("DCI completeness", ".3f"),
    "dci_informativeness": ("DCI informativeness", ".3f"),
    "sap": ("SAP", ".3f"),
    "reconstruction": ("reconstruction, nats", ".1f"),
    "kl": ("KL, nats", ".1f"),
    "active_units": ("active units", ".1f"),
    "seconds": ("training, s", ",.0f"),
}

sprites = Sprites()


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        variants: Names in VARIANTS.
        seeds: Training seeds.
        steps: Updates of every run; a run with fewer goes on.
        runs: Folder of the runs.
        report: Only write the results of the finished runs.
        results: Folder of the results.
        samples: Images that all scores are computed on; FactorVAE's, the variances that its votes are compared with.
        votes: Votes that train the classifier of FactorVAE's score, and as many that measure it.
        trees: Boosting rounds of DCI.
    """

    variants: tuple[str, ...] = ("vae", "factor", "btcvae")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 20_000
    runs: Path = Path("runs/disentanglement")
    report: bool = False
    results: Path = RESULTS
    samples: int = 10_000
    votes: int = 1_000
    trees: int = 20

    def __post_init__(self) -> None:
        unknown = set(self.variants) - VARIANTS.keys()
        if unknown:
            raise ValueError(f"expected variants among {list(VARIANTS)}, got {sorted(unknown)}")
        if self.steps < 1:
            raise ValueError(f"expected steps ≥ 1, got {self.steps}")


def variant_config(variant: str) -> AutoencoderConfig:
    config = CONFIGS[variant]
    variational = VARIATIONAL if isinstance(config, GaussianConfig) else {}
    return dataclasses.replace(config, **{**SHARED, **variational, **VARIANTS[variant]})


# ---------------------------------------------------------------------- one run


class Run:
    """One variant and seed: its files, its learner, its curve.

    Args:
        folder: Made if it is not there.
        variant: Name in VARIANTS.
        seed: Of weights, images and noise.

    Attributes:
        learner: In the state of the last checkpoint, or fresh.
        rows: The curve so far.
        seconds: Of training, over all sessions.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, variant: str, seed: int) -> None:
        self.folder, self.variant, self.seed = folder, variant, seed
        self.config = variant_config(variant)
        settings = json.loads(
            json.dumps({"variant": variant, "seed": seed, "batch_size": BATCH_SIZE, "config": self.config.to_dict()})
        )
        if self.settings.exists():
            found = json.loads(self.settings.read_text())
            if found != settings:
                raise ValueError(f"{folder} holds another run: expected {settings}, got {found}; use another --runs")
        else:
            write_json(self.settings, settings)

        torch.manual_seed(seed)
        self.learner = create_learner(self.config, sprites.image_shape)
        self.noise = torch.get_rng_state()
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.learner.load_state_dict(state["learner"])
            self.noise, self.rows, self.seconds = state["noise"], state["rows"], state["seconds"]

    @property
    def settings(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    def save(self) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "noise": torch.get_rng_state(),
            "rows": self.rows,
            "seconds": self.seconds,
        }
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))

    def train(self, steps: int, after_step: Callable[[], Any]) -> None:
        """Train on to a step; raises ValueError if the run is beyond it, FloatingPointError if a loss is not finite."""
        if self.learner.step > steps:
            raise ValueError(f"{self.folder} is at step {self.learner.step}, beyond {steps}; use another --runs")
        self.scores.unlink(missing_ok=True)  # they will not be those of the checkpoint
        torch.set_rng_state(self.noise)
        self.learner.autoencoder.train()
        earlier, started = self.seconds, time.monotonic()
        window: list[dict[str, float]] = []
        while self.learner.step < steps:
            # a generator for each step, so that there is none to be stored
            rng = np.random.default_rng((self.seed, self.learner.step))
            images = torch.from_numpy(sprites.render(sprites.sample_factors(BATCH_SIZE, rng)))
            metrics = self.learner.update(images, n_data=len(sprites))
            window.append({name: float(value) for name, value in metrics.items() if name in CURVE_COLUMNS})
            if not all(map(math.isfinite, window[-1].values())):
                raise FloatingPointError(f"{self.folder}: {metrics} at step {self.learner.step}")
            last = self.learner.step == steps
            if last or self.learner.step % CURVE_EVERY == 0:
                self.seconds = round(earlier + time.monotonic() - started, 1)
                means = {name: float(np.mean([values[name] for values in window])) for name in window[0]}
                self.rows.append({"step": self.learner.step, **means, "seconds": self.seconds})
                window = []
            if last or self.learner.step % CHECKPOINT_EVERY == 0:
                self.save()
            after_step()


# ---------------------------------------------------------------------- its scores


def batches(factors: Factors) -> Iterator[torch.Tensor]:
    """The images of factors (N, 5) in batches (B, 1, 64, 64)."""
    for batch in np.array_split(factors, math.ceil(len(factors) / 256)):
        yield torch.from_numpy(sprites.render(batch))


@torch.no_grad()
def encode(autoencoder: Autoencoder, factors: Factors) -> torch.Tensor:
    """The modes of sprites (N, 5), (N, D)."""
    return torch.cat([autoencoder.encode(images).mode for images in batches(factors)])


@torch.no_grad()
def elbo(autoencoder: Autoencoder, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of the ELBO for sprites (N, 5): minus log-likelihood of a draw (N,) and KL (N, D), in nats."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    reconstruction, kl = [], []
    for images in batches(factors):
        latent = autoencoder.encode(images)
        reconstruction.append(-autoencoder.likelihood(latent.sample(generator)).log_prob(images))
        kl.append(latent.kl())
    return torch.cat(reconstruction), torch.cat(kl)


def score_bound(run: Run, factors: Factors, latents: np.ndarray) -> dict[str, Any]:
    """The ELBO of sprites (N, 5), its KL dimension by dimension too; for points, which have none, the latents' range.

    Points leave the reconstruction blank as well: what they minimise is a squared error, no Bernoulli's nats.
    """
    if not isinstance(run.config, GaussianConfig):
        ranges = np.stack([latents.min(axis=0), latents.max(axis=0)], axis=1)
        return {"reconstruction": None, "kl": None, "range_of_dimensions": ranges.tolist()}
    reconstruction, kl = elbo(run.learner.autoencoder, factors)
    return {
        "reconstruction": reconstruction.mean().item(),
        "kl": kl.sum(dim=1).mean().item(),
        "kl_of_dimensions": kl.mean(dim=0).tolist(),
    }


def score(run: Run, arguments: Arguments) -> dict[str, Any]:
    """All scores of a trained run, on the same images for all runs."""
    autoencoder = run.learner.autoencoder.eval()
    factors = sprites.sample_factors(arguments.samples, np.random.default_rng(EVALUATION_SEED))
    latents = encode(autoencoder, factors).numpy()
    gap = mig(latents, factors)
    importance = dci(latents, factors, trees=arguments.trees)
    vote = factor_vae_score(
        lambda drawn: encode(autoencoder, drawn).numpy(),
        sprites.factor_sizes,
        train_votes=arguments.votes,
        test_votes=arguments.votes,
        variance_samples=arguments.samples,
        seed=EVALUATION_SEED,
    )
    return {
        "variant": run.variant,
        "seed": run.seed,
        "steps": run.learner.step,
        "mig": gap.score,
        "factor_vae": vote.score,
        "dci_disentanglement": importance.disentanglement,
        "dci_completeness": importance.completeness,
        "dci_informativeness": importance.informativeness,
        "sap": sap(latents, factors, categorical=[sprites.factor_names.index("shape")]).score,
        **score_bound(run, factors, latents),
        "active_units": int(active_units(torch.from_numpy(latents))),
        "seconds": run.seconds,
        **{f"mig_{name}": value for name, value in zip(sprites.factor_names, gap.gaps.tolist(), strict=True)},
        "command": f"python -m benchmarks.disentanglement --variants {run.variant} --seeds {run.seed} "
        f"--steps {run.learner.step} --samples {arguments.samples} --votes {arguments.votes} --trees {arguments.trees}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"scikit-learn {version('scikit-learn')}",
        "information": gap.information.tolist(),
    }


# ---------------------------------------------------------------------- the report


def finished(arguments: Arguments) -> list[dict[str, Any]]:
    """Scores of all runs: the longest ones first, then in the order of VARIANTS and seeds."""
    records = [json.loads(path.read_text()) for path in arguments.runs.glob("*/scores.json")]
    order = list(VARIANTS)
    return sorted(records, key=lambda record: (-record["steps"], order.index(record["variant"]), record["seed"]))


def run_folder(arguments: Arguments, variant: str, seed: int) -> Path:
    return arguments.runs / f"{variant}_{seed}"


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of a variant with as many steps, as Markdown."""
    headings = ["variant", "seeds", "steps", *(heading for heading, _ in SCORES.values())]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for steps, variant in dict.fromkeys((record["steps"], record["variant"]) for record in records):
        same = [record for record in records if (record["steps"], record["variant"]) == (steps, variant)]
        cells = [variant, str(len(same)), f"{steps:,}"]
        for name, (_, form) in SCORES.items():
            values = [record[name] for record in same]
            if None in values:
                cells.append("–")
                continue
            spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):{form}}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_dimensions(record: dict[str, Any]) -> tuple[list[float], list[str], list[tuple[float, float]]]:
    """How much each latent dimension says, this in words, and the ends of its traversal."""
    if record["kl"] is not None:
        nats = record["kl_of_dimensions"]
        return nats, [f"{value:.1f}" for value in nats], [PRIOR_SPAN] * len(nats)
    ranges = record["range_of_dimensions"]
    return [high - low for low, high in ranges], [f"{low:z.1f} … {high:z.1f}" for low, high in ranges], ranges


@torch.no_grad()
def traverse(run: Run, order: list[int], spans: list[tuple[float, float]]) -> np.ndarray:
    """Decode one sprite with each dimension moved, (D · 64, columns · 64): a row a dimension, in the given order."""
    autoencoder = run.learner.autoencoder.eval()
    z = encode(autoencoder, np.array([[2, 5, 3, 16, 16]]))  # a large heart, a little turned
    rows = []
    for dimension in order:
        moved = z.repeat(TRAVERSED, 1)
        moved[:, dimension] = torch.from_numpy(np.linspace(*spans[dimension], TRAVERSED)).to(z.dtype)
        rows.append(torch.cat(list(autoencoder.decode(moved)[:, 0]), dim=1))
    return torch.cat(rows).numpy()


def plot_traversals(records: list[dict[str, Any]], arguments: Arguments) -> None:
    """The longest run of each variant, of its first seed: what its dimensions say most about, the telling ones first.

    Gaussian dimensions come by KL, points by their range.
    """
    firsts = {record["variant"]: record for record in reversed(records)}
    shown = [firsts[variant] for variant in VARIANTS if variant in firsts]
    height, width = SHARED["latent_dim"] / 2, TRAVERSED / 2  # inches, two tiles each
    figure = Figure(figsize=(width + 2.5, len(shown) * (height + 0.5)), layout="constrained")
    for axes, record in zip(np.ravel(figure.subplots(len(shown), squeeze=False)), shown, strict=True):
        amounts, words, spans = describe_dimensions(record)
        information = np.array(record["information"])
        order = sorted(range(len(amounts)), key=lambda dimension: -amounts[dimension])
        run = Run(run_folder(arguments, record["variant"], record["seed"]), record["variant"], record["seed"])
        picture = traverse(run, order, spans)
        side = sprites.image_shape[-1]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        known = [sprites.factor_names[information[dimension].argmax()] for dimension in order]
        labels = [
            f"{name if information[dimension].max() > LEAST_INFORMATION else '–'} {words[dimension]}"
            for dimension, name in zip(order, known, strict=True)
        ]
        axes.set_yticks(side * (np.arange(len(order)) + 0.5), labels)
        values = [f"{value:z.1f}" for value in np.linspace(*PRIOR_SPAN, TRAVERSED)]
        if record["kl"] is None:
            values = ["lowest", *[""] * (TRAVERSED - 2), "highest"]
        axes.set_xticks(side * (np.arange(TRAVERSED) + 0.5), values)
        axes.hlines(side * np.arange(1, len(order)) - 0.5, -0.5, picture.shape[1] - 0.5, color="0.35", lw=0.5)
        axes.vlines(side * np.arange(1, TRAVERSED) - 0.5, -0.5, picture.shape[0] - 0.5, color="0.35", lw=0.5)
        amount = "range" if record["kl"] is None else "KL in nats"
        axes.set_title(f"{record['variant']}, seed {record['seed']}: most informed factor and {amount}")
        axes.tick_params(length=0)
    write_atomically(arguments.results / "traversals.png", lambda path: figure.savefig(path, dpi=128))


def report(arguments: Arguments) -> str:
    """Write curves, scores, table and traversals of the finished runs; returns the table.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    records = finished(arguments)
    if not records:
        raise FileNotFoundError(f"no finished run in {arguments.runs}")
    for record in records:
        variant, seed = record["variant"], record["seed"]
        rows = torch.load(run_folder(arguments, variant, seed) / "checkpoint.pt", weights_only=True)["rows"]
        write_rows(arguments.results / f"{variant}_seed{seed}.csv", rows, CURVE_COLUMNS)
    factors = tuple(f"mig_{name}" for name in sprites.factor_names)
    columns = ("variant", "seed", "steps", *SCORES, *factors, "command", "versions")
    write_rows(arguments.results / "scores.csv", records, columns)
    text = table(records)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    plot_traversals(records, arguments)
    return text


def train_all(arguments: Arguments) -> None:
    """Train, score and report every run that is not finished, seed by seed."""
    pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    interval = 0.1 if sys.stderr.isatty() else 30.0  # a log file needs no animation
    total = len(pairs) * arguments.steps
    with tqdm(total=total, unit="step", dynamic_ncols=True, mininterval=interval, smoothing=0) as bar:
        for variant, seed in pairs:
            run = Run(run_folder(arguments, variant, seed), variant, seed)
            bar.initial += run.learner.step  # not of this session: no part of its rate
            bar.n += run.learner.step
            if run.scores.exists() and json.loads(run.scores.read_text())["steps"] == arguments.steps:
                continue
            bar.set_postfix_str(f"{variant}, seed {seed}")
            run.train(arguments.steps, bar.update)
            tqdm.write(f"scoring {variant}, seed {seed}", file=sys.stderr)
            write_json(run.scores, score(run, arguments))
            report(arguments)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.report:
        train_all(arguments)
    print(report(arguments))


if __name__ == "__main__":
    main()
