"""Precision: in which number format networks run."""

import warnings
from contextlib import AbstractContextManager

import torch

#: ``fp32`` leaves tensors alone, ``bf16`` runs convolutions and matrix products in bfloat16, and ``auto`` is ``bf16``
#: where the device is fast at it, else ``fp32``.
PRECISIONS = ("fp32", "bf16", "auto")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """A context in which forward passes run in ``precision``; weights, gradients and losses stay as they are."""
    return torch.autocast(device.type, dtype=compute_dtype(precision), enabled=precision == "bf16")


def compute_dtype(precision: str) -> torch.dtype:
    """The type that convolutions and matrix products compute in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"fp32"`` or ``"bf16"``, as the device can; warns where it cannot do what was asked.

    Raises:
        ValueError: If the precision is not one of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "fp32" or has_fast_bf16(device):
        return "fp32" if precision == "fp32" else "bf16"
    if precision == "bf16":
        warnings.warn(
            f"this {device.type} has no bfloat16 instructions, with which precision='bf16' would be slower than "
            "'fp32': computing in 'fp32'",
            stacklevel=3,
        )
    return "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware: a CPU with AVX-512 BF16 or AMX, a GPU from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
