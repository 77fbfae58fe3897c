import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import DotEnv
from PIL import Image
from stable_baselines3.common.monitor import Monitor

from rl_ae import ConvConfig, RAEConfig, create_autoencoder
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.files import write_atomically
from rl_ae.pixels import to_unit
from rl_ae.sb3.evaluation import (
    RandomPolicy,
    compare,
    last_frame,
    play_episode,
    reconstruct,
    reconstruction_quality,
    start_seeds,
)
from rl_ae.sb3.pictures import enlarge, save_film, save_learning_curve, save_reconstructions, side_by_side


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return create_autoencoder(RAEConfig(latent_dim=4, conv=ConvConfig(filters=(4,), strides=(2,))), (3, 20, 20))


def random_episodes(count):
    env = Monitor(DotEnv())
    return [play_episode(RandomPolicy(env.action_space, seed), env, seed) for seed in range(count)]


def test_quality_is_that_of_all_frames_at_once(autoencoder):
    episodes = [episode.observations for episode in random_episodes(3)]
    quality = reconstruction_quality(autoencoder, episodes)
    frames = to_unit(torch.as_tensor(np.concatenate(episodes)), torch.float64)
    error = (reconstruct(autoencoder, np.concatenate(episodes)) - frames).square().mean()
    assert quality.psnr == pytest.approx(-10 * np.log10(error.item()))
    blind = (frames - frames.mean(dim=0)).square().mean()
    assert quality.mean_frame_psnr == pytest.approx(-10 * np.log10(blind.item()))


def test_an_episode_is_a_sequence_of_what_was_seen():
    env = Monitor(DotEnv(episode_length=7))
    first, again = (play_episode(RandomPolicy(env.action_space, 1), env, 5) for _ in range(2))
    assert first.observations.shape == (7, 3, 20, 20)
    assert np.array_equal(first.observations, again.observations)
    assert first.episode_return == again.episode_return < 0


def test_returns_are_not_scaled():
    scaled, plain = (
        make_pixel_env("Pendulum-v1", PixelConfig(size=(10, 10), reward_scale=scale)) for scale in (0.1, 1.0)
    )
    returns = [play_episode(RandomPolicy(env.action_space, 0), env, 0).episode_return for env in (scaled, plain)]
    assert returns[0] == pytest.approx(returns[1])
    assert returns[0] < -300


def test_start_seeds_are_fixed_and_far_from_training():
    assert list(start_seeds(2)) == list(start_seeds(3))[:2]
    assert min(start_seeds(2)) > 10**8


def test_the_newest_frame_of_a_stack():
    gray = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
    assert np.array_equal(last_frame(gray, 1)[..., 0], gray[:, 2])
    assert last_frame(gray, 1).shape == (2, 8, 8, 3)
    colour = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(1, 6, 8, 8)
    assert np.array_equal(last_frame(colour, 3)[0].transpose(2, 0, 1), colour[0, 3:])
    assert last_frame(np.full((1, 1, 8, 8), 0.5), 1).max() == 128


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves its pipes open
def test_pictures_show_input_above_and_video_beside(autoencoder, tmp_path):
    frames, reconstructions = compare(random_episodes(1)[0].observations, autoencoder, 3)
    path = save_reconstructions(tmp_path / "strip.png", frames[:4], reconstructions[:4])
    with Image.open(path) as image:
        strip = np.asarray(image)
    scale = enlarge(frames).shape[1] // 20
    assert strip.shape == (2 * 20 * scale, 4 * 20 * scale, 3) and scale % 2 == 0
    assert np.array_equal(strip[::scale, ::scale][:20, :20], frames[0])
    assert np.array_equal(strip[::scale, ::scale][20:, 20:40], reconstructions[1])

    video = save_film(tmp_path / "film", side_by_side(frames, reconstructions), 10)
    assert video.suffix == ".mp4" and video.stat().st_size > 1000
    import imageio.v3 as imageio

    film = imageio.imread(video)
    assert film.shape == (len(frames), 20 * scale, 2 * 20 * scale, 3)
    left = film[0, :, : 20 * scale].astype(float)
    assert np.abs(left - enlarge(frames)[0]).mean() < 10  # what compression leaves


def test_without_ffmpeg_the_video_is_a_gif(autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr("rl_ae.sb3.pictures.find_spec", lambda name: None)
    frames, reconstructions = compare(random_episodes(1)[0].observations, autoencoder, 3)
    video = save_film(tmp_path / "film", side_by_side(frames, reconstructions), 10)
    assert video.suffix == ".gif"
    with Image.open(video) as image:
        assert image.n_frames == len(frames)


def test_a_learning_curve_is_drawn(tmp_path):
    rows = [
        {"step": i, "return": i - 1000.0, "reconstruction": 10.0 / (i + 1), "evaluation": [np.nan, -900.0][i % 2]}
        for i in range(10)
    ]
    with Image.open(save_learning_curve(tmp_path / "curve.png", rows, "test")) as picture:
        assert picture.size == (960, 600)
        assert len(picture.convert("RGB").getcolors(100_000)) > 20
    assert save_learning_curve(tmp_path / "empty.png", [], "no episode yet").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_atomically(tmp_path / "file.txt", lambda path: path.write_text("good"))

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "good"
    assert [child.name for child in tmp_path.iterdir()] == ["file.txt"]


def test_the_random_policy_covers_the_space():
    policy = RandomPolicy(gym.spaces.Box(-2, 2, (1,)), seed=0)
    actions = np.array([policy.predict(np.zeros(1))[0] for _ in range(200)])
    assert actions.min() < -1.8 and actions.max() > 1.8
