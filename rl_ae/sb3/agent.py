"""Agent: what SAC-AE and TD3-AE share — when the encoder is trained, and who may train it."""

import copy
import io
import json
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, RolloutReturn, Schedule
from stable_baselines3.common.utils import FloatSchedule, configure_logger, update_learning_rate
from torch import Tensor, nn
from tqdm import tqdm

from rl_ae.autoencoders import Autoencoder, Encoder
from rl_ae.compilation import compile_networks
from rl_ae.diagnostics import describe_autoencoder, gradient_cosine, total_norm
from rl_ae.factory import create_learner
from rl_ae.generators import PrivateGenerators
from rl_ae.learner import DictLearner, RepresentationLearner, total
from rl_ae.precision import autocast, compute_dtype, resolve_precision
from rl_ae.sb3.memory import check_replay_memory
from rl_ae.sb3.observations import OBSERVATION, AutoencodersLike, Observations, make_views, resolved
from rl_ae.sb3.policies import AutoencoderPolicy, TiedCritic
from rl_ae.sb3.replay import FrameReplayBuffer

#: How the losses of an update follow each other. ``"paper"``: the critic's, the actor's, the representation's, each
#: with a step of its own and the encoder as the last one left it. ``"fused"``: the critic's and the representation's
#: together, one forward, one backward, one optimizer over the encoder; then the actor's. ``"auto"`` is fused where tanh
#: bounds the latent: elsewhere the critic's gradient, which the paper's second optimizer makes up for, can drive it far
#: out.
UPDATES = ("auto", "paper", "fused")

#: What may be done to sampled observations before they are encoded. ``"random_shift"``: DrQ's
#: :func:`~rl_ae.pixels.random_shift` of observations and next observations.
AUGMENTATIONS = ("random_shift",)

#: Updates on a GPU after which their metrics are looked at, which waits for all of them.
UNLOGGED_UPDATES = 100

SelfAgent = TypeVar("SelfAgent", bound="AutoencoderAgent")


class Batch(NamedTuple):
    """A minibatch below Stable-Baselines3's preprocessing: images are floats in [0, 1].

    Attributes:
        observations: (B, C, H, W); by name for a ``Dict`` of observations.
        actions: (B, A) in [-1, 1].
        next_observations: As the observations, n steps later for n-step returns.
        rewards: (B, 1), summed and discounted over the n steps.
        dones: (B, 1), 1 where the episode terminated; 0 at a time limit.
        discounts: (B, 1) or a number: γ, or γⁿ for n-step returns.
        targets: What the decoders are to return: as the observations, of those that are reconstructed.
    """

    observations: Observations
    actions: Tensor
    next_observations: Observations
    rewards: Tensor
    dones: Tensor
    discounts: Tensor | float
    targets: Observations


class Encoding(NamedTuple):
    """Observations below the encoders' trunks and heads.

    Attributes:
        features: What the trunks returned, by name: maps (B, F, h, w), or (B, F).
        latents: A :class:`~rl_ae.latents.Latent` of each encoder by name.
    """

    features: dict[str, Tensor]
    latents: dict[str, Any]

    def detach_features(self) -> dict[str, Tensor]:
        """The features without their graph: what the actor reads."""
        return {name: features.detach() for name, features in self.features.items()}


class NonFiniteError(FloatingPointError):
    """A reward or a loss is NaN or infinite; the message names it."""


