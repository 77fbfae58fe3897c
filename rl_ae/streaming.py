"""Streaming: shuffled batches of episodes that may be larger than memory."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

#: Consecutive observations that are read at once. Long enough for a disk, short enough that a buffer of them comes from
#: all over the data.
RUN_LENGTH = 32


class FrameSource(Protocol):
    """Episodes of observations, on disk or in memory.

    Attributes:
        observation_shape: (C, H, W) of what :meth:`read` returns.
        episode_lengths: Observations of each episode.
    """

    observation_shape: tuple[int, int, int]
    episode_lengths: Sequence[int]

    def read(self, episode: int, start: int, stop: int) -> Frames:
        """Observations ``start`` to ``stop`` of an episode, (``stop - start``, C, H, W), ``uint8``."""


class ArrayFrames:
    """Episodes in memory, or in files that are mapped into it.

    Args:
        episodes: An array (T, C, H, W) of each, ``uint8``.

    Raises:
        TypeError: If an array is not ``uint8``.
        ValueError: If there is none, one is empty, or their shapes differ.
    """

    def __init__(self, episodes: Sequence[Frames]) -> None:
        if not episodes:
            raise ValueError("there are no episodes: pass at least one array (T, C, H, W)")
        for number, episode in enumerate(episodes):
            if episode.dtype != np.uint8:
                raise TypeError(f"episode {number}: expected uint8, got {episode.dtype}")
            if episode.ndim != 4 or episode.shape[1:] != episodes[0].shape[1:]:
                expected = ", ".join(map(str, episodes[0].shape[1:])) if episodes[0].ndim == 4 else "C, H, W"
                raise ValueError(f"episode {number}: expected an array (T, {expected}), got {episode.shape}")
            if len(episode) == 0:
                raise ValueError(f"episode {number}: expected at least one observation, got none: leave it out")
        channels, height, width = episodes[0].shape[1:]
        self.observation_shape = (channels, height, width)
        self.episode_lengths = [len(episode) for episode in episodes]
        self._episodes = list(episodes)

    def read(self, episode: int, start: int, stop: int) -> Frames:
        return self._episodes[episode][start:stop]


def random(seed: int, *path: int) -> np.random.Generator:
    """A generator of its own for each purpose: numbers lead from the seed to it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def read_checked(source: FrameSource, episode: int, start: int, stop: int) -> Frames:
    """What a source returns.

    Raises:
        ValueError: If it is not what the source promised.
    """
    frames = source.read(episode, start, stop)
    expected = (stop - start, *source.observation_shape)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise ValueError(
            f"observations {start} to {stop} of episode {episode}: expected uint8 {expected}, got {frames.dtype} "
            f"{frames.shape}; the data set is damaged, or its frames differ in size"
        )
    return frames


