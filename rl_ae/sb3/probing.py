"""What ``rl-ae probe`` does: does the latent hold the state? Beside controls that saw the same frames.

Frames, and the simulator's state behind each, come from playing. :mod:`rl_ae.analysis.probes` reads the state, the
reward and the next latent from what these make of the frames:

==================  ============================================================================
latent              the mode of the autoencoder that is asked about
random encoder      the same networks, untrained: what the architecture gives away
PCA-D               as many principal components of the pixels, at most 256
raw pixels          averaged down to 32 × 32: what a linear map reads without any encoder
supervised ceiling  the same trunk, trained on the states themselves; its last layers are its probe
==================  ============================================================================
"""

import contextlib
import csv
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_ae.analysis.disentanglement import Floats, Integers, require_scikit_learn
from rl_ae.analysis.probes import (
    Split,
    Summary,
    group_means,
    plot_scores,
    pooled_r_squared,
    probe_mlp,
    probe_ridge,
    r_squared,
    split_episodes,
    successors,
    varying,
)
from rl_ae.autoencoders import Autoencoder
from rl_ae.diagnostics import evaluating
from rl_ae.envs import PixelConfig
from rl_ae.files import write_atomically
from rl_ae.optimizers import Adam
from rl_ae.pixels import to_unit
from rl_ae.provenance import git_commit, versions
from rl_ae.sb3.evaluation import Observations
from rl_ae.sb3.playing import EPISODES, STEPS, HeldActions, ProbeSet, play, progress
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.show import Subject, load_subject

