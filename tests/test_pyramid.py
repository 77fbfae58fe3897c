"""The pyramid: its documented shapes and usage, skips that are withheld, and attention that says where."""

import copy
import dataclasses
import math

import pytest
import torch

from rl_ae import CONFIGS, PyramidConfig, create_autoencoder, create_learner, create_loss
from rl_ae.autoencoders import PyramidVAE, VAEDecoder, VAEEncoder
from rl_ae.autoencoders.pyramid import LEVELS, level_sizes
from rl_ae.latents import GaussianLatent
from rl_ae.logistic_mixture import LogisticMixture
from rl_ae.losses import VAELoss
from rl_ae.pixels import to_unit
from rl_ae.residual import ResidualBlock, SqueezeExcitation, normalized


def images(*shape):
    """Random levels in [0, 1]."""
    return to_unit(torch.randint(256, shape, dtype=torch.uint8))


def small_encoder(**kwargs):
    torch.manual_seed(0)
    return VAEEncoder(**{"latent_dim": 5, "context_dim": 3, "base_channels": 4, **kwargs})


def small_decoder(**kwargs):
    torch.manual_seed(1)
    return VAEDecoder(**{"latent_dim": 5, "base_channels": 4, "num_mixtures": 2, "image_size": (32, 32), **kwargs})


# ---------------------------------------------------------------------- as documented


def test_the_documented_usage():
    """The document's lines as they are, but for the imports."""
    observations, context, A = images(2, 3, 64, 64), torch.randn(2, 256), torch.rand(2, 4, 8, 8)  # noqa: N806

    encoder = VAEEncoder(
        latent_dim=36,
        context_dim=256,
        image_channels=3,
        base_channels=32
    )  # fmt: skip

    z_mean, z_logvar = encoder(observations, context)
    z = encoder.reparameterize(z_mean, z_logvar)

    decoder = VAEDecoder(
        latent_dim=36,
        image_channels=3,
        base_channels=32,
        num_mixtures=10
    )  # fmt: skip

    # Get skip connections from encoder
    skips = encoder.get_unet_skips(observations, levels=("C2","C3","C4","C5","C6"))  # fmt: skip

    # Decode
    logit_probs, means, log_scales, coeffs = decoder(z, skips=skips, attention_map=A)

    # Sample reconstruction
    reconstruction = decoder.mdl_head.sample(logit_probs, means, log_scales, coeffs)

    assert z_mean.shape == z_logvar.shape == z.shape == (2, 36)
    assert {level: tuple(maps.shape) for level, maps in skips.items()} == {
        "C2": (2, 32, 32, 32),
        "C3": (2, 64, 16, 16),
        "C4": (2, 128, 8, 8),
        "C5": (2, 256, 4, 4),
        "C6": (2, 512, 2, 2),
    }
    for parameter in (logit_probs, means, log_scales, coeffs):
        assert parameter.shape == (2, 3, 10, 64, 64)
    assert reconstruction.shape == (2, 3, 64, 64)
    assert torch.equal((reconstruction * 255.0).round() / 255.0, reconstruction)
    assert reconstruction.min() >= 0.0 and reconstruction.max() <= 1.0

    seen = []
    for block in decoder.blocks.values():
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[1:])))
    decoder(z)
    assert seen == [(512, 2, 2), (256, 4, 4), (128, 8, 8), (64, 16, 16), (32, 32, 32)]


@pytest.mark.parametrize("size", [(8, 8), (9, 17), (33, 33), (60, 80), (84, 84), (96, 96), (131, 70)], ids=str)
def test_one_pair_takes_every_size(size):
    """Level C_k has ⌈H / 2^(k-1)⌉ × ⌈W / 2^(k-1)⌉ positions, and the decoder returns the size."""
    expected = {
        f"C{k}": (math.ceil(size[0] / 2 ** (k - 1)), math.ceil(size[1] / 2 ** (k - 1))) for k in (2, 3, 4, 5, 6)
    }
    assert level_sizes(size) == expected
    encoder, decoder = small_encoder(), small_decoder(attention_maps=2)
    latent, skips = encoder.encode(images(2, 3, *size))
    assert {level: tuple(maps.shape[2:]) for level, maps in skips.items()} == expected
    parameters = decoder(latent.mu, skips, torch.rand(2, 2, *expected["C4"]), size)
    assert all(parameter.shape == (2, 3, 2, *size) for parameter in parameters)
    assert decoder.decode(latent.mu, size=size).shape == (2, 3, *size)


