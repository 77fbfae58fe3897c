"""Observations of several parts, and images with bounds of their own, in SACAE, TD3AE and stock agents."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import DotEnv, step_critic, step_representation
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_sac_ae import assert_same

from rl_ae import ConvConfig, RAEConfig, VAEConfig, create_autoencoder
from rl_ae.networks import TanhProjection
from rl_ae.sb3 import SACAE, TD3AE, AutoencoderExtractor, AuxiliaryLossCallback
from rl_ae.sb3.callbacks import TensorboardReconstructions
from rl_ae.sb3.evaluation import reconstruct
from rl_ae.sb3.observations import bounds, image_shape, make_views

CONFIG = RAEConfig(latent_dim=6, conv=ConvConfig(filters=(4, 4), strides=(2, 2), padding=1))
VECTOR = VAEConfig(latent_dim=3)
SMALL = {
    "policy_kwargs": {"net_arch": [16]},
    "learning_starts": 15,
    "batch_size": 8,
    "buffer_size": 200,
    "device": "cpu",
    "seed": 0,
}


class RobotEnv(gym.Env):
    """Two cameras of different sizes, a velocity, a gear and a wide sensor; DotEnv's dot behind all of them."""

    def __init__(self):
        self.dot = DotEnv((3, 16, 16))
        self.action_space = self.dot.action_space
        self.observation_space = spaces.Dict(
            {
                "front": spaces.Box(0, 255, (3, 16, 16), np.uint8),
                "gear": spaces.Discrete(3),
                "sensor": spaces.Box(-np.inf, np.inf, (2, 4), np.float32),
                "velocity": spaces.Box(-1.0, 1.0, (2,), np.float32),
                "wrist": spaces.Box(0, 255, (1, 12, 20), np.uint8),
            }
        )

    def _parts(self, image):
        return {
            "front": image,
            "gear": self.dot.steps % 3,
            "sensor": np.resize(self.dot.position, (2, 4)).astype(np.float32),
            "velocity": self.dot.position.astype(np.float32),
            "wrist": image[:1, :12, :].repeat(2, axis=2)[:, :, :20],
        }

    def reset(self, *, seed=None, options=None):
        image, info = self.dot.reset(seed=seed)
        return self._parts(image), info

    def step(self, action):
        image, *rest = self.dot.step(action)
        return self._parts(image), *rest


CHOICE = {"front": CONFIG, "wrist": CONFIG, "sensor": VECTOR}
WIDTHS = {"front": 6, "gear": 3, "sensor": 3, "velocity": 2, "wrist": 6}


def make_agent(algorithm, **kwargs):
    env = kwargs.pop("env", None) or RobotEnv()
    return algorithm("MultiInputPolicy", env, **{**SMALL, "autoencoder": CHOICE, **kwargs})


def preprocessed(observation):
    """One observation as Stable-Baselines3 preprocesses it."""
    gear = torch.zeros(1, 3)
    gear[0, observation["gear"]] = 1.0
    return {
        "front": torch.as_tensor(observation["front"])[None] / 255,
        "gear": gear,
        "sensor": torch.as_tensor(observation["sensor"])[None],
        "velocity": torch.as_tensor(observation["velocity"])[None],
        "wrist": torch.as_tensor(observation["wrist"])[None] / 255,
    }


def test_features_follow_the_spaces_order():
    extractor = AutoencoderExtractor(RobotEnv().observation_space, CHOICE)
    assert extractor.features_dim == sum(WIDTHS.values()) and set(extractor.encoders) == {"front", "sensor", "wrist"}
    observation = preprocessed(RobotEnv().reset(seed=0)[0])
    parts = dict(zip(WIDTHS, extractor(observation).split(list(WIDTHS.values()), dim=1), strict=True))
    assert torch.equal(parts["gear"], observation["gear"]) and torch.equal(parts["velocity"], observation["velocity"])
    for name in ("front", "wrist"):
        assert torch.equal(parts[name], extractor.encoders[name](observation[name]).mode)
    assert torch.equal(parts["sensor"], extractor.encoders["sensor"](observation["sensor"].flatten(1)).mu)


def test_one_autoencoder_is_for_every_image_and_none_for_the_rest():
    views = make_views(RobotEnv().observation_space, CONFIG)
    assert {name: view.autoencoder for name, view in views.items()} == {
        "front": CONFIG,
        "gear": None,
        "sensor": None,
        "velocity": None,
        "wrist": CONFIG,
    }
    assert [view.shape for view in views.values()] == [(3, 16, 16), (3,), (8,), (2,), (1, 12, 20)]
    left_out = make_views(RobotEnv().observation_space, {"front": None, "velocity": VECTOR})
    assert left_out["front"] == (RobotEnv().observation_space["front"], (768,), None)
    assert left_out["wrist"].autoencoder == "rae" and left_out["velocity"].autoencoder == VECTOR


