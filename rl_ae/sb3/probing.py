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
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from rl_ae.analysis.disentanglement import require_scikit_learn
from rl_ae.analysis.probes import (
    Floats,
    Integers,
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
from rl_ae.envs import PixelConfig
from rl_ae.envs.states import State, state_reader
from rl_ae.optimizers import Adam
from rl_ae.pixels import count_frame_channels, to_unit
from rl_ae.provenance import git_commit, versions
from rl_ae.sb3.evaluation import FIRST_START_SEED, Observations, Predictor
from rl_ae.sb3.pictures import write_atomically
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.show import Subject, load_subject

#: Episodes that are played, and the most decisions in each.
EPISODES, STEPS = 20, 150
#: The most decisions that an action is held for.
HOLD = 8
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
REWARD, NEXT_LATENT = "reward", "next latent"
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

    Raises:
        ValueError: If there is no environment but something about one.
    """

    env: str | None = None
    env_kwargs: str = "{}"
    grayscale: bool = False
    crop: tuple[int, int, int, int] | None = None
    action_repeat: int = 1

    def __post_init__(self) -> None:
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


# ---------------------------------------------------------------------- what is played


class ProbeSet(NamedTuple):
    """Observations of whole episodes, in order, and what lay behind them. Starts are left out: no reward led there.

    Attributes:
        observations: (N, C, H, W), ``uint8``.
        actions: What was done next, (N, A); a row of an index's zeros and one for discrete ones.
        episodes: Of every row, (N,).
        targets: The state and the reward that came with the observation, (N, K).
        names: Of the targets.
        groups: Of the targets: those of :mod:`rl_ae.envs.states`, and ``reward``.
    """

    observations: Observations
    actions: Floats
    episodes: Integers
    targets: Floats
    names: tuple[str, ...]
    groups: tuple[str, ...]


class HeldActions:
    """Actions that stay for a while, so that something comes of them: random ones, or an agent's turn to choose.

    A turn takes 1 to ``hold`` decisions, uniformly. With an agent every second one is its own, on average, and in it
    the agent chooses anew each time.

    Args:
        action_space: What random actions are drawn from; seeded here.
        seed: Of all draws.
        hold: Most decisions of a turn.
        agent: Who else acts.
    """

    def __init__(
        self, action_space: gym.Space[Any], seed: int = 0, hold: int = HOLD, agent: Predictor | None = None
    ) -> None:
        self.action_space, self.hold, self.agent = action_space, hold, agent
        self._rng = np.random.default_rng(seed)
        self._left, self._held = 0, None
        action_space.seed(seed)

    def predict(self, observation: Observations, *, deterministic: bool = False) -> tuple[Any, None]:
        """The next action."""
        if self._left == 0:
            self._left = int(self._rng.integers(1, self.hold + 1))
            agents_turn = self.agent is not None and self._rng.random() < 0.5
            self._held = None if agents_turn else self.action_space.sample()
        self._left -= 1
        if self._held is None:
            assert self.agent is not None
            return self.agent.predict(observation, deterministic=deterministic)[0], None
        return self._held, None


def play(
    env: gym.Env[Any, Any],
    policy: Predictor,
    episodes: int = EPISODES,
    steps: int = STEPS,
    seed: int = 0,
    progress_bar: bool = True,
) -> ProbeSet:
    """Play episodes, and write down every observation and the state behind it.

    Args:
        env: Of images; :func:`~rl_ae.envs.states.state_reader` must know its state.
        policy: Who acts.
        episodes: To play, ≥ 3.
        steps: Most decisions of each.
        seed: Of the starts.
        progress_bar: Show one.

    Raises:
        ValueError: If a number is too small or the state is not known.
    """
    if episodes < 3 or steps < 2:
        raise ValueError(f"a probe needs episodes ≥ 3 and steps ≥ 2, got {episodes} and {steps}")
    read = state_reader(env)
    observations, actions, labels, states, rewards = [], [], [], [], []
    with _progress(range(episodes * steps), "play", progress_bar) as bar:
        for episode in range(episodes):
            observation, _ = env.reset(seed=FIRST_START_SEED + seed + episode)
            action, _ = policy.predict(np.asarray(observation), deterministic=False)
            for _ in range(steps):
                observation, reward, terminated, truncated, _ = env.step(action)
                action, _ = policy.predict(np.asarray(observation), deterministic=False)
                observations.append(np.asarray(observation))
                actions.append(_as_vector(action, env.action_space))
                labels.append(episode)
                states.append(read())
                rewards.append(float(reward))
                bar.update()
                if terminated or truncated:
                    break
    names, groups = _names(states[0])
    return ProbeSet(
        np.stack(observations),
        np.stack(actions),
        np.array(labels, np.int64),
        np.column_stack([np.array([_values(state) for state in states]), rewards]),
        (*names, REWARD),
        (*groups, REWARD),
    )


def _progress(steps: range, description: str, shown: bool) -> "tqdm[int]":
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs no animation
    return tqdm(steps, description, disable=not shown, leave=False, unit="step", mininterval=interval)


def _as_vector(action: Any, space: gym.Space[Any]) -> Floats:
    vector: Floats = np.asarray(spaces.flatten(space, action), np.float64)
    return vector


def _names(state: State) -> tuple[list[str], list[str]]:
    pairs = [(name, group) for group, numbers in state.items() for name in numbers]
    return [name for name, _ in pairs], [group for _, group in pairs]


def _values(state: State) -> list[float]:
    return [value for numbers in state.values() for value in numbers.values()]


# ---------------------------------------------------------------------- what is read


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Without dropout and gradients; afterwards every module is in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    finally:
        for each, mode in modes:
            each.training = mode


def encode(autoencoder: Autoencoder, observations: Observations) -> Floats:
    """The latents' modes, (N, D), of observations (N, C, H, W) as an environment returns them."""
    with _evaluating(autoencoder) as device:
        batches = torch.as_tensor(observations).split(BATCH_SIZE)
        modes = [autoencoder.encode(to_unit(batch.to(device))).mode.cpu() for batch in batches]
    latents: Floats = torch.cat(modes).double().numpy()
    return latents


def score(
    representation: str, features: Floats, data: ProbeSet, split: Split, seed: int = 0, mlp: bool = True
) -> list[Score]:
    """What probes read from one representation: every target, and, from the row and the action, the next row.

    Args:
        representation: Its name.
        features: (N, D), of the set's rows.
        data: The set.
        split: Of its rows.
        seed: Of the networks.
        mlp: By a network, too; and read the next row. Too much for wide features.
    """
    scores = [
        Score(representation, RIDGE, *labels, float(r2))
        for labels, r2 in zip(_labels(data), probe_ridge(features, data.targets, split).scores, strict=True)
    ]
    if not mlp:
        return scores
    by_mlp = probe_mlp(features, data.targets, split, seed=seed).scores
    scores += [Score(representation, MLP, *labels, float(r2)) for labels, r2 in zip(_labels(data), by_mlp, strict=True)]
    return scores + _score_dynamics(representation, features, data, split, seed)


def _labels(data: ProbeSet) -> Iterator[tuple[str, str]]:
    return zip(data.groups, data.names, strict=True)


def _score_dynamics(representation: str, features: Floats, data: ProbeSet, split: Split, seed: int) -> list[Score]:
    """How well the next row can be foretold; and, to lay beside that, how well by its being the same again."""
    now = successors(data.episodes)
    ahead = features[now + 1]
    causes = np.column_stack([features[now], data.actions[now]])
    # rows of the split as positions among those that have a next one
    among = Split(*(np.flatnonzero(np.isin(now, rows)) for rows in split))
    predictions = {
        RIDGE: probe_ridge(causes, ahead, among).predictions,
        MLP: probe_mlp(causes, ahead, among, seed=seed).predictions,
        "no change": features[now][among.test],
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
    size = [min(side, length) for length in observations.shape[2:]]
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
    the validation's episodes best; so few frames are soon learned by heart.

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
    deviation[~varying(data.targets, split)] = 1.0
    wanted = torch.as_tensor((data.targets - mean) / deviation, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = type(autoencoder)(config=autoencoder.config).encoder.trunk
        with torch.no_grad():
            width = trunk(to_unit(images[:1])).flatten(1).shape[1]
        layers = nn.Linear(width, CEILING_HIDDEN), nn.ReLU(), nn.Linear(CEILING_HIDDEN, wanted.shape[1])
        network = nn.Sequential(trunk, nn.Flatten(), *layers)
        optimizer = Adam(network.parameters(), lr=1e-3)
        rng = np.random.default_rng(seed)
        best, lowest = torch.empty(0), np.inf
        for update in _progress(range(1, updates + 1), "supervised ceiling", progress_bar):
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
    predictions: Floats = best.double().numpy() * deviation + mean
    return predictions


def _forward(network: nn.Module, images: Tensor, rows: Integers) -> Tensor:
    with _evaluating(network):
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
    with contextlib.closing(_make_env(subject, source, folder)) as env:
        data = play(env, HeldActions(env.action_space, seed, agent=subject.agent), episodes, steps, seed)
    split = split_episodes(data.episodes, seed=seed)
    scores = list(_score_all(subject.autoencoder, data, split, ceiling_updates, seed))
    varies = varying(data.targets, split)
    dropped = [f"{name} ({group})" for (group, name), kept in zip(_labels(data), varies, strict=True) if not kept]
    report = Report(scores, dropped, folder if out is None else out)
    settings = {
        "model": str(folder),
        "env": source.env if subject.config is None or source.env is not None else subject.config.env,
        "episodes": episodes,
        "steps": steps,
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
    frame_channels = count_frame_channels(channels, 1 if source.grayscale else None)
    pixels = PixelConfig(
        size=(height, width),
        grayscale=frame_channels == 1,
        frame_stack=channels // frame_channels,
        action_repeat=source.action_repeat,
        crop=source.crop,
    )
    return RunConfig(env=source.env, env_kwargs=source.env_kwargs, pixels=pixels).make_env(training=False)


def _score_all(
    autoencoder: Autoencoder, data: ProbeSet, split: Split, ceiling_updates: int, seed: int
) -> Iterator[Score]:
    """The latent's scores and the controls', one representation after the other in memory."""
    components = min(autoencoder.latent_dim, MOST_COMPONENTS)
    yield from score("latent", encode(autoencoder, data.observations), data, split, seed)
    random = encode(untrained(autoencoder, seed), data.observations)
    yield from score("random encoder", random, data, split, seed)
    pca = principal_components(data.observations, split.train, components, seed)
    yield from score(f"PCA-{pca.shape[1]}", pca, data, split, seed)
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


# ---------------------------------------------------------------------- while an agent learns


def agent_extractor(model: BaseAlgorithm) -> BaseFeaturesExtractor:
    """What an agent sees through: its critic's features extractor, or its policy's where there is no critic's.

    Raises:
        ValueError: If it has none.
    """
    found = {
        name: module
        for name, module in model.policy.named_modules()
        if isinstance(module, BaseFeaturesExtractor) and "_target" not in name
    }
    for name in sorted(found, key=lambda name: not name.startswith("critic")):
        return found[name]
    raise ValueError(f"{type(model).__name__}'s policy has no features extractor to probe")


class ProbeCallback(BaseCallback):
    """Does an agent's latent hold the state? Asked every so many steps, about the same frames each time.

    When training starts, episodes are played with random held actions; the agent's encoder (the critic's, where there
    are several) then encodes them every so often, and ridge regression reads the state. Of every group of
    :mod:`rl_ae.envs.states`, and of the reward, the mean R² on held-out episodes is logged as ``probe/<group>_r2``. The
    first row is of the encoder as training finds it: the untrained one, unless it was pretrained. Any features
    extractor is probed, Stable-Baselines3's ``NatureCNN`` too. Draws from no global generator.

    Args:
        env: To play in, with the agent's observations; closed by whoever made it.
        every: Steps between two rows.
        path: CSV file, rewritten with every row, and continued if it is there; no file if ``None``.
        episodes: To play, ≥ 3.
        steps: Most decisions of each.
        seed: Of starts, actions and split.

    Attributes:
        rows: What was measured so far: ``step`` and ``<group>_r2``.

    Raises:
        ValueError: If a number is too small, the environment's state is not known, or its observations are not those
            of the agent.
        ImportError: Without scikit-learn.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        every: int,
        path: Path | None = None,
        *,
        episodes: int = EPISODES,
        steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be ≥ 1, got {every}")
        require_scikit_learn()
        state_reader(env)
        self.env, self.every, self.path = env, every, path
        self.episodes, self.steps, self.seed = episodes, steps, seed
        self.rows: list[dict[str, float]] = []
        self._data: ProbeSet | None = None

    def _init_callback(self) -> None:
        if self.env.observation_space != self.model.observation_space:
            raise ValueError(
                f"the agent observes {self.model.observation_space}, expected the same of the probe's environment, got "
                f"{self.env.observation_space}"
            )
        self._extractor = agent_extractor(self.model)

    def _on_training_start(self) -> None:
        if self._data is None:
            policy = HeldActions(self.env.action_space, self.seed)
            self._data = play(self.env, policy, self.episodes, self.steps, self.seed, progress_bar=False)
            self._split = split_episodes(self._data.episodes, seed=self.seed)
            self.rows = self._earlier_rows()
        if not self.rows:
            self.add_row()
        self._last = self.num_timesteps

    def _earlier_rows(self) -> list[dict[str, float]]:
        if self.path is None or not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        return [row for row in rows if row["step"] <= self.num_timesteps]

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last >= self.every:
            self.add_row()

    def _on_training_end(self) -> None:
        if self.rows[-1]["step"] < self.model.num_timesteps:
            self.add_row()

    def add_row(self) -> None:
        """Probe the encoder as it is now, log the scores and write the file."""
        data = self._data
        assert data is not None
        scores = probe_ridge(self._features(data.observations), data.targets, self._split).scores
        means = {f"{group}_r2": value for group, value in group_means(scores, data.groups).items()}
        for name, value in means.items():
            self.logger.record(f"probe/{name}", value)
        self._last = self.model.num_timesteps
        self.rows.append({"step": self._last, **means})
        if self.path is not None:
            write_atomically(self.path, self._write)

    def _features(self, observations: Observations) -> Floats:
        space, normalize = self.model.observation_space, self.model.policy.normalize_images
        with _evaluating(self._extractor):
            batches = torch.as_tensor(observations).split(BATCH_SIZE)
            prepared = (preprocess_obs(batch.to(self.model.device), space, normalize) for batch in batches)
            features = torch.cat([self._extractor(batch).cpu() for batch in prepared])
        result: Floats = features.double().numpy()
        return result

    def _write(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def _on_step(self) -> bool:
        return True
