"""Data sets of Minari on disk: how an episode is written, how episodes become a data set, and the frames of any.

===========================  ==================================================================
``collection.json``          what ``rl-ae collect`` collects, see :mod:`rl_ae.sb3.collecting`
``data/episodes/<n>.hdf5``   an episode, written at once when it is whole
``data/main_data.hdf5``      Minari's file of episodes: here, links to those files
``data/metadata.json``       spaces, environment, counts; without it Minari sees no data set
===========================  ==================================================================

Minari's own writer compresses images as JPEGs, which adds errors of its own to what an autoencoder is to return, or not
at all. Here frames are compressed without loss, in chunks of consecutive ones: what they have in common is stored once,
and a part of an episode is read without the rest. Because ``main_data.hdf5`` only links, a data set is published in a
moment, whatever its size, and no frame is ever on the disk twice.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from PIL import Image

from rl_ae.envs import Frame, shrink
from rl_ae.files import write_atomically
from rl_ae.pixels import MIN_IMAGE_SIZE

_MAIN, _METADATA, _FORMAT = "main_data.hdf5", "metadata.json", "hdf5"
#: What a chunk of frames holds before it is compressed: 21 frames of 64×64×3. A read unpacks whole chunks.
_CHUNK_BYTES = 2**18
#: Of gzip, which every HDF5 has. On frames of CarRacing (cheetah-run) at 64×64: a 12th (6th) of the bytes; of levels 1
#: and 6 a 10th and a 14th; LZF a 6th (no gain).
_COMPRESSION = 4
_NAMED = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")

Array = np.ndarray[Any, np.dtype[Any]]


class DataSet(NamedTuple):
    """The files of a data set.

    Attributes:
        folder: Its folder.
        name: Its id in Minari.
    """

    folder: Path
    name: str

    @classmethod
    def at(cls, place: str | Path) -> "DataSet":
        """The data set of an id or in a folder, whether it exists or not.

        Args:
            place: What ends in ``-v<number>``, has no dots and is no folder is the id of a data set in Minari's own
                folder (``MINARI_DATASETS_PATH``, or ``~/.minari/datasets``); all else is a folder.

        Raises:
            ImportError: If it is an id and Minari is missing.
        """
        folder = Path(place)
        if folder.exists() or not _NAMED.fullmatch(str(place)):
            stem = re.sub(r"[^-\w]+", "-", folder.resolve().name)
            return cls(folder, stem if _NAMED.fullmatch(stem) else f"{stem}-v0")
        return cls(_minari("storage.datasets_root_dir").get_dataset_path(str(place)), str(place))

    @property
    def data(self) -> Path:
        """What Minari calls the data path; the folder itself if that is one."""
        return self.folder if (self.folder / _METADATA).exists() else self.folder / "data"

    @property
    def is_published(self) -> bool:
        """Whether Minari can load it."""
        return (self.data / _METADATA).exists()

    @property
    def published_episodes(self) -> int:
        """How many episodes Minari loads: none of what is no data set, or has a damaged description."""
        try:
            return int(json.loads((self.data / _METADATA).read_text())["total_episodes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def episode(self, index: int) -> Path:
        """The file of an episode that ``rl-ae collect`` wrote."""
        return self.folder / "data" / _episode_file(index)


def _episode_file(index: int) -> str:
    return f"episodes/{index:06d}.hdf5"


def _minari(module: str) -> Any:
    return _import("minari", f"minari.{module}")


def _h5py() -> Any:
    return _import("h5py", "h5py")


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'data sets need {package}, which is not installed: pip install "rl-ae[data]"') from error


# ---------------------------------------------------------------------- writing


class EpisodeWriter:
    """Compresses an episode's frames as they come; nothing reaches the disk before :meth:`write`.

    Args:
        first: The first frame, (H, W, C), ``uint8``.

    Raises:
        ImportError: If h5py is missing.
    """

    def __init__(self, first: Frame) -> None:
        self._image = io.BytesIO()
        self._file = _h5py().File(self._image, "w")
        self._frames = self._file.create_dataset(
            "observations",
            data=first[None],
            maxshape=(None, *first.shape),
            chunks=(max(1, _CHUNK_BYTES // first.nbytes), *first.shape),
            compression="gzip",
            compression_opts=_COMPRESSION,
        )
        self._steps: list[tuple[Any, float, bool, bool]] = []

    def add(self, frame: Frame, action: Any, reward: float, terminated: bool, truncated: bool) -> None:
        """Add a step: the action, and what came of it."""
        self._steps.append((action, reward, terminated, truncated))
        self._frames.resize(1 + len(self._steps), axis=0)
        self._frames[-1] = frame

    def write(self, path: Path, index: int, seed: int, policy: str) -> None:
        """Write the episode, with the facts that Minari keeps of one, atomically.

        Raises:
            OSError: If it cannot be written, to a full disk say; then nothing is.
        """
        actions, rewards, terminations, truncations = zip(*self._steps, strict=True)
        self._file["actions"] = np.stack(actions)
        self._file["rewards"] = np.array(rewards, np.float64)
        self._file["terminations"] = np.array(terminations)
        self._file["truncations"] = np.array(truncations)
        self._file.attrs.update({"id": index, "seed": seed, "total_steps": len(rewards), "policy": policy})
        self._file.close()
        write_atomically(path, lambda file: file.write_bytes(self._image.getbuffer()))


class EpisodeFacts(NamedTuple):
    """What is asked of a finished episode.

    Attributes:
        steps: Its actions; it has one frame more.
        size: Bytes on disk.
    """

    steps: int
    size: int


def read_facts(path: Path) -> EpisodeFacts | None:
    """Facts of an episode's file; ``None`` if it is missing or damaged."""
    try:
        with _h5py().File(path, "r") as file:
            return EpisodeFacts(int(file.attrs["total_steps"]), path.stat().st_size)
    except (OSError, KeyError):
        return None


