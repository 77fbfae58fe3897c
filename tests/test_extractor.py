import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from stable_baselines3 import PPO, SAC

from rl_ae import ConvConfig, RAEConfig, VQVAEConfig, create_autoencoder
from rl_ae.sb3 import AutoencoderExtractor, AuxiliaryLossCallback
from rl_ae.sb3.observations import image_shape

CONFIG = RAEConfig(latent_dim=8, conv=ConvConfig(filters=(8, 8), strides=(2, 2), padding=1))
POLICY_KWARGS = {
    "features_extractor_class": AutoencoderExtractor,
    "features_extractor_kwargs": {"autoencoder": CONFIG},
    "net_arch": [16],
}


def make_agent(algorithm, env=None, **policy_kwargs):
    kwargs = (
        {"n_steps": 32, "batch_size": 16, "n_epochs": 1}
        if algorithm is PPO
        else {"buffer_size": 100, "learning_starts": 10}
    )
    policy_kwargs = {**POLICY_KWARGS, **policy_kwargs}
    return algorithm("CnnPolicy", DotEnv() if env is None else env, policy_kwargs=policy_kwargs, seed=0, **kwargs)


def extractors(agent):
    if isinstance(agent, PPO):
        return {"shared": agent.policy.features_extractor}
    return {name: getattr(agent, name).features_extractor for name in ("actor", "critic", "critic_target")}


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_it_trains_saves_and_loads(algorithm, tmp_path):
    agent = make_agent(algorithm)
    before = {n: [p.clone() for p in e.parameters()] for n, e in extractors(agent).items()}
    agent.learn(40)
    for name, extractor in extractors(agent).items():
        assert all(not torch.equal(p, old) for p, old in zip(extractor.parameters(), before[name], strict=True)), name
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=DotEnv())
    observation = DotEnv().reset(seed=3)[0]
    assert np.array_equal(*(a.predict(observation, deterministic=True)[0] for a in (agent, loaded)))
    loaded.learn(40)


def test_sac_has_three_encoders_of_its_own():
    agent = make_agent(SAC)
    parameters = {name: {id(p) for p in extractor.parameters()} for name, extractor in extractors(agent).items()}
    assert not (parameters["actor"] & parameters["critic"] | parameters["critic"] & parameters["critic_target"])
    in_optimizer = {id(p) for group in agent.critic.optimizer.param_groups for p in group["params"]}
    assert parameters["critic"] <= in_optimizer and not parameters["actor"] & in_optimizer


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_a_frozen_encoder_stays(algorithm):
    """By the agent's losses and by the callback's, which then trains the decoder alone."""
    agent = make_agent(algorithm, features_extractor_kwargs={"autoencoder": CONFIG, "freeze": True})
    before = {n: [p.clone() for p in e.parameters()] for n, e in extractors(agent).items()}
    callback = AuxiliaryLossCallback()
    agent.learn(64, callback=callback)
    for name, extractor in extractors(agent).items():
        # a target averages equal numbers, and rounds
        same = torch.allclose if name == "critic_target" else torch.equal
        assert all(same(p, old) for p, old in zip(extractor.parameters(), before[name], strict=True)), name
    learner = next(iter(callback.learners["observation"].values()))
    assert learner.step > 0 and all(p.grad is not None for p in learner.autoencoder.decoder.parameters())


def test_a_frozen_codebook_stays():
    config = VQVAEConfig(conv=CONFIG.conv, codes=8, code_dim=4)
    agent = make_agent(PPO, features_extractor_kwargs={"autoencoder": config, "freeze": True})
    encoder, image = agent.policy.features_extractor.encoder, torch.rand(4, 3, 20, 20)
    before, features = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}, encoder(image).mode
    assert {name.rsplit(".")[-1] for name in before} >= {"embed", "embed_avg", "cluster_size"}
    callback = AuxiliaryLossCallback()
    agent.learn(32, callback=callback)
    assert callback.step > 0
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(encoder(image).mode, features)


def test_an_agent_from_a_folder_is_loaded_without_it(tmp_path):
    create_autoencoder(CONFIG, (3, 20, 20)).save_pretrained(tmp_path / "eyes")
    agent = make_agent(PPO, features_extractor_kwargs={"autoencoder": tmp_path / "eyes"}).learn(32)
    agent.save(tmp_path / "agent")
    (tmp_path / "eyes").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r'no folder .*eyes; .*custom_objects=\{"policy_kwargs": …\}'):
        PPO.load(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", env=DotEnv(), custom_objects={"policy_kwargs": POLICY_KWARGS})
    weights = agent.policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.policy.state_dict().items())
    loaded.save(tmp_path / "again")
    PPO.load(tmp_path / "again")  # nothing names the folder any more


def test_features_are_the_latents_mode():
    extractor = AutoencoderExtractor(spaces.Box(0, 255, (3, 20, 20), np.uint8), CONFIG)
    images = torch.rand(4, 3, 20, 20)
    assert extractor.features_dim == 8
    assert torch.equal(extractor(images), extractor.encoder(images).mode)


def test_float_images_work_without_scaling():
    agent = make_agent(PPO, DotEnv(dtype=np.float32, high=1.0))
    image = torch.full((1, 3, 20, 20), 0.5)
    seen = agent.policy.extract_features(image, agent.policy.features_extractor)
    assert torch.equal(seen, agent.policy.features_extractor(image))


def test_unscaled_images_are_refused():
    extractor = AutoencoderExtractor(spaces.Box(0, 255, (3, 20, 20), np.uint8), CONFIG)
    extractor(torch.zeros(1, 3, 20, 20))  # says nothing yet
    with pytest.raises(ValueError, match=r"got values up to 255.0: with normalize_images=False"):
        extractor(torch.full((1, 3, 20, 20), 255.0))
    with pytest.raises(ValueError, match="normalize_images=False"):
        make_agent(PPO, normalize_images=False).learn(40)


def test_names_and_modules():
    space = spaces.Box(0, 255, (3, 20, 20), np.uint8)
    assert AutoencoderExtractor(space).features_dim == 50
    with pytest.raises(ValueError, match="expected one of"):
        AutoencoderExtractor(space, "nope")
    with pytest.raises(TypeError, match="got ConvAutoencoder"):
        AutoencoderExtractor(space, create_autoencoder(CONFIG, (3, 20, 20)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (4,)),
        spaces.Discrete(3),
        spaces.Box(0, 255, (2, 3, 20, 20), np.uint8),
        spaces.Box(0, 1, (20, 20, 3)),
    ],
    ids=str,
)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match=r"expected images|channels first"):
        image_shape(space)
