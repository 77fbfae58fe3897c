"""How well is CarRacing seen through so many nats? The rate–distortion curve of World Models' VAE.

    rl-ae collect --env CarRacing-v3 --episodes 120 --policy brownian held random --action-repeat 4 --max-steps 250
    --size 84 96 --crop 0 0 96 84 --out runs/rate/data
    OMP_NUM_THREADS=1 python -m benchmarks.rate --data runs/rate/data --sizes 64x64 60x80 --nats 8 15 30 60

The first command, in one line, plays. The second pretrains the VAE, its latent 32 numbers, for each image size and each
number of free nats, at a β that keeps the KL there. Every eighth episode is never trained on and chooses nothing: rate
and PSNR are of its frames, beside two rulers, the training frames' mean and as many principal components as the latent
has numbers. A killed run goes on, a finished one is not run again. Table, numbers, curve and pictures go to
``--results``.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.image import imsave

from benchmarks.frames import Frames
from benchmarks.reconstruction import LATENT_DIM, principal_components_psnr, squared_errors
from benchmarks.records import write_json
from rl_ae import Autoencoder, WorldModelsConfig
from rl_ae.files import write_atomically
from rl_ae.losses import psnr
from rl_ae.pixels import to_unit
from rl_ae.pretraining import ArrayFrames, PretrainConfig, Pretraining, pretrain
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.sb3.datasets import MinariFrames

RESULTS = Path(__file__).parent / "results" / "rate"
#: Every so manieth episode is for testing.
TEST_EVERY = 8
#: Frames of them that are measured, those that principal components are computed from, and those in a picture.
MEASURED, COMPONENTS_FROM, SHOWN = 2_000, 4_000, 8
BETA = 4.0
#: PSNR of one frame, seen through so many nats, of a published implementation of the same networks at 64×64.
PUBLISHED = (15.7, 32.1)


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        data: A data set of Minari with images.
        sizes: Of the images, HxW.
        nats: Free nats.
        steps: Updates.
        batch_size: Frames of an update.
        runs: Folder of the runs.
        results: Folder of the results, of one data set.
    """

    data: Path
    sizes: tuple[str, ...] = ("64x64", "60x80")
    nats: tuple[float, ...] = (8.0, 15.0, 30.0, 60.0)
    steps: int = 8_000
    batch_size: int = 32
    runs: Path = Path("runs/rate")
    results: Path = RESULTS