def publish(
    data_set: DataSet,
    facts: Sequence[EpisodeFacts],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    env_spec: EnvSpec | None,
    metadata: Mapping[str, Any],
) -> None:
    """Make finished episodes a data set that Minari loads, instead of a smaller one that may be there.

    Args:
        data_set: Whose episodes ``0 … len(facts) - 1`` are written.
        facts: Of each episode.
        observation_space: Of the frames.
        action_space: Of the actions.
        env_spec: The environment, where Gymnasium can make it again.
        metadata: JSON-ready facts to add to Minari's own.

    Raises:
        OSError: If it cannot be written; what was there stays.
        ImportError: If Minari is missing.
    """
    storage = _minari("dataset.minari_storage").MinariStorage

    def link(path: Path) -> None:
        h5py = _h5py()
        with h5py.File(path, "w", track_order=True) as file:
            for index in range(len(facts)):
                file[f"episode_{index}"] = h5py.ExternalLink(_episode_file(index), "/")

    def describe(path: Path) -> None:
        # Minari describes an empty data set; that description becomes this one's
        new = storage.new(path, observation_space, action_space, env_spec, _FORMAT, jpeg_encoding=False)
        new.update_metadata(
            {
                "dataset_id": data_set.name,
                "minari_version": importlib.import_module("minari").__version__,
                "total_episodes": len(facts),
                "total_steps": sum(fact.steps for fact in facts),
                "dataset_size": round(sum(fact.size for fact in facts) / 1e6, 1),
                **metadata,
            }
        )

    data = data_set.folder / "data"
    with _scratch(data / ".description") as scratch:
        describe(scratch)
        write_atomically(data / _MAIN, link)
        # last: from here on it is a data set, until then the one that was there
        write_atomically(data / _METADATA, lambda path: path.write_bytes((scratch / _METADATA).read_bytes()))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for files that are about to be moved; also if a killed process left it."""

    def clear() -> None:
        for name in (_MAIN, _METADATA):
            (folder / name).unlink(missing_ok=True)

    folder.mkdir(parents=True, exist_ok=True)
    clear()
    try:
        yield folder
    finally:
        clear()
        folder.rmdir()


# ---------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the frames of an episode lie in its file, and what they look like.

    Attributes:
        shape: Of a stored frame: (H, W), (H, W, C) or (C, H, W).
        jpeg: Whether they are stored as Minari stores images unless told otherwise.
    """

    shape: tuple[int, ...]
    jpeg: bool

    @property
    def channel_axis(self) -> int | None:
        """0 or 2; ``None`` of frames without one. Three or one are channels; else the fewest are."""
        if len(self.shape) == 2:
            return None
        for axis in (2, 0):
            if self.shape[axis] in (1, 3):
                return axis
        return 0 if self.shape[0] < self.shape[2] else 2

    @property
    def channels(self) -> int:
        return 1 if self.channel_axis is None else self.shape[self.channel_axis]

    @property
    def size(self) -> tuple[int, int]:
        height, width = (side for axis, side in enumerate(self.shape) if axis != self.channel_axis)
        return height, width

    def channels_last(self, frames: Frame) -> Frame:
        """(T, …) as they are stored to (T, H, W, C)."""
        if self.channel_axis is None:
            return frames[..., None]
        return np.moveaxis(frames, 1 + self.channel_axis, -1)


