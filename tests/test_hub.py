"""Saved autoencoders: folders of safetensors and JSON."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import in_clean_process
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from rl_ae import CONFIGS, Autoencoder, create_autoencoder, create_encoder, create_learner
from rl_ae.autoencoders import BurgessVAE, ConvVAE, VectorVAE
from rl_ae.configs import config_from_dict

SHAPE = (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, SHAPE) for name in CONFIGS), ("vae", (12,)), ("rae", (12,)), ("sqvae", (12,))], ids=str
)
def test_any_variant_comes_back(name, shape, tmp_path):
    autoencoder = create_autoencoder(dataclasses.replace(CONFIGS[name], input_centre=0.25), shape)
    autoencoder.save_pretrained(tmp_path)
    restored = Autoencoder.from_pretrained(tmp_path)
    assert type(restored) is type(autoencoder) and restored.config == autoencoder.config
    assert not restored.training
    observations = torch.rand(2, *shape)
    assert torch.equal(restored.reconstruct(observations), autoencoder.reconstruct(observations))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def restore(folder):
    """Whether a saved autoencoder reconstructs as it did, and what its config says."""
    pair = load_file(folder / "pair.safetensors")
    restored = Autoencoder.from_pretrained(folder)
    return torch.equal(restored.reconstruct(pair["x"]), pair["y"]), restored.config.gamma


def test_it_comes_back_in_a_new_process(tmp_path):
    autoencoder = create_autoencoder("factor", SHAPE)
    autoencoder.save_pretrained(tmp_path)
    observations = torch.rand(2, *SHAPE)
    save_file(
        {"x": observations, "y": autoencoder.reconstruct(observations).detach().contiguous()},
        tmp_path / "pair.safetensors",
    )
    assert in_clean_process(restore, tmp_path) == (True, 6.4)


def test_a_class_loads_its_own_kind_alone(tmp_path):
    ConvVAE(latent_size=8).save_pretrained(tmp_path)
    assert ConvVAE.from_pretrained(tmp_path).latent_dim == 8
    with pytest.raises(ValueError, match=r"holds a ConvVAE, expected one of \['VectorVAE'\]"):
        VectorVAE.from_pretrained(tmp_path)


def test_seed_signatures_survive_the_round_trip(tmp_path):
    for autoencoder in (ConvVAE(5, 1, (20, 30)), VectorVAE(12, 4, 7), BurgessVAE((1, 32, 32), latent_dim=3)):
        autoencoder.save_pretrained(tmp_path / type(autoencoder).__name__)
        restored = Autoencoder.from_pretrained(tmp_path / type(autoencoder).__name__)
        assert (type(restored), restored.config) == (type(autoencoder), autoencoder.config)


def test_damage_is_named(tmp_path):
    create_autoencoder("vae", SHAPE).save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, text = load_file(weights), config.read_text()

    save_file({name: tensor for name, tensor in state.items() if name != "encoder.head.mu.bias"}, weights)
    with pytest.raises(ValueError, match=r"does not fit BurgessVAE: missing \['encoder.head.mu.bias'\], extra \[\]"):
        Autoencoder.from_pretrained(tmp_path)
    save_file({**state, "stranger": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"missing \[\], extra \['stranger'\]"):
        Autoencoder.from_pretrained(tmp_path)
    save_file({**state, "encoder.head.mu.bias": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match=r"(?s)does not fit its config: .*encoder.head.mu.bias"):
        Autoencoder.from_pretrained(tmp_path)
    weights.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is damaged"):
        Autoencoder.from_pretrained(tmp_path)

    save_file(state, weights)
    config.write_text(json.dumps({**json.loads(text), "class": "Stranger"}))
    with pytest.raises(ValueError, match="holds a Stranger, expected one of"):
        Autoencoder.from_pretrained(tmp_path)
    config.write_text(json.dumps({**json.loads(text), "wings": 2}))
    with pytest.raises(ValueError, match=r"VAEConfig has no fields \['wings'\]"):
        Autoencoder.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no model.safetensors"):
        Autoencoder.from_pretrained(tmp_path)


def test_a_failed_save_leaves_the_earlier_weights(tmp_path, monkeypatch):
    first = create_autoencoder("vae", SHAPE)
    first.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(tensors, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("rl_ae.autoencoders.base.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        create_autoencoder("vae", SHAPE).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_pushing_uploads_weights_config_and_card(monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **kwargs):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()}, repo=repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    autoencoder = create_autoencoder("sqvae", SHAPE)
    autoencoder.push_to_hub("somebody/eyes")
    assert uploaded.keys() == {"config.json", "model.safetensors", "README.md", "repo"}
    assert uploaded["repo"] == "somebody/eyes" and b"autoencoder" in uploaded["README.md"]
    assert config_from_dict({k: v for k, v in json.loads(uploaded["config.json"]).items() if k != "class"}) == (
        autoencoder.config
    )


def test_a_folder_stands_where_a_name_does(tmp_path):
    saved = create_autoencoder("beta_h", SHAPE)
    saved.save_pretrained(tmp_path)
    observations = torch.rand(2, *SHAPE)
    expected = saved.encode(observations).mode
    for folder in (tmp_path, str(tmp_path)):
        assert torch.equal(create_encoder(folder, SHAPE)(observations).mode, expected)
        autoencoder = create_autoencoder(folder, SHAPE)
        assert torch.equal(autoencoder.reconstruct(observations), saved.reconstruct(observations))
        assert autoencoder.training
        learner = create_learner(folder, SHAPE)
        assert learner.loss.beta == 4.0
    other = create_encoder("beta_h", SHAPE)
    autoencoder = create_autoencoder(tmp_path, SHAPE, encoder=other)
    assert autoencoder.encoder is other
    z = torch.randn(2, 32)
    assert torch.equal(autoencoder.decode(z), saved.decode(z))
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\), observations are \(3, 32, 32\)"):
        create_encoder(tmp_path, (3, 32, 32))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        create_encoder(tmp_path / "nowhere", SHAPE)


def test_a_folder_or_hub_id_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match="not/a/folder is neither a folder nor a saved autoencoder on the Hub"):
        create_encoder("not/a/folder", SHAPE)

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", offline)
    monkeypatch.setattr("rl_ae.autoencoders.base.hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match=r"somebody/eyes is neither a folder nor .* no connection"):
        create_encoder("somebody/eyes", SHAPE)


def test_what_is_saved_cannot_be_changed_while_loading(tmp_path):
    BurgessVAE(SHAPE, latent_dim=3).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"\['latent_dim'\] cannot be changed"):
        Autoencoder.from_pretrained(tmp_path, latent_dim=5)
    with pytest.raises(TypeError, match=r"has no \['wings'\]"):
        Autoencoder.from_pretrained(tmp_path, wings=2)
