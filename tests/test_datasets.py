"""Reading the frames of Minari data sets: our own, and what Minari itself has written."""

import json
import multiprocessing
import os
import pickle
import shutil

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rl_ae.envs import PixelConfig, make_pixel_env, shrink
from rl_ae.sb3.datasets import DataSet, EpisodeWriter, MinariFrames, publish, read_facts

LENGTHS = (7, 5)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture(scope="module", autouse=True)
def minaris_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def smooth(count, height, width):
    """Frames (count, H, W, 3) that a JPEG hardly changes."""
    rows, columns = np.mgrid[:height, :width]
    ramps = [rows + columns + 8 * frame for frame in range(count)]
    return np.stack([np.stack([ramp, 2 * ramp, 200 - ramp], axis=-1) for ramp in ramps]).astype(np.uint8)


def write(folder, *frames, shape=None):
    """A data set of episodes of frames (T, H, W, C)."""
    data_set = DataSet.at(folder)
    for index, episode in enumerate(frames):
        writer = EpisodeWriter(episode[0])
        for frame in episode[1:]:
            writer.add(frame, np.zeros(2, np.float32), 1.0, False, False)
        writer.write(data_set.episode(index), index, seed=index, policy="random")
    facts = [read_facts(data_set.episode(index)) for index in range(len(frames))]
    publish(data_set, facts, spaces.Box(0, 255, shape or frames[0].shape[1:], np.uint8), ACTIONS, None, {})
    return folder


def write_minari(name, observations, space, **kwargs):
    """Minari's own data set of an episode for each of the observations."""
    buffers = [
        EpisodeBuffer(
            observations=each,
            actions=np.zeros((length - 1, 2), np.float32),
            rewards=[0.0] * (length - 1),
            terminations=[False] * (length - 1),
            truncations=[False] * (length - 1),
        )
        for each, length in zip(observations, LENGTHS, strict=True)
    ]
    with pytest.warns(UserWarning):  # of an author and such that it lacks
        minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=ACTIONS, **kwargs)
    return name


@pytest.fixture(scope="module")
def frames():
    """Of two episodes, (T, H, W, C)."""
    return [noise(length, 12, 16, 3) for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, frames):
    return write(tmp_path_factory.mktemp("data sets") / "noise", *frames)


# ---------------------------------------------------------------------- what is read


def test_parts_of_episodes(folder, frames):
    data_set = MinariFrames(folder)
    assert data_set.observation_shape == (3, 12, 16) and data_set.frame_channels == 3
    assert tuple(data_set.episode_lengths) == LENGTHS and len(data_set) == 12
    for episode, start, stop in ((0, 0, 7), (0, 2, 5), (0, 6, 7), (1, 0, 1), (1, 1, 5)):
        part = data_set.read(episode, start, stop)
        assert part.dtype == np.uint8
        np.testing.assert_array_equal(part, frames[episode][start:stop].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("stack", [2, 3, 9])
def test_stacks_are_those_of_an_environment(stack, tmp_path, dot_env):
    pixels = PixelConfig(size=(32, 32), frame_stack=stack)
    env = make_pixel_env(dot_env, pixels)
    actions = np.random.default_rng(0).uniform(-2, 2, (6, 2)).astype(np.float32)
    stacks = [env.reset(seed=1)[0], *(env.step(action)[0] for action in actions)]
    write(tmp_path / "dots", np.stack([each[-3:].transpose(1, 2, 0) for each in stacks]))
    data_set = MinariFrames(tmp_path / "dots", frame_stack=stack)
    assert data_set.observation_shape == pixels.observation_shape and data_set.frame_channels == 3
    np.testing.assert_array_equal(data_set.read(0, 0, 7), np.stack(stacks))
    np.testing.assert_array_equal(data_set.read(0, 3, 5), np.stack(stacks[3:5]))


def test_frames_are_shrunk_and_greyed_as_an_environments_are(folder, frames):
    small = MinariFrames(folder, size=(8, 10))
    assert small.observation_shape == (3, 8, 10)
    expected = [shrink(frame, (8, 10), False, None) for frame in frames[1][1:3]]
    np.testing.assert_array_equal(small.read(1, 1, 3), np.stack(expected))
    grey = MinariFrames(folder, grayscale=True, frame_stack=2)
    assert grey.observation_shape == (2, 12, 16) and grey.frame_channels == 1
    expected = [shrink(frame, (12, 16), True, None) for frame in frames[0][:2]]
    np.testing.assert_array_equal(grey.read(0, 1, 2)[0], np.concatenate(expected))


def test_a_data_set_is_found_by_its_folder_its_data_and_its_id(folder, frames):
    write_minari("tests/noise-v0", frames, spaces.Box(0, 255, (12, 16, 3), np.uint8))
    for place in (folder, str(folder), folder / "data", "tests/noise-v0"):
        np.testing.assert_array_equal(MinariFrames(place).read(1, 2, 4), frames[1][2:4].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (1, 12, 16), (3, 12, 16), (4, 12, 16), (12, 16, 9)], ids=str)