@pytest.mark.parametrize(("channels", "frames"), [(1, 1), (3, 3), (9, 3), (35, 1)])
def test_stacks_are_of_colour_frames_where_they_can_be(channels, frames):
    encoder = small_encoder(image_channels=channels)
    decoder = small_decoder(image_channels=channels)
    assert decoder.frame_channels == frames
    likelihood = decoder.likelihood(encoder(images(2, channels, 32, 32)).mu)
    assert likelihood.frame_channels == frames
    assert bool(likelihood.coeffs.any()) == (frames == 3)
    assert small_decoder(image_channels=9, frame_channels=1).frame_channels == 1


def test_a_sequence_is_its_images_one_by_one():
    encoder, decoder = small_encoder(), small_decoder().eval()
    frames, context, maps = images(2, 3, 3, 32, 32), torch.randn(2, 3, 3), torch.rand(2, 3, 2, 4, 4)
    latent, skips = encoder.encode(frames, context, levels=("C5", "C3"))
    assert latent.mu.shape == (2, 3, 5) and list(skips) == ["C3", "C5"]
    parameters = decoder(latent.mu, skips, maps)
    for batch in range(2):
        one, its_skips = encoder.encode(frames[batch], context[batch], levels=("C3", "C5"))
        assert torch.allclose(latent.mu[batch], one.mu, atol=1e-5)
        assert torch.allclose(latent.logvar[batch], one.logvar, atol=1e-5)
        expected = decoder(one.mu, its_skips, maps[batch])
        for parameter, its_parameter in zip(parameters, expected, strict=True):
            assert torch.allclose(parameter[batch], its_parameter, atol=1e-4)
    held = encoder(frames, context[:, 0])
    assert torch.allclose(held.mu, encoder(frames, context[:, :1].expand(2, 3, 3)).mu)


def test_the_context_counts_and_none_is_zero():
    encoder, observations = small_encoder(), images(2, 3, 16, 16)
    context = torch.randn(2, 3)
    assert torch.allclose(encoder(observations).mu, encoder(observations, torch.zeros(2, 3)).mu)
    assert not torch.allclose(encoder(observations, context).mu, encoder(observations).mu, atol=1e-4)
    without = small_encoder(context_dim=None)
    assert sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in without.parameters()) == 3 * 20


def test_one_pass_serves_latent_and_skips():
    encoder, observations, context = small_encoder(), images(2, 3, 20, 20), torch.randn(2, 3)
    passes = []
    encoder.trunk.stem.register_forward_hook(lambda *_: passes.append(1))
    latent, skips = encoder.encode(observations, context)
    assert len(passes) == 1
    assert torch.equal(latent.mu, encoder(observations, context).mu)
    expected = encoder.get_unet_skips(observations)
    assert list(skips) == list(expected) == list(LEVELS)
    assert all(torch.equal(skips[level], expected[level]) for level in LEVELS)
    assert torch.equal(encoder.head(encoder.trunk(observations), context).mu, latent.mu)


def test_samples_in_training_and_means_in_evaluation():
    encoder = small_encoder()
    mu, logvar = torch.full((20_000, 1), 2.0), torch.full((20_000, 1), -1.0)
    torch.manual_seed(0)
    draws = encoder.reparameterize(mu, logvar)
    assert draws.mean().item() == pytest.approx(2.0, abs=0.02)
    assert draws.var().item() == pytest.approx(math.exp(-1.0), rel=0.03)
    assert torch.equal(encoder.eval().reparameterize(mu, logvar), mu)


