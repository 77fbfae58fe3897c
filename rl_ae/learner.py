"""Learner: the one place where an autoencoder's losses are weighed, summed and stepped."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rl_ae.adversary import Adversary
from rl_ae.autoencoders import Autoencoder, Encoder
from rl_ae.losses import LossBreakdown
from rl_ae.optimizers import Adam
from rl_ae.pixels import dequantize, to_unit
from rl_ae.precision import autocast, resolve_precision


class Evaluated(NamedTuple):
    """A loss on a batch, before any step.

    Attributes:
        total: Scalar to take the gradient of: the weighted sum, times the learner's scale.
        terms: Scalars before weighting, by name.
        latent: What was encoded.
        z: The draw of it that was decoded, (B, D).
    """

    total: Tensor
    terms: dict[str, Tensor]
    latent: Any
    z: Tensor

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Every term and the total, detached."""
        return {**{name: term.detach() for name, term in self.terms.items()}, "total": self.total.detach()}


class RepresentationLearner:
    """An autoencoder, its weighted losses and its optimizers.

    Two Adam optimizers, as in SAC-AE: one over the encoder (trunk and head), one over the decoder with weight decay.

    Args:
        autoencoder: What is trained.
        loss: With the signature of :meth:`rl_ae.losses.Loss.forward`. Its parameters are trained with the decoder's.
        encoder_learning_rate: Step size of the encoder's Adam.
        decoder_learning_rate: Step size of the decoder's Adam.
        decoder_weight_decay: L2 penalty of the decoder's Adam.
        target_bits: Bit depth of the target, see :func:`~rl_ae.pixels.dequantize`; ``None`` for the observation itself.
        scale: What the loss is multiplied by before its gradient is taken; metrics stay unscaled but for ``total``.
        adversary: The discriminator that the loss asks, if there is one, and its optimizer.
        precision: See :func:`~rl_ae.precision.autocast`.

    Attributes:
        step: Updates made so far; drives the schedules.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        loss: nn.Module,
        *,
        encoder_learning_rate: float,
        decoder_learning_rate: float,
        decoder_weight_decay: float = 0.0,
        target_bits: int | None = None,
        scale: float = 1.0,
        adversary: Adversary | None = None,
        precision: str = "fp32",
    ) -> None:
        device = next(autoencoder.parameters()).device
        self.autoencoder, self.loss, self.adversary = autoencoder, loss.to(device), adversary
        self.target_bits, self.scale, self.precision = target_bits, scale, resolve_precision(precision, device)
        self.encoder_optimizer = Adam(autoencoder.encoder.parameters(), lr=encoder_learning_rate)
        own = () if adversary is not None else self.loss.parameters()
        self.decoder_optimizer = Adam(
            [*autoencoder.decoder.parameters(), *autoencoder.output.parameters(), *own],
            lr=decoder_learning_rate,
            weight_decay=decoder_weight_decay,
        )
        self.step = 0

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that step on the weighted losses: the encoder's and the decoder's."""
        return [self.encoder_optimizer, self.decoder_optimizer]

    @property
    def whole_batch(self) -> list[str]:
        """Why an update on a batch is not the mean of updates on its parts: nothing, or reasons one by one."""
        parts = (self.autoencoder, self.autoencoder.output, self.loss)
        return [reason for part in parts if (reason := getattr(part, "whole_batch", None))]

    def for_encoder(self, encoder: Encoder) -> Self:
        """A learner of another encoder through the same decoder.

        Decoder, its optimizer, loss and adversary are this learner's own, and every update of either learner moves
        them; encoder, its optimizer and the step are the other's.

        Args:
            encoder: Of the same architecture, on the same device.
        """
        learner = copy.copy(self)
        learner.autoencoder = type(self.autoencoder)(config=self.autoencoder.config, encoder=encoder)
        learner.autoencoder.decoder, learner.autoencoder.output = self.autoencoder.decoder, self.autoencoder.output
        learning_rate = self.encoder_optimizer.param_groups[0]["lr"]
        learner.encoder_optimizer = Adam(encoder.parameters(), lr=learning_rate)
        learner.step = 0
        return learner

    def target(self, observations: Tensor) -> Tensor:
        """What the decoder is to return for images (B, C, H, W): the same shape in [0, 1], fewer bits, fresh noise.

        Args:
            observations: In [0, 1], or ``uint8`` frames; vectors are returned as they are.
        """
        if self.target_bits is not None:
            return dequantize(observations, self.target_bits)
        return observations if observations.is_floating_point() else to_unit(observations)

    def update(
        self, observations: Tensor, target: Tensor | None = None, n_data: int | None = None, latent: Any = None
    ) -> dict[str, Tensor]:
        """Take one gradient step.

        Args:
            observations: Images (B, C, H, W) in [0, 1], or vectors (B, N).
            target: What to reconstruct, the same shape; :meth:`target` of the observations if omitted.
            n_data: Size of the data set they were drawn from; β-TCVAE needs it.
            latent: What the autoencoder encodes them to, if that is known already.

        Returns:
            Detached scalars by name: every term before weighting, and ``total``.

        Raises:
            TypeError: If the observations are not floating point.
            ValueError: If they do not have the autoencoder's shape, or the loss refuses them.
        """
        evaluated = self.losses(observations, target, n_data, latent)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        evaluated.total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return self.follow(evaluated)

    @torch.no_grad()
    def evaluate(
        self, observations: Tensor, target: Tensor | None = None, n_data: int | None = None
    ) -> dict[str, Tensor]:
        """The metrics of :meth:`update` without the step; changes nothing."""
        return self.losses(observations, target, n_data).metrics

    def losses(
        self, observations: Tensor, target: Tensor | None = None, n_data: int | None = None, latent: Any = None
    ) -> Evaluated:
        """The losses of a batch, with their graph, for those who step themselves and call :meth:`follow`.

        Arguments and errors as :meth:`update`.
        """
        if target is None:
            target = self.target(observations)
        with autocast(observations.device, self.precision):
            latent = self.autoencoder.encode(observations) if latent is None else latent
            z = self.autoencoder.draw(latent, self.step)
            likelihood = self.autoencoder.likelihood(z)
        breakdown: LossBreakdown = self.loss(likelihood, target, latent, z, step=self.step, n_data=n_data)
        return Evaluated(self.scale * breakdown.total, breakdown.terms, latent, z)

    def follow(self, evaluated: Evaluated) -> dict[str, Tensor]:
        """After a gradient step on a batch: move what no gradient moves, the codebook, adversary and step.

        Returns:
            As :meth:`update`.
        """
        if any(parameter.requires_grad for parameter in self.autoencoder.encoder.parameters()):
            self.autoencoder.after_update(evaluated.latent)  # a frozen encoder's codebook stands still, too
        metrics = evaluated.metrics
        if self.adversary is not None:
            metrics |= self.adversary.update(evaluated.z)
        self.step += 1
        return metrics

    def fit(
        self,
        data: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
        *,
        steps: int | None = None,
        epochs: int = 1,
        batch_size: int = 64,
        n_data: int | None = None,
        log_every: int = 100,
        progress_bar: bool = True,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, float]]:
        """Train on data in memory, shuffled, or on batches as they come.

        Args:
            data: Observations (N, C, H, W) or (N, D), ``uint8`` or floats in [0, 1]; or an iterable of batches of them,
                which is gone through once an epoch.
            steps: Updates to make, over as many epochs as that takes; ``epochs`` decides if ``None``.
            epochs: Passes over the data.
            batch_size: Observations an update, for data in memory. The last batch of a pass may be smaller; a single
                observation that is left over joins the batch before.
            n_data: Size of the data set; N for data in memory if omitted.
            log_every: Updates between two entries of the result.
            progress_bar: Show one, with the latest total.
            generator: Of the shuffling, on the CPU; torch's global one if omitted.

        Returns:
            An entry every ``log_every`` updates and at the end: ``step`` and the mean of every metric since the last.

        Raises:
            ValueError: If a number is below 1, or the data are empty.
            FloatingPointError: If a metric is not finite; names it.
        """
        for name, number in (("epochs", epochs), ("batch_size", batch_size), ("log_every", log_every)):
            if number < 1:
                raise ValueError(f"{name} must be ≥ 1, got {number}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be ≥ 1, got {steps}")
        batches = passes(data, epochs if steps is None else None, batch_size, generator)
        planned = steps
        if isinstance(data, Tensor | np.ndarray):
            n_data = len(data) if n_data is None else n_data
            planned = epochs * len(_split(torch.arange(len(data)), batch_size)) if steps is None else steps

        history: list[dict[str, float]] = []
        pending: list[dict[str, Tensor]] = []
        device = next(self.autoencoder.parameters()).device
        self.autoencoder.train()
        bar = tqdm(itertools.islice(batches, steps), total=planned, disable=not progress_bar, unit="update")
        for batch in bar:
            pending.append(self.update(to_unit(torch.as_tensor(batch).to(device)), n_data=n_data))
            if len(pending) == log_every:
                history.append(_mean(pending, self.step))
                bar.set_postfix(total=f"{history[-1]['total']:.4g}")
                pending = []
        if pending:
            history.append(_mean(pending, self.step))
        if not history:
            raise ValueError("there was nothing to fit: the data are empty")
        return history

    def parts(self) -> Iterator[tuple[str, nn.Module | torch.optim.Optimizer]]:
        """Everything with a state of its own, by name."""
        yield "autoencoder", self.autoencoder
        yield "encoder_optimizer", self.encoder_optimizer
        yield "decoder_optimizer", self.decoder_optimizer
        if self.adversary is not None:
            yield "discriminator", self.adversary.discriminator
            yield "discriminator_optimizer", self.adversary.optimizer
        elif self.loss.state_dict():
            yield "loss", self.loss

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizers, discriminator and step: what resumes the training bit for bit on a CPU."""
        return {"step": self.step, **{name: part.state_dict() for name, part in self.parts()}}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore :meth:`state_dict`.

        Args:
            state: What :meth:`state_dict` returned.
            strict: Refuse names that are not known here; Stable-Baselines3 passes it when it loads an agent.

        Raises:
            ValueError: If a name is missing, or unknown.
        """
        expected = {"step", *(name for name, _ in self.parts())}
        if expected - state.keys() or (strict and state.keys() - expected):
            raise ValueError(f"expected the entries {sorted(expected)}, got {sorted(state)}")
        self.step = state["step"]
        for name, part in self.parts():
            part.load_state_dict(state[name])