@pytest.mark.parametrize("algorithm", [SACAE, TD3AE])
def test_agents_learn_save_and_load(algorithm, tmp_path):
    agent = make_agent(algorithm)
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(40)
    after = agent.policy.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("weight"))
    assert set(agent.policy.autoencoders) == {"front", "sensor", "wrist"}
    assert {learner.step for learner in agent.learner.learners.values()} == {agent._n_updates}

    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=RobotEnv())
    assert_same(agent.get_parameters(), loaded.get_parameters())
    observation = RobotEnv().reset(seed=5)[0]
    actions = [model.predict(observation, deterministic=True)[0] for model in (agent, loaded)]
    assert np.array_equal(*actions)
    loaded.learn(5, reset_num_timesteps=False)

    agent.save_replay_buffer(tmp_path / "buffer")
    resumed = algorithm.load(tmp_path / "agent")
    for model in (agent, resumed):
        model.load_replay_buffer(tmp_path / "buffer")
        model.train(3, 8)
    assert_same(agent.get_parameters(), resumed.get_parameters())


def test_each_part_has_its_trunk_its_heads_and_its_scale():
    agent = make_agent(SACAE).learn(20)
    actor, critic = agent.actor.features_extractor, agent.critic.features_extractor
    assert actor.features_dim == 6 + 3 + 50 + 2 + 6
    for name in critic.encoders:
        assert actor.encoders[name].trunk is critic.encoders[name].trunk
        assert actor.encoders[name].head is not critic.encoders[name].head
        assert isinstance(actor.encoders[name].head, TanhProjection)
    latent, actions = torch.randn(4, 20), torch.zeros(4, 2)
    scaled = latent.clone()
    scaled[:, 9:12] *= 100.0  # the sensor's, which no tanh bounds
    assert torch.allclose(agent.critic.q_values(latent, actions), agent.critic.q_values(scaled, actions), atol=1e-3)
    scaled[:, 12:14] *= 100.0  # the velocity, as it is
    assert not torch.allclose(agent.critic.q_values(latent, actions), agent.critic.q_values(scaled, actions), atol=1e-3)


@pytest.mark.parametrize("algorithm", [SACAE, TD3AE])
def test_losses_reach_their_owners_alone(algorithm):
    agent = make_agent(algorithm, policy_kwargs={"net_arch": [16], "reconstruct": ["front", "sensor"]}).learn(20)
    critic = agent.critic.features_extractor.encoders
    owned = {
        **{f"{name} encoder": list(critic[name].parameters()) for name in critic},
        **{f"{name} decoder": list(module.decoder.parameters()) for name, module in agent.policy.autoencoders.items()},
        "actor": [p for group in agent.actor.optimizer.param_groups for p in group["params"]],
    }
    assert set(agent.policy.autoencoders) == {"front", "sensor"}
    with agent.generators.active():
        batch = agent._sample(8)
    assert set(batch.targets) == {"front", "sensor"}
    with agent._autocast():
        assert agent.policy.actor_latent(agent._encode(batch.observations).detach_features()).requires_grad
    steps = {
        "critic": lambda: step_critic(agent, batch),
        "actor": lambda: (
            agent._update_actor_and_temperature(agent._encode(batch.observations), None)
            if algorithm is SACAE
            else agent._update_actor(agent._encode(batch.observations))
        ),
        "representation": lambda: step_representation(agent, batch),
    }
    moved = {}
    for loss, step in steps.items():
        before = {name: [p.detach().clone() for p in parameters] for name, parameters in owned.items()}
        step()
        moved[loss] = {
            name
            for name, parameters in owned.items()
            if any(not torch.equal(p, old) for p, old in zip(parameters, before[name], strict=True))
        }
    assert moved == {
        "critic": {"front encoder", "sensor encoder", "wrist encoder"},
        "actor": {"actor"},
        "representation": {"front encoder", "front decoder", "sensor encoder", "sensor decoder"},
    }


def test_the_logged_gradients_are_the_losses_own():
    """The wrist's trunk, which is not reconstructed, keeps nothing of the critic's gradient."""
    agent = make_agent(SACAE, policy_kwargs={"net_arch": [16], "reconstruct": ["front"]}, diagnostics_interval=1)
    agent.learn(20)
    with agent.generators.active():
        batch = agent._sample(8)
    step_critic(agent, batch)
    metrics = step_representation(agent, batch)
    trunks = {name: e.trunk.parameters() for name, e in agent.critic.features_extractor.encoders.items()}
    assert all(p.grad is None for name in ("wrist", "sensor") for p in trunks[name])
    front = torch.cat([p.grad.flatten() for p in trunks["front"]])
    assert metrics["ae_gradient_norm"].item() == pytest.approx(front.norm().item(), rel=1e-4)
    assert metrics["td_gradient_norm"] > 0 and {"front/psnr", "front/effective_rank"} <= metrics.keys()