def hold_out(episodes: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to train on, and those to validate with, at least one of each; in order.

    Args:
        episodes: How many there are.
        held_out: Share of them to validate with if below 1, else their number; 0 for none.
        seed: Of the choice.

    Raises:
        ValueError: If nothing would be left to train on.
    """
    count = round(held_out) if held_out >= 1.0 else max(round(held_out * episodes), 1)
    count = 0 if held_out == 0.0 else count
    if count >= episodes:
        raise ValueError(
            f"held_out={held_out:g} would hold out {count} of {episodes} episodes: at least one must be left to train "
            "on; collect more episodes, or validate with none, held_out=0"
        )
    order = random(seed).permutation(episodes).tolist()
    return sorted(order[count:]), sorted(order[:count])


class Window(NamedTuple):
    """Observations that are shuffled together.

    Attributes:
        key: Pass, and window of the pass.
        frames: Of each shard that is read here, in the order of the data.
        orders: In which they are used.
        batches: There are of them; as many as the window's smallest shard has, here or elsewhere.
    """

    key: tuple[int, int]
    frames: list[Frames]
    orders: list[NDArray[np.int64]]
    batches: int


class Position(NamedTuple):
    """Where in the data a reader is.

    Attributes:
        epoch: Passes made.
        window: Of the pass.
        batch: Of the window.
    """

    epoch: int = 0
    window: int = 0
    batch: int = 0


class Batches:
    """Batches of shuffled observations, without end, in memory that does not grow with the data.

    The episodes are cut into runs of consecutive observations. Each pass shuffles the runs, reads as many at a time as
    the buffer holds (a window) and shuffles their observations; while one window is trained on, a thread reads the
    next. What does not fill a batch at the end of a window waits for the next pass.

    Every batch is a function of the seed and its position: nothing but the position has to be kept to go on exactly.

    Several processes read a batch together: it is divided into ``shards``, each of which has runs of its own in every
    window, and each process reads only its own shards.

    Args:
        source: What is read.
        episodes: Of these episodes.
        batch_size: Observations a batch, all shards together.
        buffer_bytes: Of each shard's window; twice as much is held.
        seed: Of the order.
        shards: Parts of a batch, a divisor of ``batch_size``.
        own: The shards that this process reads; all if omitted.
        run_length: Observations of a run.

    Attributes:
        n_data: Observations of the episodes.

    Raises:
        ValueError: If a number is out of range, or data or buffer hold fewer observations than a batch.
    """

    def __init__(
        self,
        source: FrameSource,
        episodes: Sequence[int],
        batch_size: int,
        *,
        buffer_bytes: int,
        seed: int = 0,
        shards: int = 1,
        own: range | None = None,
        run_length: int = RUN_LENGTH,
    ) -> None:
        if min(batch_size, shards, run_length) < 1 or batch_size % shards:
            raise ValueError(
                "batch_size, shards and run_length must be ≥ 1 and shards a divisor of batch_size, got "
                f"{batch_size}, {shards} and {run_length}"
            )
        self.source, self.seed, self.shards = source, seed, shards
        self.own = range(shards) if own is None else own
        self.rows = batch_size // shards
        self.runs = [
            (episode, start, min(start + run_length, source.episode_lengths[episode]))
            for episode in episodes
            for start in range(0, source.episode_lengths[episode], run_length)
        ]
        self.n_data = sum(stop - start for _, start, stop in self.runs)
        if self.n_data < batch_size:
            raise ValueError(
                f"a batch of {batch_size} needs as many observations to train on, the episodes have {self.n_data}: "
                "collect more, or lower batch_size"
            )
        buffered = buffer_bytes // math.prod(source.observation_shape)
        if buffered < self.rows + run_length:
            raise ValueError(
                f"a buffer of {buffer_bytes} bytes holds {buffered} observations {source.observation_shape}, expected "
                f"at least {self.rows + run_length}: raise the buffer, or lower batch_size"
            )
        runs_at_once = shards * (buffered // run_length)
        self.windows = -(-len(self.runs) // runs_at_once)
        if not any(self._batches(0, window) for window in range(self.windows)):
            raise ValueError(
                f"the {len(self.runs)} runs of observations cannot be divided among {shards} shards of batches of "
                f"{batch_size}: collect more, or lower batch_size"
            )
        self.position = Position()
        self._reader = ThreadPoolExecutor(1, "frames")
        self._current: Window | None = None
        self._next: tuple[tuple[int, int], Future[list[Frames]]] | None = None

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return self.position._asdict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from :meth:`state_dict`."""
        self.position = Position(**state)

    def close(self) -> None:
        """End the thread that reads; a batch that is asked for afterwards raises ``RuntimeError``."""
        self._reader.shutdown(cancel_futures=True)

    def wait(self) -> None:
        """Wait until the window that is being read has been read."""
        if self._next is not None:
            self._next[1].result()

    def skip_window(self) -> None:
        """Go on with the first batch of the next window."""
        self.position = Position(*self._following(*self.position[:2]))

    def batches_left(self) -> int:
        """Batches of the window at the position, from there on."""
        return max(self._batches(*self.position[:2]) - self.position.batch, 0)

    def next(self) -> Frames:
        """This process's rows of the batch at the position, (B / shards · own, C, H, W), and the position moves on."""
        window = self._window(*self.position[:2])
        while self.position.batch >= window.batches:
            self.position = Position(*self._following(*window.key))
            window = self._window(*self.position[:2])
        rows = slice(self.position.batch * self.rows, (self.position.batch + 1) * self.rows)
        self.position = self.position._replace(batch=self.position.batch + 1)
        return np.concatenate([frames[order[rows]] for frames, order in zip(window.frames, window.orders, strict=True)])

    # ------------------------------------------------------------------ windows

    def _following(self, epoch: int, window: int) -> tuple[int, int]:
        return (epoch, window + 1) if window + 1 < self.windows else (epoch + 1, 0)

    def _runs(self, epoch: int, window: int, shard: int) -> list[int]:
        """Numbers of the runs of a shard's window, in the order of the data."""
        order = random(self.seed, epoch).permutation(len(self.runs))
        own: list[int] = np.sort(np.array_split(order, self.windows)[window][shard :: self.shards]).tolist()
        return own

    def _count(self, runs: Sequence[int]) -> int:
        return sum(self.runs[run][2] - self.runs[run][1] for run in runs)

    def _batches(self, epoch: int, window: int) -> int:
        """Batches of a window, as many as its smallest shard has."""
        return min(self._count(self._runs(epoch, window, shard)) // self.rows for shard in range(self.shards))

    def _read(self, epoch: int, window: int) -> list[Frames]:
        """The observations of a window, of each own shard."""
        read = []
        for shard in self.own:
            runs = self._runs(epoch, window, shard)
            frames = np.empty((self._count(runs), *self.source.observation_shape), np.uint8)
            filled = 0
            for episode, start, stop in (self.runs[run] for run in runs):
                frames[filled : filled + stop - start] = read_checked(self.source, episode, start, stop)
                filled += stop - start
            read.append(frames)
        return read

    def _window(self, epoch: int, window: int) -> Window:
        """The window, read if it is not at hand; the one after it is being read from then on."""
        key = (epoch, window)
        if self._current is None or self._current.key != key:
            if self._current is not None and self._all_at_once:
                frames = self._current.frames  # another order is all that changes
            else:
                self._current = None  # before another is held
                frames = self._reading(key).result()
            own = enumerate(self.own)
            orders = [random(self.seed, *key, shard).permutation(len(frames[index])) for index, shard in own]
            self._current = Window(key, frames, orders, self._batches(*key))
            if not self._all_at_once:
                following = self._following(*key)
                self._next = following, self._reader.submit(self._read, *following)
        return self._current

    @property
    def _all_at_once(self) -> bool:
        """Whether every window holds all that this process reads."""
        return self.windows == self.shards == 1

    def _reading(self, key: tuple[int, int]) -> Future[list[Frames]]:
        """The window that is being read; always in the one thread, since not every file may be read in several."""
        if self._next is not None and self._next[0] == key:
            return self._next[1]
        return self._reader.submit(self._read, *key)


def spread(source: FrameSource, episodes: Sequence[int], count: int) -> Frames:
    """At most ``count`` observations of some episodes, evenly spread over them, (N, C, H, W)."""
    ends = np.cumsum([source.episode_lengths[episode] for episode in episodes])
    rows = np.linspace(0, ends[-1] - 1, min(count, ends[-1])).round().astype(int)
    frames = np.empty((len(rows), *source.observation_shape), np.uint8)
    for index, row in enumerate(rows):
        number = int(np.searchsorted(ends, row, side="right"))
        start = int(row - (ends[number - 1] if number else 0))
        frames[index] = read_checked(source, episodes[number], start, start + 1)[0]
    return frames


def describe(source: FrameSource) -> dict[str, Any]:
    """What a data set is told from another by: JSON-ready, in memory in no time however large it is."""
    lengths = list(map(int, source.episode_lengths))
    return {
        "observation_shape": list(source.observation_shape),
        "episodes": len(lengths),
        "observations": sum(lengths),
        "lengths": _digest(np.asarray(lengths, np.int64).tobytes()),
        "first_observations": _digest(
            b"".join(read_checked(source, episode, 0, 1).tobytes() for episode in _some(lengths))
        ),
    }


def _some(lengths: Sequence[int], most: int = 8) -> list[int]:
    """Numbers of a few episodes that are not empty."""
    filled = [episode for episode, length in enumerate(lengths) if length > 0]
    return filled[:: max(len(filled) // most, 1)]


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]
