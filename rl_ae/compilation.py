"""Compilation: networks as code of their own, where there is a compiler."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> bool:
    """Let networks run as ``torch.compile`` writes them, in place; their parameters and names stay.

    On a GPU each is replayed as a CUDA graph, so that a call costs one launch; say
    ``torch.compiler.cudagraph_mark_step_begin()`` at the start of each update.

    Args:
        networks: Compiled at their first call, and again for every new shape.
        device: Where they are.

    Returns:
        Whether they are compiled. Without a working compiler a warning says so, and they run as they are.
    """
    try:
        torch.compile(lambda x: x.sin() + 1.0)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler's, the linker's, Triton's: there is no common class
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"compile=True needs a compiler (g++ or clang on a CPU, Triton on a GPU): running uncompiled, because "
            f"{type(error).__name__}: {reason}",
            stacklevel=2,
        )
        return False
    for network in networks:
        network.compile(mode="reduce-overhead" if device.type == "cuda" else None)
    return True
