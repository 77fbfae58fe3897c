"""TD3-AE: Twin Delayed DDPG whose encoder is also trained to reconstruct its input."""

from numbers import Real
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor, nn

from rl_ae.autoencoders import Encoder
from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.sb3.agent import AutoencoderAgent, Batch, Encoding, follow
from rl_ae.sb3.observations import AutoencodersLike
from rl_ae.sb3.policies import TD3_POLICIES, TD3AEActor, TD3AEPolicy

SelfTD3AE = TypeVar("SelfTD3AE", bound="TD3AE")


class TD3AE(AutoencoderAgent, TD3):  # type: ignore[misc]
    """Twin Delayed DDPG (arXiv 1802.09477) with the jointly trained autoencoder of SAC-AE (arXiv 1910.01741).

    The trunk of the critic's encoder learns from the TD error and from the reconstruction; the actor reads it detached.
    See :mod:`rl_ae.sb3.policies` for the table of who trains what.

    The arguments up to ``device`` are those of :class:`stable_baselines3.TD3`, with SAC-AE's defaults where TD3 has the
    argument too; only these differ in meaning or need a word:

    Args:
        policy: ``"CnnPolicy"``, ``"MultiInputPolicy"`` for a ``Dict`` of observations, or a subclass of
            :class:`~rl_ae.sb3.policies.TD3AEPolicy`.
        env: As :class:`~rl_ae.sb3.SACAE`'s.
        buffer_size: Transitions kept. 100,000: TD3's 1,000,000 would need 127 GB at 84×84×9.
        tau: Polyak rate of the targets' Q networks and actor, per update of the targets.
        action_noise: Of exploration; a number is the standard deviation of Gaussian noise on actions in [-1, 1].
            Stable-Baselines3's TD3 explores with none unless told.
        policy_delay: Updates between two steps of the actor and of the targets, counted over all calls.
        autoencoder: See :class:`~rl_ae.sb3.SACAE`, as all that follow.
        encoder_tau: Polyak rate of the targets' trunk and heads.
        decoder_update_interval: Updates between two steps of the representation loss; 0 for none ever.
        autoencoder_learning_rate: Of encoder and decoder under the representation loss.
        encoder_learning_rate: Of the encoder under the critic's loss.
        catch_up_updates: Updates made at once after ``learning_starts`` steps; as many as there were steps if ``None``.
        update: ``"paper"``, ``"fused"`` or ``"auto"``. The paper's by default: fused, one seed of two learned worse.
        representation_weight: Of the representation loss in the fused update.
        precision: ``"fp32"``, ``"bf16"`` or ``"auto"``.
        compile: Compile trunks, heads and decoders.
        augmentation: ``"random_shift"`` of what the encoders see in training, or ``None``.
        shift_pixels: Largest shift.
        reconstruct_shifted: Decode the shifted image.
        actor_trains_trunk: Let the actor's loss train the trunk too.
        representation_loss: Instead of the autoencoder's own.
        freeze_encoder: Train neither encoder nor decoder.
        diagnostics_interval: Steps of the representation loss between two looks at it.

    Raises:
        ValueError: If observations are not images of at least 8×8 pixels, actions are not a ``Box``, the autoencoder's
            name is unknown, or a number is out of range.
        MemoryError: If the replay buffer cannot fit.

    Example:
        >>> model = TD3AE("CnnPolicy", env, autoencoder="rae", verbose=1)  # doctest: +SKIP
        >>> model.learn(100_000, progress_bar=True)  # doctest: +SKIP
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = TD3_POLICIES
    interval_names = ("policy_delay",)
    archive_mark = "policy_delay"
    policy: TD3AEPolicy
    actor: TD3AEActor
    actor_target: TD3AEActor

    def __init__(
        self,
        policy: str | type[TD3AEPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int = 128,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | float | None = 0.1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        autoencoder: AutoencodersLike = DEFAULT_AUTOENCODER,
        encoder_tau: float = 0.05,
        decoder_update_interval: int = 1,
        autoencoder_learning_rate: float | Schedule | None = None,
        encoder_learning_rate: float | Schedule | None = None,
        catch_up_updates: int | None = None,
        update: str = "paper",
        representation_weight: float = 1.0,
        precision: str = "auto",
        compile: bool = False,  # noqa: A002  as torch's
        augmentation: str | None = None,
        shift_pixels: int | None = None,
        reconstruct_shifted: bool = False,
        actor_trains_trunk: bool = False,
        representation_loss: nn.Module | None = None,
        freeze_encoder: bool = False,
        diagnostics_interval: int = 100,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_delay=policy_delay,
            target_policy_noise=target_policy_noise,
            target_noise_clip=target_noise_clip,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            autoencoder=autoencoder,
            encoder_tau=encoder_tau,
            decoder_update_interval=decoder_update_interval,
            autoencoder_learning_rate=autoencoder_learning_rate,
            encoder_learning_rate=encoder_learning_rate,
            catch_up_updates=catch_up_updates,
            update=update,
            representation_weight=representation_weight,
            precision=precision,
            compile=compile,
            augmentation=augmentation,
            shift_pixels=shift_pixels,
            reconstruct_shifted=reconstruct_shifted,
            actor_trains_trunk=actor_trains_trunk,
            representation_loss=representation_loss,
            freeze_encoder=freeze_encoder,
            diagnostics_interval=diagnostics_interval,
        )
        self.action_noise: Any = action_noise

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if isinstance(self.action_noise, Real):
            if self.action_noise < 0.0:
                raise ValueError(f"action_noise must be ≥ 0, got {self.action_noise}")
            mean = np.zeros(get_action_dim(self.action_space))
            self.action_noise = NormalActionNoise(mean, np.full_like(mean, self.action_noise))
        super()._setup_model()

    def learn(
        self: SelfTD3AE,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "TD3AE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTD3AE:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("target_policy_noise", "target_noise_clip"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be ≥ 0, got {getattr(self, name)}")

    def train_on(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        """One update: critic, actor and targets, representation; fused, the last comes with the first.

        Args:
            batch: A minibatch.
            noise: Standard normal noise (B, A) that smooths the target's actions; drawn if omitted.

        Returns:
            Detached scalars by name, those of the parts that were due.
        """
        act = self._n_updates % self.policy_delay == 0
        target_q_values = self._target_q_values(batch, noise)
        encoding, metrics = self._step_critic_and_encoder(batch, target_q_values, act)
        if act:
            metrics |= self._update_actor(self._encoding_now(batch, encoding, True))
            self._update_targets()
        if self.resolved_update == "paper" and self._reconstructs_now:
            metrics |= self._step_representation(batch, self._encoding_now(batch, encoding, act))
        self._n_updates += 1
        return metrics

    @torch.no_grad()
    def _target_q_values(self, batch: Batch, noise: Tensor | None) -> Tensor:
        """What the critics are to return, (B, 1)."""
        extractor = self.critic_target.features_extractor
        with self._autocast():
            features = extractor.trunk(batch.next_observations)
            next_actions = self._smoothed_actions(features, noise)
            next_q_values = self.critic_target.q_values(extractor.head(features), next_actions)
        next_values = next_q_values.min(dim=1, keepdim=True).values
        return batch.rewards + (1.0 - batch.dones) * batch.discounts * next_values

    def _smoothed_actions(self, features: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        """The target actor's actions (B, A) with clipped noise."""
        actions = self.actor_target.act(self.policy.actor_latent(features, self.actor_target))
        noise = torch.randn_like(actions) if noise is None else noise
        clip = self.target_noise_clip
        return (actions + (self.target_policy_noise * noise).clamp(-clip, clip)).clamp(-1.0, 1.0)

    def _update_actor(self, encoding: Encoding) -> dict[str, Tensor]:
        latent = self._critic_latent(encoding)
        with self._autocast():
            actions = self.actor.act(self._actor_latent(encoding))
            q_values = self.critic.frozen_q_values(latent, actions, critics=1).to(actions.dtype)
        return self._step_actor(-q_values.mean())

    def _update_targets(self) -> None:
        super()._update_targets()
        # its trunk is the target critic's, which has moved
        if self.policy.actor_input == "trunk":
            for name, encoder in self.actor.features_extractor.encoders.items():
                target = self.actor_target.features_extractor.encoders[name]
                follow(cast(Encoder, encoder).head, cast(Encoder, target).head, self.encoder_tau)
        follow(self.actor.mu, self.actor_target.mu, self.tau)