def test_a_new_encoder_tells_images_apart():
    torch.manual_seed(0)
    tiles = torch.rand(64, 3, 4, 4).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    for base_channels in (16, 32):
        latent = VAEEncoder(32, context_dim=0, base_channels=base_channels)(tiles)
        assert 0.05 < latent.mu.std(dim=0).mean() < 1.0
        assert latent.mu.abs().mean() < 3.0 and latent.logvar.abs().mean() < 3.0


def test_images_do_not_see_their_batch_mates_and_nothing_is_remembered():
    encoder, decoder = small_encoder(), small_decoder().eval()
    assert not list(encoder.buffers()) and not list(decoder.buffers())
    observations, maps = images(5, 3, 32, 32), torch.rand(5, 2, 4, 4)
    latent, skips = encoder.encode(observations)
    means = decoder(latent.mu, skips, maps).means
    alone, its_skips = encoder.encode(observations[2:3])
    assert torch.allclose(alone.mu, latent.mu[2:3], atol=1e-5)
    assert torch.allclose(decoder(alone.mu, its_skips, maps[2:3]).means, means[2:3], atol=1e-4)
    encoder.encode(images(5, 3, 32, 32))
    assert torch.equal(decoder(latent.mu).means, decoder(latent.mu).means)


def test_the_head_reads_where_things_are():
    """On a grid as large as C6 nothing is averaged, on a smaller one neighbours are."""
    encoder = small_encoder(grid=(3, 2))
    coarsest = encoder.get_unet_skips(images(2, 3, 96, 64))["C6"]
    assert torch.equal(encoder.trunk.features(coarsest), torch.nn.functional.silu(coarsest))
    averaged = small_encoder(grid=(1, 1)).trunk
    assert torch.allclose(
        averaged.features(coarsest), torch.nn.functional.silu(coarsest).mean(dim=(2, 3), keepdim=True), atol=1e-6
    )


# ---------------------------------------------------------------------- blocks


