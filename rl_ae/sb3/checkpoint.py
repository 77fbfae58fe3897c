"""Checkpoints: everything a killed run needs to go on, written so that a half-written file never replaces a good one.

A checkpoint is a folder. ``state.json`` names the other files: the agent (Stable-Baselines3's zip), the random state,
the replay buffer in chunks of rows where there is one, and the auxiliary loss of a stock agent. New files get new
names, ``state.json`` is replaced last and at once, and only then are the files it no longer names deleted; a process
killed at any moment leaves the previous checkpoint whole. Of the replay buffer only the chunks that changed are written
again.
"""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_ae import generators
from rl_ae.files import write_atomically
from rl_ae.sb3.agent import AutoencoderAgent, NonFiniteError
from rl_ae.sb3.algorithms import ALGORITHMS
from rl_ae.sb3.auxiliary import AuxiliaryLossCallback
from rl_ae.sb3.replay import FrameReplayBuffer

FORMAT = 1
STATE_FILE = "state.json"
#: The algorithms by the name that a checkpoint has of them.
AGENTS: dict[str, type[BaseAlgorithm]] = {algorithm.__name__: algorithm for algorithm in ALGORITHMS.values()}
#: Replay rows a file. At 84×84×9 a file is 127 MB.
CHUNK_ROWS = 1000
#: Names of a checkpoint's files; no others in its folder are ever deleted.
_PATTERNS = ("agent-*.zip", "random-*.pt", "replay-*.safetensors", "auxiliary-*")


