"""Policies: who owns which network, and which loss may train it.

========================  ======  ===========  ==========  ==========  =======
loss                      trunk   critic head  Q networks  actor       decoder
========================  ======  ===========  ==========  ==========  =======
critic (TD error)         yes     yes          yes         –           –
actor                     –       –            –           head, MLP   –
temperature (SAC-AE)      –       –            –           –           –
representation            yes     yes          –           –           yes
========================  ======  ===========  ==========  ==========  =======

The trunk is the autoencoder's, and the critic's: the actor reads it detached, through a head of its own, which is
SAC-AE's linear → LayerNorm → tanh whatever the autoencoder's is; with ``actor_input="latent"`` through the critic's
head, detached as well. The critic reads the latent's mode, normalised where no tanh bounds it; with
``critic_latent="sample"`` its loss reads a sample. With the agents' ``actor_trains_trunk=True``, an ablation, the
actor's loss trains the trunk too, by the actor's optimizer. The target critic has a copy of trunk, head and Q networks
that no loss trains, the target actor of TD3-AE reads that trunk through a head of its own. The temperature's loss
trains log α alone. A codebook of moving averages follows the representation's batches; the target's is a copy.

Of a ``Dict`` of observations every image, and every vector with an autoencoder, has a trunk, a critic head and an actor
head of its own; the decoder is there for those that are reconstructed. Other parts are read as they are.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor, SACPolicy
from stable_baselines3.td3.policies import Actor as DeterministicActor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rl_ae.autoencoders import Autoencoder, Encoder
from rl_ae.configs import DEFAULT_AUTOENCODER, AEConfig
from rl_ae.factory import create_autoencoder
from rl_ae.networks import TanhProjection, initialize
from rl_ae.optimizers import Adam
from rl_ae.sb3.extractor import AutoencoderExtractor, only
from rl_ae.sb3.observations import Observations, make_views, resolved

#: SAC-AE's bounds of log σ, reached smoothly through tanh (official code).
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
#: Keeps the logarithm of the squashing's derivative finite (official code, and SB3).
LOG_PROB_EPSILON = 1e-6
#: Width of the actor's own head where the autoencoder's latent is not SAC-AE's.
ACTOR_LATENT_DIM = AEConfig.latent_dim

#: What the actor reads: the trunk through a head of its own, or the critic's latent.
ActorInput = Literal["trunk", "latent"]
#: What the critic's loss reads of the latent.
CriticLatent = Literal["mode", "sample"]


class SACAEActor(Actor):
    """SAC's actor with SAC-AE's tanh-rescaled log σ, and its steps from latent to action as methods."""

    features_extractor: AutoencoderExtractor

    def distribution_parameters(self, latent: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean and log σ of the Gaussian before the squashing, (B, A) each, from latents (B, D)."""
        hidden = self.latent_pi(latent)
        # the density needs more digits than autocast leaves
        hidden = hidden.to(next(self.mu.parameters()).dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            mean = self.mu(hidden)
            if self.use_sde:
                return mean, self.log_std, {"latent_sde": hidden}
            unit = torch.tanh(self.log_std(hidden))  # type: ignore[operator]
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (unit + 1.0), {}

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Stable-Baselines3's entry for ``predict``: raw observations to the distribution's parameters."""
        return self.distribution_parameters(self.extract_features(obs, self.features_extractor))

    def sample(self, latent: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A reparametrised action and its log-probability.

        Args:
            latent: (B, D).
            noise: Standard normal (B, A); drawn if omitted. Not used with gSDE, whose noise is a matrix.

        Returns:
            Actions (B, A) in [-1, 1] and log-probabilities (B, 1).
        """
        mean, log_std, kwargs = self.distribution_parameters(latent)
        if self.use_sde:
            actions, log_prob = self.action_dist.log_prob_from_params(mean, log_std, **kwargs)
            return actions, log_prob.unsqueeze(1)
        noise = torch.randn_like(mean) if noise is None else noise
        actions = torch.tanh(mean + log_std.exp() * noise)
        # from the noise itself: SB3 recovers it as (x - μ) / σ, which loses its digits where σ is small
        log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_prob = log_density - torch.log(1.0 - actions.square() + LOG_PROB_EPSILON)
        return actions, log_prob.sum(dim=1, keepdim=True)


class TD3AEActor(DeterministicActor):
    """TD3's actor, with its step from latent to action as a method."""

    features_extractor: AutoencoderExtractor

    def act(self, latent: Tensor) -> Tensor:
        """Actions (B, A) in [-1, 1] from latents (B, D)."""
        actions: Tensor = self.mu(latent)
        return actions.to(next(self.mu.parameters()).dtype)  # where autocast has rounded


class TiedCritic(ContinuousCritic):
    """SAC's and TD3's critic, with its step from latent to values as a method.

    A latent that SAC-AE's tanh does not bound is normalised first (LayerNorm without parameters): the critic trains the
    encoder too, and would push a Gaussian's means as far out as returns are large, far from the prior.
    """

    features_extractor: AutoencoderExtractor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        encoders = self.features_extractor.encoders
        #: Width of each part of the latent, and whether it is normalised.
        self.latent_parts = [
            (cast(Encoder, encoders[name]).latent_dim, not isinstance(encoders[name].head, TanhProjection))
            if name in encoders
            else (view.shape[0], False)
            for name, view in self.features_extractor.views.items()
        ]

    @property
    def has_bounded_latent(self) -> bool:
        """Whether tanh bounds every encoder's latent."""
        return not any(unbounded for _, unbounded in self.latent_parts)

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """Values (B, 1) of each critic for raw observations and actions (B, A)."""
        latent = self.extract_features(obs, self.features_extractor)
        values: tuple[Tensor, ...] = self.q_values(latent, actions).split(1, dim=1)
        return values

    def q1_forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Values (B, 1) of the first critic."""
        return self.forward(obs, actions)[0]

    def normalize(self, latent: Tensor) -> Tensor:
        """What the Q networks read of latents (B, D): the same shape."""
        if self.has_bounded_latent:
            return latent
        parts = latent.split([width for width, _ in self.latent_parts], dim=1)
        return torch.cat(
            [
                F.layer_norm(part, (width,)) if unbounded else part
                for part, (width, unbounded) in zip(parts, self.latent_parts, strict=True)
            ],
            dim=1,
        )

    def q_values(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Values (B, N) of the N critics for latents (B, D) and actions (B, A)."""
        inputs = torch.cat([self.normalize(latent), actions], dim=1)
        return torch.cat([q_network(inputs) for q_network in self.q_networks], dim=1)

    def frozen_q_values(self, latent: Tensor, actions: Tensor, critics: int | None = None) -> Tensor:
        """The same values, through which gradients reach the actions but not the Q networks' parameters.

        Args:
            latent: (B, D).
            actions: (B, A).
            critics: How many of the N critics to ask; all if omitted.
        """
        inputs = torch.cat([self.normalize(latent), actions], dim=1)
        return torch.cat(
            [
                functional_call(q_network, {name: p.detach() for name, p in q_network.named_parameters()}, (inputs,))
                for q_network in self.q_networks[:critics]
            ],
            dim=1,
        )


class AutoencoderPolicy(BasePolicy):
    """What :class:`SACAEPolicy` and :class:`TD3AEPolicy` share: a tied trunk, and decoders.

    ``features_extractor_kwargs["autoencoder"]`` names the autoencoder, or those of a ``Dict``; the algorithm fills it
    in. See the module's table for who trains what.

    Args:
        observation_space: Images, or a ``Dict``; see :func:`~rl_ae.sb3.observations.make_views`.
        action_space: ``Box``.
        lr_schedule: Of actor and critic.
        net_arch: Widths of the hidden layers; SAC-AE's 2 × 1024 if omitted.
        features_extractor_class: :class:`~rl_ae.sb3.AutoencoderExtractor` or a subclass.
        share_features_extractor: Must be false; the trunk is shared whatever it says.
        normalize_images: Let Stable-Baselines3 scale ``uint8`` images.
        features_extractor_kwargs: For the extractor.
        reconstruct: Names of the parts of a ``Dict`` that are reconstructed; all that are encoded if omitted.
        actor_input: ``"trunk"`` or ``"latent"``.
        critic_latent: ``"mode"`` or ``"sample"``.
        **kwargs: For Stable-Baselines3's policy.

    Raises:
        ValueError: If the observations are not images, or an argument would break the tied trunk.
    """

    actor: Any
    critic: TiedCritic
    critic_target: TiedCritic
    net_arch: Any
    critic_kwargs: dict[str, Any]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = AutoencoderExtractor,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        features_extractor_kwargs: dict[str, Any] | None = None,
        reconstruct: Sequence[str] | None = None,
        actor_input: ActorInput = "trunk",
        critic_latent: CriticLatent = "mode",
        **kwargs: Any,
    ) -> None:
        if not issubclass(features_extractor_class, AutoencoderExtractor):
            raise ValueError(
                f"features_extractor_class must be an AutoencoderExtractor, got {features_extractor_class.__name__}; "
                "choose the network with autoencoder=…"
            )
        if share_features_extractor:
            raise ValueError("share_features_extractor=True blocks the critic's loss; SAC-AE ties the trunk itself")
        for name, value, choices in (
            ("actor_input", actor_input, get_args(ActorInput)),
            ("critic_latent", critic_latent, get_args(CriticLatent)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
        extractor_kwargs = {"autoencoder": DEFAULT_AUTOENCODER, **(features_extractor_kwargs or {})}
        views = make_views(observation_space, extractor_kwargs["autoencoder"])
        if not normalize_images and any(view.space.dtype == "uint8" and view.autoencoder for view in views.values()):
            raise ValueError("normalize_images=False needs float images in [0, 1], the observations are uint8")
        #: As the argument ``reconstruct`` says.
        self.reconstructed = reconstruct
        self.actor_input, self.critic_latent = actor_input, critic_latent
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[1024, 1024] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=extractor_kwargs,
            normalize_images=normalize_images,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.critic = self.make_critic()
        self.critic_target = self.make_critic()
        self.actor = self.make_actor(self._make_actor_extractor(self.critic))
        self._initialize_networks()
        self.autoencoders = nn.ModuleDict(self._make_autoencoders())
        # a folder has been read: policy.save keeps what was in it, not where it was
        self.features_extractor_kwargs["autoencoder"] = resolved(
            self.observation_space, self.features_extractor_kwargs["autoencoder"]
        )
        self._make_targets()

        encoders = list(self.critic.features_extractor.parameters())
        tied = set(encoders)
        self.actor.optimizer = self._make_optimizer(
            [[p for p in self.actor.parameters() if p not in tied]], lr_schedule
        )
        # the encoders first: their group can have a learning rate of its own
        rest = [parameter for parameter in self.critic.parameters() if parameter not in tied]
        self.critic.optimizer = self._make_optimizer([encoders, rest], lr_schedule)

    def _make_actor_extractor(self, critic: TiedCritic) -> AutoencoderExtractor:
        """The critic's trunks behind heads of the actor's own, or the critic's extractor itself."""
        if self.actor_input == "latent":
            return critic.features_extractor
        extractor = self.make_features_extractor()
        assert isinstance(extractor, AutoencoderExtractor)
        heads: dict[str, nn.Module] = {}
        for name, encoder in extractor.encoders.items():
            encoder.trunk = cast(Encoder, critic.features_extractor.encoders[name]).trunk
            if not isinstance(encoder.head, TanhProjection):
                heads[name] = TanhProjection(cast(int, encoder.trunk.out_features), ACTOR_LATENT_DIM)
                heads[name].apply(initialize)
        extractor.replace_heads(heads, ACTOR_LATENT_DIM)
        return extractor

    def _initialize_networks(self) -> None:
        own = (module for name, module in self.actor.named_children() if name != "features_extractor")
        for network in (*self.critic.q_networks, *own):
            network.apply(initialize)

    def _make_autoencoders(self) -> dict[str, Autoencoder]:
        """The autoencoders around the critic's encoders, of what is reconstructed."""
        extractor = self.critic.features_extractor
        names = list(extractor.encoders) if self.reconstructed is None else list(self.reconstructed)
        if not names or set(names) - extractor.encoders.keys():
            raise ValueError(f"reconstruct must name some of {sorted(extractor.encoders)}, got {names}")
        autoencoders = {}
        for name in names:
            view = extractor.views[name]
            assert view.autoencoder is not None
            encoder = cast(Encoder, extractor.encoders[name])
            autoencoders[name] = create_autoencoder(view.autoencoder, view.shape, encoder)
        return autoencoders

    def _make_targets(self) -> None:
        """Let the targets start as copies that no loss trains."""
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic_target.set_training_mode(False)

    def _make_optimizer(self, groups: Sequence[Iterable[nn.Parameter]], lr_schedule: Schedule) -> torch.optim.Optimizer:
        groups_of_parameters = [{"params": list(group)} for group in groups]
        fusible = self.optimizer_class is torch.optim.Adam and not {"foreach", "differentiable"} & set(
            self.optimizer_kwargs
        )
        make = Adam if fusible else self.optimizer_class
        return make(groups_of_parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @abstractmethod
    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build the actor around an extractor that reads the critic's trunk."""

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> TiedCritic:
        """Build the critic or the target critic."""
        return TiedCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    @property
    def autoencoder(self) -> Autoencoder:
        """The only autoencoder; raises ``ValueError`` if there are several, which :attr:`autoencoders` has by name."""
        return cast(Autoencoder, only(self.autoencoders))

    def actor_latent(self, features: dict[str, Tensor], actor: Any = None) -> Tensor:
        """What the actor's networks read, (B, D), of trunk features; no gradient reaches a head of the critic.

        Args:
            features: What :meth:`~rl_ae.sb3.AutoencoderExtractor.trunk` returned, detached.
            actor: The target actor, say; the actor if omitted.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.actor_input == "trunk"):
            latent: Tensor = (self.actor if actor is None else actor).features_extractor.head(features)
        return latent

    @torch.no_grad()
    def reconstruct(self, observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]) -> Observations:
        """What comes back of observations as an environment returns them, from their latents' modes.

        Args:
            observation: One or a batch, as for ``predict``.

        Returns:
            Images (B, C, H, W) near [0, 1]; of a ``Dict`` what is reconstructed, by name.
        """
        raw, _ = self.obs_to_tensor(observation)
        scaled = self.critic.features_extractor.prepare(raw, self.normalize_images)
        if isinstance(scaled, Tensor):
            return self.autoencoder.reconstruct(scaled)
        return {
            name: cast(Autoencoder, self.autoencoders[name]).reconstruct(scaled[name]) for name in self.autoencoders
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "reconstruct": self.reconstructed,
            "actor_input": self.actor_input,
            "critic_latent": self.critic_latent,
        }

    def set_training_mode(self, mode: bool) -> None:
        """Put actor, critic and autoencoders in training or evaluation mode; targets stay in the latter."""
        super().set_training_mode(mode)
        self.autoencoders.train(mode)


class SACAEPolicy(AutoencoderPolicy, SACPolicy):
    """Actor, critic, target critic and autoencoder of SAC-AE (arXiv 1910.01741); arguments and errors above."""

    actor: SACAEActor
    critic: TiedCritic
    critic_target: TiedCritic

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SACAEActor:
        """Build the actor around an extractor that reads the critic's trunk."""
        return SACAEActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


class TD3AEPolicy(AutoencoderPolicy, TD3Policy):
    """Actor, critic, their targets and autoencoder of TD3-AE; arguments and errors as :class:`AutoencoderPolicy`.

    The target actor reads the target critic's trunk, which is one object, so that it moves once an update.
    """

    actor: TD3AEActor
    actor_target: TD3AEActor
    critic: TiedCritic
    critic_target: TiedCritic

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> TD3AEActor:
        """Build the actor or the target actor around an extractor that reads the critic's or the target's trunk."""
        return TD3AEActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def _make_targets(self) -> None:
        super()._make_targets()
        self.actor_target = self.make_actor(self._make_actor_extractor(self.critic_target))
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.actor_target.requires_grad_(False)
        self.actor_target.set_training_mode(False)


#: One class for images and for a ``Dict``: the names are Stable-Baselines3's.
SAC_POLICIES: dict[str, type[BasePolicy]] = {"CnnPolicy": SACAEPolicy, "MultiInputPolicy": SACAEPolicy}
TD3_POLICIES: dict[str, type[BasePolicy]] = {"CnnPolicy": TD3AEPolicy, "MultiInputPolicy": TD3AEPolicy}
