import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ae.pixels import crop_to, dequantize, pad_to, to_uint8, to_unit

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_every_level_survives_scaling():
    unit = to_unit(LEVELS)
    assert unit.dtype == torch.float32
    assert (unit.min(), unit.max()) == (0.0, 1.0)
    assert torch.equal(to_uint8(unit), LEVELS)


def test_floats_pass_and_integers_are_refused():
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(to_unit(images), images)
    assert to_unit(images, torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match="int64"):
        to_unit(torch.zeros(1, 1, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("noise", [0.0, 0.5, 0.999])
def test_dequantized_levels_by_hand(bits, noise):
    expected = [((level // 2 ** (8 - bits)) + noise) / 2**bits for level in range(256)]
    result = dequantize(to_unit(LEVELS, torch.float64), bits, torch.full((1, 1, 16, 16), noise, dtype=torch.float64))
    assert torch.allclose(result.flatten(), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_dequantized_noise_is_uniform_within_a_level():
    torch.manual_seed(0)
    values = dequantize(torch.full((1, 1, 100, 100), 128 / 255), 5) * 32 - 16
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.003


@pytest.mark.parametrize("bits", [0, 9])
def test_impossible_bit_depths_are_refused(bits):
    with pytest.raises(ValueError, match=f"between 1 and 8, got {bits}"):
        dequantize(torch.rand(1, 1, 8, 8), bits)


@given(st.integers(8, 20), st.integers(8, 20), st.integers(1, 30), st.integers(1, 30))
def test_cropping_undoes_padding(height, width, wanted_height, wanted_width):
    images = torch.rand(1, 2, height, width)
    padded = pad_to(images, (wanted_height, wanted_width))
    assert padded.shape[-2:] == (max(height, wanted_height), max(width, wanted_width))
    assert torch.equal(crop_to(padded, (height, width)), images)
    assert padded.min() >= images.min() and padded.max() <= images.max()  # replicated, not filled