def test_vectors_alone_may_have_autoencoders():
    agent = make_agent(SACAE, autoencoder={"front": None, "wrist": None, "sensor": VECTOR}).learn(25)
    assert agent.learner.step == agent._n_updates
    assert agent.predict(RobotEnv().reset(seed=0)[0])[0].shape == (2,)


def test_vectors_alone_may_be_normalised():
    env = VecNormalize(DummyVecEnv([RobotEnv]), norm_obs_keys=["sensor", "velocity"])
    agent = make_agent(TD3AE, env=env).learn(30)
    with agent.generators.active():
        batch = agent._sample(64)
    assert batch.observations["front"].max() == 1.0 and batch.observations["sensor"].std() > 0.5
    with pytest.raises(ValueError, match=r"name vectors alone in norm_obs_keys; got the images \['front'\]"):
        make_agent(TD3AE, env=VecNormalize(DummyVecEnv([RobotEnv]), norm_obs_keys=["front", "sensor"]))


def test_reconstructions_by_name():
    agent = make_agent(SACAE).learn(20)
    observation = RobotEnv().reset(seed=0)[0]
    parts = agent.policy.reconstruct(observation)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "front": (1, 3, 16, 16),
        "sensor": (1, 8),
        "wrist": (1, 1, 12, 20),
    }
    expected = agent.policy.autoencoders["front"].reconstruct(preprocessed(observation)["front"])
    assert torch.equal(parts["front"], expected)
    with pytest.raises(ValueError, match="shows images alone"):
        agent.learn(1, TensorboardReconstructions(1, 3))


def test_several_environments_n_steps_and_one_part_alone():
    env = make_vec_env(RobotEnv, 2)
    assert make_agent(SACAE, env=env, autoencoder=CONFIG).learn(40).predict(env.reset())[0].shape == (2, 2)
    agent = make_agent(TD3AE, autoencoder={"front": CONFIG, "wrist": None}).learn(30)
    assert agent.policy.autoencoder.observation_shape == (3, 16, 16)
    assert agent.learner.step == agent._n_updates