class AutoencoderAgent(OffPolicyAlgorithm):
    """An off-policy agent with jointly trained autoencoders; :class:`~rl_ae.sb3.SACAE`, :class:`~rl_ae.sb3.TD3AE`.

    A subclass names it before Stable-Baselines3's algorithm among its bases, and writes :meth:`train_on`.

    Args:
        policy: A name among the subclass's ``policy_aliases``, or a class.
        env: Environment with image observations, or a ``Dict`` of them, and a ``Box`` of actions.
        autoencoder: See :class:`~rl_ae.sb3.AutoencoderExtractor`.
        encoder_tau: Polyak rate of the target's trunks and heads.
        decoder_update_interval: Updates between two steps of the representation loss; 0 for none, pixel SAC or TD3.
        autoencoder_learning_rate: Under the representation loss, instead of both rates of the config.
        encoder_learning_rate: Of the encoder under the critic's loss, instead of ``learning_rate``.
        catch_up_updates: Updates made at once after ``learning_starts`` steps; as many as there were steps if ``None``.
        update: One of :data:`UPDATES`.
        representation_weight: Of the representation loss in the fused update.
        precision: One of :data:`~rl_ae.precision.PRECISIONS`.
        compile: Compile trunks, heads and decoders, see :func:`~rl_ae.compilation.compile_networks`.
        augmentation: One of :data:`AUGMENTATIONS`, of what the encoders see in training; ``None`` for none.
        shift_pixels: Largest random shift, see :meth:`~rl_ae.sb3.AutoencoderExtractor.shift`.
        reconstruct_shifted: With a random shift, decode what the encoder saw instead of the observation.
        actor_trains_trunk: Let the actor's loss train the trunk too, with the actor's optimizer.
        representation_loss: With the signature of :meth:`rl_ae.losses.Loss.forward`; the autoencoder's own if ``None``.
        freeze_encoder: Train neither encoder nor decoder, by any loss.
        diagnostics_interval: Steps of the representation loss between two looks at gradients and latents.
        policy_kwargs: For the policy.
        replay_buffer_kwargs: For the replay buffer.
        verbose: As in Stable-Baselines3.
        **kwargs: For Stable-Baselines3's algorithm.
    """

    policy: AutoencoderPolicy
    actor: Any
    critic: TiedCritic
    critic_target: TiedCritic

    def __init__(
        self,
        policy: str | type[AutoencoderPolicy],
        env: GymEnv | str,
        *,
        autoencoder: AutoencodersLike,
        encoder_tau: float,
        decoder_update_interval: int,
        autoencoder_learning_rate: float | Schedule | None,
        encoder_learning_rate: float | Schedule | None,
        catch_up_updates: int | None,
        update: str,
        representation_weight: float,
        precision: str,
        compile: bool,  # noqa: A002  as torch's
        augmentation: str | None,
        shift_pixels: int | None,
        reconstruct_shifted: bool,
        actor_trains_trunk: bool,
        representation_loss: nn.Module | None,
        freeze_encoder: bool,
        diagnostics_interval: int,
        policy_kwargs: dict[str, Any] | None,
        replay_buffer_kwargs: dict[str, Any] | None,
        verbose: int,
        **kwargs: Any,
    ) -> None:
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(
                f"{type(self).__name__} learns from images: policy must be one of {list(self.policy_aliases)}, got "
                f"{policy!r}"
            )
        super().__init__(
            policy,
            _checked_env(type(self).__name__, env, verbose),
            # a copy: SB3 writes into the dictionary it is given
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            verbose=verbose,
            _init_setup_model=False,  # type: ignore[call-arg]  # the algorithm's that follows among the bases
            **kwargs,
        )
        #: As the caller gave them; what belongs to the autoencoder is added when the policy is built.
        self.policy_kwargs = dict(policy_kwargs or {})
        self.autoencoder = autoencoder
        self.encoder_tau = encoder_tau
        self.decoder_update_interval = decoder_update_interval
        self.autoencoder_learning_rate = autoencoder_learning_rate
        self.encoder_learning_rate = encoder_learning_rate
        self.catch_up_updates = catch_up_updates
        self.update = update
        self.representation_weight = representation_weight
        self.precision = precision
        self.compile = compile
        self.augmentation = augmentation
        self.shift_pixels = shift_pixels
        self.reconstruct_shifted = reconstruct_shifted
        self.actor_trains_trunk = actor_trains_trunk
        self.representation_loss = representation_loss
        self.freeze_encoder = freeze_encoder
        self.diagnostics_interval = diagnostics_interval

    # ------------------------------------------------------------------ construction

    #: Arguments of the subclass that count updates.
    interval_names: tuple[str, ...]

    def _setup_model(self) -> None:
        self._check_arguments()
        #: ``"fp32"`` or ``"bf16"``: :attr:`precision` as the device can.
        self.resolved_precision = resolve_precision(self.precision, self.device)
        views = make_views(self.observation_space, self.autoencoder)
        self._check_normalization({name for name, view in views.items() if view.autoencoder and view.is_image})
        self._check_memory()
        if isinstance(self.action_noise, VectorizedActionNoise):  # of as many environments as the saved agent had
            self.action_noise = self.action_noise.base_noise

        # what is derived here is derived anew when the agent is loaded with other arguments
        own = self.policy_kwargs, self.replay_buffer_class, self.replay_buffer_kwargs
        self.policy_kwargs = self._completed_policy_kwargs()
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)
        if issubclass(self.replay_buffer_class or ReplayBuffer, FrameReplayBuffer):  # as SB3 does for its own
            self.replay_buffer_kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, **self.replay_buffer_kwargs}
        with warnings.catch_warnings():
            # which SB3 says of any buffer that it did not choose
            warnings.filterwarnings("ignore", message="`n_steps=.*FrameReplayBuffer")
            super()._setup_model()
        self.policy_kwargs, self.replay_buffer_class, self.replay_buffer_kwargs = own
        if self.verbose >= 1 and self.env is not None and isinstance(self.replay_buffer, FrameReplayBuffer):
            print(self.replay_buffer.memory_report)

        #: ``"paper"`` or ``"fused"``.
        self.resolved_update = self.update
        if self.update == "auto":
            self.resolved_update = "fused" if self.critic.has_bounded_latent else "paper"
        # the weights of a saved autoencoder are the agent's from now on, and saved with it
        self.autoencoder = resolved(self.observation_space, self.autoencoder)
        if self.freeze_encoder:
            self.critic.features_extractor.requires_grad_(False)
            self.policy.autoencoders.requires_grad_(False)
        if self.actor_trains_trunk:
            self.actor.optimizer.add_param_group({"params": list(self._trunk_parameters())})
        self.learner = self._make_learner()
        if self.compile:
            compile_networks(self._networks(), self.device)
        self.generators = PrivateGenerators(self.seed)
        self._unlogged: list[dict[str, Tensor]] = []  # metrics of updates
        self._unlogged_updates = 1 if self.device.type == "cpu" else UNLOGGED_UPDATES
        if not hasattr(self, "_logger"):  # so that train() works on a filled buffer without learn()
            self._logger = configure_logger(verbose=0)

    def _make_learner(self) -> RepresentationLearner | DictLearner:
        learners = {
            # several learners step on parameters of a loss of their own
            name: create_learner(
                cast(Autoencoder, autoencoder),
                loss=copy.deepcopy(self.representation_loss),
                precision=self.resolved_precision,
            )
            for name, autoencoder in self.policy.autoencoders.items()
        }
        if isinstance(self.observation_space, spaces.Dict):
            return DictLearner(learners)
        return learners[OBSERVATION]

    def _networks(self) -> Iterator[nn.Module]:
        """Those that are compiled: where the arithmetic is."""
        for critic in (self.critic, self.critic_target):
            for encoder in critic.features_extractor.encoders.values():
                yield from (cast(Encoder, encoder).trunk, cast(Encoder, encoder).head)
        for autoencoder in self.policy.autoencoders.values():
            yield cast(Autoencoder, autoencoder).decoder

    def _check_arguments(self) -> None:
        intervals = (*self.interval_names, "diagnostics_interval")
        for name in (*intervals, "batch_size", "buffer_size", "n_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
        if self.decoder_update_interval < 0:
            raise ValueError(f"decoder_update_interval must be ≥ 0, got {self.decoder_update_interval}")
        if isinstance(self.train_freq, int) and self.train_freq < 1:
            raise ValueError(f"train_freq must be ≥ 1, got {self.train_freq}")
        for name in ("tau", "encoder_tau"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.update not in UPDATES:
            raise ValueError(f"update must be one of {list(UPDATES)}, got {self.update!r}")
        if self.augmentation is not None and self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be None or one of {list(AUGMENTATIONS)}, got {self.augmentation!r}")
        if self.actor_trains_trunk and (self.freeze_encoder or self.policy_kwargs.get("actor_input") == "latent"):
            raise ValueError("actor_trains_trunk=True needs actor_input='trunk' and an encoder that is not frozen")
        if self.shift_pixels is not None and self.shift_pixels < 0:
            raise ValueError(f"shift_pixels must be ≥ 0, got {self.shift_pixels}")
        if not 0.0 <= self.representation_weight < float("inf"):
            raise ValueError(f"representation_weight must be ≥ 0 and finite, got {self.representation_weight}")
        if self.catch_up_updates is not None and self.catch_up_updates < 0:
            raise ValueError(f"catch_up_updates must be ≥ 0, got {self.catch_up_updates}")

    def _check_normalization(self, images: set[str]) -> None:
        normalization = self._vec_normalize_env
        if normalization is None or not normalization.norm_obs:
            return
        normalized = set(normalization.norm_obs_keys or [OBSERVATION]) & images
        if normalized:
            raise ValueError(
                "images are scaled to [0, 1] already: wrap with VecNormalize(…, norm_obs=False), around a "
                "VecTransposeImage where the channels come last, or name vectors alone in norm_obs_keys; "
                f"got the images {sorted(normalized)}"
            )

    def _check_memory(self) -> None:
        own_buffer = self.replay_buffer_class in (None, ReplayBuffer, NStepReplayBuffer)
        # loaded to predict, or of a size that is not known here
        if self.env is None or not own_buffer or not isinstance(self.observation_space, spaces.Box):
            return
        message = check_replay_memory(
            self.buffer_size,
            self.observation_space,
            cast(spaces.Box, self.action_space),
            self.optimize_memory_usage,
        )
        if self.verbose >= 1:
            print(message)

    def _completed_policy_kwargs(self) -> dict[str, Any]:
        extractor_kwargs = self.policy_kwargs.get("features_extractor_kwargs") or {}
        for argument, own in (("autoencoder", "autoencoder=…"), ("freeze", "freeze_encoder=True")):
            if argument in extractor_kwargs:
                agent = f"{type(self).__name__}({own})"
                raise ValueError(f"{argument} in features_extractor_kwargs: expected none, use {agent}")
        return {
            **self.policy_kwargs,
            **self._own_policy_kwargs(),
            "features_extractor_kwargs": {**extractor_kwargs, "autoencoder": self.autoencoder},
        }

    def _own_policy_kwargs(self) -> dict[str, Any]:
        """What the algorithm tells its policy besides."""
        return {}

    # ------------------------------------------------------------------ collecting

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
            updates = [self._learn_once(batch_size) for _ in range(gradient_steps)]
        self._log(updates)

    def _learn_once(self, batch_size: int) -> dict[str, Tensor]:
        if self.compile:
            torch.compiler.cudagraph_mark_step_begin()
        return self.train_on(self._sample(batch_size))

    def _set_learning_rates(self) -> None:
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        progress = self._current_progress_remaining
        if self.encoder_learning_rate is not None:
            encoder_group = self.critic.optimizer.param_groups[0]
            encoder_group["lr"] = FloatSchedule(self.encoder_learning_rate)(progress)
        if self.autoencoder_learning_rate is not None:
            for optimizer in self.learner.optimizers:
                update_learning_rate(optimizer, FloatSchedule(self.autoencoder_learning_rate)(progress))

    def _sample(self, batch_size: int) -> Batch:
        assert self.replay_buffer is not None
        data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        raw, next_raw = cast(Observations, data.observations), cast(Observations, data.next_observations)
        seen, next_seen = (self._augmented(raw), self._augmented(next_raw))
        return Batch(
            self._prepared(seen),
            data.actions,
            self._prepared(next_seen),
            data.rewards,
            data.dones,
            self.gamma if data.discounts is None else data.discounts,
            self._targets(seen if self.reconstruct_shifted else raw),
        )

    def _augmented(self, raw: Observations) -> Observations:
        """What the encoders are to see of sampled observations."""
        if self.augmentation is None:
            return raw
        return self.critic.features_extractor.shift(raw, self.shift_pixels)

    def _prepared(self, raw: Observations) -> Observations:
        return self.critic.features_extractor.prepare(raw, self.policy.normalize_images, self._compute_dtype)

    def _targets(self, raw: Observations) -> Observations:
        """What the decoders are to return: of frames as they are stored, which have lost nothing."""
        extractor = self.critic.features_extractor

        def source(name: str, values: Tensor) -> Tensor:
            if extractor.takes_frames(name):
                return values
            return extractor.prepare_part(name, values, self.policy.normalize_images)

        sources: Any
        if isinstance(raw, Tensor):
            sources = source(OBSERVATION, raw)
        else:
            sources = {name: source(name, raw[name]) for name in extractor.views}
        return self.learner.target(sources)

    @abstractmethod
    def train_on(self, batch: Batch) -> dict[str, Tensor]:
        """One update on a minibatch; returns detached scalars by name."""

    def _step_critic_and_encoder(
        self, batch: Batch, target_q_values: Tensor, act: bool
    ) -> tuple[Encoding, dict[str, Tensor]]:
        """Step on the TD error, and in the fused update on the representation loss.

        Args:
            batch: A minibatch.
            target_q_values: (B, 1).
            act: Whether the actor will read the encoding.

        Returns:
            The encoding that actor and decoder read, and metrics: in the fused update the one that was stepped on, in
            the paper's a new one.
        """
        reconstruct = self._reconstructs_now
        if self.resolved_update == "fused" and reconstruct:
            return self._step_jointly(batch, target_q_values)
        encoding, metrics = self._step_critic(batch, target_q_values)
        if self.resolved_update == "paper" and (act or reconstruct) and not self.freeze_encoder:
            with torch.set_grad_enabled(reconstruct):
                encoding = self._encode(batch.observations)
        return encoding, metrics

    def _step_critic(self, batch: Batch, target_q_values: Tensor) -> tuple[Encoding, dict[str, Tensor]]:
        """Step critic and encoder on the TD error."""
        encoding = self._encode(batch.observations)
        critic_loss, metrics = self._critic_loss(encoding, batch.actions, target_q_values)
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        self.critic.optimizer.step()
        return encoding, metrics

    def _step_representation(self, batch: Batch, encoding: Encoding) -> dict[str, Tensor]:
        """Step encoder and decoder on the representation loss."""
        diagnose = self.learner.step % self.diagnostics_interval == 0
        td_gradients = []
        if diagnose:
            for parameter in self._trunk_parameters():
                td_gradients.append(parameter.grad)  # which the critic's loss has left there
                parameter.grad = None  # and which would stay where nothing is reconstructed
        metrics = self.learner.update(*self._representation_arguments(batch, encoding))
        metrics["ae_loss"] = metrics.pop("total")
        if diagnose:
            gradients = [parameter.grad for parameter in self._trunk_parameters()]
            metrics |= self._diagnose(batch, td_gradients, gradients)
        return metrics

    def _step_jointly(self, batch: Batch, target_q_values: Tensor) -> tuple[Encoding, dict[str, Tensor]]:
        """Step critic, encoder and decoder on the sum of both losses, after one forward and by one backward pass."""
        diagnose = self.learner.step % self.diagnostics_interval == 0
        trunk = list(self._trunk_parameters())
        td_gradients: Sequence[Tensor | None] = []
        if diagnose:  # with a forward pass of its own, because compiled networks keep no graph, and the same noise
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                alone = self._critic_loss(self._encode(batch.observations), batch.actions, target_q_values)[0]
            td_gradients = torch.autograd.grad(alone, trunk, allow_unused=True)

        encoding = self._encode(batch.observations)
        critic_loss, metrics = self._critic_loss(encoding, batch.actions, target_q_values)
        evaluated: Any = self.learner.losses(*self._representation_arguments(batch, encoding))
        optimizers = [self.critic.optimizer, *self._decoder_optimizers()]
        for optimizer in optimizers:
            optimizer.zero_grad()
        (critic_loss + self.representation_weight * total(evaluated)).backward()
        if diagnose:  # before the step, because they are those of what was encoded
            gradients = [
                both if td is None or both is None else both - td
                for both, td in zip((parameter.grad for parameter in trunk), td_gradients, strict=True)
            ]
            metrics |= self._diagnose(batch, td_gradients, gradients)
        for optimizer in optimizers:
            optimizer.step()
        metrics |= self.learner.follow(evaluated)
        metrics["ae_loss"] = metrics.pop("total")
        return encoding, metrics

    def _encode(self, observations: Observations) -> Encoding:
        """Trunk features and latents, with their graph."""
        extractor = self.critic.features_extractor
        with self._autocast():
            features = extractor.trunk(observations)
            return Encoding(features, extractor.latents(features))

    def _critic_loss(
        self, encoding: Encoding, actions: Tensor, target_q_values: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared TD error, the sum over the critics' means, and metrics."""
        extractor = self.critic.features_extractor
        with self._autocast():
            latent = extractor.join(*encoding, sample=self.policy.critic_latent == "sample")
            q_values = self.critic.q_values(latent, actions).to(target_q_values.dtype)  # (B, N)
        critic_loss = (q_values - target_q_values).square().mean(dim=0).sum()
        return critic_loss, {"critic_loss": critic_loss.detach(), "q_value": q_values.detach().mean()}

    def _representation_arguments(self, batch: Batch, encoding: Encoding) -> tuple[Any, Any, int, Any]:
        """What the learner asks for: observations, targets, size of the data set, latents."""
        assert self.replay_buffer is not None
        n_data = max(self.replay_buffer.size() * self.n_envs, len(batch.actions))
        latents = encoding.latents if isinstance(self.learner, DictLearner) else encoding.latents[OBSERVATION]
        return batch.observations, batch.targets, n_data, latents

    def _actor_latent(self, encoding: Encoding) -> Tensor:
        """What the actor's networks read, (B, D), of an encoding; detached unless the actor is to train the trunk."""
        if self.policy.actor_input == "latent":
            return self._critic_latent(encoding)
        return self.policy.actor_latent(encoding.features if self.actor_trains_trunk else encoding.detach_features())

    def _critic_latent(self, encoding: Encoding) -> Tensor:
        """The latents' modes (B, D), detached."""
        return self.critic.features_extractor.join(*encoding).detach()

    def _encoding_now(self, batch: Batch, encoding: Encoding, moved: bool) -> Encoding:
        """The encoding, or a new one where the actor trains the trunk: for the actor, and once it has ``moved`` it."""
        return self._encode(batch.observations) if self.actor_trains_trunk and moved else encoding

    def _step_actor(self, loss: Tensor) -> dict[str, Tensor]:
        trunk = list(self._trunk_parameters()) if self.actor_trains_trunk else []
        left = [parameter.grad for parameter in trunk]  # by the critic's loss, for the diagnostics
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        for parameter, gradient in zip(trunk, left, strict=True):
            parameter.grad = gradient
        return {"actor_loss": loss.detach()}

    def _update_targets(self) -> None:
        """Move the target critic towards the critic."""
        online, target = self.critic, self.critic_target
        if not self.freeze_encoder:
            self._update_target_encoder(online.features_extractor, target.features_extractor)
        for q_network, target_q_network in zip(online.q_networks, target.q_networks, strict=True):
            follow(q_network, target_q_network, self.tau)

    def _update_target_encoder(self, online: nn.Module, target: nn.Module) -> None:
        follow(online, target, self.encoder_tau)
        for buffer, target_buffer in zip(online.buffers(), target.buffers(), strict=True):
            target_buffer.copy_(buffer)  # a codebook, which is an average already

    def _diagnose(
        self, batch: Batch, td_gradients: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """Is the encoder trained, by which loss, and what are its latents like?"""
        described = {
            "td_gradient_norm": total_norm(td_gradients),
            "ae_gradient_norm": total_norm(gradients),
            "gradient_cosine": gradient_cosine(td_gradients, gradients),
        }
        unshifted = self.augmentation is not None and not self.reconstruct_shifted
        # targets have lost bits, but where frames are shifted they are what is to come back
        wanted = batch.targets if unshifted else batch.observations
        single = isinstance(batch.observations, Tensor)
        for name, autoencoder in self.policy.autoencoders.items():
            own, target = (parts if single else parts[name] for parts in cast(Any, (batch.observations, wanted)))
            weights = next(autoencoder.parameters()).dtype
            numbers = describe_autoencoder(cast(Autoencoder, autoencoder), own.to(weights), target.to(weights))
            described |= {metric if single else f"{name}/{metric}": value for metric, value in numbers.items()}
        return described

    def _trunk_parameters(self) -> Iterator[nn.Parameter]:
        return self.critic.features_extractor.trunk_parameters()

    def _autocast(self) -> Any:
        return autocast(self.device, self.resolved_precision)

    @property
    def _compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.resolved_precision)

    def _decoder_optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of what the critic's optimizer does not have."""
        learners = self.learner.learners.values() if isinstance(self.learner, DictLearner) else [self.learner]
        return [learner.decoder_optimizer for learner in learners]

    @property
    def _reconstructs_now(self) -> bool:
        """Whether this update steps on the representation loss."""
        if self.decoder_update_interval == 0 or self.freeze_encoder:
            return False
        return self._n_updates % self.decoder_update_interval == 0

    def _log(self, updates: list[dict[str, Tensor]]) -> None:
        """Record the updates' metrics: at once on a CPU, where nothing waits for it."""
        self._unlogged += updates
        if len(self._unlogged) >= self._unlogged_updates:
            self.log_metrics()

    def log_metrics(self) -> None:
        """Record the mean of every metric over the updates since the last time.

        Raises:
            NonFiniteError: If a metric is NaN or infinite; names the first one and its update.
        """
        updates, self._unlogged = self._unlogged, []
        if not updates:
            return
        flat = [(index, name, value) for index, metrics in enumerate(updates) for name, value in metrics.items()]
        values = torch.stack([value.float().to(self.device) for _, _, value in flat])
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

    def dump_logs(self) -> None:
        """Write the log; raises as :meth:`log_metrics`."""
        self.log_metrics()
        super().dump_logs()

    # ------------------------------------------------------------------ saving

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the agent; arguments as in Stable-Baselines3.

        Raises:
            NonFiniteError: As :meth:`log_metrics`, before anything is written.
        """
        self.log_metrics()
        super().save(*args, **kwargs)

    @classmethod
    def load(cls: type[SelfAgent], path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> SelfAgent:
        """Load an agent; arguments as in Stable-Baselines3.

        Raises:
            ValueError: If the file is damaged, not an agent of this class, or of another autoencoder or policy than the
                arguments say.
        """
        attributes = _check_archive(path, cls.__name__, cls.archive_mark)
        if attributes and "update" not in attributes:  # saved when there was one kind
            kwargs.setdefault("update", "paper")
        try:
            return super().load(path, *args, **kwargs)
        except RuntimeError as error:
            if "autoencoder" not in kwargs:
                raise
            raise ValueError(f"{path} does not fit autoencoder={kwargs['autoencoder']!r}: {error}") from error

    #: An attribute that the other algorithm's saved agents do not have.
    archive_mark: str

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner", "generators", "_unlogged"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "learner", "generators"], variables


@torch.no_grad()
def follow(online: nn.Module, target: nn.Module, rate: float) -> None:
    """Move a target's parameters towards the online ones by a share, Polyak's, of the way."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def _checked_env(name: str, env: GymEnv | str | None, verbose: int) -> Any:
    """The environment, refused for actions that no wrapping will help.

    Raises:
        ValueError: If actions are not a bounded ``Box``.
    """
    if env is None:  # of an agent that is being loaded
        return None
    env = maybe_make_env(env, verbose)
    actions = env.action_space
    if not isinstance(actions, spaces.Box) or not np.all(np.isfinite([actions.low, actions.high])):
        raise ValueError(f"{name} needs a bounded Box of actions, got {actions}; use DQN or PPO for discrete ones")
    return env


def _progress_bars(callback: BaseCallback) -> Iterator[Any]:
    """The bars of ``learn(progress_bar=True)``."""
    if isinstance(callback, ProgressBarCallback):
        yield callback.pbar
    elif isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from _progress_bars(child)


def _check_archive(path: str | Path | io.BufferedIOBase, name: str, mark: str) -> dict[str, Any]:
    """What is saved; refuses a file that Stable-Baselines3 would fail on halfway, or another algorithm's."""
    file: Any = path
    if isinstance(path, str | Path):
        # SB3 adds the suffix itself, and reports a missing file well
        file = Path(path) if Path(path).exists() else Path(f"{path}.zip")
        if not file.exists():
            return {}
    expected = {"data", "policy.pth", "learner.pth", "generators.pth"}
    try:
        with zipfile.ZipFile(file) as archive:
            missing, damaged = expected - set(archive.namelist()), archive.testzip()
            attributes = {} if missing or damaged else json.loads(archive.read("data"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a saved agent: {error}") from error
    if not isinstance(file, Path):
        file.seek(0)
    if missing:
        raise ValueError(
            f"{path} is not a saved {name} agent: expected the entries {sorted(expected)}, no {sorted(missing)}"
        )
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} fails its checksum")
    if mark not in attributes:
        raise ValueError(f"{path} is not a saved {name} agent: it has no {mark}, load it with the class that saved it")
    return cast(dict[str, Any], attributes)
