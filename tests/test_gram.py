"""The Gram loss against loops over its entries, in every form and size; the teacher against its closed form."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rl_ae.losses import EMATeacher, GramLoss, gram_loss
from rl_ae.losses import gram as gram_module

NEGATIVES = ("both", "teacher", "keep")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def features(batch=2, positions=7, dimensions=3, dtype=torch.float32):
    return torch.randn(2, batch, positions, dimensions, dtype=dtype).unbind(0)


def naive(student, teacher, apply_norm, img_level, negatives):
    """Entry by entry, of lists of rows."""
    if not img_level:
        student, teacher = student.flatten(0, 1)[None], teacher.flatten(0, 1)[None]
    errors = []
    if apply_norm:
        student, teacher = (rows / rows.square().sum(dim=-1, keepdim=True).sqrt() for rows in (student, teacher))
    for s, t in zip(student, teacher, strict=True):
        for i, j in itertools.product(range(len(s)), repeat=2):
            one, other = s[i].dot(s[j]), t[i].dot(t[j])
            if negatives == "both":
                one, other = one.relu(), other.relu()
            if negatives == "teacher" and other < 0.0:
                one, other = one.relu(), torch.zeros_like(other)
            errors.append((one - other) ** 2)
    return torch.stack(errors).mean()


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(("negatives", "expected"), [("keep", 0.5), ("both", 0.0), ("teacher", 0.0)])
def test_opposite_features(negatives, expected):
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert GramLoss(negatives=negatives)(student, teacher).item() == pytest.approx(expected)


def test_only_the_teachers_negatives_clear_the_students():
    student = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # the student says -1 where the teacher says 0
    assert GramLoss(negatives="teacher")(student, teacher).item() == pytest.approx(0.5)
    assert GramLoss(negatives="both")(student, teacher).item() == pytest.approx(0.0)


@pytest.mark.parametrize("dimensions", [3, 20])  # fewer than positions, and more
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("img_level", [True, False])
@pytest.mark.parametrize("apply_norm", [True, False])
def test_values_and_gradients_are_those_of_the_entries(apply_norm, img_level, negatives, dimensions):
    student, teacher = features(dimensions=dimensions, dtype=torch.float64)
    student.requires_grad_()
    loss = GramLoss(apply_norm, img_level, negatives)(student, teacher)
    expected = naive(student, teacher, apply_norm, img_level, negatives)
    assert loss.ndim == 0 and loss.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_maps_are_positions_of_features(negatives):
    student, teacher = torch.randn(2, 2, 4, 3, 5).unbind(0)
    rows = [maps.permute(0, 2, 3, 1).reshape(2, 15, 4) for maps in (student, teacher)]
    loss = GramLoss(negatives=negatives)
    assert loss(student, teacher).item() == pytest.approx(loss(*rows).item(), rel=1e-5)


@pytest.mark.parametrize("dimensions", [4, 20])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_rotations_change_nothing(negatives, dimensions):
    student, teacher = features(dimensions=dimensions, dtype=torch.float64)
    rotation, other = (torch.linalg.qr(torch.randn(dimensions, dimensions, dtype=torch.float64))[0] for _ in range(2))
    loss = GramLoss(negatives=negatives)
    expected = loss(student, teacher).item()
    assert loss(student @ rotation, teacher @ other).item() == pytest.approx(expected, rel=1e-10)
    assert loss(student @ rotation, student).item() == pytest.approx(0.0, abs=1e-12) and expected > 0.01


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_duplicating_the_batch_changes_nothing(negatives):
    student, teacher = features()
    for img_level in (True, False):
        loss = GramLoss(img_level=img_level, negatives=negatives)
        doubled = loss(student.repeat(2, 1, 1), teacher.repeat(2, 1, 1)).item()
        assert doubled == pytest.approx(loss(student, teacher).item(), rel=1e-5)


def test_a_call_decides_about_images_or_batch():
    pair = features()
    whole, each = GramLoss(img_level=False)(*pair), GramLoss()(*pair)
    assert abs(whole - each) > 1e-3
    assert GramLoss()(*pair, img_level=False) == whole and GramLoss(img_level=False)(*pair, img_level=True) == each


def test_close_features_keep_their_digits():
    """In float32, where the squares themselves are millions of times their difference."""
    _, teacher = features(positions=40, dimensions=8)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = GramLoss(negatives="keep")(student.double(), teacher.double()).item()
    assert GramLoss(negatives="keep")(student, teacher).item() == pytest.approx(exact, rel=1e-3)


# ---------------------------------------------------------------------- gradients, precision, memory


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dimensions", [3, 20])
def test_no_gradient_reaches_the_teacher(negatives, dimensions):
    student, teacher = (rows.requires_grad_() for rows in features(dimensions=dimensions))
    GramLoss(negatives=negatives)(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0.0


def test_positions_without_features_get_no_gradient_and_disturb_none():
    student, teacher = features()
    student[0, 2] = 0.0
    teacher[1, 3] = 0.0
    student.requires_grad_()
    for negatives in NEGATIVES:
        (gradient,) = torch.autograd.grad(GramLoss(negatives=negatives)(student, teacher), student)
        assert (gradient[0, 2] == 0.0).all() and (gradient[0, 3] != 0.0).any() and gradient.abs().max() < 1.0


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_autocast_does_not_reach_the_similarities(negatives):
    student, teacher = features()
    expected = GramLoss(negatives=negatives)(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GramLoss(negatives=negatives)(student, teacher), expected)
    assert GramLoss(negatives=negatives)(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def largest_saved(compute):
    """The most numbers of a tensor that are kept for the backward pass."""
    sizes = [0]

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return max(sizes)


@pytest.mark.parametrize(("negatives", "rows"), [("both", 1), ("teacher", 7), ("keep", 29)])
def test_rows_at_a_time_are_the_whole_and_keep_no_matrix(negatives, rows, monkeypatch):
    batch, positions, dimensions = 2, 30, 5 if negatives != "keep" else 30
    student, teacher = features(batch, positions, dimensions, dtype=torch.float64)
    student.requires_grad_()

    def compute():
        return gram_loss(student, teacher, apply_norm=True, img_level=True, negatives=negatives)

    whole = compute()
    assert largest_saved(compute) == batch * positions**2
    monkeypatch.setattr(gram_module, "_MAX_ENTRIES", batch * positions * rows)
    parts = compute()
    assert largest_saved(compute) <= batch * positions * dimensions
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, student)[0] for value in (whole, parts)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


def test_keeping_negatives_of_many_positions_makes_no_matrix_of_them():
    student, teacher = features(batch=1, positions=50, dimensions=4)
    student.requires_grad_()
    assert largest_saved(lambda: GramLoss(negatives="keep")(student, teacher)) <= 50 * 4


def test_gram_loss_compiles():
    pair = features()
    for negatives in NEGATIVES:
        loss = GramLoss(negatives=negatives)
        assert torch.compile(loss, backend="eager", fullgraph=True)(*pair).item() == pytest.approx(loss(*pair).item())


# ---------------------------------------------------------------------- the teacher


def student_module():
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    module.register_buffer("seen", torch.zeros((), dtype=torch.long))
    return module


def step(module):
    """As an optimizer would."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.seen += 1


