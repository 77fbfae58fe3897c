import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rl_ae import ConvConfig, RAEConfig, create_autoencoder
from rl_ae.networks import (
    FlattenedLinear,
    TransposedConv,
    group_norm,
    initialize,
    initialize_kaiming,
    initialize_xavier,
    minimum_input_size,
)


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


def test_delta_orthogonal_initialisation():
    conv = nn.Conv2d(8, 16, 3)
    linear = nn.Linear(12, 6)
    nn.Sequential(conv, linear).apply(initialize)
    centre = conv.weight[:, :, 1, 1]
    assert torch.allclose(centre.T @ centre, 2 * torch.eye(8), atol=1e-5)  # ReLU's gain is √2
    assert conv.weight.count_nonzero() == centre.count_nonzero()
    assert torch.allclose(linear.weight @ linear.weight.T, torch.eye(6), atol=1e-5)
    assert not conv.bias.any() and not linear.bias.any()


def test_centres_shift_input_and_output():
    shape = (1, 16, 16)
    plain = create_autoencoder(RAEConfig(), shape)
    shifted = create_autoencoder(RAEConfig(input_centre=1.0, output_centre=1.0), shape)
    shifted.load_state_dict(plain.state_dict())
    images = torch.rand(2, *shape)
    assert torch.allclose(shifted.encode(images).z, plain.encode(images - 1.0).z)
    assert torch.allclose(shifted.decode(torch.ones(1, 50)), plain.decode(torch.ones(1, 50)) + 0.5)


def test_group_norm_replaces_batch_norm_parameter_for_parameter():
    for channels in (3, 12, 32, 48, 256):
        (norm,) = group_norm(channels, normalize=True)
        assert sum(p.numel() for p in norm.parameters()) == sum(
            p.numel() for p in nn.BatchNorm2d(channels).parameters()
        )
        assert norm(torch.rand(2, channels, 4, 4)).shape == (2, channels, 4, 4)
    assert group_norm(8, normalize=False) == []


def test_initialisations_have_their_scale():
    torch.manual_seed(0)
    linear, conv = nn.Linear(400, 300), nn.Conv2d(30, 40, 4)
    initialize_kaiming(linear)
    assert linear.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    initialize_xavier(conv)
    assert conv.weight.std().item() == pytest.approx((2 / (70 * 16)) ** 0.5, rel=0.02)
    assert not linear.bias.any() and not conv.bias.any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 6),
    st.integers(1, 6),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_transposed_convolutions_are_torchs(inputs, outputs, kernel, stride, padding, height, width, output_padding):
    """The same map, the same gradients of input, weight and bias, and parameters of the same names."""
    output_padding = tuple(min(side, stride - 1) for side in output_padding)
    least = (min(height, width) - 1) * stride - 2 * padding + kernel
    if least < 1:
        return
    arguments = (inputs, outputs, kernel, stride, padding, output_padding)
    ours, theirs = TransposedConv(*arguments).double(), nn.ConvTranspose2d(*arguments).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, inputs, height, width, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        leaf = images.clone().requires_grad_()
        result = layer(leaf)
        result.backward(torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result))
        results.append([result, leaf.grad, layer.weight.grad, layer.bias.grad])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, FlattenedLinear.LARGE_BATCH - 1, FlattenedLinear.LARGE_BATCH])
def test_flattened_linear_layers_are_linear_layers_of_what_is_flattened(batch):
    ours, theirs = FlattenedLinear(3 * 4 * 5, 6).double(), nn.Linear(60, 6).double()
    ours.load_state_dict(theirs.state_dict())
    maps = torch.randn(batch, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for layer, inputs in ((ours, maps.clone()), (theirs, maps.flatten(1))):
        inputs.requires_grad_()
        result = layer(inputs)
        result.square().sum().backward()
        results.append([result, inputs.grad.reshape(batch, -1), layer.weight.grad, layer.bias.grad])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


def test_transposed_convolutions_run_in_the_autocast_type():
    layer, images = TransposedConv(3, 4, 3, 2), torch.randn(2, 3, 5, 5)
    exact = layer(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(images)
    assert rounded.dtype == torch.bfloat16 and exact.dtype == torch.float32
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)
    rounded.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    plain = nn.ConvTranspose2d(3, 4, 3, 2)
    plain.load_state_dict(layer.state_dict())
    plain(images).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=0.05, atol=0.1)


def test_gradients_that_nobody_needs_are_left_out():
    layer = TransposedConv(3, 4, 3)
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 3, 5, 5, requires_grad=True)
    layer(images).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and images.grad is not None
