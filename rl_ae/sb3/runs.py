"""Runs: one folder a training run, with its configuration, curve, logs and checkpoint.

========================  ==================================================================
``config.json``           the configuration, as given and as resolved, and every session's machine and versions
``checkpoint/``           see :mod:`rl_ae.sb3.checkpoint`
``curve.csv``, ``.png``   returns of the training episodes and reconstruction loss
``reconstructions.png``   frames above their reconstructions, of an agent with an autoencoder of its own
``progress.json``         where it is, see :class:`~rl_ae.sb3.callbacks.Heartbeat`
``output.log``            what the run printed, where somebody started it who kept that
``.lock``                 held by the process that trains
``probe_curve.csv``       by :class:`~rl_ae.sb3.probe_callback.ProbeCallback`, where ``probe_every`` asks for it
``logs/``                 TensorBoard events and Stable-Baselines3's CSV, a pair a session
``evaluation.*``          by :func:`evaluate_run`: returns and PSNR, a strip, a video
========================  ==================================================================
"""

import contextlib
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tqdm import tqdm

from rl_ae.files import write_atomically
from rl_ae.locking import LOCK_FILE, locked
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.sb3.agent import AutoencoderAgent
from rl_ae.sb3.algorithms import ALGORITHMS
from rl_ae.sb3.auxiliary import AuxiliaryLossCallback
from rl_ae.sb3.callbacks import (
    Checkpoints,
    Heartbeat,
    LearningCurve,
    Progress,
    StopOnSignal,
    TensorboardReconstructions,
    read_curve,
)
from rl_ae.sb3.checkpoint import (
    STATE_FILE,
    CheckpointWriter,
    load_agent,
    read_state,
    resume_agent,
    resume_auxiliary,
)
from rl_ae.sb3.evaluation import (
    FIRST_START_SEED,
    Observations,
    RandomPolicy,
    ReconstructionQuality,
    compare,
    play_episode,
    reconstruction_quality,
    spread_observations,
    start_seeds,
)
from rl_ae.sb3.pictures import FRAMES_PER_SECOND, save_film, save_learning_curve, save_reconstructions, side_by_side
from rl_ae.sb3.probe_callback import ProbeCallback
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.stopping import StopSignals

EVALUATION_EPISODES = 10
#: Fields in which two sessions of a run may differ: they do not change what has been learned.
_FREE_FIELDS = frozenset(
    {"steps", "device", "log_every", "checkpoint_every", "eval_every", "eval_episodes", "probe_every"}
)