def total(evaluated: Evaluated | Mapping[str, Evaluated]) -> Tensor:
    """What a learner's or a :class:`DictLearner`'s losses amount to: the scalar to take the gradient of."""
    parts = [evaluated] if isinstance(evaluated, Evaluated) else evaluated.values()
    return torch.stack([part.total for part in parts]).sum()


class DictLearner:
    """Learners of observations that come together, two cameras and a vector say: one for each, by name.

    Args:
        learners: By the name of what they reconstruct.
    """

    def __init__(self, learners: Mapping[str, RepresentationLearner]) -> None:
        self.learners = dict(learners)

    @property
    def step(self) -> int:
        """Updates made so far."""
        return next(iter(self.learners.values())).step

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of all learners."""
        return [optimizer for learner in self.learners.values() for optimizer in learner.optimizers]

    def target(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the decoders are to return, by name; see :meth:`RepresentationLearner.target`."""
        return {name: learner.target(observations[name]) for name, learner in self.learners.items()}

    def update(
        self,
        observations: Mapping[str, Tensor],
        targets: Mapping[str, Tensor] | None = None,
        n_data: int | None = None,
        latents: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Take one gradient step of every learner; arguments and errors as :meth:`RepresentationLearner.update`.

        Returns:
            Every learner's metrics as ``"<name>/<metric>"``, and the sum of their totals as ``"total"``.
        """
        evaluated = self.losses(observations, targets, n_data, latents)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total(evaluated).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return self.follow(evaluated)

    def losses(
        self,
        observations: Mapping[str, Tensor],
        targets: Mapping[str, Tensor] | None = None,
        n_data: int | None = None,
        latents: Mapping[str, Any] | None = None,
    ) -> dict[str, Evaluated]:
        """The losses of a batch by name, as :meth:`RepresentationLearner.losses`."""
        targets = self.target(observations) if targets is None else targets
        known = {} if latents is None else latents
        return {
            name: learner.losses(observations[name], targets[name], n_data, known.get(name))
            for name, learner in self.learners.items()
        }

    def follow(self, evaluated: Mapping[str, Evaluated]) -> dict[str, Tensor]:
        """After a gradient step on a batch, as :meth:`RepresentationLearner.follow`; returns as :meth:`update`."""
        metrics: dict[str, Tensor] = {}
        for name, learner in self.learners.items():
            metrics |= {f"{name}/{metric}": value for metric, value in learner.follow(evaluated[name]).items()}
        return {**metrics, "total": total(evaluated).detach()}

    def state_dict(self) -> dict[str, Any]:
        """Every learner's state, by name."""
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore :meth:`state_dict`; arguments and errors as :meth:`RepresentationLearner.load_state_dict`."""
        if state.keys() != self.learners.keys():
            raise ValueError(f"expected the entries {sorted(self.learners)}, got {sorted(state)}")
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name], strict)


def passes(
    data: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    epochs: int | None,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor | np.ndarray]:
    """Shuffled batches of data in memory, or an iterable's own, over some passes.

    Args:
        data: Observations (N, ...), or an iterable of batches of them.
        epochs: Passes; without end if ``None``.
        batch_size: Observations a batch, for data in memory; a single one that is left over joins the batch before.
        generator: Of the shuffling, on the CPU; torch's global one if omitted.
    """
    for _ in itertools.count() if epochs is None else range(epochs):
        empty = True
        if isinstance(data, Tensor | np.ndarray):
            order = torch.randperm(len(data), generator=generator)
            batches: Iterable[Tensor | np.ndarray] = (data[rows] for rows in _split(order, batch_size))
        else:
            batches = data
        for batch in batches:
            empty = False
            yield batch
        if empty:  # or an iterator that cannot be gone through again
            return


def _split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of an order; a single row left over joins the last, because some losses compare samples."""
    batches = [rows for rows in order.split(batch_size) if len(rows) > 0]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _mean(updates: list[dict[str, Tensor]], step: int) -> dict[str, float]:
    """The mean of every metric, and the step; refuses what is not finite."""
    means = {name: torch.stack([metrics[name].float() for metrics in updates]).mean().item() for name in updates[0]}
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise FloatingPointError(f"{name} is {mean} after {step} updates: lower the learning rates, check the data")
    return {"step": float(step), **means}
