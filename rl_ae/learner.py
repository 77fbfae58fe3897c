"""Learner: the one place where an autoencoder's losses are weighed, summed and stepped."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rl_ae.autoencoders import ConvAutoencoder
from rl_ae.losses import RAELoss
from rl_ae.pixels import dequantize
from rl_ae.precision import autocast, check_precision


class RepresentationLearner:
    """An autoencoder, its weighted losses and its optimizers.

    Two Adam optimizers, as in SAC-AE: one over the encoder (trunk and head), one over the decoder with weight decay.

    Args:
        autoencoder: What is trained.
        loss: ``loss(reconstruction, target, z)`` → :class:`~rl_ae.losses.LossBreakdown`.
        encoder_learning_rate: Step size of the encoder's Adam.
        decoder_learning_rate: Step size of the decoder's Adam.
        decoder_weight_decay: L2 penalty of the decoder's Adam.
        target_bits: Bit depth of the target, see :func:`~rl_ae.pixels.dequantize`; ``None`` for the image itself.
        precision: See :func:`~rl_ae.precision.autocast`.

    Attributes:
        step: Updates made so far.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        autoencoder: ConvAutoencoder,
        loss: RAELoss,
        *,
        encoder_learning_rate: float,
        decoder_learning_rate: float,
        decoder_weight_decay: float,
        target_bits: int | None,
        precision: str,
    ) -> None:
        check_precision(precision, next(autoencoder.parameters()).device)
        self.autoencoder, self.loss = autoencoder, loss
        self.target_bits, self.precision = target_bits, precision
        self.encoder_optimizer = torch.optim.Adam(autoencoder.encoder.parameters(), lr=encoder_learning_rate)
        self.decoder_optimizer = torch.optim.Adam(
            autoencoder.decoder.parameters(), lr=decoder_learning_rate, weight_decay=decoder_weight_decay
        )
        self.step = 0

    def target(self, images: Tensor) -> Tensor:
        """What the decoder is to return for images (B, C, H, W) in [0, 1]: the same shape, fewer bits, fresh noise."""
        return images if self.target_bits is None else dequantize(images, self.target_bits)

    def update(self, images: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """Take one gradient step.

        Args:
            images: (B, C, H, W) in [0, 1].
            target: What to reconstruct, the same shape; :meth:`target` of the images if omitted.

        Returns:
            Detached scalars by name: every term before weighting, and ``total``.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If they do not have the autoencoder's shape.
        """
        if target is None:
            target = self.target(images)
        with autocast(images.device, self.precision):
            latent = self.autoencoder.encode(images)
            reconstruction = self.autoencoder.decode(latent.sample())
        total, terms = self.loss(reconstruction.to(target.dtype), target, latent.z)

        optimizers = (self.encoder_optimizer, self.decoder_optimizer)
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        self.step += 1
        return {name: term.detach() for name, term in {**terms, "total": total}.items()}

    def parts(self) -> Iterator[tuple[str, nn.Module | torch.optim.Optimizer]]:
        """Everything with a state of its own, by name."""
        yield "autoencoder", self.autoencoder
        yield "encoder_optimizer", self.encoder_optimizer
        yield "decoder_optimizer", self.decoder_optimizer

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizers and step: what resumes the training bit for bit on a CPU."""
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
