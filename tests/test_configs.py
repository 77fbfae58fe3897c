import json

import pytest
import torch

from rl_ae import CONFIGS, ConvConfig, RAEConfig, create_autoencoder, resolve_config
from rl_ae.configs import config_from_dict


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name):
    config = CONFIGS[name].for_shape((3, 32, 32))
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_names_resolve_and_unknown_ones_list_the_known():
    assert resolve_config("rae", (3, 32, 32)) == RAEConfig(observation_shape=(3, 32, 32))
    with pytest.raises(ValueError, match=r"'nae', expected one of \['ae', 'rae', 'rae_compact'\]"):
        resolve_config("nae", (3, 32, 32))


def test_a_live_module_is_refused():
    with pytest.raises(TypeError, match="got ConvAutoencoder"):
        resolve_config(create_autoencoder("rae", (1, 16, 16)), (1, 16, 16))


def test_a_config_for_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), observations are \(3, 64, 64\)"):
        resolve_config(RAEConfig(observation_shape=(3, 32, 32)), (3, 64, 64))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be ≥ 1, got 0"),
        ({"latent_weight": -1.0}, "latent_weight must be ≥ 0, got -1.0"),
        ({"decoder_learning_rate": -1.0}, "decoder_learning_rate must be ≥ 0"),
        ({"target_bits": 9}, "between 1 and 8, or None, got 9"),
        ({"input_centre": 255.0}, r"input_centre must be in \[0, 1\], got 255.0"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RAEConfig(**kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"strides": (2,)}, {"filters": (), "strides": ()}, {"padding": 3}, {"kernel_size": 0}]
)
def test_impossible_convolutions_are_refused(kwargs):
    with pytest.raises(ValueError, match="filters"):
        ConvConfig(**kwargs)


def test_unknown_types_and_fields_are_refused():
    with pytest.raises(ValueError, match="unknown config type 'VAEConfig'"):
        config_from_dict({"type": "VAEConfig"})
    with pytest.raises(ValueError, match=r"no fields \['beta'\]"):
        config_from_dict({"type": "RAEConfig", "beta": 1.0})


def test_variants_are_what_their_names_say():
    penalty = {name: (config.latent_weight, config.decoder_weight_decay) for name, config in CONFIGS.items()}
    assert penalty == {"ae": (0.0, 0.0), "rae": (1e-6, 1e-7), "rae_compact": (1e-6, 1e-7)}
    images = (3, 64, 64)
    paper, compact = (create_autoencoder(name, images).encoder.trunk.out_features for name in ("rae", "rae_compact"))
    assert compact < paper / 5
    assert torch.is_tensor(create_autoencoder("ae", images)(torch.rand(1, *images)).z)
