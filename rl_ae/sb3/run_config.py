"""The configuration of a training run, and presets of it. Its fields are the flags of ``rl-ae train``."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
import tyro

from rl_ae.configs import DEFAULT_AUTOENCODER, named_config
from rl_ae.envs import Frame, PixelConfig, make_pixel_env
from rl_ae.factory import AutoencoderLike, is_pretrained, load_pretrained
from rl_ae.sb3.extractor import AutoencoderExtractor
from rl_ae.sb3.replay import FrameReplayBuffer

#: Fields of :class:`AgentConfig` that change the autoencoder's config.
_AUTOENCODER_FIELDS = ("latent_dim", "input_centre", "output_centre", "beta")
#: Those that go to the policy.
_POLICY_FIELDS = ("net_arch", "actor_input", "critic_latent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Arguments of the algorithm, as documented there; ``None`` leaves the algorithm's default.

    In brackets the algorithms that have an argument, where these are not obvious.

    Attributes:
        autoencoder: Name of the autoencoder, or the folder of a saved one to start from. Stock algorithms see through
            Stable-Baselines3's NatureCNN unless one is given.
        freeze_encoder: Train neither encoder nor decoder.
        latent_dim: Width of its latent; of a saved one only what it has.
        input_centre: Brightness subtracted from its input; 1 for a white background. A saved one keeps its own.
        output_centre: Brightness added to its output, where that ends without a sigmoid. A saved one keeps its own.
        net_arch: Widths of the hidden layers of actor and critics.
        learning_rate: Of actor and critic.
        encoder_learning_rate: Of the encoder under the critic's loss.
        autoencoder_learning_rate: Of encoder and decoder under the representation loss.
        ent_coef_learning_rate: Of the temperature (sac_ae).
        ent_coef: Temperature, or auto_<initial value> (sac_ae, sac); weight of the entropy (ppo).
        target_entropy: Of the policy, in nats (sac_ae, sac).
        buffer_size: Transitions kept for replay.
        learning_starts: Random steps before learning.
        catch_up_updates: Updates made at once after them.
        batch_size: Transitions an update.
        gamma: Discount a step.
        tau: Polyak rate of the target's Q networks.
        encoder_tau: Polyak rate of the target's encoder.
        train_freq: Steps between two rounds of updates.
        gradient_steps: Updates a round; -1 for as many as steps.
        n_steps: Steps of the return; of a rollout (ppo).
        actor_update_interval: Updates between two of the actor (sac_ae).
        target_update_interval: Updates between two of the targets (sac_ae).
        policy_delay: Updates between two of the actor and the targets (td3_ae, td3).
        action_noise: Standard deviation of the exploration's noise (td3_ae, td3).
        target_policy_noise: Standard deviation of the noise that smooths the targets (td3_ae, td3).
        target_noise_clip: Where that noise is clipped (td3_ae, td3).
        exploration_fraction: Share of the run in which random actions become rare (dqn).
        exploration_final_eps: Their share from then on (dqn).
        max_grad_norm: Where the gradient's norm is clipped (dqn, ppo).
        n_epochs: Passes over a rollout (ppo).
        gae_lambda: Of the advantages (ppo).
        clip_range: Of the policy's ratio (ppo).
        vf_coef: Weight of the value function's loss (ppo).
        actor_input: What the actor reads: trunk or latent (sac_ae, td3_ae).
        critic_latent: What the critic's loss reads: mode or sample (sac_ae, td3_ae).
        decoder_update_interval: Updates between two of the decoder; 0 for none ever.
        beta: Weight of the KL in the autoencoder's loss.
        update: paper; fused: one step for critic and representation together; auto: fused where tanh bounds the latent.
        representation_weight: Of the representation loss in the fused update.
        precision: fp32, bf16, or auto: bf16 where the device has instructions for it.
        compile: Compile trunks, heads and decoders.
        augmentation: random_shift of what the encoders see in training.
        shift_pixels: Largest shift; 4 of 84 pixels, in proportion, unless given.
        reconstruct_shifted: Decode the shifted image instead of the observation.
        actor_trains_trunk: Let the actor's loss train the trunk too (sac_ae, td3_ae).
    """

    autoencoder: str | None = None
    freeze_encoder: bool | None = None
    latent_dim: int | None = None
    input_centre: float | None = None
    output_centre: float | None = None
    net_arch: tuple[int, ...] | None = None
    learning_rate: float | None = None
    encoder_learning_rate: float | None = None
    autoencoder_learning_rate: float | None = None
    ent_coef_learning_rate: float | None = None
    ent_coef: str | None = None
    target_entropy: float | None = None
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
    policy_delay: int | None = None
    action_noise: float | None = None
    target_policy_noise: float | None = None
    target_noise_clip: float | None = None
    exploration_fraction: float | None = None
    exploration_final_eps: float | None = None
    max_grad_norm: float | None = None
    n_epochs: int | None = None
    gae_lambda: float | None = None
    clip_range: float | None = None
    vf_coef: float | None = None
    actor_input: Literal["trunk", "latent"] | None = None
    critic_latent: Literal["mode", "sample"] | None = None
    beta: float | None = None
    decoder_update_interval: int | None = None
    update: Literal["auto", "paper", "fused"] | None = None
    representation_weight: float | None = None
    precision: Literal["fp32", "bf16", "auto"] | None = None
    compile: bool | None = None
    augmentation: Literal["random_shift"] | None = None
    shift_pixels: int | None = None
    reconstruct_shifted: bool | None = None
    actor_trains_trunk: bool | None = None

    def arguments(self, stock: bool = False) -> dict[str, Any]:
        """Keyword arguments for the algorithm, without those left to it.

        Args:
            stock: For one of Stable-Baselines3's own, whose encoder is its policy's feature extractor.

        Raises:
            ValueError: If the autoencoder's name is unknown, or a number of its config is out of range or not its own.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        changes = {name: given.pop(name) for name in _AUTOENCODER_FIELDS if name in given}
        policy_kwargs = {name: given.pop(name) for name in _POLICY_FIELDS if name in given}
        autoencoder = given.pop("autoencoder", None if stock else DEFAULT_AUTOENCODER)
        if autoencoder is None and changes:
            raise ValueError(f"{', '.join(changes)} are an autoencoder's, and there is none: name one")
        if autoencoder is not None:
            autoencoder = _changed(autoencoder, changes)
        if not stock:
            given["autoencoder"] = autoencoder
        elif autoencoder is not None:
            policy_kwargs["features_extractor_class"] = AutoencoderExtractor
            policy_kwargs["features_extractor_kwargs"] = {"autoencoder": autoencoder}
        if "net_arch" in policy_kwargs:
            policy_kwargs["net_arch"] = list(policy_kwargs["net_arch"])
        return {**given, "policy_kwargs": policy_kwargs} if policy_kwargs else given


def _changed(autoencoder: str, changes: Mapping[str, Any]) -> AutoencoderLike:
    """A named autoencoder's config with other numbers; the folder of a saved one, which keeps its own."""
    given = {name: changes[name] for name in ("latent_dim", "beta") if name in changes}
    saved = is_pretrained(autoencoder)
    if saved and not given:
        return autoencoder
    config = load_pretrained(autoencoder).config if saved else named_config(autoencoder)
    known = {field.name for field in dataclasses.fields(config)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"the autoencoder {autoencoder!r} has no {name} to set")
        if saved and value != getattr(config, name):
            raise ValueError(f"{autoencoder} keeps its {name}: expected {getattr(config, name)} or none, got {value}")
    if saved:
        return autoencoder
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if name in known})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        env: Id of a Gymnasium environment that returns pixels or can render them; package:Id-v0 imports its package.
            Or dmc:domain-task, ale:Game, cale:Game, see rl_ae.envs.
        env_kwargs: Arguments of the environment, a JSON object.
        algo: The algorithm.
        steps: Agent steps of the whole run; environment frames are steps × action_repeat.
        seed: Of networks, exploration and environments.
        n_envs: Environments side by side.
        device: Where the agent runs; auto takes a GPU if there is one.
        log_every: Steps between two rows of the curve and the logs.
        checkpoint_every: Steps between two checkpoints.
        eval_every: Steps between two evaluations.
        eval_episodes: Episodes an evaluation.
        probe_every: Steps between two probings of what state the encoder's latent holds; 0 for none.
        replay: frames keeps each frame of a stack once, sb3 as often as it is seen; what is replayed is the same.
        auxiliary: Train a stock algorithm's encoder by its autoencoder's loss too.
        auxiliary_learning_rate: Of that; the autoencoder's own if None.
        auxiliary_updates: By it for each of the algorithm's updates (not ppo).
        auxiliary_epochs: Passes of it over each rollout (ppo).
        pixels: How the environment becomes pixels.
        agent: Arguments of the algorithm.

    Raises:
        ValueError: If a number is out of range or ``env_kwargs`` is not a JSON object.
    """

    env: str
    env_kwargs: str = "{}"
    algo: Literal["sac_ae", "td3_ae", "sac", "td3", "dqn", "ppo", "random"] = "sac_ae"
    steps: int = 100_000
    seed: int = 0
    n_envs: int = 1
    device: str = "auto"
    log_every: int = 100
    checkpoint_every: int = 5_000
    eval_every: int = 10_000
    eval_episodes: int = 5
    probe_every: int = 0
    replay: Literal["frames", "sb3"] = "frames"
    auxiliary: bool = False
    auxiliary_learning_rate: float | None = None
    auxiliary_updates: float = 1.0
    auxiliary_epochs: int = 1
    pixels: Annotated[PixelConfig, tyro.conf.arg(name="")] = PixelConfig()
    agent: Annotated[AgentConfig, tyro.conf.arg(name="")] = AgentConfig()

    def __post_init__(self) -> None:
        for name in ("steps", "n_envs", "log_every", "checkpoint_every", "eval_every", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
        if self.probe_every < 0:
            raise ValueError(f"probe_every must be ≥ 0, got {self.probe_every}")
        if self.auxiliary and (self.algo in ("sac_ae", "td3_ae", "random") or self.agent.autoencoder is None):
            raise ValueError(
                f"an auxiliary loss is for a stock algorithm with an autoencoder, got {self.algo} with "
                f"{self.agent.autoencoder}"
            )
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto, cpu, cuda or cuda:<number>, got {self.device!r}") from error
        try:
            is_object = isinstance(json.loads(self.env_kwargs), dict)
        except json.JSONDecodeError:
            is_object = False
        if not is_object:
            raise ValueError(f'env_kwargs must be a JSON object like {{"name": 1}}, got {self.env_kwargs!r}')

    def make_env(self, training: bool = True) -> gym.Env[Frame, Any]:
        """The environment, or that of evaluations; raises as :func:`~rl_ae.envs.make_pixel_env`."""
        return make_pixel_env(self.env, self.pixels, training, **json.loads(self.env_kwargs))

    def replay_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the algorithm that choose its replay buffer."""
        if self.replay == "sb3":
            return {}
        return {
            "replay_buffer_class": FrameReplayBuffer,
            "replay_buffer_kwargs": {"n_stack": self.pixels.frame_stack},
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that :meth:`from_dict` turns back into an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunConfig":
        """Undo :meth:`to_dict`, also after a round trip through JSON."""

        def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

        pixels, agent = PixelConfig(**tuples(data["pixels"])), AgentConfig(**tuples(data["agent"]))
        return cls(**{**data, "pixels": pixels, "agent": agent})


#: Pendulum from pixels in minutes on two cores. Not the paper's setting: small grey images, a compact trunk, small
#: networks, a scaled reward, a faster temperature, and one update every two steps: rendering a step here costs a
#: twentieth of an update, and fresh frames teach more than replayed ones. The paper's update, because the fused one,
#: though faster, can lose for a while what it has learned.
PENDULUM = RunConfig(
    env="Pendulum-v1",
    steps=6_000,
    checkpoint_every=1_000,
    eval_every=1_000,
    eval_episodes=3,
    pixels=PixelConfig(size=(48, 48), grayscale=True, action_repeat=2, crop=(110, 110, 390, 390), reward_scale=0.1),
    agent=AgentConfig(
        autoencoder="rae_compact",
        input_centre=1.0,
        output_centre=1.0,
        net_arch=(256, 256),
        ent_coef_learning_rate=1e-3,
        buffer_size=10_000,
        learning_starts=1_000,
        catch_up_updates=500,
        train_freq=2,
        actor_update_interval=1,
        target_update_interval=1,
        update="paper",
    ),
)

#: The same with TD3-AE: noise explores in the temperature's place.
PENDULUM_TD3 = dataclasses.replace(
    PENDULUM,
    algo="td3_ae",
    agent=dataclasses.replace(
        PENDULUM.agent,
        ent_coef_learning_rate=None,
        actor_update_interval=None,
        target_update_interval=None,
        policy_delay=1,
        tau=0.01,
        action_noise=0.2,
    ),
)

#: A task of the DeepMind Control Suite on two cores: the paper's agent, but frames of 64×64 and a compact trunk.
CARTPOLE_SWINGUP = RunConfig(
    env="shimmy:dm_control/cartpole-swingup-v0",
    env_kwargs='{"render_kwargs": {"height": 64, "width": 64, "camera_id": 0}}',
    steps=12_500,
    checkpoint_every=1_000,
    eval_every=1_250,
    pixels=PixelConfig(size=(64, 64), action_repeat=8),
    agent=AgentConfig(autoencoder="rae_compact", buffer_size=100_000),
)

PRESETS = {"pendulum": PENDULUM, "pendulum_td3": PENDULUM_TD3, "cartpole_swingup": CARTPOLE_SWINGUP}