@pytest.mark.parametrize("channels", [1, 2, 5, 6, 12, 30, 48, 64])
def test_every_width_has_gradients_everywhere(channels):
    torch.manual_seed(0)
    for stride in (1, 2):
        block = ResidualBlock(channels, 2 * channels, stride)
        maps = torch.randn(2, channels, 5, 4)
        out = block(maps)
        assert out.shape == (2, 2 * channels, -(-5 // stride), -(-4 // stride))
        (out * torch.randn_like(out)).sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())


def test_the_gate_weighs_the_branch():
    block, maps = ResidualBlock(8, 8), torch.randn(2, 8, 5, 4)
    branch = block.branch(maps)
    with torch.no_grad():
        block.gate.fill_(0.25)
    assert torch.allclose(block(maps), maps + 0.25 * branch, atol=1e-6)


def test_an_odd_border_is_averaged_over_what_is_there():
    block = ResidualBlock(1, 1, stride=2)
    with torch.no_grad():
        block.gate.zero_()
    maps = torch.tensor([[1.0, 3.0, 10.0], [5.0, 7.0, 20.0], [100.0, 200.0, 50.0]])[None, None]
    assert block(maps).tolist() == [[[[4.0, 15.0], [150.0, 50.0]]]]


def test_groups_divide_every_width_and_leave_something_of_a_single_position():
    for channels in range(1, 100):
        norm = normalized(channels)[0]
        assert channels % norm.num_groups == 0 and norm.num_groups <= 8
        assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    assert normalized(64)[0].num_groups == 8
    maps = torch.randn(1, 8, 1, 1)
    assert (normalized(8)[0](maps).abs() > 1e-3).all()


def test_channels_are_weighed_by_what_all_positions_say():
    squeeze, maps = SqueezeExcitation(3), torch.randn(2, 3, 4, 5)
    first, _, second, _ = squeeze.layers
    weights = torch.sigmoid(second(torch.relu(first(maps.mean(dim=(2, 3))))))
    assert torch.allclose(squeeze(maps), maps * weights[:, :, None, None], atol=1e-6)
    assert torch.equal(squeeze(maps).std(dim=(2, 3)) > 0, torch.ones(2, 3, dtype=torch.bool))


# ---------------------------------------------------------------------- skips and attention


def test_skips_are_withheld_from_whole_images_in_training():
    encoder, decoder = small_encoder(base_channels=2), small_decoder(base_channels=2, skip_dropout=0.25).eval()
    observations = images(1, 3, 32, 32).expand(400, -1, -1, -1)
    latent, skips = encoder.encode(observations)
    with torch.no_grad():
        seen, unseen = decoder(latent.mu, skips).means, decoder(latent.mu).means
        assert not torch.allclose(seen, unseen, atol=1e-2)
        torch.manual_seed(0)
        means = decoder.train()(latent.mu, skips).means
    near = [(means - reference).flatten(1).abs().amax(dim=1) < 1e-3 for reference in (seen, unseen)]
    assert bool((near[0] ^ near[1]).all())  # all levels, or none
    assert near[1].float().mean().item() == pytest.approx(0.25, abs=0.08)
    decoder.skip_dropout = 1.0
    assert torch.allclose(decoder(latent.mu, skips).means, unseen, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_of_skips_is_read(level):
    encoder, decoder = small_encoder(), small_decoder().eval()
    latent, skips = encoder.encode(images(2, 3, 32, 32), levels=(level,))
    assert not torch.allclose(decoder(latent.mu, skips).means, decoder(latent.mu).means, atol=1e-3)
    only = small_decoder(skip_levels=(level,))
    assert list(only.skips) == [level]


def test_maps_weigh_the_slots_and_zeros_are_none():
    decoder, z = small_decoder().eval(), torch.randn(2, 5)
    maps = torch.rand(2, 3, 4, 4)
    assert torch.allclose(decoder(z, attention_map=torch.zeros(2, 3, 4, 4)).means, decoder(z).means, atol=1e-5)
    means = decoder(z, attention_map=maps).means
    padded = torch.cat([maps, torch.zeros(2, 5, 4, 4)], dim=1)  # fewer maps belong to the first slots
    assert torch.allclose(decoder(z, attention_map=padded).means, means, atol=1e-5)
    swapped = copy.deepcopy(decoder)
    order = [1, 0, 2, 3, 4, 5, 6, 7]
    with torch.no_grad():
        for parameter in swapped.slots.parameters():
            parameter.copy_(parameter.unflatten(0, (8, -1))[order].flatten(0, 1))
    assert not torch.allclose(decoder(z, attention_map=maps[:, [1, 0, 2]]).means, means, atol=1e-4)
    assert torch.allclose(swapped(z, attention_map=maps[:, [1, 0, 2]]).means, means, atol=1e-5)


def scenes(count, seed):
    """A filled and a hollow square, each dark or bright, in two of the 9 cells of a grid."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(9, generator=generator)[:2] for _ in range(count)])
    return cells, torch.tensor([0.2, 1.0])[torch.randint(2, (count, 2), generator=generator)]


def drawn(cells, brightness):
    """Images (N, 1, 24, 24) of scenes, and the maps (N, 2, 3, 3) of where the two squares are."""
    maps = torch.nn.functional.one_hot(cells, 9).float().unflatten(2, (3, 3))
    shapes = torch.ones(2, 8, 8)
    shapes[1, 2:-2, 2:-2] = 0.0
    return torch.einsum("nk,nkrc,kij->nricj", brightness, maps, shapes).reshape(-1, 1, 24, 24), maps


def mse(first, second):
    return (first - second).square().mean().item()


def code(brightness):
    """A latent of scenes: both squares' brightness in both numbers, for the decoder to take apart."""
    return torch.where(brightness > 0.5, 1.0, -1.0) @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])


