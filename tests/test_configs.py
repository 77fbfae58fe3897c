import dataclasses
import json

import pytest
import torch
from conftest import DotEnv
from torch import nn

from rl_ae import (
    CONFIGS,
    Autoencoder,
    AutoencoderConfig,
    BetaBConfig,
    BTCVAEConfig,
    ConvConfig,
    DiffusionConfig,
    FactorConfig,
    FlowConfig,
    FSQConfig,
    RAEConfig,
    SQVAEConfig,
    VAEConfig,
    VQVAEConfig,
    create_autoencoder,
    create_learner,
    create_loss,
    resolve_config,
)
from rl_ae.autoencoders import BurgessVAE, ConvAutoencoder
from rl_ae.configs import GaussianConfig, config_from_dict
from rl_ae.losses import (
    BetaBLoss,
    BTCLoss,
    Discriminator,
    FactorLoss,
    Loss,
    RAELoss,
    SQLoss,
    VAELoss,
    VQLoss,
    squared_error,
    weigh,
)
from rl_ae.sb3 import SACAE

SHAPE = (3, 16, 16)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (12,)])
def test_json_round_trip(name, shape):
    config = CONFIGS[name].for_shape(shape)
    restored = config_from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config and type(restored) is type(config)


def test_names_resolve_and_unknown_ones_list_the_known():
    assert resolve_config("rae", SHAPE) == RAEConfig(observation_shape=SHAPE)
    with pytest.raises(ValueError, match=r"'nae', expected one of \['ae', 'beta_b', .*'wm_vae'\]"):
        resolve_config("nae", SHAPE)


def test_a_live_module_is_refused():
    with pytest.raises(TypeError, match="got ConvAutoencoder"):
        resolve_config(create_autoencoder("rae", SHAPE), SHAPE)


def test_a_config_for_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), observations are \(3, 16, 16\)"):
        resolve_config(RAEConfig(observation_shape=(3, 32, 32)), SHAPE)
    with pytest.raises(ValueError, match=r"needs an observation_shape"):
        create_learner("rae")


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (RAEConfig, {"latent_dim": 0}, "latent_dim must be > 0 and finite, got 0"),
        (RAEConfig, {"latent_weight": -1.0}, "latent_weight must be ≥ 0 and finite, got -1.0"),
        (RAEConfig, {"decoder_learning_rate": -1.0}, "decoder_learning_rate must be ≥ 0"),
        (RAEConfig, {"target_bits": 9}, "between 1 and 8, or None, got 9"),
        (RAEConfig, {"input_centre": 255.0}, r"input_centre must be in \[0, 1\], got 255.0"),
        (RAEConfig, {"output_centre": 255.0}, r"output_centre must be in \[0, 1\], got 255.0"),
        (RAEConfig, {"vector_hidden": ()}, r"at least one; got \(\)"),
        (VAEConfig, {"latent_dim": 0}, "latent_dim must be > 0 and finite, got 0"),
        (VAEConfig, {"beta": -0.5}, "beta must be ≥ 0 and finite, got -0.5"),
        (VAEConfig, {"latent_dim": 2.5}, "latent_dim must be a whole number, got 2.5"),
        (VAEConfig, {"likelihood": "poisson"}, "unknown likelihood 'poisson', expected one of"),
        (SQVAEConfig, {"likelihood": "poisson"}, "unknown likelihood 'poisson', expected one of"),
        (SQVAEConfig, {"codes": 2.5}, "codes must be a whole number, got 2.5"),
        (VAEConfig, {"scale": 0.0}, "scale must be > 0 and finite, got 0.0"),
        (VAEConfig, {"hidden": (0,)}, r"widths ≥ 1, got \(0,\)"),
        (BetaBConfig, {"gamma": float("nan")}, "gamma must be ≥ 0 and finite, got nan"),
        (FactorConfig, {"discriminator_hidden": 0}, "discriminator_hidden must be > 0"),
        (BTCVAEConfig, {"estimator": "msw"}, "'mss' or 'mws', got 'msw'"),
        (FlowConfig, {"target_bits": None}, "between 1 and 8, got None: a flow's density of levels"),
        (FlowConfig, {"couplings": -1}, "couplings must be ≥ 0 and finite, got -1"),
        (FlowConfig, {"likelihood": "laplace"}, "leave likelihood and scale out, got 'laplace' and 1.0"),
        (DiffusionConfig, {"scale": 2.0}, "leave likelihood and scale out, got None and 2.0"),
        (DiffusionConfig, {"condition_maps": 0}, "condition_maps must be > 0 and finite, got 0"),
        (DiffusionConfig, {"decode_steps": 3}, "decode_steps must divide diffusion_steps = 1000, got 3"),
        (DiffusionConfig, {"weighting": "snr"}, "must be 'velocity' or 'elbo', got 'snr'"),
        (SQVAEConfig, {"variance": 5}, "variance must be 1, 2, 3 or 4, got 5"),
        (SQVAEConfig, {"minimum_temperature": 0.0}, "minimum_temperature must be > 0"),
        (VQVAEConfig, {"codebook_decay": 1.0}, r"codebook_decay must be in \[0, 1\), got 1.0"),
        (FSQConfig, {"levels": (8, 2)}, r"levels must be ≥ 3, at least one; got \(8, 2\)"),
    ],
)
def test_numbers_out_of_range_are_refused(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"strides": (2,)}, {"filters": (), "strides": ()}, {"padding": 3}, {"kernel_size": 0}]
)
def test_impossible_convolutions_are_refused(kwargs):
    with pytest.raises(ValueError, match="filters"):
        ConvConfig(**kwargs)