class MinariFrames:
    """The frames of a Minari data set, read from disk a part of an episode at a time.

    Observations may be images (H, W), (H, W, C) or (C, H, W), ``uint8``, or a ``Dict`` with some. It can be pickled,
    and used in processes forked off: each opens the files for itself. Data sets in Minari's format ``hdf5``, its
    default.

    Args:
        data_set: A folder, with ``data`` in it or that folder itself; or the id of a data set that Minari has locally.
        frame_stack: Frames in an observation, oldest first; at the start of an episode its first frame is repeated, as
            :func:`~rl_ae.envs.make_pixel_env` does.
        size: (H, W) that frames are averaged to; as they are if ``None``.
        grayscale: One channel a frame, their luminance.
        key: Of a ``Dict`` with several images, which: ``"camera"``, or ``"cameras/left"`` of one inside another.

    Attributes:
        observation_shape: (frame_stack·C, H, W), of what :meth:`read` returns.
        episode_lengths: Observations in each episode, one more than its actions.
        frame_channels: C, of one frame.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If it is no data set, a damaged or an unfinished one; has no images or, without a ``key``, several;
            or frames of different sizes, and no ``size`` is given.
        ImportError: If Minari or h5py is missing.
    """

    def __init__(
        self,
        data_set: str | Path,
        frame_stack: int = 1,
        size: tuple[int, int] | None = None,
        grayscale: bool = False,
        key: str | None = None,
    ) -> None:
        if frame_stack < 1:
            raise ValueError(f"frame_stack must be ≥ 1, got {frame_stack}")
        if size is not None and min(size) < MIN_IMAGE_SIZE:
            raise ValueError(f"size must be at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE}, got {size[0]}×{size[1]}")
        self._data = _existing(data_set)
        self._frame_stack, self._grayscale = frame_stack, grayscale
        storage = _read_storage(self._data)
        self._entry = _find_images(storage.observation_space, key, self._data)
        self._opened: tuple[int, Any] | None = None
        self._layouts, lengths = zip(*self._survey(storage.total_episodes), strict=True)
        self.episode_lengths: Sequence[int] = lengths
        first = self._check_layouts(size)
        self._size = first.size if size is None else size
        # conversions are Pillow's, which knows one channel and three
        self._converts = size is not None or (grayscale and first.channels != 1)
        self.frame_channels = 1 if grayscale else first.channels
        self.observation_shape: tuple[int, int, int] = (frame_stack * self.frame_channels, *self._size)

    def read(self, episode: int, start: int, stop: int) -> Frame:
        """Observations ``start … stop - 1`` of an episode.

        Returns:
            (stop - start, frame_stack·C, H, W).

        Raises:
            IndexError: If the episode has no such observations, or there is no such episode.
            OSError: If the file cannot be read.
        """
        if not 0 <= episode < len(self.episode_lengths):
            raise IndexError(f"expected an episode from 0 to {len(self.episode_lengths) - 1}, got {episode}")
        if not 0 <= start < stop <= self.episode_lengths[episode]:
            raise IndexError(
                f"episode {episode} has {self.episode_lengths[episode]} observations: expected "
                f"0 ≤ start < stop ≤ {self.episode_lengths[episode]}, got {start} and {stop}"
            )
        before = min(start, self._frame_stack - 1)
        frames = self._convert(self._read_stored(episode, start - before, stop), self._layouts[episode])
        missing = self._frame_stack - 1 - before
        frames = np.concatenate([frames[:1].repeat(missing, axis=0), frames])
        stacks = np.stack([frames[first : first + stop - start] for first in range(self._frame_stack)], axis=1)
        return stacks.reshape(stop - start, *self.observation_shape)

    def __len__(self) -> int:
        """Observations of all episodes."""
        return sum(self.episode_lengths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _file(self) -> Any:
        """The data set's file, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            path = self._data / _MAIN
            try:
                self._opened = os.getpid(), _h5py().File(path, "r")
            except OSError as error:
                raise ValueError(f"{path} is missing, truncated or not of HDF5: {error}") from error
        return self._opened[1]

    def _survey(self, episodes: int) -> Iterator[tuple[_Layout, int]]:
        """Layout and length of each episode."""
        file = self._file()
        if episodes == 0:
            raise ValueError(f"{self._data} is a data set without episodes")
        for episode in range(episodes):
            try:
                stored = file[f"episode_{episode}/{self._entry}"]
                yield _layout(stored), len(stored)
            except (KeyError, OSError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"{self._data}: episode {episode} of {episodes} is missing, truncated or without frames: {error}"
                ) from error

    def _check_layouts(self, size: tuple[int, int] | None) -> _Layout:
        """The first episode's layout, which the others share as far as it matters."""
        first: _Layout = self._layouts[0]
        for episode, layout in enumerate(self._layouts):
            same = layout.channels == first.channels and (size is not None or layout.size == first.size)
            if not same:
                raise ValueError(
                    f"{self._data} has frames of different sizes: expected {first.shape} as in episode 0, got "
                    f"{layout.shape} in episode {episode}; give a size (H, W) to bring them to, if their channels agree"
                )
        if (size is not None or self._grayscale) and first.channels not in (1, 3):
            raise ValueError(
                f"only frames of 1 or 3 channels can be resized or made grey, those of {self._data} have "
                f"{first.channels}: leave them as they are"
            )
        return first

    def _read_stored(self, episode: int, start: int, stop: int) -> Frame:
        """(T, …) as stored."""
        layout: _Layout = self._layouts[episode]
        try:
            stored: Array = self._file()[f"episode_{episode}/{self._entry}"][start:stop]
            frames: Frame = np.stack([_decode(each) for each in stored]) if layout.jpeg else stored
        except (OSError, KeyError, ValueError) as error:
            raise OSError(f"{self._data}: episode {episode} cannot be read, it is damaged: {error}") from error
        if frames.shape[1:] != layout.shape:
            raise OSError(f"{self._data}: episode {episode} begins with frames {layout.shape}, got {frames.shape[1:]}")
        return frames

    def _convert(self, stored: Frame, layout: _Layout) -> Frame:
        """(T, …) as stored to (T, C, H, W) as asked for."""
        frames = layout.channels_last(stored)
        if not self._converts:
            return np.moveaxis(frames, -1, 1)
        return np.stack([shrink(frame, self._size, self.frame_channels == 1, None) for frame in frames])


def _existing(place: str | Path) -> Path:
    """Minari's data path of a data set that is there."""
    data_set = DataSet.at(place)
    if not data_set.folder.exists():
        raise FileNotFoundError(
            f"there is no data set {place}: expected a folder, or an id that Minari has in {data_set.folder.parent}; "
            "rl-ae collect makes one, minari download fetches one"
        )
    if not data_set.is_published:
        raise ValueError(
            f"{place} is no Minari data set, or one that is still being collected: expected {_METADATA} in "
            f"{data_set.data}"
        )
    return data_set.data


def _read_storage(data: Path) -> Any:
    """Minari's storage, for spaces and counts."""
    storage = _minari("dataset.minari_storage").MinariStorage
    try:
        metadata = storage.read_raw_metadata(data)
        found = metadata["data_format"]
        if found == _FORMAT:
            return storage.read(data)
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError, gym.error.Error) as error:
        raise ValueError(f"{data / _METADATA} does not describe a Minari data set: {error!r}") from error
    raise ValueError(f"{data} is in Minari's format {found!r}: expected {_FORMAT!r}, which can be read in parts")