def test_swapping_two_maps_swaps_two_objects():
    """A decoder that has seen pairs of squares: each map moves its own square, with the brightness that z says."""
    torch.manual_seed(0)
    decoder = VAEDecoder(2, 1, 4, num_mixtures=2, attention_maps=2, skip_levels=(), image_size=(24, 24))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for step in range(120):
        cells, brightness = scenes(16, seed=step)
        squares, maps = drawn(cells, brightness)
        nats = -decoder.likelihood(code(brightness), attention_map=maps).log_prob(squares).mean()
        optimizer.zero_grad()
        nats.backward()
        optimizer.step()

    cells, brightness = scenes(64, seed=1_000)
    squares, maps = drawn(cells, brightness)
    exchanged, _ = drawn(cells.flip(1), brightness)
    with torch.no_grad():
        straight, swapped = (decoder.decode(code(brightness), attention_map=m) for m in (maps, maps.flip(1)))
    apart = mse(exchanged, squares)
    assert mse(straight, squares) < 0.2 * apart
    assert mse(swapped, exchanged) < 0.2 * apart
    assert mse(swapped, squares) > 0.7 * apart


# ---------------------------------------------------------------------- copies


def test_copies_weights_and_compiled_modules_are_the_same():
    encoder, decoder = small_encoder(), small_decoder().eval()
    observations, context, maps = images(2, 3, 32, 32), torch.randn(2, 3), torch.rand(2, 2, 4, 4)
    latent, skips = encoder.encode(observations, context)
    latent.mu.sum().backward()  # a copy of a module that has been trained, as targets are
    latent = GaussianLatent(*(values.detach() for values in latent))
    skips = {level: values.detach() for level, values in skips.items()}
    means = decoder(latent.mu, skips, maps).means
    others = small_encoder(), small_decoder().eval()
    for other, module in zip(others, (encoder, decoder), strict=True):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        other.load_state_dict(module.state_dict())
    compiled = [torch.compile(module, backend="eager", fullgraph=True) for module in (encoder, decoder)]
    for its_encoder, its_decoder in ((copy.deepcopy(encoder), copy.deepcopy(decoder)), others, compiled):
        mu, _ = its_encoder(observations, context)
        assert torch.allclose(mu, latent.mu, atol=1e-6)
        assert torch.allclose(its_decoder(latent.mu, skips, maps).means, means, atol=1e-5)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e, d: e.get_unet_skips(images(1, 3, 32, 32), levels=("C1", "C3")),
            r"unknown levels \['C1'\], expected",
        ),
        (
            lambda e, d: e.encode(images(1, 3, 32, 32), levels=("c2",)),
            r"unknown levels \['c2'\], expected some of \['C2'",
        ),
        (lambda e, d: e(images(1, 4, 32, 32)), r"\(B, 3, H ≥ 8, W ≥ 8\) or \(B, T, 3, .*got \(1, 4, 32, 32\)"),
        (lambda e, d: e(images(1, 3, 7, 32)), r"got \(1, 3, 7, 32\)"),
        (lambda e, d: e.get_unet_skips(images(3, 32, 32)), r"got \(3, 32, 32\)"),
        (lambda e, d: e(images(2, 3, 32, 32), torch.zeros(2, 4)), r"a context of shape \(2, 3\), got \(2, 4\)"),
        (
            lambda e, d: e(images(2, 2, 3, 32, 32), torch.zeros(2, 1, 3)),
            r"of shape \(2, 3\) or \(2, 2, 3\), got \(2, 1, 3\)",
        ),
        (
            lambda e, d: small_encoder(context_dim=0)(images(2, 3, 32, 32), torch.zeros(2, 3)),
            r"without a context \(context_dim=0\), got one of shape \(2, 3\)",
        ),
        (lambda e, d: d(torch.zeros(2, 6)), r"\(B, 5\) or \(B, T, 5\), got \(2, 6\)"),
        (lambda e, d: d(torch.zeros(5)), r"got \(5,\)"),
        (lambda e, d: d(torch.zeros(2, 5), size=(64, 7)), r"at least 8×8 pixels, got a size of \(64, 7\)"),
        (
            lambda e, d: d(torch.zeros(2, 5), {"C7": torch.zeros(2, 4, 16, 16)}),
            r"unknown levels \['C7'\], expected some of",
        ),
        (
            lambda e, d: small_decoder(skip_levels=("C3",))(torch.zeros(2, 5), e.get_unet_skips(images(2, 3, 32, 32))),
            r"built for skips of \['C3'\], got \['C2', 'C4', 'C5', 'C6'\] too",
        ),
        (
            lambda e, d: d(torch.zeros(2, 5), e.get_unet_skips(images(2, 3, 40, 32))),
            r"expected C2 of shape \(2, 4, 16, 16\), got \(2, 4, 20, 16\): skips are of the images that are decoded",
        ),
        (
            lambda e, d: d(torch.zeros(3, 5), e.get_unet_skips(images(2, 3, 32, 32))),
            r"expected C2 of shape \(3, 4, 16, 16\), got \(2, 4, 16, 16\)",
        ),
        (
            lambda e, d: d(torch.zeros(2, 5), small_encoder(base_channels=2).get_unet_skips(images(2, 3, 32, 32))),
            r"expected C2 of shape \(2, 4, 16, 16\), got \(2, 2, 16, 16\)",
        ),
        (
            lambda e, d: d(torch.zeros(2, 5), attention_map=torch.zeros(2, 2, 8, 8)),
            r"\(2, 1 ≤ K ≤ 8, 4, 4\), the grid of C4, got \(2, 2, 8, 8\)",
        ),
        (lambda e, d: d(torch.zeros(2, 5), attention_map=torch.zeros(2, 9, 4, 4)), r"K ≤ 8, .*got \(2, 9, 4, 4\)"),
        (lambda e, d: d(torch.zeros(2, 5), attention_map=torch.zeros(2, 0, 4, 4)), r"1 ≤ K .*got \(2, 0, 4, 4\)"),
        (lambda e, d: d(torch.zeros(2, 5), attention_map=torch.zeros(3, 2, 4, 4)), r"got \(3, 2, 4, 4\)"),
        (lambda e, d: d(torch.zeros(2, 5), attention_map=torch.zeros(2, 4, 4)), r"got \(2, 4, 4\)"),
        (
            lambda e, d: small_decoder(attention_maps=0)(torch.zeros(2, 5), attention_map=torch.zeros(2, 2, 4, 4)),
            r"without attention \(attention_maps=0\), got maps of shape \(2, 2, 4, 4\)",
        ),
        (lambda e, d: small_encoder(base_channels=0), "base_channels must be ≥ 1, got 0"),
        (lambda e, d: small_encoder(context_dim=-1), "context_dim must be ≥ 0, got -1"),
        (lambda e, d: small_encoder(grid=(0, 2)), r"grid must be positions ≥ 1, got \(0, 2\)"),
        (lambda e, d: small_decoder(grid=(2, 0)), r"grid must be positions ≥ 1, got \(2, 0\)"),
        (lambda e, d: small_decoder(latent_dim=0), "latent_dim must be ≥ 1, got 0"),
        (lambda e, d: small_decoder(num_mixtures=0), "num_mixtures must be ≥ 1, got 0"),
        (lambda e, d: small_decoder(attention_maps=-1), "attention_maps must be ≥ 0, got -1"),
        (lambda e, d: small_decoder(skip_dropout=1.5), r"skip_dropout must be a probability in \[0, 1\], got 1.5"),
        (lambda e, d: small_decoder(skip_levels=("C1",)), r"unknown levels \['C1'\]"),
        (lambda e, d: small_decoder(image_size=(4, 64)), r"at least 8×8 pixels, got a size of \(4, 64\)"),
        (lambda e, d: small_decoder(frame_channels=2), "must be 1 or 3 and divide the image's 3, got 2"),
        (lambda e, d: small_decoder(image_channels=4, frame_channels=3), "divide the image's 4, got 3"),
    ],
)
def test_wrong_inputs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_encoder(), small_decoder())


