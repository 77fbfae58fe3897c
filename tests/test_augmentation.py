"""Random shifts of what the encoders see in training."""

import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation

from rl_ae.losses import psnr
from rl_ae.pixels import random_shift
from rl_ae.sb3 import SACAE, TD3AE


def make_agent(algorithm=SACAE, **kwargs):
    settings = {"autoencoder": "rae_compact", "learning_starts": 20, "catch_up_updates": 0, "buffer_size": 200}
    env = kwargs.pop("env", None) or DotEnv(shape=(3, 42, 42))
    policy_kwargs = {"net_arch": [32]}
    agent = algorithm("CnnPolicy", env, seed=0, policy_kwargs=policy_kwargs, batch_size=16, **settings | kwargs)
    agent.learn(20)
    return agent


def sample(agent):
    """The same transitions again and again, but other shifts."""
    np.random.seed(0)
    return agent._sample(16)


def is_shift(image, original, pixels):
    """Whether an image (C, H, W) is another one, moved by at most so many pixels."""
    steps = range(-pixels, pixels + 1)
    return any(
        torch.equal(random_shift(original[None], pixels, torch.tensor([[rows, columns]]))[0], image)
        for rows in steps
        for columns in steps
    )


@pytest.mark.parametrize("algorithm", [SACAE, TD3AE])
def test_encoders_see_shifted_frames_and_decoders_return_them_unshifted(algorithm):
    plain, shifted = make_agent(algorithm), make_agent(algorithm, augmentation="random_shift")
    torch.manual_seed(0)
    before = sample(plain)
    torch.manual_seed(1)
    after = sample(shifted)
    for seen, original in (
        (after.observations, before.observations),
        (after.next_observations, before.next_observations),
    ):
        assert all(is_shift(*pair, pixels=2) for pair in zip(seen, original, strict=True))  # 4 of 84 pixels
        assert not torch.equal(seen, original)
    assert not torch.equal(after.observations - before.observations, after.next_observations - before.next_observations)
    assert (after.targets - before.targets).abs().max() <= 1 / 32  # but for the noise within a level
    assert torch.equal(after.rewards, before.rewards)


@pytest.mark.parametrize("reconstruct_shifted", [False, True])
def test_psnr_is_of_what_the_decoder_is_to_return(reconstruct_shifted):
    agent = make_agent(augmentation="random_shift", reconstruct_shifted=reconstruct_shifted, update="paper")
    batch, autoencoder = sample(agent), agent.policy.autoencoder
    wanted = batch.observations if reconstruct_shifted else batch.targets
    error = (autoencoder.reconstruct(batch.observations) - wanted).square().mean()
    described = agent._diagnose(batch, [], [])
    torch.testing.assert_close(described["psnr"], psnr(error))


def test_decoders_may_return_what_was_seen():
    agent = make_agent(augmentation="random_shift", shift_pixels=5, reconstruct_shifted=True)
    batch = sample(agent)
    assert (batch.targets - batch.observations).abs().max() <= 1 / 16
    original = sample(make_agent()).observations
    assert all(is_shift(*pair, pixels=5) for pair in zip(batch.observations, original, strict=True))
    assert not all(is_shift(*pair, pixels=4) for pair in zip(batch.observations, original, strict=True))


def test_images_of_floats_and_parts_without_encoder():
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (3, 24, 24), np.uint8),
        depth=spaces.Box(0.0, 2.0, (1, 24, 24), np.float32),
        map=spaces.Box(0, 255, (1, 24, 24), np.uint8),
    )

    def observe(image):
        return {"camera": image, "depth": image[:1] / np.float32(255), "map": image[:1]}

    env = TransformObservation(DotEnv(shape=(3, 24, 24)), observe, space)
    agent = SACAE(
        "MultiInputPolicy",
        env,
        seed=0,
        autoencoder={"camera": "rae_compact", "depth": "rae_compact", "map": None},
        policy_kwargs={"net_arch": [16]},
        learning_starts=20,
        catch_up_updates=0,
        batch_size=16,
        buffer_size=100,
        augmentation="random_shift",
    )
    agent.learn(24)  # makes updates too
    batch = sample(agent)
    straight = batch.observations["map"].reshape(16, 1, 24, 24)
    for name in ("camera", "depth"):
        seen = batch.observations[name]
        original = straight if name == "camera" else straight / 2
        assert all(is_shift(image, one, 1) for image, one in zip(seen[:, :1], original, strict=True))
        assert not torch.equal(seen[:, :1], original)
    target = batch.targets["depth"]
    assert (target - straight / 2).abs().max() <= 1 / 32


def test_a_shifted_agent_saves_loads_and_goes_on(tmp_path):
    agent = make_agent(augmentation="random_shift", shift_pixels=3, n_steps=3)
    agent.save(tmp_path / "agent")
    loaded = SACAE.load(tmp_path / "agent", env=DotEnv(shape=(3, 42, 42)))
    assert (loaded.augmentation, loaded.shift_pixels, loaded.reconstruct_shifted) == ("random_shift", 3, False)
    loaded.replay_buffer = agent.replay_buffer
    for one in (agent, loaded):
        np.random.seed(0)
        one.train(gradient_steps=3, batch_size=16)
    weights = zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augmentation": "colour"}, r"augmentation must be None or one of \['random_shift'\], got 'colour'"),
        ({"augmentation": "random_shift", "shift_pixels": -1}, "shift_pixels must be ≥ 0, got -1"),
    ],
)
def test_unknown_augmentations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SACAE("CnnPolicy", DotEnv(), buffer_size=100, **arguments)