def test_minaris_own_images_of_any_layout(shape):
    stored = [noise(length, *shape) for length in LENGTHS]
    name = write_minari(f"layouts/{'-'.join(map(str, shape))}-v0", stored, spaces.Box(0, 255, shape, np.uint8))
    expected = stored[0][:, None] if len(shape) == 2 else stored[0]
    expected = expected.transpose(0, 3, 1, 2) if len(shape) == 3 and shape[0] == 12 else expected
    data_set = MinariFrames(name)
    assert data_set.observation_shape == (*expected.shape[1:],)
    np.testing.assert_array_equal(data_set.read(0, 1, 7), expected[1:])


@pytest.mark.parametrize("jpeg", [True, False])
def test_minaris_images_as_jpegs_and_not(jpeg):
    stored = [smooth(length, 32, 48) for length in LENGTHS]
    space = spaces.Box(0, 255, (32, 48, 3), np.uint8)
    name = write_minari(f"jpeg-{jpeg}-v0", stored, space, jpeg_encoding=jpeg)
    part = MinariFrames(name).read(1, 1, 4)
    np.testing.assert_array_equal(part, minari.load_dataset(name)[1].observations[1:4].transpose(0, 3, 1, 2))
    error = np.abs(part.astype(int) - stored[1][1:4].transpose(0, 3, 1, 2)).max()
    assert 0 < error < 30 if jpeg else error == 0


def test_images_among_other_observations(frames):
    positions = [np.zeros((length, 3), np.float32) for length in LENGTHS]
    image = spaces.Box(0, 255, (12, 16, 3), np.uint8)
    inner = spaces.Dict(left=image, speed=spaces.Box(0, 255, (4,), np.uint8))
    space = spaces.Dict(position=spaces.Box(-1, 1, (3,), np.float32), cameras=inner)
    speeds = [np.zeros((length, 4), np.uint8) for length in LENGTHS]
    observations = [
        {"position": position, "cameras": {"left": left, "speed": speed}}
        for position, left, speed in zip(positions, frames, speeds, strict=True)
    ]
    write_minari("one-v0", observations, space)
    np.testing.assert_array_equal(MinariFrames("one-v0").read(0, 0, 7), frames[0].transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"expected a key of images, one of cameras/left; got 'position'"):
        MinariFrames("one-v0", key="position")


def test_one_of_several_images_has_to_be_named(frames):
    image = spaces.Box(0, 255, (12, 16, 3), np.uint8)
    both = [{"left": episode, "right": 255 - episode} for episode in frames]
    write_minari("two-v0", both, spaces.Dict(left=image, right=image))
    with pytest.raises(ValueError, match="a key of images, one of left, right; got None"):
        MinariFrames("two-v0")
    right = MinariFrames("two-v0", key="right").read(1, 0, 2)
    np.testing.assert_array_equal(right, 255 - frames[1][:2].transpose(0, 3, 1, 2))


# ---------------------------------------------------------------------- other processes


class Observations(Dataset):
    """Single observations for a DataLoader."""

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return self.frames.episode_lengths[0]

    def __getitem__(self, index):
        return self.frames.read(0, index, index + 1)[0]


def test_a_forked_process_reads_for_itself(folder, frames):
    data_set = MinariFrames(folder)
    data_set.read(0, 0, 1)  # this process has its file open
    loader = DataLoader(Observations(data_set), batch_size=7, num_workers=1, multiprocessing_context="fork")
    [batch] = loader
    np.testing.assert_array_equal(batch.numpy(), frames[0].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data_set.read(0, 0, 7), frames[0].transpose(0, 3, 1, 2))


def test_each_process_opens_the_file_for_itself(folder):
    data_set = MinariFrames(folder)
    data_set.read(0, 0, 1)
    mine = data_set._file().id.id, os.getpid()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply(_opened_by, (data_set,)) != mine[1]
    copy = pickle.loads(pickle.dumps(data_set))
    np.testing.assert_array_equal(copy.read(1, 0, 5), data_set.read(1, 0, 5))


def _opened_by(data_set):
    data_set.read(0, 0, 1)
    return data_set._opened[0]


def test_a_part_is_read_without_the_rest(tmp_path):
    """A read unpacks the chunks it touches: damage elsewhere in the episode does not matter."""
    episode = noise(60, 64, 64, 3)
    write(tmp_path / "long", episode)
    path = tmp_path / "long/data/episodes/000000.hdf5"
    with h5py.File(path) as file:
        chunk = file["observations"].chunks[0]
        damaged = file["observations"].id.get_chunk_info(2)
    assert 2 * chunk < 60
    content = bytearray(path.read_bytes())
    content[damaged.byte_offset : damaged.byte_offset + damaged.size] = bytes(damaged.size)
    path.write_bytes(content)
    data_set = MinariFrames(tmp_path / "long")
    np.testing.assert_array_equal(data_set.read(0, 0, 2 * chunk), episode[: 2 * chunk].transpose(0, 3, 1, 2))
    with pytest.raises(OSError, match="episode 0 cannot be read, it is damaged"):
        data_set.read(0, 2 * chunk, 2 * chunk + 1)


