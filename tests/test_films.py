"""The generative side: films of what latents decode to, samples and walks of every autoencoder that has a prior."""

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from rl_ae import CONFIGS, ConvConfig, HierarchicalConfig, RAEConfig, VAEConfig, cli, create_autoencoder
from rl_ae.analysis import plot_interpolation, plot_samples, walk_prior
from rl_ae.analysis.figures import last_frame
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import to_unit
from rl_ae.sb3 import pictures, show
from rl_ae.sb3.evaluation import FIRST_START_SEED, RandomPolicy, play_episode
from rl_ae.sb3.pictures import enlarge, save_film

CONV = ConvConfig(filters=(4,), strides=(4,), kernel_size=4)
WITHOUT_PRIOR = ("ae", "rae", "rae_compact", "rae_patch", "sqvae", "vqvae", "fsq")


def save(folder, config, shape):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(config, shape)
    autoencoder.save_pretrained(folder)
    return autoencoder.eval()


def frames_of(path):
    """The pictures of a .gif, (T, H, W, 3), and how long each is shown, in milliseconds."""
    with Image.open(path) as film:
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]
    pictures_of, durations = zip(*shown, strict=True)
    return np.stack(pictures_of), durations


# ---------------------------------------------------------------------- every autoencoder


@pytest.mark.parametrize("name", CONFIGS)
def test_samples_and_interpolations_of_every_autoencoder(name):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(name, (3, 16, 20))
    first, second = torch.rand(2, 3, 16, 20)
    with torch.no_grad():
        ends = torch.cat([autoencoder.eval().reconstruct(image[None]) for image in (first, second)])
    [axes] = plot_interpolation(autoencoder, first, second, steps=3).axes
    tiles = np.stack([image.get_array() for image in axes.images])  # first, its reconstruction, between, …, second
    assert np.abs(tiles[[1, 3]].astype(int) - last_frame(ends, 3)).max() <= 1
    assert len(tiles) == 5 and np.isfinite(tiles).all()
    if name in WITHOUT_PRIOR:
        for draw in (lambda: plot_samples(autoencoder, 2), lambda: walk_prior(autoencoder, 2, 1)):
            with pytest.raises(ValueError, match=r"has no prior to draw samples from; these have one: .*vae"):
                draw()
        return
    samples = [walk_prior(autoencoder, 2, 1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert samples[0].shape == (2, 3, 16, 20) and torch.isfinite(samples[0]).all()
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    [axes] = plot_samples(autoencoder, 2, torch.Generator().manual_seed(1)).axes
    assert len({image.get_array().tobytes() for image in axes.images}) == 2


# ---------------------------------------------------------------------- walks


def test_a_walk_visits_its_draws_and_keeps_their_length(monkeypatch):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(VAEConfig(conv=CONV, latent_dim=64, hidden=(8,)), (1, 16, 20))
    decoded = []
    decode = autoencoder.decode
    monkeypatch.setattr(autoencoder, "decode", lambda z: (decoded.append(z), decode(z))[1])
    images = walk_prior(autoencoder, 3, 30, torch.Generator().manual_seed(0))
    z = torch.cat(decoded)
    draws = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z[::30], draws, atol=1e-5, rtol=1e-5)
    assert len(images) == 90
    torch.testing.assert_close(images[::30], decode(draws).detach(), atol=1e-5, rtol=1e-5)
    lengths = z.norm(dim=1)
    assert lengths.min() > 0.95 * draws.norm(dim=1).min() and lengths.max() < 1.05 * draws.norm(dim=1).max()
    steps = (z - z.roll(1, dims=0)).norm(dim=1)  # nowhere a jump, not from the last to the first either
    assert steps.max() < 2.0 * steps.mean()


def test_a_hierarchy_walks_through_its_own_prior():
    torch.manual_seed(0)
    config = HierarchicalConfig(base_channels=8, halvings=1, groups=(1, 1), latent_channels=2)
    autoencoder = create_autoencoder(config, (1, 16, 16)).eval()
    images = walk_prior(autoencoder, 2, 2, torch.Generator().manual_seed(0))
    noise = torch.randn(2, autoencoder.latent_dim, generator=torch.Generator().manual_seed(0))
    sizes = [np.prod(shape) for shape in autoencoder.groups.shapes]
    parts = iter(noise.split(sizes, dim=1))

    def choose(_, group):
        return group.mean + group.log_sigma.exp() * next(parts).reshape(group.mean.shape)

    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.groups.prior(2, choose).z)
    torch.testing.assert_close(images[::2], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("stops", "steps"), [(1, 3), (2, 0)])
def test_a_walk_needs_somewhere_to_go(stops, steps):
    with pytest.raises(ValueError, match=rf"expected stops ≥ 2 and steps ≥ 1, got {stops} and {steps}"):
        walk_prior(create_autoencoder(VAEConfig(conv=CONV, latent_dim=2), (1, 16, 16)), stops, steps)