#: Gradient steps of the supervised ceiling.
CEILING_UPDATES = 500
#: Widest PCA, whatever the latent's width: more components of so few frames are noise.
MOST_COMPONENTS = 256
#: Pixels a side that the raw pixels are averaged down to.
PIXEL_SIDE = 32
#: Observations a forward pass, and a gradient step of the ceiling.
BATCH_SIZE = 64
#: Width of the ceiling's hidden layer, above the trunk.
CEILING_HIDDEN = 256
#: Names of probes, in tables.
RIDGE, MLP = "ridge", "MLP"
NEXT_LATENT = "next latent"
_COLUMNS = ("representation", "probe", "group", "target", "r2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSource:
    """Where frames and states come from; a run's own environment if nothing is given. Size and stack are the model's.

    Attributes:
        env: Id of an environment, as in training.
        env_kwargs: Its arguments, a JSON object.
        grayscale: The channels of a saved autoencoder are grey frames, though 3 divides their number.
        crop: Left, upper, right and lower edge of what is cut out of the environment's frames.
        action_repeat: Environment frames a step.
        latents: So many in a row, side by side, are what is probed: as an agent sees them before which
            FrameStackObservation stacks what LatentObservation returns.

    Raises:
        ValueError: If there is no environment but something about one, or no latent.
    """

    env: str | None = None
    env_kwargs: str = "{}"
    grayscale: bool = False
    crop: tuple[int, int, int, int] | None = None
    action_repeat: int = 1
    latents: int = 1

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ValueError(f"latents must be ≥ 1, got {self.latents}")
        given = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        if given and self.env is None:
            raise ValueError(f"{', '.join(sorted(given))} would have no effect without an env")


class Score(NamedTuple):
    """One target, read by one probe.

    Attributes:
        representation: What was read.
        probe: By what.
        group: Of targets that are averaged together.
        target: Its name.
        r2: On held-out episodes; NaN for a constant target.
    """

    representation: str
    probe: str
    group: str
    target: str
    r2: float


# ---------------------------------------------------------------------- what is read


def encode(autoencoder: Autoencoder, observations: Observations, latents: int = 1) -> Floats:
    """The latents' modes, (N, D), of observations (N, C, H, W) as an environment returns them.

    Args:
        autoencoder: Which.
        observations: The newest frame last; of more frames than the autoencoder's if there are more latents.
        latents: So many in a row, (N, latents · D), the newest last.

    Raises:
        ValueError: If the observations are not of as many frames as that takes.
    """
    channels = autoencoder.observation_shape[0]
    more = observations.shape[1] - channels
    step = more // (latents - 1) if latents > 1 else 1
    if step < 1 or more != step * (latents - 1):
        raise ValueError(f"{latents} latents of {channels} channels cannot be of {observations.shape[1]} channels")
    starts = range(0, more + 1, step)
    with evaluating(autoencoder) as device:
        batches = torch.as_tensor(observations).split(BATCH_SIZE)
        rows = [
            torch.cat([autoencoder.encode(images[:, start : start + channels]).mode for start in starts], dim=1).cpu()
            for images in (to_unit(batch.to(device)) for batch in batches)
        ]
    modes: Floats = torch.cat(rows).double().numpy()
    return modes


def score(
    representation: str,
    features: Floats,
    data: ProbeSet,
    split: Split,
    seed: int = 0,
    mlp: bool = True,
    newest: int | None = None,
) -> list[Score]:
    """What probes read from one representation: every target, and, from the row and the action, the next row.

    Args:
        representation: Its name.
        features: (N, D), of the set's rows.
        data: The set.
        split: Of its rows.
        seed: Of the networks.
        mlp: By a network, too; and read the next row. Too much for wide features.
        newest: Of the next row only so many columns, the last ones, are foretold, because the others stand in this row
            already; all if omitted, and nothing is foretold if 0.
    """
    scores = [
        Score(representation, RIDGE, *labels, float(r2))
        for labels, r2 in zip(_labels(data), probe_ridge(features, data.targets, split).scores, strict=True)
    ]
    if not mlp:
        return scores
    by_mlp = probe_mlp(features, data.targets, split, seed=seed).scores
    scores += [Score(representation, MLP, *labels, float(r2)) for labels, r2 in zip(_labels(data), by_mlp, strict=True)]
    if newest == 0:
        return scores
    return scores + _score_dynamics(representation, features, data, split, seed, newest or features.shape[1])


def _labels(data: ProbeSet) -> Iterator[tuple[str, str]]:
    return zip(data.groups, data.names, strict=True)


def _score_dynamics(
    representation: str, features: Floats, data: ProbeSet, split: Split, seed: int, newest: int
) -> list[Score]:
    """How well the next row's last columns can be foretold; and, beside that, how well by being the same again."""
    now = successors(data.episodes)
    ahead = features[now + 1, -newest:]
    causes = np.column_stack([features[now], data.actions[now]])
    # rows of the split as positions among those that have a next one
    among = Split(*(np.flatnonzero(np.isin(now, rows)) for rows in split))
    predictions = {
        RIDGE: probe_ridge(causes, ahead, among).predictions,
        MLP: probe_mlp(causes, ahead, among, seed=seed).predictions,
        "no change": features[now, -newest:][among.test],
    }
    return [
        Score(representation, probe, NEXT_LATENT, "all dimensions", pooled_r_squared(ahead[among.test], predicted))
        for probe, predicted in predictions.items()
    ]


# ---------------------------------------------------------------------- controls


def untrained(autoencoder: Autoencoder, seed: int = 0) -> Autoencoder:
    """An autoencoder of the same class and config, as it is before training. Leaves the global generators alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(autoencoder)(config=autoencoder.config)


def principal_components(observations: Observations, train: Integers, components: int, seed: int = 0) -> Floats:
    """The first components (N, D) of the pixels, found on the rows to train on.

    Args:
        observations: (N, C, H, W), ``uint8``.
        train: Rows.
        components: D; as many as there are rows or pixels at most.
        seed: Of the randomised solver.

    Raises:
        ImportError: Without scikit-learn.
    """
    require_scikit_learn()
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]  # noqa: PLC0415  the extra "report"

    pixels = observations.reshape(len(observations), -1).astype(np.float32) / 255.0
    width = min(components, len(train) - 1, pixels.shape[1])
    found = PCA(width, svd_solver="randomized", random_state=seed).fit(pixels[train])
    projected: Floats = found.transform(pixels).astype(np.float64)
    return projected


def small_pixels(observations: Observations, side: int = PIXEL_SIDE) -> Floats:
    """Observations (N, C, H, W) averaged down to at most ``side`` pixels a side, as rows (N, C·h·w) in [0, 1]."""
    height, width = observations.shape[2:]
    size = min(side, height), min(side, width)
    batches = torch.as_tensor(observations).split(BATCH_SIZE)
    small = torch.cat([F.adaptive_avg_pool2d(to_unit(batch), size) for batch in batches])
    pixels: Floats = small.flatten(1).double().numpy()
    return pixels


def train_ceiling(
    autoencoder: Autoencoder,
    data: ProbeSet,
    split: Split,
    updates: int = CEILING_UPDATES,
    seed: int = 0,
    progress_bar: bool = True,
) -> Floats:
    """What the trunk can read if it is trained for nothing else: predictions (T, K) of the held-out rows.

    The same trunk from new weights, and two linear layers. Of ten moments, evenly spread, it keeps the one that reads
    the validation's episodes best; so few frames are soon learned by heart. Of targets that are constant in a part of
    the split, which no probe has a score of, it predicts the mean.

    Args:
        autoencoder: Whose trunk it is.
        data: The set.
        split: Of its rows.
        updates: Gradient steps.
        seed: Of weights and batches.
        progress_bar: Show one.
    """
    images = torch.as_tensor(data.observations)
    mean, deviation = data.targets[split.fit].mean(axis=0), data.targets[split.fit].std(axis=0)
    predictions: Floats = np.tile(mean, (len(split.test), 1))
    varies = varying(data.targets, split)
    if not varies.any():
        return predictions
    standardized = (data.targets[:, varies] - mean[varies]) / deviation[varies]
    wanted = torch.as_tensor(standardized, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = dataclasses.replace(autoencoder.config, observation_shape=tuple(images.shape[1:]))
        trunk = type(autoencoder)(config=config).encoder.trunk
        with torch.no_grad():
            width = trunk(to_unit(images[:1])).flatten(1).shape[1]
        layers = nn.Linear(width, CEILING_HIDDEN), nn.ReLU(), nn.Linear(CEILING_HIDDEN, wanted.shape[1])
        network = nn.Sequential(trunk, nn.Flatten(), *layers)
        optimizer = Adam(network.parameters(), lr=1e-3)
        rng = np.random.default_rng(seed)
        best, lowest = torch.empty(0), np.inf
        for update in progress(range(1, updates + 1), "supervised ceiling", progress_bar):
            rows = rng.choice(split.fit, size=BATCH_SIZE)
            error = F.mse_loss(network(to_unit(images[rows])), wanted[rows])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            if update % max(updates // 10, 1) == 0:
                read = functools.partial(_forward, network, images)
                validation = F.mse_loss(read(split.validation), wanted[split.validation]).item()
                if validation < lowest:
                    best, lowest = read(split.test), validation
    predictions[:, varies] = best.double().numpy() * deviation[varies] + mean[varies]
    return predictions


def _forward(network: nn.Module, images: Tensor, rows: Integers) -> Tensor:
    with evaluating(network):
        return torch.cat([network(to_unit(images[batch])) for batch in torch.as_tensor(rows).split(BATCH_SIZE)])


# ---------------------------------------------------------------------- the command


class Report(NamedTuple):
    """What a probing found.

    Attributes:
        scores: Every target by every probe of every representation.
        dropped: Targets that were constant in a part of the split.
        folder: Where ``probe.csv``, ``probe.json`` and ``probe.png`` are.
    """

    scores: list[Score]
    dropped: list[str]
    folder: Path

    @property
    def summaries(self) -> list[Summary]:
        """Group means, a row for every pair of representation and probe."""
        return summarize(self.scores)


def summarize(scores: Sequence[Score]) -> list[Summary]:
    """Means over groups, in the order representations, probes and groups come."""
    pairs = dict.fromkeys((row.representation, row.probe) for row in scores)
    summaries = []
    for representation, probe in pairs:
        rows = [row for row in scores if (row.representation, row.probe) == (representation, probe)]
        means = group_means([row.r2 for row in rows], [row.group for row in rows])
        summaries.append(Summary(representation, probe, means))
    return summaries


def format_table(summaries: Sequence[Summary]) -> str:
    """Lines of a table for the terminal: a row a summary, a column a group."""
    groups = list(dict.fromkeys(group for row in summaries for group in row.means))
    cells = [["R² on held-out episodes", "", *groups]]
    for row in summaries:
        values = [row.means.get(group, float("nan")) for group in groups]
        cells.append([row.representation, row.probe, *(f"{v:.3f}" if np.isfinite(v) else "–" for v in values)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    aligned = [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join(line.rstrip() for line in aligned)


def probe(
    folder: Path,
    source: ProbeSource,
    *,
    episodes: int = EPISODES,
    steps: int = STEPS,
    ceiling_updates: int = CEILING_UPDATES,
    out: Path | None = None,
    seed: int = 0,
) -> Report:
    """Probe an autoencoder and its controls; write ``probe.csv``, ``probe.json`` and ``probe.png``.

    Args:
        folder: Written by ``save_pretrained``, or a run's.
        source: Where frames and states come from.
        episodes: To play, ≥ 3; a quarter of them is held out.
        steps: Most decisions of each.
        ceiling_updates: Gradient steps of the supervised ceiling; 0 leaves it out.
        out: Where files go; into the folder if omitted.
        seed: Of starts, actions, split and networks.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no autoencoder of images, the environment's state is not known, or a number is too
            small.
        ImportError: Without scikit-learn, or what the environment needs.
    """
    require_scikit_learn()
    if ceiling_updates < 0:
        raise ValueError(f"ceiling_updates must be ≥ 0, got {ceiling_updates}")
    subject = load_subject(folder)
    agent = subject.agent if source.env is None else None  # its actions may mean nothing elsewhere
    with contextlib.closing(_make_env(subject, source, folder)) as env:
        data = play(env, HeldActions(env.action_space, seed, agent=agent), episodes, steps, seed)
    split = split_episodes(data.episodes, seed=seed)
    scores = list(_score_all(subject.autoencoder, source.latents, data, split, ceiling_updates, seed))
    varies = varying(data.targets, split)
    dropped = [f"{name} ({group})" for (group, name), kept in zip(_labels(data), varies, strict=True) if not kept]
    report = Report(scores, dropped, folder if out is None else out)
    settings = {
        "model": str(folder),
        "source": dataclasses.asdict(source),
        "env": source.env if subject.config is None or source.env is not None else subject.config.env,
        "episodes": episodes,
        "steps": steps,
        "ceiling_updates": ceiling_updates,
        "seed": seed,
        "rows": {name: len(rows) for name, rows in split._asdict().items()},
        "versions": versions(),
        "commit": git_commit(),
    }
    _write(report, settings)
    return report


def _make_env(subject: Subject, source: ProbeSource, folder: Path) -> gym.Env[Any, Any]:
    shape = subject.autoencoder.observation_shape
    if len(shape) != 3:
        raise ValueError(f"{folder}: probes need an autoencoder of images, this one is of vectors {shape}")
    if source.env is None:
        if subject.config is None:
            raise ValueError(f"{folder} is a saved autoencoder, which has no environment: give it an env")
        return subject.config.make_env(training=False)
    channels, height, width = shape
    frame_channels = subject.frame_channels(source.grayscale)
    pixels = PixelConfig(
        size=(height, width),
        grayscale=frame_channels == 1,
        frame_stack=channels // frame_channels + source.latents - 1,
        action_repeat=source.action_repeat,
        crop=source.crop,
    )
    return RunConfig(env=source.env, env_kwargs=source.env_kwargs, pixels=pixels).make_env(training=False)


def _score_all(
    autoencoder: Autoencoder, latents: int, data: ProbeSet, split: Split, ceiling_updates: int, seed: int
) -> Iterator[Score]:
    """The latent's scores and the controls', one representation after the other in memory."""
    components = min(latents * autoencoder.latent_dim, MOST_COMPONENTS)
    name, newest = ("latent" if latents == 1 else f"{latents} latents"), autoencoder.latent_dim
    yield from score(name, encode(autoencoder, data.observations, latents), data, split, seed, newest=newest)
    random = encode(untrained(autoencoder, seed), data.observations, latents)
    yield from score("random encoder", random, data, split, seed, newest=newest)
    pca = principal_components(data.observations, split.train, components, seed)
    # with several latents its next row is of frames that this one has seen, too, but no column is of the newest alone
    yield from score(f"PCA-{pca.shape[1]}", pca, data, split, seed, newest=None if latents == 1 else 0)
    yield from score("raw pixels", small_pixels(data.observations), data, split, seed, mlp=False)
    if ceiling_updates:
        predictions = train_ceiling(autoencoder, data, split, ceiling_updates, seed)
        r2 = np.where(varying(data.targets, split), r_squared(data.targets[split.test], predictions), np.nan)
        for labels, value in zip(_labels(data), r2, strict=True):
            yield Score("supervised ceiling", MLP, *labels, float(value))


def _write(report: Report, settings: dict[str, Any]) -> None:
    def write_table(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(report.scores)

    content = {
        **settings,
        "dropped": report.dropped,
        "means": [
            {"representation": row.representation, "probe": row.probe, **_without_nan(row.means)}
            for row in report.summaries
        ],
    }
    figure = plot_scores(report.summaries, f"{settings['model']} on {settings['env']}")
    write_atomically(report.folder / "probe.csv", write_table)
    write_atomically(report.folder / "probe.json", lambda path: path.write_text(json.dumps(content, indent=2) + "\n"))
    write_atomically(report.folder / "probe.png", functools.partial(figure.savefig, dpi=120))


def _without_nan(means: Any) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {group: value if np.isfinite(value) else None for group, value in means.items()}
