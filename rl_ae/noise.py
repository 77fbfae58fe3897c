"""Noise: the same for each image of a batch, in however many parts the batch is computed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class PartOfNoise(TorchFunctionMode):
    """A context in which part of a batch draws the noise that the whole batch would have drawn for it.

    Latents, likelihoods and targets draw noise for the batch that they see, a row an image. Where a batch is computed
    in parts, by several processes or one part after the other, each part enters this context with the same seed: every
    draw with as many rows as the part is then made for the whole batch, and the part takes its own rows. Draws of
    another size, one number for all say, are the same in all parts.

    Args:
        start: First row of the part.
        rows: Rows of the part.
        whole: Rows of the batch.

    Raises:
        ValueError: If the part is not within the batch.
    """

    #: Those that return noise of a size, and those that fill a tensor with noise.
    RETURNING = (torch.rand, torch.randn)
    FILLING = (torch.Tensor.random_, torch.Tensor.normal_, torch.Tensor.uniform_)

    def __init__(self, start: int, rows: int, whole: int) -> None:
        super().__init__()
        if not 0 <= start < start + rows <= whole:
            raise ValueError(f"rows {start} to {start + rows} are not a part of a batch of {whole}")
        self.start, self.rows, self.whole = start, rows, whole

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        own = slice(self.start, self.start + self.rows)
        kwargs = {} if kwargs is None else kwargs
        if function in self.RETURNING:
            size = tuple(itertools.chain.from_iterable(arg if isinstance(arg, Sequence) else [arg] for arg in args))
            if size[:1] == (self.rows,):
                return function(self.whole, *size[1:], **kwargs)[own]
        elif function in self.FILLING and args[0].shape[:1] == (self.rows,):
            noise = args[0].new_empty(self.whole, *args[0].shape[1:])
            return args[0].copy_(function(noise, *args[1:], **kwargs)[own])
        return function(*args, **kwargs)
