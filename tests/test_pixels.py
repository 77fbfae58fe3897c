import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ae.pixels import crop_to, dequantize, pad_to, random_shift, to_uint8, to_unit, uniform_noise

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


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_frames_are_dequantized_as_their_floats(bits):
    noise = torch.rand(1, 1, 16, 16)
    kept = noise.clone()
    torch.testing.assert_close(dequantize(LEVELS, bits, noise), dequantize(to_unit(LEVELS), bits, noise))
    assert torch.equal(noise, kept)
    levels = torch.floor(dequantize(LEVELS, bits) * 2**bits)
    assert torch.equal(levels, torch.floor(LEVELS.float() / 2 ** (8 - bits)))
    with pytest.raises(TypeError, match="int64"):
        dequantize(LEVELS.long(), bits)


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (1, 1, 1, 1), (4, 3, 8, 8)])
def test_noise_has_a_byte_a_pixel(shape):
    images = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    noise = uniform_noise(images)
    assert noise.shape == shape and noise.dtype == torch.float32 and noise.stride() == images.stride()
    assert torch.equal((256 * noise - 0.5).round(), 256 * noise - 0.5)


def test_noise_is_uniform_and_follows_the_seed():
    torch.manual_seed(0)
    noise = uniform_noise(torch.zeros(64, 1, 64, 64))
    counts = torch.bincount((256 * noise).long().flatten(), minlength=256)
    assert counts.sum() == noise.numel() and ((counts - 1024).abs() < 6 * 32).all()  # six standard deviations
    flat = noise.flatten() - noise.mean()
    for lag in (1, 2, 7, 8):  # neighbours, within and across the generator's words
        assert abs((flat[lag:] * flat[:-lag]).mean() / flat.var()) < 0.012
    torch.manual_seed(0)
    assert torch.equal(noise, uniform_noise(torch.zeros(64, 1, 64, 64)))


def test_frames_become_the_compute_type_with_channels_last():
    images = to_unit(LEVELS.expand(2, 3, 16, 16), torch.bfloat16)
    assert images.dtype == torch.bfloat16 and images.is_contiguous(memory_format=torch.channels_last)
    assert (images.float() - LEVELS / 255).abs().max() <= 0.5 / 255  # half a grey level


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


class TestRandomShift:
    def test_moves_each_image_and_repeats_its_border(self):
        images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
        shifted = random_shift(images, 2, torch.tensor([[1, -2], [-1, 0]]))
        for rows, columns, image, moved in (([1, 2, 3, 3], [0, 0, 0, 1, 2], 0, 0), ([0, 0, 1, 2], range(5), 1, 1)):
            expected = images[image][:, list(rows)][:, :, list(columns)]
            assert torch.equal(shifted[moved], expected)
        assert shifted.dtype == torch.uint8

    def test_draws_every_shift_up_to_the_largest_equally_often(self):
        rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
        images = torch.stack([rows, columns]).expand(20_000, 2, 9, 9)
        middle = random_shift(images, 1)[:, :, 4, 4] - 4.0  # where the middle comes from
        counts = torch.stack([(middle == torch.tensor([a, b])).all(1).sum() for a in (-1, 0, 1) for b in (-1, 0, 1)])
        assert counts.sum() == 20_000
        # chi-square of 8 degrees of freedom: 26.1 at 0.1 %
        assert ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() < 26.1

    def test_of_no_pixels_changes_nothing(self):
        images = torch.rand(3, 9, 10, 12)
        assert torch.equal(random_shift(images, 0), images)
