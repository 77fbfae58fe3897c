import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rl_ae import CONFIGS, ConvConfig, RAEConfig, create_autoencoder, create_encoder, create_learner
from rl_ae.networks import initialize, minimum_input_size

SIZES = [
    (1, 28, 28),
    (3, 33, 33),
    (3, 60, 80),
    (3, 64, 64),
    (9, 84, 84),
    (3, 85, 85),
    (4, 96, 96),
    (3, 8, 8),
    (12, 100, 75),
]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_size_comes_back(name, shape):
    autoencoder = create_autoencoder(name, shape)
    images = torch.rand(2, *shape)
    reconstruction, z = autoencoder(images)
    assert reconstruction.shape == images.shape
    assert z.shape == (2, 50)
    (reconstruction - images).square().sum().backward()
    for copied in (copy.deepcopy(autoencoder), pickle.loads(pickle.dumps(autoencoder))):
        assert torch.equal(copied(images).reconstruction, reconstruction)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(8, 40),
    st.integers(8, 40),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(2, 5),
    st.integers(0, 1),
)
def test_any_stack_is_mirrored_exactly(channels, height, width, strides, kernel_size, padding):
    if max(strides) > kernel_size:  # rows between two kernels would be seen by neither side
        strides = [min(stride, kernel_size) for stride in strides]
    conv = ConvConfig(filters=(3,) * len(strides), strides=tuple(strides), kernel_size=kernel_size, padding=padding)
    images = torch.rand(1, channels, height, width)
    autoencoder = create_autoencoder(RAEConfig(conv=conv, latent_dim=4), (channels, height, width))
    assert autoencoder(images).reconstruction.shape == images.shape


@pytest.mark.parametrize(("conv", "expected"), [(ConvConfig(), 15), (ConvConfig(strides=(1,), filters=(1,)), 3)])
def test_minimum_is_the_last_size_that_works(conv, expected):
    assert minimum_input_size(conv.kernel_size, conv.strides, conv.padding) == expected
    stack = nn.Sequential(*(nn.Conv2d(1, 1, conv.kernel_size, stride) for stride in conv.strides))
    assert stack(torch.rand(1, 1, expected, expected)).shape[-2:] == (1, 1)
    with pytest.raises(RuntimeError):
        stack(torch.rand(1, 1, expected - 1, expected - 1))


def test_paper_parameter_counts():
    autoencoder = create_autoencoder("rae", (9, 84, 84))
    assert count(autoencoder.encoder.trunk) == 30_368
    assert count(autoencoder.encoder.head) == 39_200 * 50 + 50 + 100
    assert count(autoencoder.decoder) == 2_029_545


def test_delta_orthogonal_initialisation():
    conv = nn.Conv2d(8, 16, 3)
    linear = nn.Linear(12, 6)
    nn.Sequential(conv, linear).apply(initialize)
    centre = conv.weight[:, :, 1, 1]
    assert torch.allclose(centre.T @ centre, 2 * torch.eye(8), atol=1e-5)  # ReLU's gain is √2
    assert conv.weight.count_nonzero() == centre.count_nonzero()
    assert torch.allclose(linear.weight @ linear.weight.T, torch.eye(6), atol=1e-5)
    assert not conv.bias.any() and not linear.bias.any()


def test_encoding_ignores_batch_mates_and_is_repeatable():
    encoder = create_encoder("rae", (3, 32, 32)).eval()
    images = torch.rand(5, 3, 32, 32)
    together = encoder(images).mode
    assert torch.equal(together, encoder(images).mode)
    assert torch.allclose(together[2:3], encoder(images[2:3]).mode, atol=1e-6)
    assert together.abs().max() <= 1.0


def test_centres_shift_input_and_output():
    shape = (1, 16, 16)
    plain = create_autoencoder(RAEConfig(), shape)
    shifted = create_autoencoder(RAEConfig(input_centre=1.0, output_centre=1.0), shape)
    shifted.load_state_dict(plain.state_dict())
    images = torch.rand(2, *shape)
    assert torch.allclose(shifted.encode(images).z, plain.encode(images - 1.0).z)
    assert torch.allclose(shifted.decode(torch.ones(1, 50)), plain.decode(torch.ones(1, 50)) + 0.5)


def test_unscaled_frames_are_refused():
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"expected floats in \[0, 1\], got torch.uint8: .*to_unit"):
        create_autoencoder("rae", (3, 16, 16))(frames)
    with pytest.raises(TypeError, match="to_unit"):
        create_learner("rae", (3, 16, 16)).update(frames)


def test_wrong_image_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), got \(2, 3, 16, 17\)"):
        create_autoencoder("rae", (3, 16, 16)).encode(torch.rand(2, 3, 16, 17))
