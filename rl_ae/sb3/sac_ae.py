"""SAC-AE: Soft Actor-Critic whose encoder is also trained to reconstruct its input."""

from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from torch import Tensor, nn

from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.optimizers import Adam
from rl_ae.sb3.agent import AutoencoderAgent, Batch, Encoding
from rl_ae.sb3.observations import AutoencodersLike
from rl_ae.sb3.policies import SAC_POLICIES, SACAEActor, SACAEPolicy

SelfSACAE = TypeVar("SelfSACAE", bound="SACAE")


class Noise(NamedTuple):
    """Standard normal noise (B, A) behind the actions of one update; drawn where ``None``.

    Attributes:
        next_action: Of the actions in the critic's target.
        action: Of the actions in the actor's loss.
    """

    next_action: Tensor | None = None
    action: Tensor | None = None


class SACAE(AutoencoderAgent, SAC):  # type: ignore[misc]
    """Soft Actor-Critic with an autoencoder (SAC-AE), from pixels.

    Paper: https://arxiv.org/abs/1910.01741. The trunk of the critic's encoder learns from the TD error and from the
    reconstruction; the actor reads it detached. See :mod:`rl_ae.sb3.policies` for the table of who trains what.

    The arguments up to ``device`` are those of :class:`stable_baselines3.SAC`, with the defaults of the paper's code;
    only these differ in meaning or need a word:

    Args:
        policy: ``"CnnPolicy"``, ``"MultiInputPolicy"`` for a ``Dict`` of observations, or a subclass of
            :class:`~rl_ae.sb3.policies.SACAEPolicy`.
        env: Environment with image observations (:func:`~rl_ae.sb3.observations.image_shape`), or a ``Dict`` of images
            and vectors, and a ``Box`` of actions.
        learning_rate: Of actor and critic; a number or a schedule.
        buffer_size: Transitions kept. 100,000 instead of the paper's 1,000,000, which would need 127 GB at 84×84×9.
        tau: Polyak rate of the target's Q networks, per update of the targets.
        ent_coef: Temperature α, or ``"auto_<initial value>"`` to learn it.
        target_update_interval: Updates between two updates of the targets (in SB3's SAC: gradient steps of one call).
        policy_kwargs: For :class:`~rl_ae.sb3.policies.AutoencoderPolicy`: ``net_arch``, ``reconstruct``,
            ``actor_input``, ``critic_latent`` …
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS`, a config, a class, or the folder of a saved autoencoder
            to start from. An environment's image size fills in a config's ``observation_shape``. For a ``Dict``: of
            each image, or a dictionary by name in which ``None`` sends a part straight to the policy.
        encoder_tau: Polyak rate of the target's trunk and head.
        actor_update_interval: Updates between two steps of actor and temperature.
        decoder_update_interval: Updates between two steps of the representation loss; 0 for none ever.
        ent_coef_learning_rate: Of the temperature (Adam with β₁ = 0.5); a number or a schedule.
        autoencoder_learning_rate: Of encoder and decoder under the representation loss, instead of both rates of the
            config; a number or a schedule.
        encoder_learning_rate: Of the encoder under the critic's loss, instead of ``learning_rate``; a number or a
            schedule.
        catch_up_updates: Updates made at once after ``learning_starts`` steps; as many as there were steps if ``None``.
        update: ``"paper"`` makes the paper's update: the critic's loss, the actor's and the representation's each have
            a step of their own. ``"fused"`` sums the critic's loss and the representation's and makes one step on both
            by the critic's optimizer, in the encoder too, so that their sizes weigh against each other, and the actor
            reads what the encoder returned before the step; ``autoencoder_learning_rate`` and the config's rates are
            the decoder's alone.
            ``"auto"``: ``"fused"`` where tanh bounds the latent (``ae`` and every ``rae``), else ``"paper"``.
        representation_weight: Of the representation loss in the fused update; in the paper's Adam takes no notice.
        precision: ``"fp32"``, ``"bf16"``: convolutions and matrix products in bfloat16, or ``"auto"``: ``"bf16"`` where
            the device has instructions for it.
        compile: Compile trunks, heads and decoders with ``torch.compile``, which takes a minute or two at first.
        augmentation: ``"random_shift"``: the encoders see the images of each batch, observations and next observations,
            shifted at random, DrQ's :func:`~rl_ae.pixels.random_shift`; ``None``: as they are.
        shift_pixels: Largest shift; if ``None`` DrQ's 4 of 84 pixels, in proportion.
        reconstruct_shifted: Decode the shifted image that the encoder saw, instead of the observation itself.
        actor_trains_trunk: Let the actor's loss train the trunk too: an ablation of the SAC-AE paper.
        representation_loss: With the signature of :meth:`rl_ae.losses.Loss.forward`; the autoencoder's own if ``None``.
        freeze_encoder: Train neither encoder nor decoder, by any loss: of a saved autoencoder, say.
        diagnostics_interval: Steps of the representation loss between two looks at it: the norms of both losses'
            gradients at the trunk (in the fused update the representation's with its weight) and the cosine between
            them, and :func:`~rl_ae.diagnostics.describe_autoencoder`.

    Raises:
        ValueError: If observations are not images of at least 8×8 pixels, actions are not a ``Box``, the autoencoder's
            name is unknown, or a number is out of range.
        MemoryError: If the replay buffer cannot fit.

    Example:
        >>> model = SACAE("CnnPolicy", env, autoencoder="rae", verbose=1)  # doctest: +SKIP
        >>> model.learn(100_000, progress_bar=True)  # doctest: +SKIP
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = SAC_POLICIES
    interval_names = ("target_update_interval", "actor_update_interval")
    archive_mark = "ent_coef"
    policy: SACAEPolicy
    actor: SACAEActor

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
        autoencoder: AutoencodersLike = DEFAULT_AUTOENCODER,
        encoder_tau: float = 0.05,
        actor_update_interval: int = 2,
        decoder_update_interval: int = 1,
        ent_coef_learning_rate: float | Schedule = 1e-4,
        autoencoder_learning_rate: float | Schedule | None = None,
        encoder_learning_rate: float | Schedule | None = None,
        catch_up_updates: int | None = None,
        update: str = "auto",
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
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
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
        self.actor_update_interval = actor_update_interval
        self.ent_coef_learning_rate = ent_coef_learning_rate

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.log_ent_coef is not None:
            learning_rate = FloatSchedule(self.ent_coef_learning_rate)(self._current_progress_remaining)
            self.ent_coef_optimizer = Adam([self.log_ent_coef], lr=learning_rate, betas=(0.5, 0.999))

    def _own_policy_kwargs(self) -> dict[str, Any]:
        return {"use_sde": self.use_sde}

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

    def _set_learning_rates(self) -> None:
        super()._set_learning_rates()
        if self.ent_coef_optimizer is not None:
            learning_rate = FloatSchedule(self.ent_coef_learning_rate)(self._current_progress_remaining)
            update_learning_rate(self.ent_coef_optimizer, learning_rate)

    def train_on(self, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        """One update: critic, actor and temperature, targets, representation; fused, the last comes with the first.

        Args:
            batch: A minibatch.
            noise: Noise behind the actions; drawn if omitted.

        Returns:
            Detached scalars by name, those of the parts that were due.
        """
        next_action_noise, action_noise = Noise() if noise is None else noise
        if self.use_sde:
            self.actor.reset_noise()
        act = self._n_updates % self.actor_update_interval == 0
        target_q_values = self._target_q_values(batch, next_action_noise)
        encoding, metrics = self._step_critic_and_encoder(batch, target_q_values, act)
        if act:
            metrics |= self._update_actor_and_temperature(self._encoding_now(batch, encoding, True), action_noise)
        if self._n_updates % self.target_update_interval == 0:
            self._update_targets()
        if self.resolved_update == "paper" and self._reconstructs_now:
            metrics |= self._step_representation(batch, self._encoding_now(batch, encoding, act))
        self._n_updates += 1
        return metrics

    @torch.no_grad()
    def _target_q_values(self, batch: Batch, noise: Tensor | None) -> Tensor:
        """What the critics are to return, (B, 1)."""
        with self._autocast():
            features = self.critic.features_extractor.trunk(batch.next_observations)
            next_actions, next_log_prob = self.actor.sample(self.policy.actor_latent(features), noise)
            next_latent = self.critic_target.features_extractor.latent(batch.next_observations)
            next_q_values = self.critic_target.q_values(next_latent, next_actions)
        next_values = next_q_values.min(dim=1, keepdim=True).values - self._temperature() * next_log_prob
        return batch.rewards + (1.0 - batch.dones) * batch.discounts * next_values

    def _update_actor_and_temperature(self, encoding: Encoding, noise: Tensor | None) -> dict[str, Tensor]:
        latent = self._critic_latent(encoding)
        with self._autocast():
            actions, log_prob = self.actor.sample(self._actor_latent(encoding), noise)
            q_values = self.critic.frozen_q_values(latent, actions).to(log_prob.dtype)
        actor_loss = (self._temperature() * log_prob - q_values.min(dim=1, keepdim=True).values).mean()
        metrics = {**self._step_actor(actor_loss), "ent_coef": self._temperature().mean()}
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

    def _temperature(self) -> Tensor:
        """α, detached."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()
