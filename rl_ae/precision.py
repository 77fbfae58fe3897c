"""Precision: in which number format networks run."""

import warnings
from contextlib import AbstractContextManager

import torch

#: ``fp32`` leaves tensors alone; ``bf16`` runs convolutions and matrix products in bfloat16.
PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """A context in which forward passes run in ``precision``; weights, gradients and losses stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse unknown precisions and warn of a slow one.

    Raises:
        ValueError: If the precision is not one of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        warnings.warn("this CPU has no bfloat16 instructions: precision='bf16' will be slow, use 'fp32'", stacklevel=3)


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
