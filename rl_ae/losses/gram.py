"""Consistency of features with a teacher's: the Gram loss, and a teacher that follows its student."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

#: What becomes of negative similarities, see :class:`GramLoss`.
Negatives = Literal["both", "teacher", "keep"]

#: Entries of the Gram matrices that are in memory at once: 64 MiB each in float32.
_MAX_ENTRIES = 2**24


class GramLoss(nn.Module):
    r"""How much the similarities between positions differ in a student's and a teacher's features.

    The mean of :math:`(S_{ij} - T_{ij})^2` over all entries of the Gram matrices :math:`S = s s^\top` and
    :math:`T = t t^\top` of N positions: the Gram anchoring of DINOv3 (arXiv 2508.10104). Only similarities count;
    rotating the D features of either side changes nothing. A mean, unlike the library's likelihoods, so that a weight
    means the same at every resolution.

    Args:
        apply_norm: Scale every feature vector to length 1, so that similarities are cosines. Zeros stay zeros.
        img_level: One matrix an image, rather than one over the positions of the whole batch.
        negatives: What becomes of negative similarities: ``"both"`` sets the student's and the teacher's to 0,
            ``"teacher"`` the teacher's, and the student's where both are negative; ``"keep"`` keeps them, and is the
            only one that costs O(N D²) where there are more positions than features, the others O(N² D).

    Raises:
        ValueError: If ``negatives`` is unknown.
    """

    def __init__(self, apply_norm: bool = True, img_level: bool = True, negatives: Negatives = "both") -> None:
        super().__init__()
        if negatives not in get_args(Negatives):
            raise ValueError(f"negatives must be one of {get_args(Negatives)}, got {negatives!r}")
        self.apply_norm, self.img_level, self.negatives = apply_norm, img_level, negatives

    def forward(self, student_features: Tensor, teacher_features: Tensor, img_level: bool | None = None) -> Tensor:
        """The loss, a scalar; no gradient reaches the teacher.

        Args:
            student_features: (B, N, D), or maps (B, D, H, W) of N = H·W positions.
            teacher_features: The same shape.
            img_level: As at construction if omitted.

        Raises:
            ValueError: If the shapes differ or are none of the two.
        """
        return gram_loss(
            student_features,
            teacher_features,
            apply_norm=self.apply_norm,
            img_level=self.img_level if img_level is None else img_level,
            negatives=self.negatives,
        )


def gram_loss(student: Tensor, teacher: Tensor, *, apply_norm: bool, img_level: bool, negatives: Negatives) -> Tensor:
    """Mean squared difference of the Gram matrices of features, a scalar; see :class:`GramLoss`.

    Computed in float32 at least; of large matrices only some rows are in memory at once.
    """
    if student.shape != teacher.shape or student.ndim not in (3, 4):
        raise ValueError(
            "features must both be (B, N, D) or both (B, D, H, W), of one shape, got "
            f"{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
        )
    with torch.autocast(student.device.type, enabled=False):
        s, t = (_positions(features, apply_norm, img_level) for features in (student, teacher.detach()))
        batch, positions, dimensions = s.shape
        if negatives == "keep" and positions > dimensions:
            squares = _squared_difference(s, t)
        else:
            squares = _squared_difference_by_rows(s, t, _CLEARED[negatives])
        return squares / (batch * positions**2)


class EMATeacher(AveragedModel):
    """A copy of a module whose parameters follow it slowly: an exponential moving average.

    ``teacher(x)`` is computed without gradients and in evaluation mode; :meth:`update` lets it follow. Buffers are
    copied. It is PyTorch's :class:`~torch.optim.swa_utils.AveragedModel`, whose ``state_dict`` has the module's entries
    as ``module.…`` beside the number of updates.

    Args:
        module: The student.
        decay: Share of itself that the teacher keeps at an update, in [0, 1].

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, module: nn.Module, decay: float = 0.995) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must be in [0, 1], got {decay}")
        super().__init__(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.n_averaged.fill_(1)  # the copy counts: the first update averages, rather than copying once more
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged module returns."""
        return self.module(*args, **kwargs)

    def update(self, student: nn.Module) -> None:
        """Move the parameters towards those of the student, after its step: θ ← decay·θ + (1 - decay)·θ_student."""
        self.update_parameters(student)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in evaluation mode, also within a module that is trained."""
        return super().train(False)


def _positions(features: Tensor, apply_norm: bool, img_level: bool) -> Tensor:
    """Features as (B, N, D), of one matrix each: B is 1 if the batch shares one."""
    rows = features.flatten(start_dim=2).transpose(1, 2) if features.ndim == 4 else features
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if apply_norm:
        norms = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
        # a tiny length instead would multiply the gradient of zeros, which ReLUs often leave, by its inverse
        rows = rows / norms.masked_fill(norms == 0.0, torch.inf)
    return rows if img_level else rows.flatten(0, 1).unsqueeze(0)


def _squared_difference(s: Tensor, t: Tensor) -> Tensor:
    r"""‖s sᵀ - t tᵀ‖², summed over the batch, from D×D matrices.

    With p = s - t and q = s + t the difference is :math:`\frac12 (p q^\top + q p^\top)`, and its square
    :math:`\frac12 (\langle p^\top p, q^\top q \rangle + \langle p^\top q, q^\top p \rangle)`. Unlike the difference of
    squares, this keeps its digits where the features agree.
    """
    p, q = s - t, s + t
    cross = p.mT @ q
    return 0.5 * ((p.mT @ p) * (q.mT @ q) + cross * cross.mT).sum()


def _keep(s: Tensor, t: Tensor) -> Tensor:
    return s - t


def _clear_both(s: Tensor, t: Tensor) -> Tensor:
    return s.clamp_min(0.0) - t.clamp_min(0.0)


def _clear_teacher(s: Tensor, t: Tensor) -> Tensor:
    return s.masked_fill((s < 0.0) & (t < 0.0), 0.0) - t.clamp_min(0.0)


#: Name → from the entries of both matrices to their differences.
_CLEARED: dict[Negatives, Callable[[Tensor, Tensor], Tensor]] = {
    "both": _clear_both,
    "teacher": _clear_teacher,
    "keep": _keep,
}


def _squared_difference_by_rows(s: Tensor, t: Tensor, difference: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The sum of squared differences of all entries, a number of rows of the matrices at a time.

    The backward pass computes them again, so that none is kept.
    """

    def of_rows(s_rows: Tensor, t_rows: Tensor) -> Tensor:
        return difference(s_rows @ s.mT, t_rows @ t.mT).square().sum()

    batch, positions, _ = s.shape
    rows = max(_MAX_ENTRIES // (batch * positions), 1)
    if rows >= positions:
        return of_rows(s, t)
    chunks = zip(s.split(rows, dim=1), t.split(rows, dim=1), strict=True)
    parts: list[Tensor] = [checkpoint(of_rows, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).sum()
