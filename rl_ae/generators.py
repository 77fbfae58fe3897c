"""Generators: the random state of torch and NumPy, as data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GeneratorState = dict[str, Any]


def capture() -> GeneratorState:
    """The state of torch's (CPU and every initialised CUDA device) and NumPy's global generators.

    Holds tensors and plain numbers only, so that ``torch.load(weights_only=True)`` reads it.
    """
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_cached_gaussian": float(cached_gaussian),
    }


def restore(state: Mapping[str, Any]) -> None:
    """Put :func:`capture`'s state back; the state of CUDA devices that are not here is left out."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() >= len(state["cuda"]):
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state["cuda"]])
    np.random.set_state(
        (
            "MT19937",
            state["numpy_keys"].cpu().numpy().astype(np.uint32),
            state["numpy_position"],
            state["numpy_has_gauss"],
            state["numpy_cached_gaussian"],
        )
    )


class PrivateGenerators:
    """Random streams of one's own behind torch's and NumPy's global functions.

    Stable-Baselines3 samples replay buffers from NumPy's global generator and actions from torch's. Inside
    :meth:`active` those calls draw from this object's streams instead, and the global ones are untouched; so an agent's
    updates can be saved and continued bit for bit, whatever else the process draws.

    Args:
        seed: Start of the streams; drawn from NumPy's global generator if ``None``.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = int(np.random.randint(2**31))
        # not the seed itself: torch's stream would repeat the draws that initialised the networks
        torch_seed, numpy_seed = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(2)
        outside = capture()
        torch.manual_seed(int(torch_seed))
        np.random.seed(int(numpy_seed))
        self._state = capture()
        restore(outside)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the global functions of torch and NumPy draw from these streams."""
        outside = capture()
        restore(self._state)
        try:
            yield
        finally:
            self._state = capture()
            restore(outside)

    def state_dict(self) -> GeneratorState:
        """The streams' state."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore :meth:`state_dict`; ``strict`` is what Stable-Baselines3 passes when it loads an agent."""
        self._state = dict(state)