class CheckpointWriter:
    """Writes checkpoints of one run into one folder.

    Args:
        folder: The checkpoint's folder; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Any] = read_state(folder) if (folder / STATE_FILE).exists() else {}

    def save(
        self, model: BaseAlgorithm, extra: Mapping[str, Any], auxiliary: AuxiliaryLossCallback | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            model: The agent.
            extra: JSON-ready facts of the run to keep with it (elapsed seconds, say).
            auxiliary: The callback that trains the agent's autoencoder, once it has met the agent.

        Raises:
            NonFiniteError: If a weight is NaN or infinite; the checkpoint there is stays.
        """
        for name, tensor in model.policy.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite at step {model.num_timesteps}, no checkpoint is written")
        step = model.num_timesteps
        agent, random = f"agent-{step}.zip", f"random-{step}.pt"
        write_atomically(self.folder / agent, model.save)
        write_atomically(self.folder / random, lambda path: torch.save(_random_state(model), path))
        if auxiliary is not None:
            auxiliary.save(self.folder / f"auxiliary-{step}")
        self._state = {
            "format": FORMAT,
            "algorithm": type(model).__name__,
            "step": step,
            "agent": agent,
            "random": random,
            "replay": self._save_replay(model) if isinstance(model, OffPolicyAlgorithm) else None,
            "auxiliary": None if auxiliary is None else f"auxiliary-{step}",
            "extra": dict(extra),
        }
        write_atomically(self.folder / STATE_FILE, lambda path: path.write_text(json.dumps(self._state, indent=2)))
        self._delete_unnamed()

    def _save_replay(self, model: OffPolicyAlgorithm) -> dict[str, Any]:
        buffer = model.replay_buffer
        assert buffer is not None
        old = self._state.get("replay", {"pos": 0, "full": False, "chunks": {}})
        added = (model.num_timesteps - self._state.get("step", 0)) // buffer.n_envs
        if added < 0 or (old["pos"] + added) % buffer.buffer_size != buffer.pos:
            old = {"pos": 0, "chunks": {}}  # not the buffer that was saved: keep nothing of it
        # from the row before: a resumed run has marked it as a boundary. To the row at `pos`: with
        # optimize_memory_usage it holds the last next observation.
        changed = range(old["pos"] - 1, old["pos"] + added + 1)
        dirty = {row % buffer.buffer_size // CHUNK_ROWS for row in changed}
        used = range(-(-min(buffer.size() + 1, buffer.buffer_size) // CHUNK_ROWS))
        chunks = {}
        for chunk in used:
            name = old["chunks"].get(str(chunk))
            if chunk in dirty or name is None:
                name = f"replay-{chunk}-{model.num_timesteps}.safetensors"
                rows = slice(chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS)
                arrays = {key: array[rows] for key, array in _replay_arrays(buffer).items()}
                if isinstance(buffer, FrameReplayBuffer):
                    arrays |= buffer.save_rows(rows)
                write_atomically(self.folder / name, functools.partial(save_file, arrays))
            chunks[str(chunk)] = name
        return {**_replay_facts(buffer), "pos": buffer.pos, "full": buffer.full, "chunks": chunks}

    def _delete_unnamed(self) -> None:
        named = set(_names(self._state))
        for path in (path for pattern in _PATTERNS for path in self.folder.glob(pattern)):
            if path.name not in named:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _names(state: Mapping[str, Any]) -> list[str]:
    """The files and folders of a checkpoint, but for the one that names them."""
    replay, auxiliary = state["replay"], state.get("auxiliary")
    chunks = [] if replay is None else replay["chunks"].values()
    return [state["agent"], state["random"], *chunks, *([] if auxiliary is None else [auxiliary])]


def read_state(folder: Path) -> dict[str, Any]:
    """The contents of a checkpoint's ``state.json``.

    Raises:
        ValueError: If the folder holds no checkpoint, a broken one, or one of another format; says which.
    """
    path = folder / STATE_FILE
    if not path.exists():
        raise ValueError(f"{folder} is not a checkpoint: it has no {STATE_FILE}")
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        found = state["format"], state["algorithm"]
        names = _names(state)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint of rl_ae: {error!r}") from error
    if found[0] != FORMAT or found[1] not in AGENTS:
        raise ValueError(f"{path}: expected format {FORMAT} of {sorted(AGENTS)}, got format {found[0]} of {found[1]}")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ValueError(f"{folder} is incomplete: {STATE_FILE} names {missing}, which are missing")
    return state


def load_agent(folder: Path, **kwargs: Any) -> BaseAlgorithm:
    """The agent of a checkpoint, to evaluate or to fine-tune; without its replay buffer and auxiliary loss.

    Args:
        folder: The checkpoint.
        **kwargs: For the agent's ``load``: ``env``, ``device``, ``buffer_size`` …

    Raises:
        ValueError: If the checkpoint is broken or foreign.
    """
    state = read_state(folder)
    return AGENTS[state["algorithm"]].load(folder / state["agent"], **kwargs)


def load_autoencoder_agent(folder: Path, **kwargs: Any) -> AutoencoderAgent:
    """:func:`load_agent` for one that has an autoencoder of its own.

    Raises:
        ValueError: Also if it has none.
    """
    agent = load_agent(folder, **kwargs)
    if not isinstance(agent, AutoencoderAgent):
        raise ValueError(f"{folder} is of {type(agent).__name__}, which has no decoder: expected SACAE or TD3AE")
    return agent


def resume_agent(folder: Path, env: VecEnv, device: torch.device | str = "auto") -> BaseAlgorithm:
    """The agent of a checkpoint with its replay buffer and random state, for ``learn(reset_num_timesteps=False)``.

    The environment starts a new episode, so the last stored transition of each environment is marked as cut off: no
    n-step return and no shared next observation reaches over it.

    Args:
        folder: The checkpoint.
        env: Environments like those of the run, as many of them.
        device: Where the agent is to run; not necessarily where it was saved.

    Raises:
        ValueError: If the checkpoint is broken or foreign, or its replay buffer is of another shape.
    """
    state = read_state(folder)
    model = AGENTS[state["algorithm"]].load(folder / state["agent"], env=env, device=device)
    if isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer is not None
        _load_replay(model.replay_buffer, state["replay"], folder)
        _mark_boundary(model.replay_buffer)
    try:
        random = torch.load(folder / state["random"], map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{folder / state['random']} is damaged: {error}") from error
    generators.restore(random["global"])
    model.action_space.np_random.bit_generator.state = json.loads(random["action_space"])
    return model


def resume_auxiliary(folder: Path, callback: AuxiliaryLossCallback) -> AuxiliaryLossCallback:
    """The auxiliary loss of a checkpoint, into a callback made with the same arguments.

    Raises:
        ValueError: If the checkpoint is broken or has none.
    """
    name = read_state(folder).get("auxiliary")
    if name is None:
        raise ValueError(f"{folder} is of an agent without an auxiliary loss")
    return callback.load(folder / name)


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    action_space: Mapping[str, Any] = model.action_space.np_random.bit_generator.state
    return {"global": generators.capture(), "action_space": json.dumps(action_space)}


def _replay_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray[Any, Any]]:
    """Every array with a row a transition, those of a buffer class unknown here too."""
    named = dict(vars(buffer))
    for name, value in vars(buffer).items():
        if isinstance(value, dict):  # of observations, by key
            named |= {f"{name}/{key}": array for key, array in value.items()}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == buffer.buffer_size
    }


def _replay_facts(buffer: ReplayBuffer) -> dict[str, Any]:
    return {
        "class": type(buffer).__name__,
        "buffer_size": buffer.buffer_size,
        "n_envs": buffer.n_envs,
        "obs_shape": (
            {key: list(shape) for key, shape in buffer.obs_shape.items()}
            if isinstance(buffer.obs_shape, dict)
            else list(buffer.obs_shape)
        ),
    }


def _load_replay(buffer: ReplayBuffer, saved: Mapping[str, Any], folder: Path) -> None:
    expected = _replay_facts(buffer)
    found = {name: saved.get(name) for name in expected}
    if found != expected:
        raise ValueError(f"the replay buffer of {folder} does not fit: expected {expected}, got {found}")
    arrays = _replay_arrays(buffer)
    for chunk, name in saved["chunks"].items():
        target = slice(int(chunk) * CHUNK_ROWS, (int(chunk) + 1) * CHUNK_ROWS)
        try:
            rows = load_file(folder / name)
            for key, array in arrays.items():
                array[target] = rows[key]
            if isinstance(buffer, FrameReplayBuffer):
                buffer.load_rows(target, rows)
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{folder / name} is damaged: {error!r}") from error
    buffer.pos, buffer.full = saved["pos"], saved["full"]


def _mark_boundary(buffer: ReplayBuffer) -> None:
    """Cut the episode after the newest transition."""
    if buffer.size() == 0:
        return
    newest = buffer.pos - 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[newest] = np.where(buffer.dones[newest] > 0, buffer.timeouts[newest], 1.0)
    else:  # all this variant knows are terminations, as in SB3 issue 46
        buffer.dones[newest] = 1.0
