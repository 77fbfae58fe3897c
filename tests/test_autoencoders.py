"""One contract for every exported autoencoder, on images of any size and on vectors."""

import copy
import io
import math
import pickle
import subprocess
import sys

import pytest
import torch

import rl_ae.autoencoders
from rl_ae import CONFIGS, AEConfig, SQVAEConfig, VAEConfig, create_autoencoder, create_encoder
from rl_ae.autoencoders import (
    FSQVAE,
    SQVAE,
    VAE,
    VQVAE,
    Autoencoder,
    BurgessVAE,
    ConvAutoencoder,
    ConvVAE,
    DiffusionVAE,
    FlowVAE,
    HierarchicalVAE,
    PyramidVAE,
    VectorAutoencoder,
    VectorVAE,
    WorldModelsVAE,
)
from rl_ae.latents import GaussianLatent, StochasticLatent
from rl_ae.networks import GaussianHead

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
#: Trunks of the class that the others test with SAC-AE's.
SMALL_TRUNKS = ["rae_compact", "rae_patch"]
#: Variational, of images alone.
IMAGE_VAES = [BurgessVAE, ConvVAE, WorldModelsVAE, PyramidVAE, FlowVAE, DiffusionVAE, HierarchicalVAE]
IMAGE_CLASSES = [ConvAutoencoder, *IMAGE_VAES, SQVAE, VQVAE, FSQVAE]
VECTOR_CLASSES = [VectorAutoencoder, VectorVAE, SQVAE, VQVAE, FSQVAE]


def build(cls, shape):
    torch.manual_seed(0)
    return cls(config=cls.config_type(observation_shape=shape))