class Run(NamedTuple):
    """The files of a run.

    Attributes:
        folder: Its folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.folder / "config.json"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder."""
        return self.folder / "checkpoint"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.checkpoint / STATE_FILE).exists()

    @property
    def curve(self) -> Path:
        """The learning curve's CSV."""
        return self.folder / "curve.csv"

    @property
    def evaluation(self) -> Path:
        """The last evaluation's record."""
        return self.folder / "evaluation.json"

    @property
    def probe_curve(self) -> Path:
        """What :class:`~rl_ae.sb3.probe_callback.ProbeCallback` writes."""
        return self.folder / "probe_curve.csv"

    @property
    def progress(self) -> Path:
        """What :class:`~rl_ae.sb3.callbacks.Heartbeat` writes."""
        return self.folder / "progress.json"

    @property
    def output(self) -> Path:
        """What the run printed."""
        return self.folder / "output.log"

    @property
    def logs(self) -> Path:
        """The logs' folder."""
        return self.folder / "logs"

    def read(self) -> dict[str, Any]:
        """The contents of ``config.json``.

        Raises:
            ValueError: If the folder is not a run.
        """
        if not self.config.exists():
            raise ValueError(f"{self.folder} is not a run: it has no {self.config.name}")
        try:
            content: dict[str, Any] = json.loads(self.config.read_text())
            RunConfig.from_dict(content["config"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.config} is not a run's configuration: {error!r}") from error
        return content

    def read_config(self) -> RunConfig:
        """The run's configuration, as given; raises as :meth:`read`."""
        return RunConfig.from_dict(self.read()["config"])


def train_run(config: RunConfig, folder: Path, resume: bool = False, patience: float = 0.0) -> Run:
    """Train an agent in a folder of its own.

    Args:
        config: The run.
        folder: Where its files go.
        resume: Continue the run in ``folder`` if there is one.
        patience: Seconds to wait for another process that trains in the folder, one that is about to end say.

    Returns:
        The finished run.

    Raises:
        ValueError: If the folder exists and ``resume`` is false, or holds something else, or another run, or another
            process trains in it.
        NonFiniteError: If a reward or a loss is not finite; the last checkpoint stays.
    """
    run = Run(folder)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, but no CUDA device is available; use 'cpu' or 'auto'")
    _refuse_foreign(run)
    with locked(folder, "trains", patience):
        sessions = _earlier_sessions(run, config, resume)
        with contextlib.closing(_make_env(config, config.n_envs)) as env:
            model, curve = (_resume if run.has_checkpoint else _start)(run, config, env)
            if model.num_timesteps < config.steps:
                description = _describe(config, model, sessions)
                _print_resolved(description["resolved"])
                text = json.dumps(description, indent=2, default=repr)
                write_atomically(run.config, lambda path: path.write_text(text))
                _learn(run, config, model, curve)
            else:
                print(f"{folder} is at step {model.num_timesteps:_} of {config.steps:_} already: nothing to train")
            _draw(run, config, model, curve)
    return run


def _refuse_foreign(run: Run) -> None:
    """Leave a folder alone that holds something else."""
    if not _is_new(run) and not run.config.exists():
        raise ValueError(f"{run.folder} exists and is not a run (no config.json): choose another folder with --run")


def _is_new(run: Run) -> bool:
    """Whether nothing of a run is in its folder yet."""
    return not run.folder.exists() or {path.name for path in run.folder.iterdir()} <= {LOCK_FILE, run.output.name}


def _print_resolved(resolved: dict[str, Any]) -> None:
    """The resolved configuration, a paragraph a group."""
    groups = {"run": {}, **{name: values for name, values in resolved.items() if isinstance(values, dict)}}
    groups["run"] = {name: value for name, value in resolved.items() if name not in groups}
    for group, values in groups.items():
        print(f"{group}: " + ", ".join(f"{name}={value}" for name, value in _flat(values).items()))


def _earlier_sessions(run: Run, config: RunConfig, resume: bool) -> list[dict[str, Any]]:
    """What ``config.json`` says of earlier sessions, none for a new run; refuses what may not be continued."""
    if _is_new(run):
        return []
    if not resume:
        raise ValueError(f"{run.folder} exists: continue it with --resume, or choose another folder with --run")
    sessions: list[dict[str, Any]] = run.read()["sessions"]
    if not run.has_checkpoint:
        print(f"{run.folder} has no checkpoint yet: starting from step 0")
        return []
    old, new = _flat(run.read_config().to_dict()), _flat(config.to_dict())
    changed = [name for name in new if name not in _FREE_FIELDS and old.get(name) != new[name]]
    if changed:
        listing = "; ".join(f"{name}: expected {old.get(name)}, got {new[name]}" for name in changed)
        raise ValueError(
            f"{run.folder} holds a run of another configuration ({listing}); choose another folder with --run"
        )
    return sessions


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _make_env(config: RunConfig, n_envs: int, training: bool = True) -> VecEnv:
    # not SB3's make_vec_env: it adds a Monitor outside of the reward's scale
    return DummyVecEnv([lambda: config.make_env(training)] * n_envs)


def _start(run: Run, config: RunConfig, env: VecEnv) -> tuple[BaseAlgorithm, LearningCurve]:
    algorithm = ALGORITHMS[config.algo]
    stock = not issubclass(algorithm, AutoencoderAgent)
    arguments = config.agent.arguments(stock)
    if issubclass(algorithm, OffPolicyAlgorithm) and config.algo != "random":
        arguments |= config.replay_arguments()
    if foreign := sorted(arguments.keys() - inspect.signature(algorithm).parameters.keys()):
        raise ValueError(f"{config.algo} has no {', '.join(foreign)}; see rl-ae train --help")
    if algorithm is TD3 and "action_noise" in arguments:
        mean = np.zeros(get_action_dim(env.action_space))
        arguments["action_noise"] = NormalActionNoise(mean, np.full_like(mean, arguments["action_noise"]))
    if algorithm is PPO and "ent_coef" in arguments:
        arguments["ent_coef"] = float(arguments["ent_coef"])
    model = algorithm("CnnPolicy", env, seed=config.seed, device=config.device, verbose=1, **arguments)
    return model, LearningCurve(run.curve, config.log_every, config.pixels.action_repeat)


def _resume(run: Run, config: RunConfig, env: VecEnv) -> tuple[BaseAlgorithm, LearningCurve]:
    model = resume_agent(run.checkpoint, env, config.device)
    # other episodes than the ones already seen
    env.seed(int(np.random.SeedSequence([config.seed, model.num_timesteps]).generate_state(1)[0]) % FIRST_START_SEED)
    rows = [row for row in read_curve(run.curve) if row["step"] <= model.num_timesteps]
    seconds = read_state(run.checkpoint)["extra"]["seconds"]
    print(f"resuming {run.folder} at step {model.num_timesteps:_} of {config.steps:_}")
    return model, LearningCurve(run.curve, config.log_every, config.pixels.action_repeat, seconds, rows)


def _describe(config: RunConfig, model: BaseAlgorithm, sessions: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``config.json`` holds: the config as given, as the agent resolved it, seed, and where by session."""
    names = [field.name for field in dataclasses.fields(AgentConfig) if hasattr(model, field.name)]
    agent = {name: getattr(model, name) for name in names}
    if isinstance(model, AutoencoderAgent):
        agent |= {
            "autoencoder": model.policy.autoencoder.config.to_dict(),
            "precision": model.resolved_precision,
            "update": model.resolved_update,
            "net_arch": model.policy.net_arch,
        }
    if isinstance(model, OffPolicyAlgorithm):
        agent["train_freq"] = [model.train_freq.frequency, model.train_freq.unit.value]  # type: ignore[union-attr]
    machine = describe_machine()
    session = {
        "step": model.num_timesteps,
        "versions": machine.pop("versions"),
        "commit": git_commit(),
        "machine": machine,
    }
    return {
        "config": config.to_dict(),
        "resolved": {**config.to_dict(), "agent": agent, "device": str(model.device)},
        "seed": config.seed,
        "sessions": [*sessions, session],
    }


def _make_auxiliary(run: Run, config: RunConfig) -> AuxiliaryLossCallback | None:
    """The callback that trains a stock agent's autoencoder, as far as a checkpoint had got."""
    if not config.auxiliary:
        return None
    callback = AuxiliaryLossCallback(
        learning_rate=config.auxiliary_learning_rate,
        updates_per_agent_update=config.auxiliary_updates,
        epochs=config.auxiliary_epochs,
    )
    return resume_auxiliary(run.checkpoint, callback) if run.has_checkpoint else callback


def _learn(run: Run, config: RunConfig, model: BaseAlgorithm, curve: LearningCurve) -> None:
    """Train to the run's last step, with everything that watches."""
    auxiliary = _make_auxiliary(run, config)
    checkpoints = Checkpoints(CheckpointWriter(run.checkpoint), config.checkpoint_every, curve, auxiliary)
    remaining = config.steps - model.num_timesteps
    with (
        contextlib.closing(_session_logger(run.logs)) as logger,
        contextlib.closing(_make_env(config, 1, training=False)) as evaluation_env,
        contextlib.ExitStack() as opened,
        StopSignals() as stop,
    ):
        model.set_logger(logger)
        evaluation_env.seed(FIRST_START_SEED // 2)
        curve.evaluation = EvalCallback(
            evaluation_env,
            n_eval_episodes=config.eval_episodes,
            # counted in calls, one for every round of environments; at least one, at the end
            eval_freq=max(min(config.eval_every, remaining) // config.n_envs, 1),
            verbose=0,
        )
        watching: list[BaseCallback] = [StopOnSignal(stop), curve, Progress(curve, config.steps)]
        watching += [Heartbeat(run.progress, curve, config.steps), checkpoints, curve.evaluation]
        if isinstance(model, AutoencoderAgent):
            watching.append(TensorboardReconstructions(config.eval_every, config.pixels.frame_channels))
        if config.probe_every:
            probe_env = opened.enter_context(contextlib.closing(config.make_env(training=False)))
            watching.append(ProbeCallback(probe_env, config.probe_every, run.probe_curve))
        model.learn(
            remaining,
            # first what learns, so that all others see what it has learned
            [*([] if auxiliary is None else [auxiliary]), *watching],
            log_interval=None,  # type: ignore[arg-type]  # SB3 allows it; the curve dumps the logs
            reset_num_timesteps=False,
        )
        curve.add_row()
    checkpoints.save()
    if stop.received:
        raise KeyboardInterrupt(f"stopped at step {model.num_timesteps:_}, where --resume continues")


def _session_logger(folder: Path) -> Logger:
    """TensorBoard and CSV for this session; those of earlier sessions are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    session = 1 + len(list(folder.glob("progress_*.csv")))
    formats = [make_output_format(name, str(folder), f"_{session}") for name in ("tensorboard", "csv")]
    return Logger(str(folder), formats)


def _draw(run: Run, config: RunConfig, model: BaseAlgorithm, curve: LearningCurve) -> None:
    title = f"{config.algo} on {config.env}, seed {config.seed}"
    save_learning_curve(run.folder / "curve.png", curve.rows, title)
    if not isinstance(model, AutoencoderAgent):
        return
    assert model.replay_buffer is not None
    frames = spread_observations(model.replay_buffer, count=8)
    pair = compare(frames, model.policy.autoencoder, config.pixels.frame_channels)
    save_reconstructions(run.folder / "reconstructions.png", *pair)


def evaluate_run(folder: Path, episodes: int = EVALUATION_EPISODES, device: str = "auto") -> dict[str, Any]:
    """Evaluate a run's checkpoint from fixed starts, beside a random policy.

    Writes ``evaluation.json`` (what is returned); of an agent with an autoencoder of its own also ``evaluation.png``
    (frames above their reconstructions) and ``evaluation.mp4`` or ``.gif`` (the first episode, each frame beside its
    reconstruction).

    Args:
        folder: The run's.
        episodes: Episodes to play.
        device: Where the agent runs.

    Returns:
        ``step`` of the checkpoint; ``returns``, ``mean_return``, ``std_return``; the same of a random policy, with
        ``random_``; ``psnr`` and ``mean_frame_psnr`` in dB, ``None`` of an agent without an autoencoder of its own.

    Raises:
        ValueError: If the folder is not a run, or its checkpoint is broken.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be ≥ 1, got {episodes}")
    run = Run(folder)
    config = run.read_config()
    model = load_agent(run.checkpoint, device=device, buffer_size=1)
    with contextlib.closing(config.make_env(training=False)) as env:
        seeds = tqdm(start_seeds(episodes), "episodes", leave=False)
        pairs = [(play_episode(RandomPolicy(env.action_space, s), env, s), play_episode(model, env, s)) for s in seeds]
    random, trained = ([episode.episode_return for episode in side] for side in zip(*pairs, strict=True))
    observations = [played.observations for _, played in pairs]
    quality = {"psnr": None, "mean_frame_psnr": None}
    if isinstance(model, AutoencoderAgent):
        quality = _show_reconstructions(run, config, model, observations)._asdict()
    record = {
        "step": model.num_timesteps,
        "returns": trained,
        "mean_return": float(np.mean(trained)),
        "std_return": float(np.std(trained)),
        "random_returns": random,
        "random_mean_return": float(np.mean(random)),
        "random_std_return": float(np.std(random)),
        **quality,
    }
    write_atomically(run.evaluation, lambda path: path.write_text(json.dumps(record, indent=2)))
    return record


def _show_reconstructions(
    run: Run, config: RunConfig, model: AutoencoderAgent, episodes: list[Observations]
) -> ReconstructionQuality:
    """A strip and a video of the first episode; the quality over all of them."""
    frames, reconstructions = compare(episodes[0], model.policy.autoencoder, config.pixels.frame_channels)
    shown = np.linspace(0, len(frames) - 1, 8).astype(int)
    save_reconstructions(run.evaluation.with_suffix(".png"), frames[shown], reconstructions[shown])
    save_film(run.evaluation.with_suffix(""), side_by_side(frames, reconstructions), FRAMES_PER_SECOND)
    return reconstruction_quality(model.policy.autoencoder, episodes)