def test_a_frozen_part_stays(tmp_path):
    saved = create_autoencoder(CONFIG, (3, 16, 16))
    saved.save_pretrained(tmp_path / "front")
    agent = make_agent(SACAE, autoencoder={"front": tmp_path / "front", "wrist": None}, freeze_encoder=True).learn(30)
    assert_same(dict(saved.encoder.state_dict()), dict(agent.critic.features_extractor.encoders["front"].state_dict()))
    assert agent.autoencoder["front"] == saved.config


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO])
def test_stock_agents_reconstruct_every_part(algorithm, tmp_path):
    kwargs = {"n_steps": 32, "batch_size": 16, "n_epochs": 1} if algorithm is PPO else {"learning_starts": 10}
    kwargs |= {} if algorithm is PPO else {"buffer_size": 100, "batch_size": 8}
    policy_kwargs = {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": CHOICE},
        "net_arch": [16],
    }
    agent = algorithm("MultiInputPolicy", RobotEnv(), policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    callback = AuxiliaryLossCallback()
    agent.learn(33, callback=callback)
    assert set(callback.learners) == {"front", "sensor", "wrist"} and callback.step > 0
    agent.save(tmp_path / "agent")
    callback.save(tmp_path / "callback")
    again = AuxiliaryLossCallback().load(tmp_path / "callback")
    algorithm.load(tmp_path / "agent", env=RobotEnv()).learn(33, callback=again)
    assert again.step > callback.step


# ---------------------------------------------------------------------- images with bounds of their own


class DepthEnv(DotEnv):
    """Depth in metres: 0.5 where the dot is not, 4 where it is."""

    def __init__(self):
        super().__init__((1, 16, 16), dtype=np.float32, low=0.5, high=4.0)

    def _observe(self):
        return np.maximum(super()._observe(), np.float32(0.5))


@pytest.mark.parametrize("algorithm", [SACAE, TD3AE])
def test_depth_is_scaled_by_its_bounds(algorithm):
    agent = algorithm("CnnPolicy", DepthEnv(), **SMALL, autoencoder=CONFIG).learn(30)
    with agent.generators.active():
        batch = agent._sample(32)
    assert set(batch.observations.unique().tolist()) == {0.0, 1.0}
    raw = torch.as_tensor(DepthEnv().reset(seed=0)[0][None])
    extractor = agent.critic.features_extractor
    assert torch.equal(extractor(raw), extractor.encoder((raw - 0.5) / 3.5).mode)
    assert np.isfinite(agent.predict(raw.numpy())[0]).all()
    expected = agent.policy.autoencoder.reconstruct((raw - 0.5) / 3.5)
    assert torch.equal(agent.policy.reconstruct(raw[0].numpy()), expected)
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got \[0.5, 4.0\]: model.policy.reconstruct"):
        reconstruct(agent.policy.autoencoder, raw.numpy())


def test_depth_beyond_its_bounds_is_refused():
    extractor = AutoencoderExtractor(DepthEnv().observation_space, CONFIG)
    extractor(torch.full((1, 1, 16, 16), 4.0 + 1e-5))
    again = AutoencoderExtractor(DepthEnv().observation_space, CONFIG)
    with pytest.raises(ValueError, match=r"exceeds the bounds that its space declares, up to 4.0"):
        again(torch.full((1, 1, 16, 16), 5.0))


def test_bounds():
    def limits(low, high, dtype=np.float32):
        view = make_views(spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype), "rae")["observation"]
        return bounds(view)

    ones = np.ones((1, 8, 8))
    assert limits(0 * ones, 255 * ones, np.uint8) is None and limits(0 * ones, ones) is None
    assert [limit.item() for limit in limits(-ones, ones)] == [-1.0, 1.0]
    assert [limit.item() for limit in limits(0 * ones, 1000 * ones, np.int32)] == [0.0, 1000.0]
    high = ones.copy()
    high[0, 3, 4] = 2.0
    low, other = limits(-ones, high)
    assert low.shape == (1, 8, 8) and torch.equal(other, torch.as_tensor(high, dtype=torch.float32))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("autoencoder", "message"),
    [
        ({"back": "rae"}, r"autoencoders for \['back'\], but the observations are \['front', 'gear'"),
        ({"front": None, "wrist": None}, r"no autoencoder for any of \['front', 'gear'"),
        ({"sensor": "conv_vae"}, r"sensor: ConvVAE takes a shape \(C, H, W\) of images, got \(8,\)"),
        ({"front": "nope"}, "front: .*expected one of"),
        ({"front": RAEConfig(observation_shape=(3, 20, 20))}, r"front: .*\(3, 20, 20\)"),
    ],
)
def test_bad_choices_are_refused(autoencoder, message):
    with pytest.raises(ValueError, match=message):
        make_agent(SACAE, autoencoder=autoencoder)


def test_a_saved_autoencoder_is_for_one_size(tmp_path):
    create_autoencoder(CONFIG, (3, 16, 16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"wrist: .*\(3, 16, 16\).*\(1, 12, 20\)"):
        make_agent(TD3AE, autoencoder=str(tmp_path))


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"autoencoders by name \['front'\] need a Dict"):
        SACAE("CnnPolicy", DotEnv(), autoencoder={"front": CONFIG})
    with pytest.raises(ValueError, match="may not contain a dot, got"):
        make_views(spaces.Dict({"left.camera": DotEnv().observation_space}), "rae")
    with pytest.raises(ValueError, match=r"must name some of \['front', 'sensor', 'wrist'\], got \['gear'\]"):
        make_agent(SACAE, policy_kwargs={"reconstruct": ["gear"]})
    with pytest.raises(ValueError, match=r"there is one each for \['front', 'sensor', 'wrist'\]"):
        _ = make_agent(SACAE).policy.autoencoder
    with pytest.raises(ValueError, match="at least 8×8"):
        image_shape(spaces.Box(0.0, 5.0, (1, 4, 9)))
    small = spaces.Dict({"tiny": spaces.Box(0, 255, (1, 4, 9), np.uint8)})
    with pytest.raises(ValueError, match=r'tiny: images must have at least 8×8 .* pass {"tiny": None}'):
        make_views(small, "rae")
    stacked = spaces.Dict({"stack": spaces.Box(0, 255, (4, 16, 16, 3), np.uint8), **RobotEnv().observation_space})
    with pytest.raises(ValueError, match=r"stack: expected an image \(C, H, W\), got \(4, 16, 16, 3\); reshape"):
        make_views(stacked, "rae")
    assert make_views(stacked, {"stack": None})["stack"].shape == (3072,)
    with pytest.raises(ValueError, match=r"freeze in features_extractor_kwargs: .* use SACAE\(freeze_encoder=True\)"):
        make_agent(SACAE, policy_kwargs={"features_extractor_kwargs": {"freeze": True}})
