"""SAC-AE: Soft Actor-Critic whose encoder is also trained to reconstruct its input."""

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import FloatSchedule, configure_logger, polyak_update, update_learning_rate
from torch import Tensor, nn
from tqdm import tqdm

from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.factory import AutoencoderLike, create_learner, is_pretrained, resolve_config
from rl_ae.generators import PrivateGenerators
from rl_ae.pixels import to_unit
from rl_ae.precision import autocast
from rl_ae.sb3.extractor import image_shape
from rl_ae.sb3.memory import check_replay_memory
from rl_ae.sb3.policies import POLICY_ALIASES, SACAEActor, SACAECritic, SACAEPolicy
from rl_ae.sb3.replay import FrameReplayBuffer

SelfSACAE = TypeVar("SelfSACAE", bound="SACAE")


class Batch(NamedTuple):
    """A minibatch below Stable-Baselines3's preprocessing: images are floats in [0, 1].

    Attributes:
        observations: (B, C, H, W).
        actions: (B, A) in [-1, 1].
        next_observations: (B, C, H, W), n steps later for n-step returns.
        rewards: (B, 1), summed and discounted over the n steps.
        dones: (B, 1), 1 where the episode terminated; 0 at a time limit.
        discounts: (B, 1) or a number: γ, or γⁿ for n-step returns.
        targets: (B, C, H, W), what the decoder is to return.
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    dones: Tensor
    discounts: Tensor | float
    targets: Tensor


class Noise(NamedTuple):
    """Standard normal noise (B, A) behind the actions of one update; drawn where ``None``.

    Attributes:
        next_action: Of the actions in the critic's target.
        action: Of the actions in the actor's loss.
    """

    next_action: Tensor | None = None
    action: Tensor | None = None


class NonFiniteError(FloatingPointError):
    """A reward or a loss is NaN or infinite; the message names it."""


class SACAE(SAC):
    """Soft Actor-Critic with an autoencoder (SAC-AE), from pixels.

    Paper: https://arxiv.org/abs/1910.01741. The trunk of the critic's encoder learns from the TD error and from the
    reconstruction; the actor reads it detached. See :mod:`rl_ae.sb3.policies` for the table of who trains what.

    The arguments up to ``device`` are those of :class:`stable_baselines3.SAC`, with the defaults of the paper's code;
    only these differ in meaning or need a word:

    Args:
        policy: ``"CnnPolicy"`` or a subclass of :class:`~rl_ae.sb3.policies.SACAEPolicy`.
        env: Environment with image observations (:func:`~rl_ae.sb3.extractor.image_shape`) and a ``Box`` of actions.
        learning_rate: Of actor and critic; a number or a schedule.
        buffer_size: Transitions kept. 100,000 instead of the paper's 1,000,000, which would need 127 GB at 84×84×9.
        tau: Polyak rate of the target's Q networks, per update of the targets.
        ent_coef: Temperature α, or ``"auto_<initial value>"`` to learn it.
        target_update_interval: Updates between two updates of the targets (in SB3's SAC: gradient steps of one call).
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS`, a config, a class, or the folder of a saved autoencoder
            to start from. An environment's image size fills in a config's ``observation_shape``.
        encoder_tau: Polyak rate of the target's trunk and head.
        actor_update_interval: Updates between two steps of actor and temperature.
        decoder_update_interval: Updates between two steps of the representation loss.
        ent_coef_learning_rate: Of the temperature (Adam with β₁ = 0.5); a number or a schedule.
        autoencoder_learning_rate: Overrides both rates of the config; a number or a schedule.
        catch_up_updates: Updates made at once after ``learning_starts`` steps; as many as there were steps if ``None``.
        precision: ``"fp32"`` or ``"bf16"``, see :func:`~rl_ae.precision.autocast`.
        representation_loss: With the signature of :meth:`rl_ae.losses.Loss.forward`; the autoencoder's own if ``None``.
        freeze_encoder: Train neither encoder nor decoder, by any loss: of a saved autoencoder, say.

    Raises:
        ValueError: If observations are not images of at least 8×8 pixels, actions are not a ``Box``, the autoencoder's
            name is unknown, or a number is out of range.
        MemoryError: If the replay buffer cannot fit.

    Example:
        >>> model = SACAE("CnnPolicy", env, autoencoder="rae", verbose=1)  # doctest: +SKIP
        >>> model.learn(100_000, progress_bar=True)  # doctest: +SKIP
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICY_ALIASES
    policy: SACAEPolicy
    actor: SACAEActor
    critic: SACAECritic
    critic_target: SACAECritic

    def __init__(
        self,
        policy: str | type[SACAEPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int = 128,
        tau: float = 0.01,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto_0.1",
        target_update_interval: int = 2,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        autoencoder: AutoencoderLike = DEFAULT_AUTOENCODER,
        encoder_tau: float = 0.05,
        actor_update_interval: int = 2,
        decoder_update_interval: int = 1,
        ent_coef_learning_rate: float | Schedule = 1e-4,
        autoencoder_learning_rate: float | Schedule | None = None,
        catch_up_updates: int | None = None,
        precision: str = "fp32",
        representation_loss: nn.Module | None = None,
        freeze_encoder: bool = False,
    ) -> None:
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(
                f"SACAE learns from images: policy must be one of {list(self.policy_aliases)}, got {policy!r}"
            )
        super().__init__(
            policy,
            _checked_env(env, verbose),
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            # a copy: SB3 writes into the dictionary it is given
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        #: As the caller gave them; what SAC-AE adds is added when the policy is built.
        self.policy_kwargs = dict(policy_kwargs or {})
        self.autoencoder = autoencoder
        self.encoder_tau = encoder_tau
        self.actor_update_interval = actor_update_interval
        self.decoder_update_interval = decoder_update_interval
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.autoencoder_learning_rate = autoencoder_learning_rate
        self.catch_up_updates = catch_up_updates
        self.precision = precision
        self.representation_loss = representation_loss
        self.freeze_encoder = freeze_encoder

        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ construction

    def _setup_model(self) -> None:
        self._check_arguments()
        shape = image_shape(self.observation_space)
        self.autoencoder_config = resolve_config(self.autoencoder, shape)
        self._check_memory()
        if issubclass(self.replay_buffer_class or ReplayBuffer, FrameReplayBuffer):  # as SB3 does for its own
            self.replay_buffer_kwargs = {"n_steps": self.n_steps, "gamma": self.gamma} | self.replay_buffer_kwargs

        own_policy_kwargs = self.policy_kwargs
        self.policy_kwargs = self._completed_policy_kwargs()
        with warnings.catch_warnings():
            if self.replay_buffer_kwargs.get("n_steps") == self.n_steps:
                # of a loaded agent: SB3 takes the buffer it chose itself for a custom one
                warnings.filterwarnings("ignore", message="`n_steps=.*is ignored")
            super()._setup_model()
        self.policy_kwargs = own_policy_kwargs
        if self.verbose >= 1 and self.env is not None and isinstance(self.replay_buffer, FrameReplayBuffer):
            print(self.replay_buffer.memory_report)

        if is_pretrained(self.autoencoder):  # its weights are the agent's from now on, and saved with it
            self.autoencoder = self.autoencoder_config
        if self.freeze_encoder:
            self.policy.autoencoder.requires_grad_(False)
        if self.log_ent_coef is not None:
            learning_rate = FloatSchedule(self.ent_coef_learning_rate)(self._current_progress_remaining)
            self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=learning_rate, betas=(0.5, 0.999))
        self.learner = create_learner(self.policy.autoencoder, loss=self.representation_loss, precision=self.precision)
        self.generators = PrivateGenerators(self.seed)
        if not hasattr(self, "_logger"):  # so that train() works on a filled buffer without learn()
            self._logger = configure_logger(verbose=0)

    def _check_arguments(self) -> None:
        counts = ("target_update_interval", "actor_update_interval", "decoder_update_interval")
        for name in (*counts, "batch_size", "buffer_size", "n_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
        if isinstance(self.train_freq, int) and self.train_freq < 1:
            raise ValueError(f"train_freq must be ≥ 1, got {self.train_freq}")
        for name in ("tau", "encoder_tau"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            raise ValueError(
                "images are scaled to [0, 1] already: wrap with VecNormalize(…, norm_obs=False), around a "
                "VecTransposeImage where the channels come last"
            )
        if self.catch_up_updates is not None and self.catch_up_updates < 0:
            raise ValueError(f"catch_up_updates must be ≥ 0, got {self.catch_up_updates}")

    def _check_memory(self) -> None:
        own_buffer = self.replay_buffer_class in (None, ReplayBuffer, NStepReplayBuffer)
        if self.env is None or not own_buffer:  # loaded to predict, or of a size that is not known here
            return
        message = check_replay_memory(
            self.buffer_size,
            cast(spaces.Box, self.observation_space),
            cast(spaces.Box, self.action_space),
            self.optimize_memory_usage,
        )
        if self.verbose >= 1:
            print(message)

    def _completed_policy_kwargs(self) -> dict[str, Any]:
        extractor_kwargs = self.policy_kwargs.get("features_extractor_kwargs") or {}
        if "autoencoder" in extractor_kwargs:
            raise ValueError("choose the autoencoder with SACAE(autoencoder=…), not in features_extractor_kwargs")
        # than its config: a folder weights, a class itself
        brings_more = is_pretrained(self.autoencoder) or isinstance(self.autoencoder, type)
        return {
            **self.policy_kwargs,
            "use_sde": self.use_sde,
            "features_extractor_kwargs": {
                **extractor_kwargs,
                "autoencoder": self.autoencoder if brings_more else self.autoencoder_config,
            },
        }

    # ------------------------------------------------------------------ collecting

    def learn(
        self: SelfSACAE,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SACAE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSACAE:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def collect_rollouts(self, env: Any, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        first_update = self._n_updates == 0 and self.num_timesteps > self.learning_starts
        if rollout.continue_training and first_update and self.gradient_steps != 0:
            self._catch_up(callback)
        return rollout

    def _catch_up(self, callback: BaseCallback) -> None:
        """Make the updates that the random steps left out, all at once.

        The paper's code does so too, but there the intervals test the step, which stands still meanwhile: each of its
        1,000 catch-up updates moves actor and targets. Here intervals always count updates.
        """
        updates = self.learning_starts if self.catch_up_updates is None else self.catch_up_updates
        sb3_bars = list(_progress_bars(callback))  # while one is shown, nothing else reaches the terminal
        hidden = self.verbose == 0 or len(sb3_bars) > 0
        for update in tqdm(range(updates), "catch-up updates", leave=False, disable=hidden):
            self.train(gradient_steps=1, batch_size=self.batch_size)
            for bar in sb3_bars:
                bar.set_description(f"catch-up updates {update + 1}/{updates}" if update + 1 < updates else "")

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        if not np.all(np.isfinite(reward)):
            raise NonFiniteError(f"the environment returned the reward {reward} at step {self.num_timesteps}")
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    # ------------------------------------------------------------------ learning

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        with self.generators.active():
            updates = [self.update(self._sample(batch_size)) for _ in range(gradient_steps)]
        self._log(updates)

    def _set_learning_rates(self) -> None:
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        progress = self._current_progress_remaining
        if self.ent_coef_optimizer is not None:
            update_learning_rate(self.ent_coef_optimizer, FloatSchedule(self.ent_coef_learning_rate)(progress))
        if self.autoencoder_learning_rate is not None:
            for optimizer in (self.learner.encoder_optimizer, self.learner.decoder_optimizer):
                update_learning_rate(optimizer, FloatSchedule(self.autoencoder_learning_rate)(progress))

    def _sample(self, batch_size: int) -> Batch:
        assert self.replay_buffer is not None
        data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        observations = to_unit(data.observations)
        return Batch(
            observations,
            data.actions,
            to_unit(data.next_observations),
            data.rewards,
            data.dones,
            self.gamma if data.discounts is None else data.discounts,
            self.learner.target(observations),
        )

    def update(self, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        """One update in the paper's order: critic, actor and temperature, targets, representation.

        Args:
            batch: A minibatch.
            noise: Noise behind the actions; drawn if omitted.

        Returns:
            Detached scalars by name, those of the parts that were due.
        """
        next_action_noise, action_noise = Noise() if noise is None else noise
        if self.use_sde:
            self.actor.reset_noise()
        metrics = self._update_critic(batch, next_action_noise)
        if self._n_updates % self.actor_update_interval == 0:
            metrics |= self._update_actor_and_temperature(batch.observations, action_noise)
        if self._n_updates % self.target_update_interval == 0:
            self._update_targets()
        if self._n_updates % self.decoder_update_interval == 0 and not self.freeze_encoder:
            metrics |= self._update_representation(batch)
        self._n_updates += 1
        return metrics

    def _update_critic(self, batch: Batch, noise: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad(), self._autocast():
            next_actions, next_log_prob = self.actor.sample(self._actor_latent(batch.next_observations), noise)
            next_latent = self.critic_target.features_extractor(batch.next_observations)
            next_q_values = self.critic_target.q_values(next_latent, next_actions)
            next_values = next_q_values.min(dim=1, keepdim=True).values - self._temperature() * next_log_prob
            target_q_values = batch.rewards + (1.0 - batch.dones) * batch.discounts * next_values  # (B, 1)

        with self._autocast():
            latent = self.critic.features_extractor(batch.observations)
            q_values = self.critic.q_values(latent, batch.actions).to(target_q_values.dtype)  # (B, N)
        critic_loss = (q_values - target_q_values).square().mean(dim=0).sum()

        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        self.critic.optimizer.step()
        return {"critic_loss": critic_loss.detach(), "q_value": q_values.detach().mean()}

    def _update_actor_and_temperature(self, observations: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        with self._autocast():
            with torch.no_grad():
                features = self.critic.features_extractor.encoder.trunk(observations)
                latent = self.critic.features_extractor.encoder.head(features).mode
            actions, log_prob = self.actor.sample(self.actor.features_extractor.encoder.head(features).mode, noise)
            q_values = self.critic.frozen_q_values(latent, actions).to(log_prob.dtype)
        actor_loss = (self._temperature() * log_prob - q_values.min(dim=1, keepdim=True).values).mean()

        self.actor.optimizer.zero_grad()
        actor_loss.backward()
        self.actor.optimizer.step()
        metrics = {"actor_loss": actor_loss.detach(), "ent_coef": self._temperature().mean()}
        return metrics | self._update_temperature(log_prob.detach())

    def _update_temperature(self, log_prob: Tensor) -> dict[str, Tensor]:
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return {}
        # the paper's code optimises α·(−log π − H) through log α; SB3's SAC drops the factor α
        ent_coef_loss = (self.log_ent_coef.exp() * (-log_prob - float(self.target_entropy))).mean()
        self.ent_coef_optimizer.zero_grad()
        ent_coef_loss.backward()
        self.ent_coef_optimizer.step()
        return {"ent_coef_loss": ent_coef_loss.detach()}

    def _update_targets(self) -> None:
        online, target = self.critic, self.critic_target
        if not self.freeze_encoder:
            self._update_target_encoder(online.features_extractor, target.features_extractor)
        for q_network, target_q_network in zip(online.q_networks, target.q_networks, strict=True):
            polyak_update(q_network.parameters(), target_q_network.parameters(), self.tau)

    def _update_target_encoder(self, online: nn.Module, target: nn.Module) -> None:
        polyak_update(online.parameters(), target.parameters(), self.encoder_tau)
        for buffer, target_buffer in zip(online.buffers(), target.buffers(), strict=True):
            target_buffer.copy_(buffer)  # a codebook, which is an average already

    def _update_representation(self, batch: Batch) -> dict[str, Tensor]:
        assert self.replay_buffer is not None
        n_data = max(self.replay_buffer.size() * self.n_envs, len(batch.observations))
        metrics = self.learner.update(batch.observations, batch.targets, n_data)
        metrics["ae_loss"] = metrics.pop("total")
        return metrics

    def _actor_latent(self, observations: Tensor) -> Tensor:
        """The actor's latent (B, D) of images (B, C, H, W)."""
        latent: Tensor = self.actor.features_extractor(observations)
        return latent

    def _temperature(self) -> Tensor:
        """α, detached."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _autocast(self) -> Any:
        return autocast(self.device, self.precision)

    def _log(self, updates: list[dict[str, Tensor]]) -> None:
        """Record the mean of every metric over the updates.

        Raises:
            NonFiniteError: If a metric is NaN or infinite; names the first one and its update.
        """
        flat = [(index, name, value) for index, metrics in enumerate(updates) for name, value in metrics.items()]
        values = torch.stack([value.float() for _, _, value in flat])
        finite = torch.isfinite(values)
        if not finite.all():
            index, name, value = flat[int((~finite).nonzero()[0])]
            raise NonFiniteError(
                f"{name} is {value.item()} at update {self._n_updates - len(updates) + index + 1}, step "
                f"{self.num_timesteps}; lower the learning rates or check the observations and rewards"
            )
        by_name: dict[str, list[float]] = {}
        for (_, name, _), number in zip(flat, values.tolist(), strict=True):
            by_name.setdefault(name, []).append(number)
        for name, numbers in by_name.items():
            self.logger.record(f"train/{name}", sum(numbers) / len(numbers))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    # ------------------------------------------------------------------ saving

    @classmethod
    def load(cls: type[SelfSACAE], path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> SelfSACAE:
        """Load an agent; arguments as in Stable-Baselines3.

        Raises:
            ValueError: If the file is damaged, or not an agent of this class.
        """
        _check_archive(path, expected={"data", "policy.pth", "learner.pth", "generators.pth"})
        return super().load(path, *args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner", "generators", "autoencoder_config"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "learner", "generators"], variables


def _checked_env(env: GymEnv | str | None, verbose: int) -> Any:
    """The environment, refused for spaces that no wrapping will help.

    Raises:
        ValueError: If observations are a ``Dict``, or actions are not a bounded ``Box``.
    """
    if env is None:  # of an agent that is being loaded
        return None
    env = maybe_make_env(env, verbose)
    if isinstance(env.observation_space, spaces.Dict):
        raise ValueError(f"SACAE takes one image, not a Dict of observations; got {env.observation_space}")
    actions = env.action_space
    if not isinstance(actions, spaces.Box) or not np.all(np.isfinite([actions.low, actions.high])):
        raise ValueError(f"SACAE needs a bounded Box of actions, got {actions}; use DQN or PPO for discrete ones")
    return env


def _progress_bars(callback: BaseCallback) -> Iterator[Any]:
    """The bars of ``learn(progress_bar=True)``."""
    if isinstance(callback, ProgressBarCallback):
        yield callback.pbar
    elif isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from _progress_bars(child)


def _check_archive(path: str | Path | io.BufferedIOBase, expected: set[str]) -> None:
    """Refuse a file that Stable-Baselines3 would fail on halfway."""
    file: Any = path
    if isinstance(path, str | Path):
        # SB3 adds the suffix itself, and reports a missing file well
        file = Path(path) if Path(path).exists() else Path(f"{path}.zip")
        if not file.exists():
            return
    try:
        with zipfile.ZipFile(file) as archive:
            missing, damaged = expected - set(archive.namelist()), archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a saved agent: {error}") from error
    if not isinstance(file, Path):
        file.seek(0)
    if missing:
        raise ValueError(
            f"{path} is not a saved SACAE agent: expected the entries {sorted(expected)}, no {sorted(missing)}"
        )
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} fails its checksum")