def test_unknown_types_and_fields_are_refused():
    with pytest.raises(ValueError, match="unknown config type 'NAEConfig', expected one of"):
        config_from_dict({"type": "NAEConfig"})
    with pytest.raises(ValueError, match=r"no fields \['beta'\]"):
        config_from_dict({"type": "RAEConfig", "beta": 1.0})


def test_variants_are_what_their_names_say():
    penalty = {
        name: (create_loss(CONFIGS[name].for_shape((1, 8, 8))).weights["latent_l2"], CONFIGS[name].decoder_weight_decay)
        for name in ("ae", "rae", "rae_compact", "rae_patch")
    }
    regularised = (64e-6, 1e-7)
    assert penalty == {"ae": (0.0, 0.0), "rae": regularised, "rae_compact": regularised, "rae_patch": regularised}
    trunks = (create_autoencoder(name, (3, 64, 64)).encoder.trunk for name in ("rae", "rae_compact", "rae_patch"))
    assert [trunk.out_features for trunk in trunks] == [25 * 25 * 32, 8 * 8 * 32, 4 * 4 * 32]


def attributes(loss, *names):
    return tuple(getattr(loss, name) for name in names)


def test_configs_reach_their_losses():
    def loss(config):
        return create_loss(config.for_shape(SHAPE))

    assert attributes(loss(CONFIGS["vae"]), "beta", "free_nats", "warmup_steps") == (1.0, 0.0, 0)
    assert attributes(loss(CONFIGS["wm_vae"]), "beta", "free_nats") == (1.0, 16.0)
    for cls in (FlowConfig, DiffusionConfig):
        changed = loss(cls(beta=0.25, free_nats=3.0, warmup_steps=7))
        assert attributes(changed, "beta", "free_nats", "warmup_steps") == (0.25, 3.0, 7)
    assert loss(CONFIGS["beta_h"]).beta == 4.0
    changed = loss(VAEConfig(beta=0.25, free_nats=3.0, warmup_steps=7))
    assert attributes(changed, "beta", "free_nats", "warmup_steps") == (0.25, 3.0, 7)
    changed = loss(BetaBConfig(gamma=9.0, initial_capacity=1.0, final_capacity=2.0, capacity_steps=3))
    assert isinstance(changed, BetaBLoss)
    assert attributes(changed, "gamma", "initial_capacity", "final_capacity", "capacity_steps") == (9.0, 1.0, 2.0, 3)
    changed = loss(FactorConfig(gamma=9.0, warmup_steps=7, discriminator_hidden=11, discriminator_layers=3))
    assert isinstance(changed, FactorLoss) and attributes(changed, "gamma", "warmup_steps") == (9.0, 7)
    assert [tuple(p.shape) for p in changed.discriminator.parameters() if p.ndim == 2] == [(11, 32), (11, 11), (2, 11)]
    changed = loss(BTCVAEConfig(alpha=2.0, beta=3.0, gamma=4.0, estimator="mws", warmup_steps=5))
    assert isinstance(changed, BTCLoss)
    assert attributes(changed, "alpha", "beta", "gamma", "estimator", "warmup_steps") == (2.0, 3.0, 4.0, "mws", 5)
    assert loss(SQVAEConfig(codes=9, beta=0.5)).weights["code_kl"] == 0.5
    assert loss(VQVAEConfig(commitment_weight=0.5)).weights["commitment"] == 0.5
    assert isinstance(loss(CONFIGS["fsq"]), VQLoss) and loss(CONFIGS["fsq"]).codes == 1000
    assert isinstance(loss(CONFIGS["sqvae"]), SQLoss) and isinstance(loss(CONFIGS["ae"]), RAELoss)


def test_the_loss_is_per_element_in_the_unit_of_its_paper():
    images = torch.rand(4, *SHAPE)
    for name in ("rae", "vae"):
        metrics = {}
        for per_element in (True, False):
            torch.manual_seed(0)
            config = dataclasses.replace(CONFIGS[name], per_element=per_element)
            metrics[per_element] = create_learner(config, SHAPE).evaluate(images, images)
        elements = 3 * 16 * 16
        expected = {
            "rae": metrics[False]["reconstruction"] / elements + 1e-6 * metrics[False].get("latent_l2", 0.0),
            "vae": metrics[False]["total"] / elements,
        }[name]
        assert metrics[True]["total"].item() == pytest.approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------------- one's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoubledConfig(VAEConfig):
    factor: float = 2.0


