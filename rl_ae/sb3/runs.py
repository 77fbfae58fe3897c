"""Runs: one folder a training run, with its configuration, curve, logs and checkpoint.

========================  ==================================================================
``config.json``           the resolved configuration, versions and seed
``checkpoint/``           see :mod:`rl_ae.sb3.checkpoint`
``curve.csv``, ``.png``   returns and reconstruction loss of the training episodes
``reconstructions.png``   frames above their reconstructions
``logs/``                 TensorBoard events and Stable-Baselines3's CSV, a pair a session
========================  ==================================================================
"""

import contextlib
import dataclasses
import inspect
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rl_ae.configs import named_config
from rl_ae.envs import Frame, PixelConfig, make_pixel_env
from rl_ae.precision import has_fast_bf16
from rl_ae.sb3.callbacks import Checkpoints, LearningCurve, Progress, TensorboardReconstructions, read_curve
from rl_ae.sb3.checkpoint import STATE_FILE, CheckpointWriter, read_state, resume_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, compare
from rl_ae.sb3.pictures import save_learning_curve, save_reconstructions, write_atomically
from rl_ae.sb3.sac_ae import SACAE

ALGORITHMS = {"sac_ae": SACAE}
#: Fields of :class:`AgentConfig` that change the autoencoder's config.
_AUTOENCODER_FIELDS = ("latent_dim", "input_centre", "output_centre")
_PACKAGES = ("rl-ae", "torch", "stable-baselines3", "gymnasium", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Arguments of the algorithm, as documented there; ``None`` leaves the algorithm's default.

    Attributes:
        autoencoder: Name of the autoencoder.
        latent_dim: Width of its latent.
        input_centre: Brightness subtracted from its input; 1 for a white background.
        output_centre: Brightness added to its output.
        net_arch: Widths of the hidden layers of actor and critics.
        learning_rate: Of actor and critic.
        autoencoder_learning_rate: Of encoder and decoder under the representation loss.
        ent_coef_learning_rate: Of the temperature.
        ent_coef: Temperature, or auto_<initial value>.
        buffer_size: Transitions kept for replay.
        learning_starts: Random steps before learning.
        catch_up_updates: Updates made at once after them.
        batch_size: Transitions an update.
        gamma: Discount a step.
        tau: Polyak rate of the target's Q networks.
        encoder_tau: Polyak rate of the target's encoder.
        train_freq: Steps between two rounds of updates.
        gradient_steps: Updates a round; -1 for as many as steps.
        n_steps: Steps of the return.
        actor_update_interval: Updates between two of the actor.
        target_update_interval: Updates between two of the targets.
        decoder_update_interval: Updates between two of the decoder.
        precision: fp32, bf16, or auto: bf16 where the CPU has instructions for it.
    """

    autoencoder: str | None = None
    latent_dim: int | None = None
    input_centre: float | None = None
    output_centre: float | None = None
    net_arch: tuple[int, ...] | None = None
    learning_rate: float | None = None
    autoencoder_learning_rate: float | None = None
    ent_coef_learning_rate: float | None = None
    ent_coef: str | None = None
    buffer_size: int | None = None
    learning_starts: int | None = None
    catch_up_updates: int | None = None
    batch_size: int | None = None
    gamma: float | None = None
    tau: float | None = None
    encoder_tau: float | None = None
    train_freq: int | None = None
    gradient_steps: int | None = None
    n_steps: int | None = None
    actor_update_interval: int | None = None
    target_update_interval: int | None = None
    decoder_update_interval: int | None = None
    precision: Literal["fp32", "bf16", "auto"] | None = None

    def resolve(self, algorithm: type[SACAE]) -> dict[str, Any]:
        """Every argument of the algorithm with its value, defaults filled in.

        Raises:
            ValueError: If the autoencoder's name is unknown or a number of its config is out of range.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        changes = {name: given.pop(name) for name in _AUTOENCODER_FIELDS if name in given}
        parameters = inspect.signature(algorithm.__init__).parameters
        names = [field.name for field in dataclasses.fields(self) if field.name not in _AUTOENCODER_FIELDS]
        resolved: dict[str, Any] = {
            name: parameters[name].default if name in parameters else None for name in names
        } | given
        resolved["autoencoder"] = dataclasses.replace(named_config(resolved["autoencoder"]), **changes)
        if resolved["precision"] == "auto":
            resolved["precision"] = "bf16" if has_fast_bf16() else "fp32"
        return resolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        env: Id of a Gymnasium environment that returns pixels or can render them; package:Id-v0 imports its package.
        env_kwargs: Arguments of the environment, a JSON object.
        algo: The algorithm.
        steps: Agent steps of the whole run; environment frames are steps × action_repeat.
        seed: Of networks, exploration and environments.
        n_envs: Environments side by side.
        device: Where the agent runs; auto takes a GPU if there is one.
        checkpoint_every: Steps between two checkpoints.
        eval_every: Steps between two evaluations.
        eval_episodes: Episodes an evaluation.
        pixels: How the environment becomes pixels.
        agent: Arguments of the algorithm.
    """

    env: str
    env_kwargs: str = "{}"
    algo: Literal["sac_ae"] = "sac_ae"
    steps: int = 100_000
    seed: int = 0
    n_envs: int = 1
    device: str = "auto"
    checkpoint_every: int = 5_000
    eval_every: int = 10_000
    eval_episodes: int = 5
    pixels: Annotated[PixelConfig, tyro.conf.arg(name="")] = PixelConfig()
    agent: Annotated[AgentConfig, tyro.conf.arg(name="")] = AgentConfig()

    def make_env(self) -> gym.Env[Frame, Any]:
        """The environment; raises as :func:`~rl_ae.envs.make_pixel_env`, and ValueError if the JSON is broken."""
        try:
            env_kwargs = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"env_kwargs must be a JSON object, got {self.env_kwargs!r}: {error}") from error
        return make_pixel_env(self.env, self.pixels, **env_kwargs)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that :meth:`from_dict` turns back into an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunConfig":
        """Undo :meth:`to_dict`, also after a round trip through JSON."""

        def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

        return cls(
            **{**data, "pixels": PixelConfig(**tuples(data["pixels"])), "agent": AgentConfig(**tuples(data["agent"]))}
        )


#: Pendulum from pixels in minutes on two cores. Not the paper's setting: small grey images, a compact trunk, small
#: networks, bf16, a scaled reward and a faster temperature.
PENDULUM = RunConfig(
    env="Pendulum-v1",
    steps=3_500,
    checkpoint_every=500,
    eval_every=500,
    eval_episodes=3,
    pixels=PixelConfig(size=(48, 48), grayscale=True, action_repeat=2, crop=(110, 110, 390, 390), reward_scale=0.1),
    agent=AgentConfig(
        autoencoder="rae_compact",
        input_centre=1.0,
        output_centre=1.0,
        net_arch=(256, 256),
        ent_coef_learning_rate=1e-3,
        buffer_size=10_000,
        learning_starts=500,
        precision="auto",
    ),
)

PRESETS = {"pendulum": PENDULUM}


class Run(NamedTuple):
    """The files of a run.

    Attributes:
        folder: Its folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.folder / "config.json"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder."""
        return self.folder / "checkpoint"

    @property
    def curve(self) -> Path:
        """The learning curve's CSV."""
        return self.folder / "curve.csv"

    @property
    def logs(self) -> Path:
        """The logs' folder."""
        return self.folder / "logs"

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            ValueError: If the folder is not a run.
        """
        if not self.config.exists():
            raise ValueError(f"{self.folder} is not a run: it has no {self.config.name}")
        try:
            return RunConfig.from_dict(json.loads(self.config.read_text())["config"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.config} is not a run's configuration: {error!r}") from error


def describe(config: RunConfig) -> dict[str, Any]:
    """What ``config.json`` holds: the config as given, as resolved, versions and seed."""
    agent = config.agent.resolve(ALGORITHMS[config.algo])
    agent["autoencoder"] = agent["autoencoder"].to_dict()
    return {
        "config": config.to_dict(),
        "resolved": config.to_dict() | {"agent": agent},
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def train_run(config: RunConfig, folder: Path, resume: bool = False) -> Run:
    """Train an agent in a folder of its own.

    Args:
        config: The run.
        folder: Where its files go.
        resume: Continue the run in ``folder`` if there is one.

    Returns:
        The finished run.

    Raises:
        ValueError: If the folder exists and ``resume`` is false, or holds a run of another configuration.
        NonFiniteError: If a reward or a loss is not finite; the last checkpoint stays.
    """
    run = Run(folder)
    resumed = resume and run.config.exists()
    if resumed:
        _check_same(run.read_config(), config, folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists: continue it with --resume, or choose another folder with --run")
    write_atomically(run.config, lambda path: path.write_text(json.dumps(describe(config), indent=2)))

    with contextlib.closing(_make_env(config, config.n_envs)) as env:
        if resumed and (run.checkpoint / STATE_FILE).exists():
            model, curve = _resume(run, config, env)
        else:
            model, curve = _start(run, config, env)
        if model.num_timesteps < config.steps:
            _learn(run, config, model, curve)
    return run


def _learn(run: Run, config: RunConfig, model: SACAE, curve: LearningCurve) -> None:
    """Train to the run's last step, with everything that watches."""
    checkpoints = Checkpoints(CheckpointWriter(run.checkpoint), config.checkpoint_every, curve)
    with (
        contextlib.closing(_session_logger(run.logs)) as logger,
        contextlib.closing(_make_env(config, 1)) as evaluation_env,
    ):
        model.set_logger(logger)
        evaluation_env.seed(FIRST_START_SEED // 2)
        evaluation = EvalCallback(
            evaluation_env,
            n_eval_episodes=config.eval_episodes,
            eval_freq=max(config.eval_every // config.n_envs, 1),
            verbose=0,
        )
        pictures = TensorboardReconstructions(config.eval_every, config.pixels.frame_channels)
        model.learn(
            config.steps - model.num_timesteps,
            [curve, Progress(curve, config.steps), checkpoints, evaluation, pictures],
            log_interval=1,
            reset_num_timesteps=False,
        )
    checkpoints.save()
    _draw(run, config, model, curve)


def _make_env(config: RunConfig, n_envs: int) -> VecEnv:
    # not SB3's make_vec_env: it adds a Monitor outside of the reward's scale
    return DummyVecEnv([config.make_env] * n_envs)


def _start(run: Run, config: RunConfig, env: VecEnv) -> tuple[SACAE, LearningCurve]:
    arguments = config.agent.resolve(ALGORITHMS[config.algo])
    net_arch = arguments.pop("net_arch")
    model = ALGORITHMS[config.algo](
        "CnnPolicy",
        env,
        policy_kwargs={} if net_arch is None else {"net_arch": list(net_arch)},
        seed=config.seed,
        device=config.device,
        verbose=1,
        **arguments,
    )
    return model, LearningCurve(run.curve, config.pixels.action_repeat)


def _resume(run: Run, config: RunConfig, env: VecEnv) -> tuple[SACAE, LearningCurve]:
    model = resume_agent(run.checkpoint, env, config.device)
    # other episodes than the ones already seen
    env.seed(int(np.random.SeedSequence([config.seed, model.num_timesteps]).generate_state(1)[0]) % FIRST_START_SEED)
    rows = [row for row in read_curve(run.curve) if row["step"] <= model.num_timesteps]
    seconds = read_state(run.checkpoint)["extra"]["seconds"]
    print(f"resuming {run.folder} at step {model.num_timesteps:_} of {config.steps:_}")
    return model, LearningCurve(run.curve, config.pixels.action_repeat, seconds, rows)


def _check_same(stored: RunConfig, given: RunConfig, folder: Path) -> None:
    """Only what cannot change what has been learned may differ between two sessions of a run."""
    free = {"steps", "device", "checkpoint_every", "eval_every", "eval_episodes"}
    old, new = stored.to_dict(), given.to_dict()
    changed = {name: (old[name], new[name]) for name in old if name not in free and old[name] != new[name]}
    if changed:
        listing = "; ".join(f"{name}: expected {was}, got {now}" for name, (was, now) in changed.items())
        raise ValueError(f"{folder} holds a run of another configuration ({listing}); choose another folder with --run")


def _session_logger(folder: Path) -> Logger:
    """TensorBoard and CSV for this session; those of earlier sessions are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    session = 1 + len(list(folder.glob("progress_*.csv")))
    formats = [
        make_output_format("tensorboard", str(folder), f"_{session}"),
        make_output_format("csv", str(folder), f"_{session}"),
    ]
    return Logger(str(folder), formats)


def _draw(run: Run, config: RunConfig, model: SACAE, curve: LearningCurve) -> None:
    title = f"{config.algo} on {config.env}, seed {config.seed}"
    save_learning_curve(run.folder / "curve.png", curve.rows, title)
    buffer = model.replay_buffer
    assert buffer is not None
    spread = np.linspace(0, buffer.size() - 1, 8).astype(int)
    pair = compare(buffer.observations[spread, 0], model.policy.autoencoder, config.pixels.frame_channels)
    save_reconstructions(run.folder / "reconstructions.png", *pair)