@pytest.mark.parametrize("name", SMALL_TRUNKS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_small_trunks_take_every_size(name, shape):
    images = torch.rand(2, *shape)
    assert create_autoencoder(name, shape)(images).reconstruction.shape == images.shape


def test_codes_stay_exact_under_autocast():
    """A draw's distance to what was encoded is part of the loss: it must not be rounded to bf16."""
    codebook = torch.randn(5, 3)
    latent = StochasticLatent(codebook[:1].reshape(1, 3, 1, 1), torch.full((1, 1, 1, 1), 1e-4), codebook)
    with torch.autocast("cpu", torch.bfloat16):
        draw = latent.sample(temperature=0.01)
    assert draw.dtype == torch.float32
    assert torch.allclose(draw, codebook[:1], atol=1e-6)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_exported_autoencoder_is_in_the_contract():
    exported = {getattr(rl_ae.autoencoders, name) for name in rl_ae.autoencoders.__all__}
    concrete = {cls for cls in exported if issubclass(cls, Autoencoder)} - {Autoencoder, VAE}
    assert concrete == {*IMAGE_CLASSES, *VECTOR_CLASSES}


@pytest.mark.parametrize(
    ("cls", "shape"),
    [*((cls, shape) for cls in IMAGE_CLASSES for shape in SIZES), *((cls, (37,)) for cls in VECTOR_CLASSES)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_size_comes_back(cls, shape):
    autoencoder = build(cls, shape)
    # multiples of 1/255, which are all that a mixture of levels knows
    observations = (torch.rand(2, *shape) * 255.0).round() / 255.0
    latent = autoencoder.encode(observations)
    output = autoencoder(observations)
    assert output.reconstruction.shape == observations.shape
    assert latent.mode.shape == (2, autoencoder.latent_dim)
    assert len(output) == 1 + len(latent)
    autoencoder.likelihood(autoencoder.draw(latent)).log_prob(observations).mean().backward()
    gradients = {name: parameter.grad for name, parameter in autoencoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients[next(name for name in gradients if name.startswith("encoder.trunk"))].abs().sum() > 0

    autoencoder.eval()
    expected = autoencoder(observations).reconstruction
    other = build(cls, shape)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    file = io.BytesIO()
    torch.save(autoencoder.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for copied in (copy.deepcopy(autoencoder), pickle.loads(pickle.dumps(autoencoder)), other.eval()):
        assert torch.equal(copied(observations).reconstruction, expected)


@pytest.mark.parametrize(
    ("cls", "shape"),
    [*((cls, (3, 32, 32)) for cls in IMAGE_CLASSES), *((cls, (20,)) for cls in VECTOR_CLASSES)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_encoding_is_pure(cls, shape):
    """The same twice and alone, in training as in evaluation, and no buffer moves."""
    autoencoder = build(cls, shape)
    observations = torch.rand(5, *shape)
    before = copy.deepcopy(autoencoder.state_dict())
    modes = []
    for training in (True, False):
        autoencoder.train(training)
        modes += [autoencoder.encode(observations).mode, autoencoder.encode(observations).mode]
        alone = autoencoder.encode(observations[2:3]).mode
        assert torch.allclose(alone, modes[-1][2:3], atol=1e-5)
        autoencoder(observations)
    assert all(torch.equal(modes[0], mode) for mode in modes)
    after = autoencoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("cls", [*IMAGE_VAES, SQVAE])
def test_stochastic_in_training_and_deterministic_in_evaluation(cls):
    autoencoder = build(cls, (3, 32, 32))
    observations = torch.rand(2, 3, 32, 32)
    assert not torch.equal(autoencoder(observations).reconstruction, autoencoder(observations).reconstruction)
    torch.manual_seed(1)
    first = autoencoder(observations).reconstruction
    torch.manual_seed(1)
    assert torch.equal(autoencoder(observations).reconstruction, first)
    autoencoder.eval()
    expected = autoencoder.decode(autoencoder.encode(observations).mode)
    assert torch.equal(autoencoder(observations).reconstruction, expected)
    assert torch.equal(autoencoder.train().reconstruct(observations), expected)


# ---------------------------------------------------------------------- what each promises


def test_parameter_counts():
    assert count(VectorVAE()) == 1_039_424
    assert count(ConvVAE()) == 1_778_819
    assert count(WorldModelsVAE((3, 64, 64))) == 4_348_547
    assert count(BurgessVAE((1, 64, 64), latent_dim=10)) == 502_005
    paper = ConvAutoencoder((9, 84, 84))
    assert (count(paper.encoder.trunk), count(paper.decoder)) == (30_368, 2_029_545)
    assert count(paper.encoder.head) == 39_200 * 50 + 50 + 100


def shapes_inside(autoencoder, observations, *kinds):
    seen = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[1:])))
        for module in autoencoder.modules()
        if isinstance(module, kinds)
    ]
    autoencoder(observations)
    for hook in hooks:
        hook.remove()
    return seen


def test_conv_vae_has_the_documented_layers():
    vae = ConvVAE(latent_size=32)
    maps = shapes_inside(vae, torch.rand(1, 3, 64, 64), torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    assert maps == [
        *[(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)],
        *[(128, 8, 8), (64, 16, 16), (32, 32, 32), (3, 64, 64)],
    ]
    assert shapes_inside(vae, torch.rand(1, 3, 64, 64), torch.nn.Linear) == [(32,), (32,), (4096,)]


def test_world_models_vae_has_the_papers_layers_and_returns_60_by_80():
    vae = WorldModelsVAE((3, 64, 64))
    maps = shapes_inside(vae, torch.rand(1, 3, 64, 64), torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    assert maps == [
        *[(32, 31, 31), (64, 14, 14), (128, 6, 6), (256, 2, 2)],
        *[(128, 5, 5), (64, 13, 13), (32, 30, 30), (3, 64, 64)],
    ]
    wide = WorldModelsVAE((3, 60, 80)).eval()
    frames = torch.rand(2, 3, 60, 80)
    maps = shapes_inside(wide, frames, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    assert maps[3] == (256, 1, 3)
    assert wide(frames).reconstruction.shape == (2, 3, 60, 80)
    assert wide.encode(frames).mu.shape == (2, 32)


@pytest.mark.parametrize(("size", "layers"), [(64, 4), (96, 4), (32, 3), (28, 3), (8, 1)])
def test_burgess_vae_has_as_many_convolutions_as_fit(size, layers):
    assert len(BurgessVAE((3, size, size)).encoder.trunk.strides) == layers


def test_images_squash_and_vectors_do_not():
    images = ConvVAE().decode(100.0 * torch.randn(4, 32))
    assert images.min() >= 0.0 and images.max() <= 1.0
    assert VectorVAE(input_dim=8).decode(100.0 * torch.randn(4, 256)).abs().max() > 1.0


def test_log_variances_are_bounded_and_never_cut_off():
    head = GaussianHead(3, 2)
    features = torch.tensor([[1e3, -1e3, 1e3]], requires_grad=True)
    logvar = head(features).logvar
    assert logvar.abs().max() <= 10.0
    small = torch.randn(4, 3) * 1e-2
    assert torch.allclose(head(small).logvar, head.logvar(small), atol=1e-3)


def test_prior_samples():
    vae = ConvVAE()
    samples = vae.sample(5, device="cpu", generator=torch.Generator().manual_seed(0))
    z = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(samples, vae.decode(z)) and not samples.requires_grad
    with pytest.raises(ValueError, match="num_samples must be ≥ 1, got 0"):
        vae.sample(0)


def test_sq_variance_depends_on_what_it_should():
    images = torch.rand(2, 3, 64, 64)
    shapes = {}
    for variance in (1, 2, 3, 4):
        latent = SQVAE((3, 64, 64), variance=variance, code_dim=5).encode(images)
        shapes[variance] = tuple(latent.variance.shape)
        assert (latent.variance > 20.0 if variance > 1 else (latent.variance - 21.0).abs() < 1e-4).all()
        sq = SQVAE((3, 64, 64), variance=variance, code_dim=5, initial_log_variance=0.5)
        latent = sq.encode(images)
        if variance > 1:
            encoded = sq.encoder.head.to_log_variance(sq.encoder.trunk(images))
            expected = {
                2: encoded.mean(dim=(1, 2, 3), keepdim=True),
                3: encoded.mean(dim=1, keepdim=True),
                4: encoded,
            }[variance].exp() + math.exp(0.5)
            assert torch.allclose(latent.variance, expected)
    assert shapes == {1: (1, 1, 1, 1), 2: (2, 1, 1, 1), 3: (2, 1, 8, 8), 4: (2, 5, 8, 8)}


def test_sq_temperature_follows_the_step():
    sq = SQVAE((1, 16, 16), minimum_temperature=0.1)
    assert sq.temperature(0) == 1.0
    assert sq.temperature(10_000) == pytest.approx(0.9048, abs=1e-4)
    assert sq.temperature(100_000) == pytest.approx(0.3679, abs=1e-4)
    assert sq.temperature(10**7) == 0.1
    latent = sq.encode(torch.rand(2, 1, 16, 16))
    draws = [sq.draw(latent, step, torch.Generator().manual_seed(0)) for step in (0, 10**7)]
    assert torch.equal(draws[1], latent.sample(torch.Generator().manual_seed(0), temperature=0.1))
    assert not torch.equal(*draws)


def test_codes_pass_gradients_straight_through():
    for cls in (SQVAE, VQVAE, FSQVAE):
        autoencoder = build(cls, (1, 16, 16))
        latent = autoencoder.encode(torch.rand(2, 1, 16, 16))
        latent.mode.sum().backward()
        assert autoencoder.encoder.trunk.layers[0].weight.grad.abs().sum() > 0
    head = build(SQVAE, (1, 16, 16)).encoder.head
    assert head.codebook.grad is None


def test_quantised_vectors_are_of_the_codebook():
    vq = build(VQVAE, (1, 16, 16))
    latent = vq.encode(torch.rand(2, 1, 16, 16))
    book = vq.encoder.head.quantizer.codebook
    assert torch.allclose(latent.quantized.movedim(1, -1), book[latent.indices], atol=1e-6)
    distances = torch.cdist(latent.z.movedim(1, -1).reshape(-1, 64), book)
    assert torch.equal(latent.indices.flatten(), distances.argmin(dim=1))
    fsq = build(FSQVAE, (1, 16, 16))
    latent = fsq.encode(torch.rand(2, 1, 16, 16))
    assert latent.indices.min() >= 0 and latent.indices.max() < 1000
    assert torch.allclose(
        fsq.encoder.head.quantizer.indices_to_codes(latent.indices.flatten(1)).mT.reshape(latent.z.shape),
        latent.quantized,
    )


def test_the_codebook_moves_in_after_update_and_nowhere_else():
    vq = build(VQVAE, (1, 16, 16)).train()
    latent = vq.encode(torch.rand(4, 1, 16, 16))
    book = vq.encoder.head.quantizer.codebook.clone()
    vq(torch.rand(4, 1, 16, 16))
    assert torch.equal(vq.encoder.head.quantizer.codebook, book)
    distance = (latent.z.movedim(1, -1) - book[latent.indices]).square().sum()
    for _ in range(50):
        vq.after_update(latent)
    book = vq.encoder.head.quantizer.codebook
    assert (latent.z.movedim(1, -1) - book[latent.indices]).square().sum() < 0.9 * distance


# ---------------------------------------------------------------------- bad input


def test_unscaled_frames_and_wrong_shapes_are_refused():
    with pytest.raises(TypeError, match=r"expected floats in \[0, 1\], got torch.uint8: .*to_unit"):
        create_autoencoder("vae", (3, 16, 16))(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), got \(2, 3, 16, 17\)"):
        create_autoencoder("rae", (3, 16, 16)).encode(torch.rand(2, 3, 16, 17))
    with pytest.raises(ValueError, match=r"\(B, 5\), got \(2, 6\)"):
        create_autoencoder("vae", (5,)).encode(torch.rand(2, 6))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv_vae", (512,), r"ConvVAE takes a shape \(C, H, W\) of images, got \(512,\)"),
        ("wm_vae", (512,), r"WorldModelsVAE takes a shape \(C, H, W\) of images, got \(512,\)"),
        ("flow", (512,), r"FlowVAE takes a shape \(C, H, W\) of images, got \(512,\)"),
        ("diffusion", (512,), r"DiffusionVAE takes a shape \(C, H, W\) of images, got \(512,\)"),
        ("vae", (64, 64), r"got \(64, 64\)"),
        ("rae", (3, 7, 64), r"at least 8×8 pixels, got shape \(3, 7, 64\)"),
        ("vae", (0,), r"must be ≥ 1, got \(0,\)"),
    ],
)
def test_impossible_shapes_are_refused(name, shape, message):
    for create in (create_autoencoder, create_encoder):
        with pytest.raises(ValueError, match=message):
            create(name, shape)


def test_unknown_likelihoods_are_refused():
    with pytest.raises(ValueError, match="unknown likelihood 'poisson', expected one of"):
        create_autoencoder(VAEConfig(likelihood="poisson"), (3, 16, 16))


def test_the_library_for_codes_is_named_when_it_is_missing():
    code = (
        "import sys; sys.modules['vector_quantize_pytorch'] = None\n"
        "from rl_ae import create_autoencoder\n"
        "create_autoencoder('sqvae', (1, 16, 16))\n"
        "create_autoencoder('vqvae', (1, 16, 16))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert 'ImportError: VQ-VAE and FSQ need vector-quantize-pytorch: pip install "rl-ae[quantized]"' in result.stderr


def test_names_build_the_form_of_the_shape():
    images = {name: type(create_autoencoder(name, (3, 16, 16))) for name in CONFIGS}
    of_images_alone = ("conv_vae", "wm_vae", "pyramid", "flow", "diffusion", "hierarchical")
    vectors = {name: type(create_autoencoder(name, (16,))) for name in CONFIGS if name not in of_images_alone}
    gaussian = {"vae", "beta_h", "beta_b", "factor", "btcvae"}
    assert {name for name, cls in images.items() if cls is BurgessVAE} == gaussian
    assert {name for name, cls in vectors.items() if cls is VectorVAE} == gaussian
    deterministic = {"ae", "rae", "rae_compact", "rae_patch"}
    assert {name for name, cls in images.items() if cls is ConvAutoencoder} == deterministic
    assert {name for name, cls in vectors.items() if cls is VectorAutoencoder} == deterministic
    assert (images["sqvae"], images["vqvae"], images["fsq"]) == (SQVAE, VQVAE, FSQVAE)
    assert [images[name] for name in of_images_alone] == IMAGE_VAES[1:]


def test_classes_take_the_fields_of_their_config():
    assert SQVAE((1, 16, 16), codes=8).config == SQVAEConfig(observation_shape=(1, 16, 16), codes=8)
    assert VectorAutoencoder(12, 3, 6).config == AEConfig(
        observation_shape=(12,), vector_hidden=(6, 6), latent_dim=3, target_bits=None
    )
    with pytest.raises(TypeError, match="kodes"):
        SQVAE((1, 16, 16), kodes=8)


def test_a_gaussian_latent_samples_its_own_moments():
    latent = GaussianLatent(torch.full((50_000, 1), 2.0), torch.full((50_000, 1), -1.0))
    samples = latent.sample(torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(2.0, abs=0.01)
    assert samples.var().item() == pytest.approx(0.3679, rel=0.03)