def test_unscaled_frames_are_refused():
    for method in (small_encoder(), small_encoder().get_unet_skips):
        with pytest.raises(TypeError, match=r"expected floats in \[0, 1\], got torch.uint8: .*to_unit"):
            method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# ---------------------------------------------------------------------- the autoencoder of both


def test_the_variant_is_made_of_both():
    config = PyramidConfig(latent_dim=7, base_channels=4, num_mixtures=2, input_centre=0.5)
    pyramid = create_autoencoder(config, (9, 84, 60))
    assert type(pyramid) is PyramidVAE and isinstance(pyramid.encoder, VAEEncoder)
    assert pyramid.encoder.trunk.grid == pyramid.decoder.grid == (3, 2)
    assert pyramid.encoder.trunk.out_features == 64 * 3 * 2
    observations = images(2, 9, 84, 60)
    latent = pyramid.encode(observations)
    assert isinstance(latent, GaussianLatent) and latent.mode.shape == (2, 7)
    likelihood = pyramid.likelihood(latent.mode)
    assert isinstance(likelihood, LogisticMixture) and likelihood.frame_channels == 3
    assert torch.equal(pyramid.decode(latent.mode), pyramid.decoder.decode(latent.mode))
    uncentred = create_autoencoder(dataclasses.replace(config, input_centre=0.0), (9, 84, 60))
    uncentred.load_state_dict(pyramid.state_dict())
    assert torch.allclose(pyramid.encode(observations + 0.5).mu, uncentred.encode(observations).mu, atol=1e-5)


