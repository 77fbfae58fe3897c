"""Auxiliary loss: reconstruction, and KL where there is one, for the encoder of a stock agent.

:class:`AuxiliaryLossCallback` finds the :class:`~rl_ae.sb3.AutoencoderExtractor` s that an agent trains, gives them a
decoder, and trains both after the agent has trained. The agent's own losses go on as they do without it:

=======================  ========================  ==============  ===================  ==================
algorithm                share_features_extractor  encoder of      the agent's losses   the callback's
=======================  ========================  ==============  ===================  ==================
SAC, TD3, TQC, CrossQ    False (default)           critic          TD error             representation
SAC, TD3, TQC, CrossQ    False (default)           actor           actor                representation
SAC, TD3, TQC, CrossQ    True                      both            actor                representation
DQN, QRDQN               –                         Q network       TD error             representation
PPO, A2C, RecurrentPPO   True (default)            both            policy, value        representation
PPO, A2C, RecurrentPPO   False                     policy          policy               representation
PPO, A2C, RecurrentPPO   False                     value function  value                representation
=======================  ========================  ==============  ===================  ==================

Targets are trained by no loss; they follow their online networks as Stable-Baselines3 has it. The decoder is neither
the policy's nor the extractor's: what clips, copies, averages or saves those never meets it.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from torch import Tensor, nn

from rl_ae.autoencoders import Autoencoder, Encoder
from rl_ae.configs import ObservationShape, type_name
from rl_ae.diagnostics import describe_autoencoder, gradient_cosine, total_norm
from rl_ae.factory import AutoencoderLike, create_autoencoder, create_learner
from rl_ae.generators import PrivateGenerators
from rl_ae.learner import RepresentationLearner, passes
from rl_ae.sb3.agent import NonFiniteError
from rl_ae.sb3.extractor import AutoencoderExtractor
from rl_ae.sb3.observations import OBSERVATION
from rl_ae.sb3.storage import read_state, write_state

FORMAT = 1
#: Name of the files that :meth:`AuxiliaryLossCallback.save` writes.
NAME = "auxiliary"


# ---------------------------------------------------------------------- what the agent owns


class Part(NamedTuple):
    """An encoder in an extractor, and what its decoder is built from.

    Attributes:
        encoder: The agent's own.
        autoencoder: What it was made from.
        observation_shape: (C, H, W) of images or (N,) of vectors.
    """

    encoder: Encoder
    autoencoder: AutoencoderLike
    observation_shape: ObservationShape


def parts(extractor: AutoencoderExtractor) -> dict[str, Part]:
    """The encoders of an extractor, by the key of the observation they read."""
    return {
        name: Part(cast(Encoder, extractor.encoders[name]), view.autoencoder, view.shape)
        for name, view in extractor.views.items()
        if view.autoencoder is not None
    }


def own_extractors(model: BaseAlgorithm) -> dict[str, AutoencoderExtractor]:
    """The extractors that an agent trains, by their owner in the policy; one of several owners once, no target's.

    Raises:
        ValueError: If there is none, or the agent trains an autoencoder itself, or is of another kind than those that
            learn from a replay buffer or a rollout buffer.
    """
    if not isinstance(model, OffPolicyAlgorithm | OnPolicyAlgorithm):
        raise ValueError(f"expected an agent with a replay or rollout buffer, got {type(model).__name__}")
    if any(isinstance(module, Autoencoder) for module in model.policy.modules()):
        raise ValueError(f"{type(model).__name__} trains its autoencoder itself: it needs no AuxiliaryLossCallback")
    extractors = {
        name.removesuffix("features_extractor").strip("._") or "policy": module
        for name, module in model.policy.named_modules()
        if isinstance(module, AutoencoderExtractor) and "_target" not in name
    }
    if not extractors:
        raise ValueError(
            "the policy owns no AutoencoderExtractor, its features_extractor_class is "
            f"{model.policy.features_extractor_class.__name__}: make the agent with policy_kwargs="
            '{"features_extractor_class": AutoencoderExtractor, "features_extractor_kwargs": {"autoencoder": "rae"}}'
        )
    return extractors


def followers(policy: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Extractors and their targets'.

    Stable-Baselines3's targets follow parameters alone; a codebook of moving averages is a buffer.
    """
    modules = dict(policy.named_modules(remove_duplicate=False))
    return [
        (modules[name.replace("_target", "")], module)
        for name, module in modules.items()
        if isinstance(module, AutoencoderExtractor) and "_target" in name
    ]