def test_the_teacher_is_a_moving_average():
    student = student_module()
    teacher = EMATeacher(student, decay=0.9)
    start = [parameter.clone() for parameter in student.parameters()]
    assert all(map(torch.equal, start, teacher.parameters()))
    history = []
    for _ in range(2):
        step(student)
        history.append([parameter.clone() for parameter in student.parameters()])
        teacher.update(student)
    for average, first, second, third in zip(teacher.parameters(), start, *history, strict=True):
        assert torch.allclose(average, 0.81 * first + 0.09 * second + 0.1 * third, atol=1e-6)
    assert teacher.module.seen == 2
    assert all(map(torch.equal, history[-1], student.parameters()))


def test_the_teacher_is_still_and_untrained():
    student = student_module()
    teacher = EMATeacher(student)
    both = nn.ModuleList([student, teacher]).train()
    inputs = torch.randn(5, 3, requires_grad=True)
    assert both[0].training and not any(module.training for module in teacher.modules())
    assert torch.equal(teacher(inputs), teacher(inputs)) and not teacher(inputs).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_teacher_is_restored_and_copied():
    student = student_module()
    teacher = EMATeacher(student, decay=0.7)
    step(student)
    teacher.update(student)
    restored = EMATeacher(student_module(), decay=0.7)
    restored.load_state_dict(teacher.state_dict())
    step(student)
    followers = [teacher, restored, copy.deepcopy(teacher)]
    for follower in followers:
        follower.update(student)
    first, *others = (follower.state_dict() for follower in followers)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


# ---------------------------------------------------------------------- bad input


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"one of \('both', 'teacher', 'keep'\), got 'none'"):
        GramLoss(negatives="none")
    with pytest.raises(ValueError, match=r"\(2, 7, 3\) of the student and \(2, 7, 4\) of the teacher"):
        GramLoss()(torch.zeros(2, 7, 3), torch.zeros(2, 7, 4))
    with pytest.raises(ValueError, match=r"got \(2, 7\)"):
        GramLoss()(torch.zeros(2, 7), torch.zeros(2, 7))
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\], got {decay}"):
            EMATeacher(nn.Linear(1, 1), decay)