def _find_images(space: spaces.Space[Any], key: str | None, data: Path) -> str:
    """Where the images of an episode lie in its group."""
    found = dict(_images(space, "observations"))
    entry = "observations" if key is None else f"observations/{key}"
    if key is None and len(found) == 1:
        [entry] = found
    if entry in found:
        return entry
    if not found:
        raise ValueError(f"{data} has no images: expected uint8 observations of two or three dimensions, got {space}")
    names = [name.removeprefix("observations").lstrip("/") or "no key" for name in found]
    raise ValueError(f"{data}: expected a key of images, one of {', '.join(names)}; got {key!r}")


def _images(space: spaces.Space[Any], path: str) -> Iterator[tuple[str, spaces.Box]]:
    if isinstance(space, spaces.Dict):
        for name, inner in space.items():
            yield from _images(inner, f"{path}/{name}")
    elif (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and min(_Layout(space.shape, jpeg=False).size) >= MIN_IMAGE_SIZE
    ):
        yield path, space


def _layout(stored: Any) -> _Layout:
    """Of an episode's frames; JPEGs are rows of bytes, of equal length or not."""
    jpeg = stored.ndim <= 2
    return _Layout(_decode(stored[0]).shape if jpeg else stored.shape[1:], jpeg)


def _decode(jpeg: Array) -> Frame:
    with Image.open(io.BytesIO(jpeg.tobytes())) as image:
        return np.asarray(image)
