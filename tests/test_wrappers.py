"""LatentObservation and VecLatentObservation: latents of a frozen autoencoder instead of frames."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, RescaleAction, TransformObservation
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from rl_ae import ConvConfig, RAEConfig, VAEConfig, create_autoencoder
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import to_unit
from rl_ae.sb3 import AutoencoderExtractor, LatentObservation, VecLatentObservation

SHAPE, D = (3, 12, 14), 5
CONV = ConvConfig(filters=(4,), strides=(4,), kernel_size=4)


def make_autoencoder(config=RAEConfig, shape=SHAPE):
    torch.manual_seed(0)
    return create_autoencoder(config(conv=CONV, latent_dim=D), shape)


def latents_of(autoencoder, frames):
    """(T, D) of frames (T, C, H, W), by the autoencoder itself."""
    with torch.no_grad():
        return autoencoder.encode(to_unit(torch.as_tensor(np.array(frames)))).mode.numpy()


def channels_last(env):
    space = spaces.Box(0, 255, (*env.observation_space.shape[1:], 3), np.uint8)
    return TransformObservation(env, lambda frame: frame.transpose(1, 2, 0), space)


class CameraEnv(gym.Env):
    """Two cameras and what no camera sees."""

    def __init__(self, shape=SHAPE):
        self.dot = DotEnv(shape, episode_length=4)
        camera = self.dot.observation_space
        self.observation_space = spaces.Dict(
            {"left": camera, "right": camera, "speed": spaces.Box(-1, 1, (2,)), "lap": spaces.Discrete(9)}
        )
        self.action_space = self.dot.action_space

    def _observe(self, frame):
        return {"left": frame, "right": frame[:, ::-1], "speed": np.float32([0.5, -0.5]), "lap": self.dot.steps}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(self.dot.reset(seed=seed)[0]), {}

    def step(self, action):
        frame, *rest = self.dot.step(action)
        return self._observe(frame), *rest


@pytest.mark.parametrize("layout", [lambda env: env, channels_last], ids=["channels first", "channels last"])
def test_frames_become_the_latents_mode(layout, tmp_path):
    autoencoder = make_autoencoder(VAEConfig)
    autoencoder.save_pretrained(tmp_path / "eyes")
    plain, env = DotEnv(SHAPE), LatentObservation(layout(DotEnv(SHAPE)), tmp_path / "eyes", device="cpu")
    frames, latents = [plain.reset(seed=3)[0]], [env.reset(seed=3)[0]]
    for action in np.random.default_rng(0).uniform(-2, 2, (6, 2)).astype(np.float32):
        frames.append(plain.step(action)[0])
        latents.append(env.step(action)[0])
    assert np.ptp(latents, axis=0).min() > 1e-4  # they move with the dot
    np.testing.assert_allclose(latents, latents_of(autoencoder, frames), atol=1e-6)
    assert latents[0].shape == env.observation_space.shape == (D,) and latents[0].dtype == np.float32
    assert np.isinf(env.observation_space.low).all()


def test_a_tanh_bounds_the_space_and_the_contract_holds():
    one = np.ones(2, np.float32)
    unit_actions = RescaleAction(DotEnv(SHAPE), -one, one)  # the checker warns of another range
    env = LatentObservation(unit_actions, make_autoencoder())
    assert env.observation_space == spaces.Box(-1, 1, (D,), np.float32)
    check_env(env)


def test_what_a_module_learns_later_changes_nothing():
    autoencoder = make_autoencoder().train()
    env = LatentObservation(DotEnv(SHAPE), autoencoder)
    before = env.reset(seed=0)[0]
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.add_(1.0)
    assert np.array_equal(env.reset(seed=0)[0], before)
    assert autoencoder.training and all(parameter.requires_grad for parameter in autoencoder.parameters())


def test_images_of_other_types_and_an_agents_encoder():
    autoencoder = make_autoencoder()
    bytes_env, float_env = (
        LatentObservation(env, autoencoder.encoder)
        for env in (DotEnv(SHAPE), channels_last(DotEnv(SHAPE)))  # an Encoder knows no shape: SB3's guess it is
    )
    expected = latents_of(autoencoder, DotEnv(SHAPE).reset(seed=1)[0][None])
    np.testing.assert_allclose(bytes_env.reset(seed=1)[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(float_env.reset(seed=1)[0], expected[0], atol=1e-6)
    for dtype, low, high in ((np.float32, 0.0, 1.0), (np.float32, -4.0, 4.0), (np.int16, 0, 3000), (np.uint8, 0, 9)):
        env = LatentObservation(DotEnv(SHAPE, dtype=dtype, low=low, high=high), autoencoder)
        black = to_unit(torch.full((1, *SHAPE), (0 - low) / (high - low)))  # what the environment's zeros are
        dot = torch.as_tensor(DotEnv(SHAPE).reset(seed=1)[0][None] == 255)
        expected = latents_of(autoencoder, torch.where(dot, 1.0, black).numpy())
        np.testing.assert_allclose(env.reset(seed=1)[0], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (np.uint8, 0, 255),
        (np.uint8, 0, 1),
        (np.uint8, 3, 40),
        (np.int16, 0, 1),
        (np.int16, -5, 3000),
        (np.float32, 0.0, 1.0),
        (np.float32, 0.5, 4.0),
    ],
)
def test_latents_are_those_of_the_extractor(dtype, low, high, tmp_path):
    make_autoencoder().save_pretrained(tmp_path)
    space = spaces.Box(low, high, SHAPE, dtype, seed=0)
    image = space.sample()
    extractor = AutoencoderExtractor(space, tmp_path)
    with torch.no_grad():
        expected = extractor(preprocess_obs(torch.as_tensor(image)[None], space))[0].numpy()
    env = LatentObservation(TransformObservation(DotEnv(SHAPE), lambda _: image, space), tmp_path, device="cpu")
    assert np.array_equal(env.reset()[0], expected)


def test_a_vector_of_environments_is_encoded_in_one_forward():
    autoencoder = make_autoencoder()
    plain = DummyVecEnv([lambda: DotEnv(SHAPE, episode_length=3)] * 4)
    venv = VecLatentObservation(DummyVecEnv([lambda: DotEnv(SHAPE, episode_length=3)] * 4), autoencoder)
    batches, encoder = [], venv._eyes.encoder
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    for env in (plain, venv):
        env.seed(5)
    np.testing.assert_allclose(venv.reset(), latents_of(autoencoder, plain.reset()), atol=1e-6)
    for step in range(1, 8):
        actions = np.random.default_rng(step).uniform(-2, 2, (4, 2)).astype(np.float32)
        frames, rewards, dones, infos = plain.step(actions)
        latents, latent_rewards, latent_dones, latent_infos = venv.step(actions)
        np.testing.assert_allclose(latents, latents_of(autoencoder, frames), atol=1e-6)
        assert np.array_equal(rewards, latent_rewards) and np.array_equal(dones, latent_dones)
        assert dones.all() == (step % 3 == 0)
        if dones.all():
            last = [info["terminal_observation"] for info in latent_infos]
            expected = latents_of(autoencoder, [info["terminal_observation"] for info in infos])
            np.testing.assert_allclose(last, expected, atol=1e-6)
            assert np.abs(last - latents).max() > 1e-2  # of another episode
    assert batches[:3] == [4, 4, 4]


def test_a_dict_keeps_what_is_no_image():
    autoencoder = make_autoencoder()
    env = LatentObservation(CameraEnv(), autoencoder, key=("left", "right"))
    plain = CameraEnv().reset(seed=2)[0]
    observation = env.reset(seed=2)[0]
    latents = latents_of(autoencoder, [plain["left"], plain["right"]])
    np.testing.assert_allclose([observation["left"], observation["right"]], latents, atol=1e-6)
    assert not np.allclose(*latents)
    assert np.array_equal(observation["speed"], plain["speed"]) and observation["lap"] == plain["lap"]
    assert observation in env.observation_space and list(env.observation_space) == list(CameraEnv().observation_space)

    one = LatentObservation(CameraEnv(), autoencoder, key="left")
    assert one.observation_space["right"].shape == SHAPE and one.observation_space["left"].shape == (D,)
    assert one.reset(seed=2)[0]["right"].shape == SHAPE

    venv = VecLatentObservation(DummyVecEnv([CameraEnv] * 2), autoencoder, key=["left", "right"])
    venv.seed(0)
    venv.reset()
    for _ in range(4):
        observations, _, dones, infos = venv.step(np.zeros((2, 2), np.float32))
    assert dones.all() and observations["left"].shape == (2, D) and observations["lap"].shape == (2,)
    assert infos[1]["terminal_observation"]["right"].shape == (D,) and infos[1]["terminal_observation"]["lap"] == 4


def test_stock_sac_learns_from_latents_and_stores_nothing_else(tmp_path):
    def make(n_envs=1):
        venv = DummyVecEnv([lambda: DotEnv(SHAPE)] * n_envs)
        return VecNormalize(VecFrameStack(VecLatentObservation(venv, make_autoencoder()), 3))

    policy_kwargs = {"net_arch": [8]}
    model = SAC(
        "MlpPolicy", make(2), buffer_size=60, learning_starts=10, batch_size=8, policy_kwargs=policy_kwargs, seed=0
    )
    model.learn(40)
    assert model.replay_buffer.observations.shape == (30, 2, 3 * D)
    assert model.replay_buffer.observations.dtype == np.float32
    assert model._n_updates > 0
    assert len(np.unique(model.replay_buffer.observations[:20].reshape(40, 3 * D), axis=0)) > 10
    model.save(tmp_path / "agent")
    loaded = SAC.load(tmp_path / "agent", env=make(2))
    observation = np.zeros((2, 3 * D), np.float32)
    actions = [agent.predict(observation, deterministic=True)[0] for agent in (model, loaded)]
    assert np.array_equal(*actions)


def test_gymnasiums_stack_goes_around_it():
    autoencoder = make_autoencoder()
    env = FrameStackObservation(LatentObservation(DotEnv(SHAPE), autoencoder), 2)
    assert env.observation_space.shape == (2, D)
    first = env.reset(seed=0)[0]
    second = env.step(np.full(2, -2.0, np.float32))[0]
    assert np.array_equal(first[1], second[0]) and not np.array_equal(second[0], second[1])


def test_it_renders_frames():
    frames = make_pixel_env("Pendulum-v1", PixelConfig(size=(12, 14), frame_stack=1))
    env = LatentObservation(frames, make_autoencoder())
    assert env.reset(seed=0)[0].shape == (D,)
    assert env.render().shape == (500, 500, 3)
    venv = VecLatentObservation(DummyVecEnv([lambda: frames]), make_autoencoder())
    venv.reset()
    assert venv.render("rgb_array").shape == (500, 500, 3)


def test_misfits_are_refused():
    autoencoder = make_autoencoder()
    with pytest.raises(ValueError, match=r"encodes observations of shape \(3, 12, 14\).* got \(3, 20, 20\)"):
        LatentObservation(DotEnv(), autoencoder)
    with pytest.raises(ValueError, match=r"expected a Box of shape \(3, 12, 14\), got Box.*\(2, 3, 12, 14\)"):
        LatentObservation(FrameStackObservation(DotEnv(SHAPE), 2), autoencoder)
    with pytest.raises(TypeError, match=r"must be trained: expected the folder of a saved one.* got 'rae'"):
        LatentObservation(DotEnv(SHAPE), "rae")
    with pytest.raises(TypeError, match="must be trained"):
        LatentObservation(DotEnv(SHAPE), RAEConfig())
    with pytest.raises(FileNotFoundError):
        LatentObservation(DotEnv(SHAPE), "missing/eyes/of/mine")
    with pytest.raises(ValueError, match=r"key='left' names an entry of a Dict of observations, got Box"):
        LatentObservation(DotEnv(SHAPE), autoencoder, key="left")
    for key in (None, "middle", ("left", "middle")):
        with pytest.raises(ValueError, match=r"some of \['lap', 'left', 'right', 'speed'\]; got"):
            LatentObservation(CameraEnv(), autoencoder, key=key)
    with pytest.raises(ValueError, match=r"expected a Box of shape \(3, 12, 14\), got Discrete\(9\)"):
        LatentObservation(CameraEnv(), autoencoder, key="lap")
    with pytest.raises(ValueError, match=r"expected images with finite bounds, got \[-inf, inf\]"):
        LatentObservation(DotEnv(SHAPE, dtype=np.float32, low=-np.inf, high=np.inf), autoencoder)