def test_frames_are_as_the_config_says():
    for frame_channels, expected in ((None, 3), (1, 1), (3, 3)):
        config = dataclasses.replace(CONFIGS["pyramid"], frame_channels=frame_channels)
        pyramid = create_autoencoder(config, (3, 16, 16))
        assert pyramid.likelihood(torch.zeros(1, 50)).frame_channels == expected
    with pytest.raises(ValueError, match="divide the image's 4, got 3"):
        create_autoencoder(PyramidConfig(frame_channels=3), (4, 16, 16))


@pytest.mark.parametrize("mean_weight", [0.0, 50.0])
def test_its_loss_is_the_elbo_in_nats_and_the_error_of_the_mean(mean_weight):
    config = PyramidConfig(beta=0.5, free_nats=2.0, warmup_steps=3, mean_weight=mean_weight)
    loss = create_loss(config.for_shape((3, 16, 16)))
    assert isinstance(loss, VAELoss) and (loss.beta, loss.free_nats, loss.warmup_steps) == (0.5, 2.0, 3)
    config = PyramidConfig(base_channels=2, per_element=False, mean_weight=mean_weight)
    learner = create_learner(config, (3, 16, 16))
    observations = images(4, 3, 16, 16)
    evaluated = learner.losses(observations)
    likelihood = learner.autoencoder.likelihood(evaluated.z)
    nats = -likelihood.log_prob(observations).mean()
    assert evaluated.terms["reconstruction"].item() == pytest.approx(nats.item(), rel=1e-5)
    error = (likelihood.mean - observations).square().sum() / 4
    assert ("squared_error" in evaluated.terms) == (mean_weight > 0.0)
    expected = nats + evaluated.latent.kl().sum(dim=1).mean() + mean_weight * error
    assert evaluated.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_that_are_no_levels_are_refused():
    learner = create_learner(PyramidConfig(base_channels=2), (3, 16, 16))
    with pytest.raises(ValueError, match=r"needs targets k/255"):
        learner.update(torch.full((2, 3, 16, 16), 0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_channels": 0}, "base_channels must be > 0"),
        ({"num_mixtures": 0}, "num_mixtures must be > 0"),
        ({"latent_dim": 0}, "latent_dim must be > 0"),
        ({"frame_channels": 2}, "frame_channels must be 1, 3 or None, got 2"),
        ({"target_bits": 5}, "target_bits must be None, got 5"),
        ({"beta": -1.0}, "beta must be ≥ 0"),
        ({"mean_weight": -1.0}, "mean_weight must be ≥ 0"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PyramidConfig(**fields)
    with pytest.raises(ValueError, match=r"PyramidVAE takes a shape \(C, H, W\) of images, got \(12,\)"):
        create_autoencoder("pyramid", (12,))