# ---------------------------------------------------------------------- bad data sets


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set tests/nothing-v0: .* minari download"):
        MinariFrames("tests/nothing-v0")
    with pytest.raises(FileNotFoundError, match="there is no data set"):
        MinariFrames(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"still being collected: expected metadata.json in"):
        MinariFrames(tmp_path)


def test_damaged_data_sets(copy):
    main, metadata = copy / "data/main_data.hdf5", copy / "data/metadata.json"
    whole, described = main.read_bytes(), metadata.read_text()
    episode = copy / "data/episodes/000001.hdf5"
    episode.write_bytes(episode.read_bytes()[:2_000])
    with pytest.raises(ValueError, match="episode 1 of 2 is missing, truncated"):
        MinariFrames(copy)
    episode.unlink()
    with pytest.raises(ValueError, match="episode 1 of 2 is missing, truncated"):
        MinariFrames(copy)
    main.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"main_data.hdf5 is missing, truncated or not of HDF5"):
        MinariFrames(copy)
    main.write_bytes(whole)
    for broken, message in (
        (described[:50], "does not describe a Minari data set: JSONDecodeError"),
        ("{}", "does not describe a Minari data set: KeyError"),
        (json.dumps({**json.loads(described), "data_format": "arrow"}), "format 'arrow': expected 'hdf5'"),
        (json.dumps({**json.loads(described), "total_episodes": 0}), "without episodes"),
        (json.dumps({**json.loads(described), "observation_space": "{}"}), "does not describe"),
    ):
        metadata.write_text(broken)
        with pytest.raises(ValueError, match=message):
            MinariFrames(copy)


def test_a_data_set_that_is_damaged_later(copy):
    data_set = MinariFrames(copy)
    (copy / "data/episodes/000001.hdf5").unlink()
    with pytest.raises(OSError, match="episode 1 cannot be read"):
        data_set.read(1, 0, 1)


def test_frames_of_different_sizes(tmp_path):
    write(tmp_path / "sizes", noise(3, 12, 16, 3), noise(3, 10, 16, 3))
    with pytest.raises(
        ValueError, match=r"different sizes: expected \(12, 16, 3\) as in episode 0, got \(10, 16, 3\) in episode 1"
    ):
        MinariFrames(tmp_path / "sizes")
    assert MinariFrames(tmp_path / "sizes", size=(8, 8)).read(1, 0, 3).shape == (3, 3, 8, 8)
    write(tmp_path / "channels", noise(3, 12, 16, 3), noise(3, 12, 16, 1))
    with pytest.raises(ValueError, match=r"got \(12, 16, 1\) in episode 1"):
        MinariFrames(tmp_path / "channels", size=(8, 8))


def test_frames_of_different_sizes_in_one_episode(copy):
    """JPEGs know their own size."""
    with h5py.File(copy / "data/main_data.hdf5", "w") as file:
        pictures = [_jpeg(32, 32), _jpeg(32, 40)]
        group = file.create_group("episode_0")
        group.create_dataset("observations", (2,), h5py.vlen_dtype(np.uint8))
        for index, picture in enumerate(pictures):
            group["observations"][index] = picture
    metadata = json.loads((copy / "data/metadata.json").read_text())
    (copy / "data/metadata.json").write_text(json.dumps({**metadata, "total_episodes": 1}))
    data_set = MinariFrames(copy)
    assert data_set.read(0, 0, 1).shape == (1, 3, 32, 32)
    with pytest.raises(OSError, match=r"begins with frames \(32, 32, 3\), got \(32, 40, 3\)"):
        data_set.read(0, 1, 2)
    with pytest.raises(OSError, match="episode 0 cannot be read"):
        data_set.read(0, 0, 2)


def _jpeg(height, width):
    import io

    Image.fromarray(noise(height, width, 3)).save(buffer := io.BytesIO(), format="JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def test_no_images():
    vectors = [np.zeros((length, 3), np.float32) for length in LENGTHS]
    write_minari("vectors-v0", vectors, spaces.Box(-1, 1, (3,), np.float32))
    with pytest.raises(ValueError, match=r"no images: expected uint8 observations .* got Box\(-1.0, 1.0, \(3,\)"):
        MinariFrames("vectors-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_stack": 0}, "frame_stack must be ≥ 1, got 0"),
        ({"size": (4, 64)}, "size must be at least 8×8, got 4×64"),
        ({"key": "camera"}, "one of no key; got 'camera'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message, folder):
    with pytest.raises(ValueError, match=message):
        MinariFrames(folder, **arguments)


def test_stacked_frames_cannot_be_converted(tmp_path):
    write(tmp_path / "stacks", noise(3, 12, 16, 6))
    assert MinariFrames(tmp_path / "stacks").observation_shape == (6, 12, 16)
    with pytest.raises(ValueError, match=r"only frames of 1 or 3 channels .* have 6"):
        MinariFrames(tmp_path / "stacks", grayscale=True)


@pytest.mark.parametrize("part", [(0, -1, 2), (0, 2, 2), (0, 3, 8), (2, 0, 1), (-1, 0, 1)], ids=str)
def test_parts_that_are_not_there(part, folder):
    with pytest.raises(IndexError, match="expected"):
        MinariFrames(folder).read(*part)