def load(data: Path, size: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Episodes to train on, and those to test with, each (T, 3, H, W).

    Raises:
        ValueError: If ``size`` is not HxW, or there are too few episodes.
    """
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"expected sizes like 64x64, got {size!r}")
    frames = MinariFrames(data, size=(int(height), int(width)))
    lengths = frames.episode_lengths
    if len(lengths) < TEST_EVERY:
        raise ValueError(f"expected at least {TEST_EVERY} episodes in {data}, got {len(lengths)}")
    episodes = [frames.read(episode, 0, length) for episode, length in enumerate(lengths)]
    test = episodes[TEST_EVERY - 1 :: TEST_EVERY]
    return [episode for index, episode in enumerate(episodes) if index % TEST_EVERY != TEST_EVERY - 1], test


def spread(episodes: list[np.ndarray], count: int) -> torch.Tensor:
    """Frames evenly spread over episodes."""
    frames = np.concatenate(episodes)
    return torch.as_tensor(frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)])


@torch.no_grad()
def measure(autoencoder: Autoencoder, frames: torch.Tensor) -> dict[str, float]:
    """Rate in nats; PSNR in dB from the posterior's mean, a median frame's beside it, and from a sample."""
    generator = torch.Generator().manual_seed(0)
    measured = []
    for batch in to_unit(frames).split(100):
        latent = autoencoder.eval().encode(batch)
        errors = [squared_errors(autoencoder.decode(z), batch) for z in (latent.mode, latent.sample(generator))]
        measured.append(torch.stack([latent.kl().sum(dim=1), *errors]))
    nats, of_mode, of_sample = torch.cat(measured, dim=1)
    return {
        "nats": nats.mean().item(),
        "psnr": psnr(of_mode.mean()).item(),
        "psnr_of_samples": psnr(of_sample.mean()).item(),
        "median_psnr": psnr(of_mode.median()).item(),
    }


def train(arguments: Arguments, episodes: list[np.ndarray], size: str, nats: float) -> Pretraining:
    """The VAE of a size and rate, the best on a validation of its own."""
    config = PretrainConfig(
        steps=arguments.steps, batch_size=arguments.batch_size, validate_every=500, checkpoint_every=500
    )
    folder = arguments.runs / f"{size}_{nats:g}"
    autoencoder = WorldModelsConfig(beta=BETA, free_nats=nats)
    return pretrain(ArrayFrames(episodes), config, folder, resume=True, autoencoder=autoencoder)


# ---------------------------------------------------------------------- the report


def table(records: list[dict[str, Any]]) -> str:
    """A row a run, as Markdown."""
    lines = [
        "| size | free nats | nats | PSNR | a median frame's | of samples | PCA | mean frame |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['size']} | {r['free_nats']:g} | {r['nats']:.1f} | {r['psnr']:.1f} dB | {r['median_psnr']:.1f} dB "
            f"| {r['psnr_of_samples']:.1f} dB | {r['pca']:.1f} dB | {r['mean_frame']:.1f} dB |"
            for r in records
        ),
    ]
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], results: Path) -> None:
    """PSNR over nats, a line a size."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for index, size in enumerate(dict.fromkeys(record["size"] for record in records)):
        same = [record for record in records if record["size"] == size]
        nats = [record["nats"] for record in same]
        axes.plot(nats, [record["psnr"] for record in same], "o-", color=f"C{index}", label=size)
        axes.plot(nats, [record["psnr_of_samples"] for record in same], "o:", color=f"C{index}", alpha=0.5)
        axes.axhline(
            same[0]["pca"], color=f"C{index}", ls="--", lw=0.8, label=f"{size}, {LATENT_DIM} components of PCA"
        )
    axes.plot(*PUBLISHED, "k*", label="one frame of a published implementation, 64x64")
    axes.set(
        title="CarRacing, episodes never trained on", xlabel="nats a frame", ylabel="PSNR in dB; dotted: of samples"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.grid(alpha=0.3)
    write_atomically(results / "curve.png", lambda path: figure.savefig(path, dpi=120))


@torch.no_grad()
def show(autoencoder: Autoencoder, frames: torch.Tensor, path: Path) -> None:
    """Frames above what is made of them."""
    images = to_unit(frames)
    rows = (images, autoencoder.eval().decode(autoencoder.encode(images).mode).clamp(0.0, 1.0))
    picture = np.concatenate([np.concatenate(list(row.permute(0, 2, 3, 1).numpy()), axis=1) for row in rows])
    write_atomically(path, lambda file: imsave(file, picture, format="png"))


def main() -> None:
    """Run what is not finished, and write down what all runs reached."""
    arguments = tyro.cli(Arguments, description=__doc__)
    arguments.results.mkdir(parents=True, exist_ok=True)
    summary = arguments.results / "summary.json"
    known: list[dict[str, Any]] = json.loads(summary.read_text()) if summary.exists() else []
    by_run = {(record["size"], record["free_nats"]): record for record in known}
    for nats in arguments.nats:
        for size in arguments.sizes:
            done = by_run.get((size, nats), {"steps": 0})
            if done["steps"] >= arguments.steps and done["batch_size"] == arguments.batch_size:
                continue
            episodes, test = load(arguments.data, size)
            frames = Frames(spread(episodes, COMPONENTS_FROM), spread(test, MEASURED))
            files = train(arguments, episodes, size, nats)
            autoencoder = Autoencoder.from_pretrained(files.autoencoder)
            by_run[size, nats] = {
                "size": size,
                "free_nats": nats,
                **measure(autoencoder, frames.held_out),
                "pca": principal_components_psnr(frames, [LATENT_DIM])[LATENT_DIM],
                "mean_frame": frames.mean_frame_psnr(),
                "steps": int(files.read_metrics()[-1]["step"]),  # an older run may have gone on for longer
                "batch_size": arguments.batch_size,
                "training_frames": sum(map(len, episodes)),
                "machine": describe_machine(),
                "commit": git_commit(),
            }
            records = sorted(by_run.values(), key=lambda record: (record["size"], record["free_nats"]))
            write_json(summary, records)
            text = table(records)
            write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))  # noqa: B023
            plot(records, arguments.results)
            show(autoencoder, spread(test, SHOWN), arguments.results / f"frames_{size}_{nats:g}.png")
    print(table(list(by_run.values())))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
