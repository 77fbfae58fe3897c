"""Policies as ONNX: the actions of ``predict`` under onnxruntime, or no file."""

import logging

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import DotEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from test_wrappers import CameraEnv

import rl_ae
from rl_ae import Autoencoder, ConvConfig, FSQConfig, RAEConfig, SQVAEConfig, VAEConfig, VQVAEConfig
from rl_ae.autoencoders import VQVAE
from rl_ae.configs import subclasses
from rl_ae.sb3 import SACAE, TD3AE, AutoencoderExtractor
from rl_ae.sb3.export import OnnxPolicy, export_onnx, median_latency

SHAPE = (3, 12, 14)
CONV = ConvConfig(filters=(4,), strides=(4,), kernel_size=4)


class ButtonsEnv(gym.ActionWrapper):
    """Four buttons instead of a plane of actions."""

    def __init__(self):
        super().__init__(DotEnv(SHAPE))
        self.action_space = gym.spaces.Discrete(4)

    def action(self, button):
        return np.float32([1 - button // 2 * 2, 1 - button % 2 * 2])


def policy_kwargs(config):
    return {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": config(conv=CONV)},
        "net_arch": [8],
    }


def agent(algorithm=SACAE, config=RAEConfig, env=None, **kwargs):
    kwargs |= {"buffer_size": 5, "autoencoder": config(conv=CONV), "policy_kwargs": {"net_arch": [8]}}
    return algorithm("CnnPolicy", DotEnv(SHAPE) if env is None else env, **kwargs)


def off_policy(algorithm, config=RAEConfig, env=None):
    env = DotEnv(SHAPE) if env is None else env
    return algorithm("CnnPolicy", env, buffer_size=5, policy_kwargs=policy_kwargs(config), seed=0)


AGENTS = {
    "SAC-AE": agent,
    "SAC-AE with gSDE and float images": lambda: agent(
        config=SQVAEConfig, env=DotEnv(SHAPE, dtype=np.float32, high=1.0), use_sde=True
    ),
    "TD3-AE": lambda: agent(TD3AE),
    "TD3 and a VAE": lambda: off_policy(TD3, VAEConfig),
    "SAC and SQ-VAE": lambda: off_policy(SAC, SQVAEConfig),
    "SAC and FSQ": lambda: off_policy(SAC, FSQConfig),
    "SAC and VQ-VAE": lambda: off_policy(SAC, VQVAEConfig),
    "DQN": lambda: off_policy(DQN, env=ButtonsEnv()),
    "PPO": lambda: PPO("CnnPolicy", DotEnv(SHAPE), n_steps=8, batch_size=8, policy_kwargs=policy_kwargs(RAEConfig)),
}


def sharpen(model, frames):
    """Spread the actions of an untrained policy: over their range and beyond, or over all buttons."""
    last = [p for name, p in model.policy.named_parameters() if name.startswith(("actor.mu", "action_net", "q_net."))]
    with torch.no_grad():
        last[-2].mul_(10.0)  # a weight and its bias
        if isinstance(model, PPO):
            last[-1][0] = 5.0  # beyond the range, which is clipped
        if isinstance(model, DQN):
            last[-1].sub_(model.q_net(torch.as_tensor(frames)).mean(dim=0))


@pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)
def test_actions_are_those_of_predict(make, tmp_path):
    model = make()
    frames = np.random.default_rng(1).integers(256, size=(7, *SHAPE), dtype=np.uint8)
    frames = frames // np.arange(1, 8, dtype=np.uint8)[:, None, None, None]  # from bright to dark
    if model.observation_space.dtype == np.float32:
        frames = frames / np.float32(255)
    sharpen(model, frames)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    path = export_onnx(model, tmp_path / "new/policy.onnx")

    session = onnxruntime.InferenceSession(path)  # as one without this package would
    [actions] = session.run(["action"], {"observation": frames})
    expected = model.predict(frames, deterministic=True)[0]
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert actions.dtype == expected.dtype and len(np.unique(actions.round(3))) > 1
    assert session.get_modelmeta().custom_metadata_map == {"rl_ae_version": rl_ae.__version__}
    assert [path.name for path in path.parent.iterdir()] == ["policy.onnx"]

    policy = OnnxPolicy(path)
    assert np.array_equal(policy.predict(frames)[0], actions)
    for index in (0, 6):  # alone, as an environment returns it
        action = policy.predict(frames[index], deterministic=True)[0]
        np.testing.assert_allclose(action, expected[index], rtol=0, atol=1e-5)
        assert np.shape(action) == model.action_space.shape
    after = model.policy.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("algorithm", [SAC, TD3AE])
def test_a_dict_has_an_input_a_key(algorithm, tmp_path):
    env = CameraEnv(shape=(3, 40, 44))
    model = algorithm("MultiInputPolicy", env, buffer_size=5, policy_kwargs={"net_arch": [8]})
    policy = OnnxPolicy(export_onnx(model, tmp_path / "policy.onnx"))
    observation = env.reset(seed=1)[0]
    expected = model.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(policy.predict(observation)[0], expected, rtol=0, atol=1e-5)
    assert {entry.name for entry in policy.session.get_inputs()} == set(observation)


def test_a_policy_that_acts_otherwise_is_not_written(tmp_path, monkeypatch):
    model, path = agent(), tmp_path / "policy.onnx"
    path.write_text("an earlier one")
    frames = np.random.default_rng(0).integers(256, size=(3, *SHAPE), dtype=np.uint8)
    predict = model.predict

    def shifted(observation, deterministic):
        """Of the last of the given frames alone, so that it is seen whether they are compared."""
        actions = predict(observation, deterministic=deterministic)[0]
        return actions + (observation == frames[-1]).all(axis=(1, 2, 3))[:, None] * np.float32(2e-5), None

    monkeypatch.setattr(model, "predict", shifted)
    with pytest.raises(ValueError, match=r"differ from predict's by 2e-05, expected at most 1e-05"):
        export_onnx(model, path, frames)
    assert path.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [path]
    export_onnx(model, path, frames, tolerance=3e-5)
    assert OnnxPolicy(path).predict(frames)[0].shape == (3, 2)


def test_wide_ranges_are_compared_in_their_own_unit(tmp_path, monkeypatch):
    env = DotEnv(SHAPE)
    env.action_space = gym.spaces.Box(np.float32([-2e4, -1]), np.float32([2e4, 1]))
    model = agent(env=env)
    predict = model.predict

    def export(error):
        shifted = lambda obs, deterministic: (predict(obs, deterministic=True)[0] + np.float32(error), None)  # noqa: E731
        monkeypatch.setattr(model, "predict", shifted)
        export_onnx(model, tmp_path / "policy.onnx")

    export([1e-3, 0])
    with pytest.raises(ValueError, match=r"differ from predict's by 0\.001"):
        export([0, 1e-3])


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    recurrent = RecurrentPPO("CnnLstmPolicy", DotEnv((3, 36, 36)), n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match="RecurrentActorCriticCnnPolicy is recurrent"):
        export_onnx(recurrent, tmp_path / "policy.onnx")

    model = agent()
    with monkeypatch.context() as patch:
        branch = lambda observation, deterministic: observation.float() if observation.max() > 3 else None  # noqa: E731
        patch.setattr(model.policy, "_predict", branch)
        with pytest.raises(ValueError, match="SACAEPolicy cannot be translated to ONNX: Could not guard on data-dep"):
            export_onnx(model, tmp_path / "policy.onnx")
    monkeypatch.setattr("rl_ae.sb3.export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r'ONNX needs onnxscript: pip install "rl-ae\[export\]"'):
        export_onnx(model, tmp_path / "policy.onnx")
    assert not any(tmp_path.iterdir())


def test_the_exporter_leaves_the_process_as_it_was(tmp_path):
    logger = logging.getLogger("torch.onnx")
    before = torch.distributions.Distribution._validate_args, logger.level
    model = off_policy(SAC, VQVAEConfig)
    export_onnx(model, tmp_path / "policy.onnx")
    assert (torch.distributions.Distribution._validate_args, logger.level) == before
    codebook = model.actor.features_extractor.encoder.head.quantizer._codebook
    assert "init_embed_" not in vars(codebook)


def test_what_the_exporter_derives_is_not_taken_for_a_class_of_ours():
    """It traces shared modules through subclasses that bear the name of their base, and may outlive it."""
    derived = type("VQVAE", (VQVAE,), {"__module__": VQVAE.__module__})
    assert subclasses(Autoencoder)["VQVAE"] is VQVAE is not derived


def test_a_latency_is_the_median_of_its_calls(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr("rl_ae.sb3.export.time.perf_counter", lambda: next(clock))
    calls = []
    assert median_latency(lambda: calls.append(1), calls=3) == 2.0
    assert len(calls) == 4
