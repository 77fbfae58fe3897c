"""Probing while an agent learns: whether its latent holds the state, as a curve."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from rl_ae.analysis.disentanglement import Floats, require_scikit_learn
from rl_ae.analysis.probes import group_means, probe_ridge, split_episodes
from rl_ae.diagnostics import evaluating
from rl_ae.envs.states import state_reader
from rl_ae.files import write_atomically
from rl_ae.sb3.evaluation import Observations
from rl_ae.sb3.playing import EPISODES, HeldActions, ProbeSet, play

#: Decisions an episode: few, because the set stays in memory while the agent learns.
STEPS = 50
#: Observations a forward pass.
BATCH_SIZE = 64


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
    first row is of the encoder as training finds it: the untrained one, unless it was pretrained; a ``learn`` that
    counts its steps anew adds another such row. Any features extractor is probed, Stable-Baselines3's ``NatureCNN``
    too. Draws from no global generator.

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
        steps: int = STEPS,
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
        if not self.rows or self.rows[-1]["step"] > self.num_timesteps:  # the steps are counted anew
            self.add_row()
        self._last = int(self.rows[-1]["step"])  # which a run that was killed had left behind

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
        with evaluating(self._extractor):
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