def _by_key(observations: Any) -> Mapping[str, Any]:
    return observations if isinstance(observations, Mapping) else {OBSERVATION: observations}


def _frames(array: np.ndarray[Any, Any]) -> Tensor:
    """A copy (T·N, ...) of a rollout's observations (T, N, ...)."""
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]).copy())


# ---------------------------------------------------------------------- the callback


class AuxiliaryLossCallback(BaseCallback):
    """Reconstruction (and KL) for the encoder of a stock Stable-Baselines3 agent.

    The agent's ``policy_kwargs`` name the :class:`~rl_ae.sb3.AutoencoderExtractor` and its autoencoder, whose own loss
    this is. Every encoder that the agent trains gets it, through one decoder: of an agent whose actor and critic have
    an encoder each (SAC, TD3, TQC, CrossQ by default), an update is one step of either encoder and two of the decoder.

    - Off-policy agents: after their updates, on batches sampled from their replay buffer.
    - On-policy agents: the frames of a rollout are kept until the agent has trained on it, so that the stored
      log-probabilities are those of the encoder that the agent finds when it trains.

    Draws from random streams of its own: the agent samples and explores as it would without it. Logs ``train/ae_loss``
    and the loss's terms, means over the updates and encoders since the last time; and, at the first of these updates,
    ``ae_gradient_norm`` and ``agent_gradient_norm`` at the trunk, the latter of what the agent's last update left there
    (of SAC's critic: with what the actor's loss has added to it), and ``gradient_cosine`` between the two; and
    :func:`~rl_ae.diagnostics.describe_autoencoder`. What describes one of several encoders bears its owner's name:
    ``train/critic_psnr``, ``train/actor_psnr``.

    Args:
        loss: With the signature of :meth:`rl_ae.losses.Loss.forward`; the autoencoder's own if ``None``. Copied for
            each part of a ``Dict``.
        reconstruct: Names of the parts of a ``Dict`` that are reconstructed; all that are encoded if omitted. The
            agent's own loss trains the encoders of the others.
        updates_per_agent_update: Off-policy: updates for each of the agent's gradient steps; a fraction for fewer.
        epochs: On-policy: passes over each rollout.
        batch_size: Observations an update; the agent's own if ``None``, the whole rollout where it has none (A2C).
        learning_rate: Overrides both rates of the autoencoder's config; a number or a schedule.
        precision: ``"fp32"`` or ``"bf16"``, see :func:`~rl_ae.precision.autocast`.
        diagnostics_every: Updates between two calls of ``describe_autoencoder``.
        seed: Of its random streams; the agent's if ``None``, and a fresh one if that has none.
        verbose: As in every callback.

    Attributes:
        learners: Key of the observation → owner of the encoder → learner; learners of one key share their decoder.

    Raises:
        TypeError: If the loss is an autoencoder, or no module, or ``reconstruct`` is no list of names.
        ValueError: If a number is out of range; or, once it meets the agent, if that has no encoder to train, trains
            one itself, is another than the one before, or encodes nothing of a name in ``reconstruct``.

    Example:
        >>> model = PPO("CnnPolicy", env, policy_kwargs={  # doctest: +SKIP
        ...     "features_extractor_class": AutoencoderExtractor,
        ...     "features_extractor_kwargs": {"autoencoder": "rae"},
        ... })
        >>> callback = AuxiliaryLossCallback()  # doctest: +SKIP
        >>> model.learn(100_000, callback=callback)  # doctest: +SKIP
        >>> model.save("agent"), callback.save("agent-autoencoder")  # doctest: +SKIP
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        *,
        reconstruct: Sequence[str] | None = None,
        updates_per_agent_update: float = 1.0,
        epochs: int = 1,
        batch_size: int | None = None,
        learning_rate: float | Schedule | None = None,
        precision: str = "fp32",
        diagnostics_every: int = 100,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if isinstance(loss, Autoencoder | Encoder | AutoencoderExtractor):
            raise TypeError(
                f"loss must be a loss, got a {type(loss).__name__}: the autoencoder is named in the agent's "
                "features_extractor_kwargs, and the callback finds it there"
            )
        if loss is not None and not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a module with the signature of Loss.forward, got {type(loss).__name__}")
        if isinstance(reconstruct, str):
            raise TypeError(f"reconstruct must be a list of names, got {reconstruct!r}: pass [{reconstruct!r}]")
        for name, number in (("epochs", epochs), ("batch_size", batch_size), ("diagnostics_every", diagnostics_every)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be ≥ 1, got {number}")
        if not 0.0 <= updates_per_agent_update < float("inf"):
            raise ValueError(f"updates_per_agent_update must be ≥ 0 and finite, got {updates_per_agent_update}")
        self.loss, self.reconstruct, self.precision, self.seed = loss, reconstruct, precision, seed
        self.updates_per_agent_update, self.epochs, self.batch_size = updates_per_agent_update, epochs, batch_size
        self.learning_rate, self.diagnostics_every = learning_rate, diagnostics_every
        self.learners: dict[str, dict[str, RepresentationLearner]] = {}
        self._loaded: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._updates_due = 0.0
        self._rollout: dict[str, Tensor] = {}
        #: What an encoder is called in the log → the update from which on it is described again.
        self._next_description: dict[str, int] = {}

    # ------------------------------------------------------------------ the agent

    def _init_callback(self) -> None:
        """Meet the agent, before it trains."""
        extractors = own_extractors(self.model)
        if self.learners:
            self._check_same_agent(extractors)
            return
        # not from NumPy's global generator: the agent's draws are to be what they are without the callback
        fresh = int(np.random.SeedSequence().generate_state(1)[0])
        seed = self.model.seed if self.seed is None else self.seed
        self.generators = PrivateGenerators(fresh if seed is None else seed)
        with self.generators.active():
            self.learners = self._make_learners(extractors)
        self._extractor = next(iter(extractors.values()))
        self._followers = followers(self.model.policy)
        if self._loaded is not None:
            try:
                self._restore(*self._loaded)
            except ValueError:
                self.learners = {}
                raise
            self._loaded = None

    def _make_learners(
        self, extractors: Mapping[str, AutoencoderExtractor]
    ) -> dict[str, dict[str, RepresentationLearner]]:
        learners: dict[str, dict[str, RepresentationLearner]] = {}
        for owner, extractor in extractors.items():
            for key, part in self._reconstructed(extractor).items():
                same = learners.setdefault(key, {})
                same[owner] = _first(same).for_encoder(part.encoder) if same else self._make_learner(part)
        return learners

    def _reconstructed(self, extractor: AutoencoderExtractor) -> dict[str, Part]:
        """The encoders that get the loss, by the key of the observation they read."""
        encoded = parts(extractor)
        names = list(encoded) if self.reconstruct is None else list(self.reconstruct)
        if not names or set(names) - encoded.keys():
            raise ValueError(f"reconstruct must name some of {sorted(encoded)}, which are encoded; got {names}")
        return {name: encoded[name] for name in names}

    def _make_learner(self, part: Part) -> RepresentationLearner:
        autoencoder = create_autoencoder(part.autoencoder, part.observation_shape, part.encoder)
        # a copy: learners that share no decoder would step on a loss's parameters one after the other
        loss = copy.deepcopy(self.loss)
        return create_learner(autoencoder.to(self.model.device), loss=loss, precision=self.precision)

    def _check_same_agent(self, extractors: Mapping[str, AutoencoderExtractor]) -> None:
        mine = {id(learner.autoencoder.encoder) for learner in self._all_learners()}
        theirs = {
            id(part.encoder) for extractor in extractors.values() for part in self._reconstructed(extractor).values()
        }
        if mine != theirs:
            raise ValueError(
                "this callback trains the encoder of another agent, which this policy does not own: give each agent a "
                "callback of its own; one that was saved and loaded, AuxiliaryLossCallback(…).load(folder)"
            )

    def _all_learners(self) -> Iterator[RepresentationLearner]:
        for same in self.learners.values():
            yield from same.values()

    @property
    def step(self) -> int:
        """Updates made so far of each encoder."""
        return max((learner.step for learner in self._all_learners()), default=0)

    # ------------------------------------------------------------------ when

    def _on_training_start(self) -> None:
        self._agent_updates = self.model._n_updates
        self._rollout = {}

    def _on_rollout_end(self) -> None:
        """Keep the frames: the buffer is empty when it is time to train on them."""
        if isinstance(self.model, OnPolicyAlgorithm):
            observations = _by_key(self.model.rollout_buffer.observations)
            self._rollout = {key: _frames(array) for key, array in observations.items()}

    def _on_rollout_start(self) -> None:
        self._follow_agent()

    def _on_training_end(self) -> None:
        self._follow_agent()

    def _on_step(self) -> bool:
        return True

    def _follow_agent(self) -> None:
        """Update after the agent has; Stable-Baselines3 calls no callback right after its ``train()``."""
        if isinstance(self.model, OffPolicyAlgorithm):
            self._updates_due += self.updates_per_agent_update * (self.model._n_updates - self._agent_updates)
            self._agent_updates = self.model._n_updates
            updates = int(self._updates_due)
            self._updates_due -= updates
            if updates > 0:
                assert self.model.replay_buffer is not None
                self._train(self._sampled(updates), self.model.replay_buffer.size() * self.model.n_envs)
        elif self._rollout:
            rollout, self._rollout = self._rollout, {}
            count = len(next(iter(rollout.values())))
            self._train(self._shuffled(rollout, count), count)

    def _sampled(self, updates: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of the agent's replay buffer, normalised where the agent's are."""
        assert isinstance(self.model, OffPolicyAlgorithm) and self.model.replay_buffer is not None
        batch_size, normalise = self.batch_size or self.model.batch_size, self.model.get_vec_normalize_env()
        for _ in range(updates):
            yield _by_key(self.model.replay_buffer.sample(batch_size, env=normalise).observations)

    def _shuffled(self, rollout: Mapping[str, Tensor], count: int) -> Iterator[Mapping[str, Tensor]]:
        """Minibatches of a rollout."""
        batch_size: int = self.batch_size or getattr(self.model, "batch_size", None) or count
        for rows in passes(torch.arange(count), self.epochs, batch_size):
            yield {key: frames[rows] for key, frames in rollout.items()}

    # ------------------------------------------------------------------ learning

    def _train(self, batches: Iterable[Mapping[str, Tensor]], n_data: int) -> None:
        """Update every encoder on every batch, and log."""
        self._set_learning_rates()
        updates: list[dict[str, Tensor]] = []
        with self.generators.active(), self._training_mode():
            for index, batch in enumerate(batches):
                observations = self._to_unit(batch)
                for key in self.learners:
                    updates += self._update(key, observations[key], n_data, diagnose=index == 0)
        for online, target in self._followers:
            for buffer, target_buffer in zip(online.buffers(), target.buffers(), strict=True):
                target_buffer.copy_(buffer)
        self._log(updates)

    def _to_unit(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Observations as they are stored to what the encoders read: images in [0, 1]."""
        raw: Any = {key: values.to(self.model.device) for key, values in batch.items()}
        raw = raw if isinstance(self.model.observation_space, spaces.Dict) else raw[OBSERVATION]
        return _by_key(self._extractor.prepare(raw, self.model.policy.normalize_images))

    def _update(self, key: str, observations: Tensor, n_data: int, diagnose: bool) -> Iterator[dict[str, Tensor]]:
        """One step of every encoder of one observation, images in [0, 1]; what each learner returned."""
        same = self.learners[key]
        prefix = f"{key}/" if len(self.learners) > 1 else ""
        target = _first(same).target(observations)
        for owner, learner in same.items():
            agents_gradients = _trunk_gradients(learner)
            metrics = learner.update(observations, target, max(n_data, len(observations)))
            yield {f"{prefix}{'ae_loss' if name == 'total' else name}": value for name, value in metrics.items()}
            if diagnose:
                own_prefix = f"{prefix}{owner}_" if len(same) > 1 else prefix
                self._diagnose(own_prefix, learner, observations, agents_gradients)
            learner.encoder_optimizer.zero_grad()  # the agent's losses are to find none of our gradients

    def _diagnose(
        self, prefix: str, learner: RepresentationLearner, observations: Tensor, agents_gradients: list[Tensor | None]
    ) -> None:
        gradients = _trunk_gradients(learner)
        described = {"ae_gradient_norm": total_norm(gradients)}
        if any(gradient is not None for gradient in agents_gradients):  # a delayed actor's come now and then
            described["agent_gradient_norm"] = total_norm(agents_gradients)
            described["gradient_cosine"] = gradient_cosine(agents_gradients, gradients)
        if learner.step >= self._next_description.get(prefix, 0):
            self._next_description[prefix] = learner.step + self.diagnostics_every
            described |= describe_autoencoder(learner.autoencoder, observations)
        for name, value in described.items():
            self.logger.record(f"train/{prefix}{name}", value.item())

    def _set_learning_rates(self) -> None:
        if self.learning_rate is None:
            return
        learning_rate = FloatSchedule(self.learning_rate)(self.model._current_progress_remaining)
        for learner in self._all_learners():
            for optimizer in (learner.encoder_optimizer, learner.decoder_optimizer):
                update_learning_rate(optimizer, learning_rate)

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        """Train encoders and decoder, and leave the policy's in the mode it put them in."""
        encoders = [learner.autoencoder.encoder for learner in self._all_learners()]
        modes = [encoder.training for encoder in encoders]
        for learner in self._all_learners():
            learner.autoencoder.train()
        try:
            yield
        finally:
            for encoder, mode in zip(encoders, modes, strict=True):
                encoder.train(mode)

    def _log(self, updates: list[dict[str, Tensor]]) -> None:
        """Record the mean of every metric over updates and encoders.

        Raises:
            NonFiniteError: If a metric is NaN or infinite; names it.
        """
        by_name: dict[str, list[Tensor]] = {}
        for name, value in (item for metrics in updates for item in metrics.items()):
            by_name.setdefault(name, []).append(value.float())
        for name, values in by_name.items():
            mean = torch.stack(values).mean().item()
            if not np.isfinite(mean):
                raise NonFiniteError(
                    f"{name} is {mean} at update {self.step} of the autoencoder, step {self.num_timesteps}; lower the "
                    "learning rates or check the observations"
                )
            self.logger.record(f"train/{name}", mean)
        self.logger.record("train/ae_updates", self.step, exclude="tensorboard")

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """All that the agent's own file lacks: decoder, loss, adversary, optimizers, steps and generators."""
        return {
            "learners": {key: _state(same) for key, same in self.learners.items()},
            "generators": self.generators.state_dict(),
            "updates_due": self._updates_due,
        }

    def save(self, folder: str | Path) -> None:
        """Write ``auxiliary.json`` and its tensors, beside the agent's own file, which holds the encoders.

        Save both between two calls of ``learn``, or from a callback that comes after this one. The frames of a rollout
        that the agent has not trained on are not kept, because Stable-Baselines3 does not keep the rollout either.

        Args:
            folder: Made when needed.

        Raises:
            ValueError: If the callback has met no agent yet.
        """
        if not self.learners:
            raise ValueError("there is nothing to save before the callback has met its agent: call learn first")
        write_state(Path(folder), NAME, self._facts(), self.state_dict())

    def load(self, folder: str | Path) -> Self:
        """Restore what :meth:`save` wrote, now or as soon as the callback meets its agent, which is loaded first.

        Args:
            folder: Where it was written to.

        Returns:
            The callback.

        Raises:
            ValueError: If the files are missing, damaged or of another autoencoder; nothing is changed then.
        """
        loaded = read_state(Path(folder), NAME)
        if self.learners:
            self._restore(*loaded)
        else:
            self._loaded = loaded
        return self

    def _facts(self) -> dict[str, Any]:
        """What a state has to agree with, as JSON has it."""
        facts = {
            "format": FORMAT,
            "autoencoders": {
                key: {"class": type_name(type(module := _first(same).autoencoder)), **module.config.to_dict()}
                for key, same in self.learners.items()
            },
            "encoders": {key: list(same) for key, same in self.learners.items()},
            "loss": {key: type_name(type(_first(same).loss)) for key, same in self.learners.items()},
        }
        result: dict[str, Any] = json.loads(json.dumps(facts))
        return result

    def _restore(self, facts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        expected, found = dict(_leaves(self._facts())), dict(_leaves(facts))
        differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if differing:
            raise ValueError(
                "this is the state of another autoencoder: expected "
                f"{ {name: expected.get(name) for name in differing} }, got "
                f"{ {name: found.get(name) for name in differing} }"
            )
        before = copy.deepcopy(self.state_dict())
        try:
            self._load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            self._load_state_dict(before)
            raise ValueError(f"the state of the auxiliary loss is damaged: {error!r}") from error

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, same in self.learners.items():
            _load_state(same, state["learners"][key])
        self._updates_due = float(state["updates_due"])
        self.generators.load_state_dict(state["generators"])


# ---------------------------------------------------------------------- learners of one decoder


def _first(same: Mapping[str, RepresentationLearner]) -> RepresentationLearner:
    return next(iter(same.values()))


def _shared_parts(same: Mapping[str, RepresentationLearner]) -> Iterator[tuple[str, Any]]:
    """What learners of one decoder have in common, but for the decoder: its optimizer, loss, adversary."""
    for name, part in _first(same).parts():
        if name not in ("autoencoder", "encoder_optimizer"):
            yield name, part


def _split_encoder(same: Mapping[str, RepresentationLearner]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The autoencoder's tensors: the encoder's, which are in the agent's file, and all others."""
    tensors = _first(same).autoencoder.state_dict()
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    return encoder, {name: tensor for name, tensor in tensors.items() if name not in encoder}


def _state(same: Mapping[str, RepresentationLearner]) -> dict[str, Any]:
    return {
        "decoder": _split_encoder(same)[1],
        **{name: part.state_dict() for name, part in _shared_parts(same)},
        "encoders": {
            owner: {"optimizer": learner.encoder_optimizer.state_dict(), "step": learner.step}
            for owner, learner in same.items()
        },
    }


def _load_state(same: Mapping[str, RepresentationLearner], state: Mapping[str, Any]) -> None:
    _first(same).autoencoder.load_state_dict({**_split_encoder(same)[0], **state["decoder"]})
    for name, part in _shared_parts(same):
        part.load_state_dict(state[name])
    for owner, learner in same.items():
        learner.encoder_optimizer.load_state_dict(state["encoders"][owner]["optimizer"])
        learner.step = int(state["encoders"][owner]["step"])


def _trunk_gradients(learner: RepresentationLearner) -> list[Tensor | None]:
    return [parameter.grad for parameter in learner.autoencoder.encoder.trunk.parameters()]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested dictionary holds, by dotted names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, node