def test_a_walk_is_filmed(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "STOPS", 3)
    monkeypatch.setattr(show, "FRAMES_A_STOP", 4)
    autoencoder = save(tmp_path, VAEConfig(conv=CONV, latent_dim=5), (1, 16, 20))
    cli.main(["show", "walk", str(tmp_path), "--out", str(tmp_path / "walk.gif"), "--seed", "7"])
    film, durations = frames_of(tmp_path / "walk.gif")
    images = walk_prior(autoencoder, 3, 4, torch.Generator().manual_seed(7))
    assert set(durations) == {50}
    assert np.abs(film.astype(int) - enlarge(last_frame(images, 1))).max() <= 8  # a palette's rounding


# ---------------------------------------------------------------------- films of an episode


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # imageio-ffmpeg leaves its pipes to the collector
def test_an_episode_is_filmed_beside_what_its_latents_decode_to(tmp_path):
    autoencoder = save(tmp_path, RAEConfig(conv=CONV, latent_dim=5), (2, 16, 20))
    arguments = ["--env", "Pendulum-v1", "--action-repeat", "10", "--seed", "4", "--out", str(tmp_path / "film.mp4")]
    cli.main(["show", "video", str(tmp_path), *arguments])
    env = make_pixel_env("Pendulum-v1", PixelConfig(size=(16, 20), grayscale=True, frame_stack=2, action_repeat=10))
    images = to_unit(
        torch.as_tensor(play_episode(RandomPolicy(env.action_space, 4), env, FIRST_START_SEED + 4).observations)
    )
    with torch.no_grad():
        returned = autoencoder.decode(autoencoder.encode(images).mode)  # from z alone
    described, *shown = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    film = np.stack([np.frombuffer(picture, np.uint8).reshape(192, 480, 3) for picture in shown])
    assert film.shape == (20, 192, 480, 3)
    left, right = film[:, :, :240].astype(int), film[:, :, 240:].astype(int)
    assert np.abs(left - enlarge(last_frame(images, 1))).mean() < 3  # what compression loses
    assert np.abs(right - enlarge(last_frame(returned, 1))).mean() < 3
    assert np.abs(left - right).mean() > 10
    assert described["fps"] == pytest.approx(3.0)  # 30 frames a second, 10 a step


def test_files_are_filmed_from_the_first_on(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "MOST_FILMED", 6)
    autoencoder = save(tmp_path, RAEConfig(conv=CONV, latent_dim=5), (1, 16, 16))
    frames = np.random.default_rng(0).integers(0, 3, size=(9, 1, 16, 16), dtype=np.uint8) * 100
    np.save(tmp_path / "frames.npy", frames)
    cli.main(
        ["show", "video", str(tmp_path), "--frames", str(tmp_path / "frames.npy"), "--out", str(tmp_path / "f.gif")]
    )
    film, durations = frames_of(tmp_path / "f.gif")
    images = to_unit(torch.as_tensor(frames[:6]))
    with torch.no_grad():
        expected = np.concatenate(
            [enlarge(last_frame(i, 1)) for i in (images, autoencoder.reconstruct(images))], axis=2
        )
    assert film.shape == expected.shape and np.abs(film.astype(int) - expected).max() <= 8
    assert set(durations) == {50}


@pytest.mark.parametrize(
    ("env", "speed"),
    [
        ("Pendulum-v1", 30),
        ("CarRacing-v3", 50),
        ("dmc:cartpole-swingup", 100),
        ("shimmy:dm_control/cartpole-swingup-v0", 100),
        ("ale:Pong", 60),
        ("cale:Pong", 60),
    ],
)
def test_time_passes_as_in_the_environment(env, speed):
    made = make_pixel_env(env, PixelConfig(size=(24, 24), action_repeat=2))
    assert show._frames_per_second(made) == pytest.approx(speed)
    made.close()


def test_an_environment_that_knows_no_time_gets_one():
    class Timeless(gym.Env):
        pass

    assert show._frames_per_second(Timeless()) == pictures.FRAMES_PER_SECOND


def test_films_are_of_two_kinds(tmp_path, monkeypatch):
    film = np.zeros((3, 8, 8, 3), np.uint8)
    film[1:] = 200
    with pytest.raises(ValueError, match=r"a film is written as .mp4 or .gif, got .*film.avi"):
        save_film(tmp_path / "film.avi", film, 10)
    assert save_film(tmp_path / "film", film, 10) == tmp_path / "film.mp4"
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "rl-ae\[video\]", or write a .gif'):
        save_film(tmp_path / "other.mp4", film, 10)
    assert save_film(tmp_path / "fast", film, 1000) == tmp_path / "fast.gif"
    assert sum(frames_of(tmp_path / "fast.gif")[1]) == 60  # equal pictures may be one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.gif", "film.mp4"]