class Doubled(BurgessVAE):
    """Somebody's own variant: its decoder's logits are doubled."""

    config_type = DoubledConfig

    @classmethod
    def make_decoder(cls, config, encoder):
        decoder = super().make_decoder(config, encoder)
        decoder.register_forward_hook(lambda _module, _inputs, output: config.factor * output)
        return decoder


class Brightness(Loss):
    """Somebody's own loss: the difference of the mean brightnesses."""

    def forward(self, reconstruction, target, latent, z=None, *, step=0, n_data=None):
        return weigh({"brightness": (reconstruction.mean.mean() - target.mean()).square()}, {"brightness": 1.0})


def test_a_class_and_a_loss_of_ones_own_plug_in_by_being_passed():
    assert isinstance(create_autoencoder(Doubled, SHAPE), Doubled)
    assert isinstance(create_autoencoder(DoubledConfig(factor=3.0), SHAPE), Doubled)
    assert type(create_autoencoder("vae", SHAPE)) is BurgessVAE
    assert isinstance(create_learner(Doubled, SHAPE).loss, VAELoss)
    learner = create_learner(Doubled, SHAPE, loss=Brightness())
    target = torch.full((8, *SHAPE), 0.9)
    first = learner.update(target)["brightness"].item()
    for _ in range(60):
        last = learner.update(target)["brightness"].item()
    assert last < 0.5 * first
    module = create_autoencoder("vae", SHAPE)
    assert create_learner(module, loss=Brightness()).autoencoder is module
    config = config_from_dict(json.loads(json.dumps(DoubledConfig(factor=3.0).to_dict())))
    assert config == DoubledConfig(factor=3.0)


class Scaled(Loss):
    """Somebody's loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(()))

    def forward(self, reconstruction, target, latent, z=None, *, step=0, n_data=None):
        error = squared_error(reconstruction.mean, target)
        return weigh({"scaled": self.log_weight.exp() * error - self.log_weight}, {"scaled": 1.0})


def test_a_losses_own_parameters_are_trained_and_saved():
    learner = create_learner("vae", SHAPE, loss=Scaled())
    for _ in range(3):
        learner.update(torch.rand(4, *SHAPE))
    assert learner.loss.log_weight.item() != 0.0
    other = create_learner("vae", SHAPE, loss=Scaled())
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.loss.log_weight, learner.loss.log_weight)


def test_every_passed_loss_is_divided_alike():
    for loss in (RAELoss(), VAELoss(), Brightness()):
        assert create_learner("vae", SHAPE, loss=loss).scale == 1 / 768
        assert create_learner(VAEConfig(per_element=False), SHAPE, loss=loss).scale == 1.0


class Anonymous(ConvAutoencoder):
    """Somebody's variant that needs no fields of its own."""


def test_a_class_without_a_config_of_its_own_is_itself(tmp_path):
    for create in (create_autoencoder, lambda cls, shape: create_learner(cls, shape).autoencoder):
        assert type(create(Anonymous, SHAPE)) is Anonymous
    assert type(create_autoencoder("rae", SHAPE)) is ConvAutoencoder
    create_autoencoder(Anonymous, SHAPE).save_pretrained(tmp_path)
    assert type(Autoencoder.from_pretrained(tmp_path)) is Anonymous
    agent = SACAE("CnnPolicy", DotEnv(), autoencoder=Anonymous, buffer_size=50, learning_starts=10, batch_size=4)
    assert type(agent.learn(12).policy.autoencoder) is Anonymous
    agent.save(tmp_path / "agent")
    assert type(SACAE.load(tmp_path / "agent").policy.autoencoder) is Anonymous


def test_a_config_that_nothing_is_built_from_is_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OrphanConfig(AutoencoderConfig):
        pass

    with pytest.raises(ValueError, match="no autoencoder has OrphanConfig as its config_type"):
        resolve_config(OrphanConfig(), SHAPE)


def test_a_variant_without_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"there is no loss for a GaussianConfig: pass one"):
        create_learner(GaussianConfig(), SHAPE)
    assert create_learner(GaussianConfig(), SHAPE, loss=VAELoss()).loss.beta == 1.0


def test_a_name_that_is_taken_does_not_hide_ours():
    shadow = dataclasses.make_dataclass(
        "VAEConfig",
        [("wings", int, 2)],
        bases=(VAEConfig,),
        frozen=True,
        kw_only=True,
        namespace={"__module__": "mine"},
    )
    config = CONFIGS["vae"].for_shape(SHAPE)
    assert type(config_from_dict(config.to_dict())) is VAEConfig
    assert config_from_dict(shadow(wings=3).to_dict()) == shadow(wings=3)
    assert shadow().to_dict()["type"] == "mine:VAEConfig"


def test_the_discriminators_rate_reaches_its_optimizer():
    learner = create_learner(FactorConfig(discriminator_learning_rate=3e-5), SHAPE)
    assert learner.adversary.optimizer.defaults["lr"] == 3e-5
    own = create_learner("vae", SHAPE, loss=FactorLoss(Discriminator(32, 4, 2), 1.0))
    assert own.adversary.discriminator is own.loss.discriminator
