"""Replay: a buffer that keeps every frame of a stack once, and rebuilds the stacks when it is sampled.

An observation is a stack of n frames, and the next one is the same stack moved on by one frame. Stable-Baselines3 keeps
both in full, 2n frames a transition; here a transition keeps n + 1 references, and only its newest frame is new.
"""

import errno
import functools
import itertools
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from rl_ae.sb3.memory import compare

Array: TypeAlias = np.ndarray[Any, Any]

#: A frame store starts with room for a sixteenth more frames than transitions, and grows by a sixteenth.
_SLACK = 16
#: The only key of an observation that is not a Dict.
_BOX = ""
#: Arguments of HerReplayBuffer alone.
_HER_ARGUMENTS = {"n_sampled_goal", "goal_selection_strategy", "copy_info_dict"}


# ---------------------------------------------------------------------- where frames are kept


class FrameStore:
    """Frames in memory, each in a slot of its own until it is released.

    A released slot is taken again before a new one, so that no more memory is touched than frames were ever kept at
    once. Where no slot is free the store grows, on Linux without copying what there is.

    Args:
        capacity: Frames there is room for at first. Nothing is allocated before the first frame comes.
        frame_size: Numbers in a frame.
        dtype: Of the numbers.
    """

    def __init__(self, capacity: int, frame_size: int, dtype: np.dtype[Any]) -> None:
        self.capacity = capacity
        self.frame_size = frame_size
        self.dtype = dtype
        self._frames: Any = None  # (capacity, frame_size)
        self._used = 0  # slots that were ever taken
        self._free: list[int] = []

    @property
    def kept(self) -> int:
        """Frames that are kept now."""
        return self._used - len(self._free)

    def reserve(self, count: int) -> None:
        """Make room for so many more frames.

        Raises:
            MemoryError: If there is not enough memory.
            OSError: If there is not enough of the disk.
        """
        if self._frames is None:
            self._frames = self._allocate(self.capacity)
        missing = self._used - len(self._free) + count - self.capacity
        if missing > 0:
            capacity = self.capacity + max(missing, self.capacity // _SLACK)
            self._frames = self._grow(capacity)
            self.capacity = capacity

    def put(self, frame: Any) -> int:
        """Keep a frame (frame_size,), for which room was reserved; returns its slot."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._used
            self._used += 1
        self._frames[slot] = frame
        return slot

    def get(self, slots: Array) -> Any:
        """Copies (N, frame_size) of the frames in slots (N,)."""
        return self._frames.take(slots, axis=0)

    def release(self, slots: Iterable[int]) -> None:
        """Let the slots be taken by other frames."""
        self._free.extend(slots)

    def clear(self) -> None:
        """Release all frames."""
        self._free = list(range(self._used))

    def _allocate(self, capacity: int) -> Any:
        return np.zeros((capacity, self.frame_size), self.dtype)  # memory counts once it is written to

    def _grow(self, capacity: int) -> Any:
        self._frames.resize((capacity, self.frame_size), refcheck=False)  # there are no views: `get` copies
        return self._frames

    def to_numpy(self, frames: Any) -> Array:
        """Frames that :meth:`get` returned, as an array."""
        array: Array = frames
        return array

    def _from_numpy(self, frames: Array) -> Any:
        return frames

    def __getstate__(self) -> dict[str, Any]:
        saved = None if self._frames is None else self.to_numpy(self._frames[: self._used])
        return {**vars(self), "_frames": saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._frames is not None:
            saved, self._frames = self._frames, None  # or a new file would pass for one that holds them already
            self._frames = self._allocate(self.capacity)
            self._frames[: self._used] = self._from_numpy(saved)


class MappedFrameStore(FrameStore):
    """Frames in a file that is mapped into memory, for more of them than memory holds.

    The file has no name and vanishes with the process. A pickled store has the frames in the pickle, and is mapped to a
    new file in the same folder when it is loaded.

    Args:
        capacity: As for :class:`FrameStore`.
        frame_size: As for :class:`FrameStore`.
        dtype: As for :class:`FrameStore`.
        folder: Where the file is; made when needed.
    """

    def __init__(self, capacity: int, frame_size: int, dtype: np.dtype[Any], folder: Path) -> None:
        super().__init__(capacity, frame_size, dtype)
        self.folder = folder
        self._file: Any = None

    def _allocate(self, capacity: int) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  open as long as the store lives
        weakref.finalize(self, self._file.close)
        return self._grow(capacity)

    def _grow(self, capacity: int) -> Any:
        size = capacity * self.frame_size * self.dtype.itemsize
        more = size - (0 if self._frames is None else self._frames.nbytes)
        free = shutil.disk_usage(self.folder).free
        if more > free:  # writing to a mapped file on a full disk kills the process
            raise OSError(
                errno.ENOSPC, f"frames need {more / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free", self.folder
            )
        self._file.truncate(size)
        return np.asarray(np.memmap(self._file, self.dtype, "r+", shape=(capacity, self.frame_size)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_file": None}


class DeviceFrameStore(FrameStore):
    """Frames in the memory of a device, where stacks are rebuilt without a transfer. Growing copies them.

    A pickled store comes back on its device, or in main memory on a machine without one.

    Args:
        capacity: As for :class:`FrameStore`, but allocated as a whole with the first frame.
        frame_size: As for :class:`FrameStore`.
        dtype: As for :class:`FrameStore`.
        device: The device.
    """

    def __init__(self, capacity: int, frame_size: int, dtype: np.dtype[Any], device: torch.device) -> None:
        super().__init__(capacity, frame_size, dtype)
        self.device = device

    def put(self, frame: Any) -> int:
        return super().put(self._from_numpy(frame))

    def get(self, slots: Array) -> Any:
        return self._frames.index_select(0, torch.as_tensor(slots, dtype=torch.long, device=self.device))

    def _allocate(self, capacity: int) -> Any:
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        return torch.zeros((capacity, self.frame_size), dtype=dtype, device=self.device)

    def _grow(self, capacity: int) -> Any:
        grown = self._allocate(capacity)
        grown[: len(self._frames)] = self._frames
        return grown

    def _from_numpy(self, frames: Array) -> Any:
        return torch.tensor(frames, device=self.device)

    def to_numpy(self, frames: Any) -> Array:
        return super().to_numpy(frames.cpu().numpy())

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["device"].type == "cuda" and not torch.cuda.is_available():
            state = {**state, "device": torch.device("cpu")}
        super().__setstate__(state)


# ---------------------------------------------------------------------- observations of one key


#: Frames (n_stack, frame_size) of an observation and of the next one, compared but not kept yet, and whether the
#: observation is the last next observation, whose frames are kept already.
Step: TypeAlias = tuple[Array, Array, bool]


class StackedObservations:
    """Observations and next observations of one image key, as references to frames.

    Args:
        name: What to call the observation in errors.
        space: Of one observation.
        n_stack: Frames in it.
        channels_order: Whether its first axis holds the stack or its last.
        rows: Transitions of an environment.
        n_envs: Environments.
        make_store: Makes the frame store, from its capacity, the numbers in a frame and their type.

    Raises:
        ValueError: If the space is not a stack of so many frames.
    """

    def __init__(
        self,
        name: str,
        space: spaces.Space[Any],
        n_stack: int,
        channels_order: str,
        rows: int,
        n_envs: int,
        make_store: Callable[[int, int, np.dtype[Any]], FrameStore],
    ) -> None:
        _check_stack(name, space, n_stack, channels_order)
        assert isinstance(space, spaces.Box)
        self.name, self.shape, self.dtype = name, space.shape, space.dtype
        self._batch_shape = (n_envs, *space.shape)
        self.n_stack, self.channels_order = n_stack, channels_order
        frame_size = int(np.prod(space.shape)) // n_stack
        transitions = rows * n_envs
        self._stacked_shape = (n_envs, n_stack, frame_size)
        self.store = make_store(transitions + transitions // _SLACK + n_envs * n_stack, frame_size, space.dtype)
        #: (rows, n_envs, n_stack + 1): slots of a transition's frames, oldest first; -1 where there is no transition.
        #: The first n_stack are the observation's, the last n_stack the next observation's.
        self.references = np.full((rows, n_envs, n_stack + 1), -1, np.int32)
        #: For each environment its last next observation, none at first. As bytearrays, because those compare with an
        #: array, or a part of themselves with it, by memcmp: several times as fast as NumPy.
        self._held = [bytearray() for _ in range(n_envs)]

    def check(self, observations: Any, next_observations: Any) -> list[Step]:
        """Compare the frames of observations with those that are held, and with those of the next observations.

        Room is made for those that are new, so that :meth:`add` cannot fail.

        Args:
            observations: (n_envs, *shape).
            next_observations: (n_envs, *shape).

        Raises:
            ValueError: If a shape is another, or a next observation is not its observation moved on by one frame.
        """
        steps: list[Step] = []
        new_frames = 0
        stacks, next_stacks = self._split(observations), self._split(next_observations)
        frame = stacks[0, 0].nbytes
        for env, held in enumerate(self._held):
            stack, next_stack = stacks[env], next_stacks[env]
            continues = held.startswith(stack)
            frames = held if continues else bytearray(stack)
            if not frames.startswith(next_stack[:-1], frame):
                raise ValueError(
                    f"{self.name} is not a frame stack of n_stack={self.n_stack} along the {self.channels_order} axis "
                    f"of {self.shape}: in environment {env} the next observation's {self.n_stack - 1} older "
                    "frames are not the observation's newer ones; check n_stack and channels_order, or use "
                    "Stable-Baselines3's buffer"
                )
            steps.append((stack, next_stack, continues))
            new_frames += 1 if continues else self.n_stack + 1
        self.store.reserve(new_frames)
        return steps

    def add(self, row: int, steps: list[Step]) -> None:
        """Keep the transitions of a row, as :meth:`check` returned them."""
        references, overwritten = self.references[row - 1].tolist(), self.references[row].tolist()
        for env, (stack, next_stack, continues) in enumerate(steps):
            slots = references[env][1:] if continues else self._put_stack(stack)
            held = self._held[env] = bytearray(next_stack)
            moves = not held.endswith(stack[-1])
            references[env] = [*slots, self.store.put(next_stack[-1]) if moves else slots[-1]]
        self.references[row] = references
        if overwritten[0][0] < 0:  # nothing was
            return
        # A frame is referred to from its first to its last transition without a gap, so what the oldest transition
        # refers to, and the next oldest does not, is referred to no more.
        following = self.references[(row + 1) % len(self.references)].tolist()
        for gone, still in zip(overwritten, following, strict=True):
            self.store.release(set(gone).difference(still))

    def _put_stack(self, stack: Array) -> list[int]:
        """References to the frames of a new stack, of which one that repeats the one before it is kept once."""
        slots = [self.store.put(stack[0])]
        for before, frame in itertools.pairwise(stack):
            slots.append(self.store.put(frame) if bytearray(before) != frame else slots[-1])
        return slots

    def _split(self, observations: Any) -> Array:
        """Observations (n_envs, *shape) as their frames (n_envs, n_stack, frame_size)."""
        stacks = _batch(self.name, observations, self._batch_shape, self.dtype)
        if self.channels_order == "last":  # (n_envs, pixels, n_stack, C) to (n_envs, n_stack, pixels, C)
            stacks = stacks.reshape(len(stacks), -1, self.n_stack, self.shape[-1] // self.n_stack).swapaxes(1, 2)
            stacks = np.ascontiguousarray(stacks)
        return stacks.reshape(self._stacked_shape)

    def rebuild(self, references: Array) -> Any:
        """Observations (…, *shape) from references (…, n_stack): an array, or a tensor on the device of the frames."""
        frames = self.store.get(references.ravel())
        if self.channels_order == "last":
            channels = self.shape[-1] // self.n_stack
            frames = frames.reshape(-1, self.n_stack, self.store.frame_size // channels, channels).swapaxes(1, 2)
        return frames.reshape(*references.shape[:-1], *self.shape)

    def views(self) -> tuple["StackView", "StackView"]:
        """Observations and next observations, indexed as arrays (rows, n_envs, *shape)."""
        return StackView(self, 0), StackView(self, 1)

    def save_rows(self, rows: slice) -> dict[str, Array]:
        """Transitions, as the frames they refer to and references to those."""
        references = self.references[rows]
        used = references >= 0
        slots, positions = np.unique(references[used], return_inverse=True)
        local = np.full_like(references, -1)
        local[used] = positions
        frames = (
            self.store.to_numpy(self.store.get(slots))
            if used.any()
            else np.empty((0, self.store.frame_size), self.dtype)
        )
        return {"frames": frames, "references": local}

    def load_rows(self, rows: slice, frames: Array, references: Array) -> None:
        """Undo :meth:`save_rows` in rows that hold nothing; raises as NumPy where shapes do not fit."""
        used = references >= 0
        self.store.reserve(len(frames))
        slots = np.array([self.store.put(frame) for frame in frames], np.int32)
        kept = np.full_like(references, -1)
        kept[used] = slots[references[used]]
        self.references[rows] = kept

    def clear(self) -> None:
        """Forget everything."""
        self.references[:] = -1
        self._held = [bytearray() for _ in self._held]
        self.store.clear()


class StackView:
    """Stacks that are rebuilt when indexed, as the array that Stable-Baselines3's buffers keep would be.

    Args:
        observations: Whose stacks.
        first: Position of a stack's oldest frame among the references of a transition.
    """

    def __init__(self, observations: StackedObservations, first: int) -> None:
        self._observations = observations
        self._stack = slice(first, first + observations.n_stack)

    def __getitem__(self, index: Any) -> Any:
        return self._observations.rebuild(self._observations.references[index][..., self._stack])


class PlainObservations:
    """Observations and next observations of one key, each kept in full.

    Args:
        name: What to call the observation in errors.
        space: Of one observation.
        rows: Transitions of an environment.
        n_envs: Environments.
    """

    def __init__(self, name: str, space: spaces.Space[Any], rows: int, n_envs: int) -> None:
        self.name, self.shape = name, cast(tuple[int, ...], get_obs_shape(space))
        self.observations = np.zeros((rows, n_envs, *self.shape), space.dtype)
        self.next_observations = np.zeros_like(self.observations)

    def check(self, observations: Any, next_observations: Any) -> tuple[Array, Array]:
        """Both as arrays (n_envs, *shape).

        Raises:
            ValueError: If a shape is another.
        """
        return self._batch(observations), self._batch(next_observations)

    def _batch(self, observations: Any) -> Array:
        if self.shape == (1,):  # of a Discrete space, whose observations have no axis of their own
            observations = np.asarray(observations).reshape(-1, 1)
        return _batch(self.name, observations, self.observations.shape[1:], self.observations.dtype)

    def add(self, row: int, pair: tuple[Array, Array]) -> None:
        """Keep the transitions of a row, as :meth:`check` returned them."""
        self.observations[row], self.next_observations[row] = pair

    def views(self) -> tuple[Array, Array]:
        """Observations and next observations (rows, n_envs, *shape)."""
        return self.observations, self.next_observations

    def clear(self) -> None:
        """Forget nothing: the buffer knows which rows count."""


class ObservationsByKey(dict[str, Any]):
    """Arrays by key; indexed like one of them, the observations of all keys."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return super().__getitem__(index)
        return {key: array[index] for key, array in self.items()}


def _batch(name: str, observations: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Observations as a contiguous array of a shape (n_envs, …); one environment's may lack the first axis."""
    batch: Array = np.ascontiguousarray(observations, dtype)
    if batch.shape == shape:
        return batch
    if shape[0] == 1 and batch.shape == shape[1:]:
        return batch[None]
    raise ValueError(
        f"{name}: expected shape {shape}, for a buffer of {shape[0]} environment(s), got {batch.shape}; a buffer that "
        "was loaded needs as many environments as it was filled by"
    )


def _check_stack(name: str, space: spaces.Space[Any], n_stack: int, channels_order: str) -> None:
    if not isinstance(space, spaces.Box) or len(space.shape) == 0:
        raise ValueError(f"{name}: a frame stack is a Box of at least one axis, got {space}")
    if isinstance(n_stack, bool) or not isinstance(n_stack, int | np.integer) or n_stack < 1:
        raise ValueError(f"{name}: n_stack must be a whole number ≥ 1, got {n_stack!r}")
    if channels_order not in ("first", "last"):
        raise ValueError(f"{name}: channels_order must be 'first' or 'last', got {channels_order!r}")
    length = space.shape[0 if channels_order == "first" else -1]
    if length % n_stack != 0:
        raise ValueError(
            f"{name}: n_stack={n_stack} does not divide the {channels_order} axis of {space.shape}, which is {length} "
            "long; pass the number of frames in a stack, and channels_order='last' where they are on the last axis"
        )


# ---------------------------------------------------------------------- the buffer


class FrameReplayBuffer(NStepReplayBuffer):
    """A replay buffer of frame stacks that keeps every frame once.

    For any off-policy agent: ``replay_buffer_class=FrameReplayBuffer, replay_buffer_kwargs={"n_stack": 3}``. Under the
    same state of NumPy's generator it returns what Stable-Baselines3's ``ReplayBuffer``, ``DictReplayBuffer`` or, with
    ``n_steps`` above 1, ``NStepReplayBuffer`` returns, bit for bit; a ``Dict`` with ``n_steps`` too, which has no class
    there. So it also shares what theirs does at an environment's reset in the middle of an episode, as by a second
    ``learn()``: nothing marks it, and n-step returns reach over it.

    Frames may be stacked by ``VecFrameStack``, by Gymnasium's ``FrameStackObservation`` or by
    :func:`~rl_ae.envs.make_pixel_env`, and padded at an episode's start with anything. An observation that continues
    the last next observation shares its frames; any other begins a new stack. A frame equal to the one before it is not
    kept again. The frame store has room for a sixteenth more frames than transitions, which is touched only when it is
    needed; episodes of less than about 16 · ``n_stack`` steps can exhaust it, and it grows. No transition is dropped.

    ``HerReplayBuffer`` relabels goals in arrays of whole observations: it is another class, and not combined with this.

    Args:
        buffer_size: Transitions, over all environments.
        observation_space: A ``Box``, or a ``Dict`` whose images are stacked and whose other keys are kept as they are.
        action_space: Action space.
        device: Where samples go.
        n_envs: Environments.
        optimize_memory_usage: Refused: it is Stable-Baselines3's way of storing less, and drops time limits.
        handle_timeout_termination: Take a time limit for no termination.
        n_stack: Frames in an observation. In a ``Dict`` an integer applies to every ``Box`` of three axes or more; a
            mapping from key to number names the stacked keys.
        channels_order: ``"first"`` where frames are stacked along the first axis, (n·C, H, W), (n, H, W), (n, H, W, C)
            …, ``"last"`` where along the last one, (H, W, n·C). In a ``Dict`` a mapping may say so by key. What reaches
            the buffer of an agent has ``"first"``: Stable-Baselines3 transposes images before.
        n_steps: Steps of the return. From 2 on samples carry ``discounts``. An agent does not pass its own on.
        gamma: Discount of the n-step returns.
        storage: ``"memory"``, or ``"device"`` to keep the frames in the memory of ``device``, a GPU's say.
        memory_map: Folder of a file to keep the frames in, for more of them than memory holds. A temporary one:
            ``save_replay_buffer`` writes the frames into its pickle, and ``load_replay_buffer`` reads that whole into
            memory first. Checkpoints of ``rl-ae train`` are read in parts.

    Raises:
        ValueError: If the space is no stack of ``n_stack`` frames, or arguments exclude each other.
        TypeError: If the arguments or the base classes are HerReplayBuffer's.

    Warns:
        UserWarning: If it does not fit into memory. If it never can, the first transition raises a ``MemoryError``, and
            not the constructor: an agent that is loaded to predict has a buffer, too, and fills none.
    """

    observations: Any
    next_observations: Any
    #: What to raise with the first transition.
    _too_large: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # here, because HerReplayBuffer.__init__ would not call the one below
        if issubclass(cls, HerReplayBuffer):
            raise TypeError("FrameReplayBuffer cannot be combined with HerReplayBuffer, which rewrites observations")
        return super().__new__(cls)

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_stack: int | Mapping[str, int],
        channels_order: str | Mapping[str, str] = "first",
        n_steps: int = 1,
        gamma: float = 0.99,
        storage: Literal["memory", "device"] = "memory",
        memory_map: str | Path | None = None,
        **unknown: Any,
    ) -> None:
        _check_arguments(optimize_memory_usage, n_steps, storage, memory_map, unknown)
        super(ReplayBuffer, self).__init__(
            buffer_size, observation_space, action_space, device, n_envs
        )  # not its arrays
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self.storage = storage

        rows = (self.buffer_size, n_envs)
        self.actions = np.zeros((*rows, self.action_dim), self._maybe_cast_dtype(action_space.dtype))
        self.rewards, self.dones, self.timeouts = (np.zeros(rows, np.float32) for _ in range(3))

        make_store = _store_maker(storage, memory_map, self.device)
        stacks, orders = _stacks_by_key(observation_space, n_stack), _orders_by_key(observation_space, channels_order)
        self._parts: dict[str, StackedObservations | PlainObservations] = {}
        for key, space in _spaces_by_key(observation_space).items():
            name = f"observation {key!r}" if key else "the observation"
            if key in stacks:
                self._parts[key] = StackedObservations(name, space, stacks[key], orders[key], *rows, make_store)
            else:
                self._parts[key] = PlainObservations(name, space, *rows)
        views = {key: part.views() for key, part in self._parts.items()}
        if isinstance(observation_space, spaces.Dict):
            self.observations = ObservationsByKey({key: pair[0] for key, pair in views.items()})
            self.next_observations = ObservationsByKey({key: pair[1] for key, pair in views.items()})
        else:
            self.observations, self.next_observations = views[_BOX]
        #: What it needs and what there is, in one line.
        fit = compare(self.buffer_size * n_envs, self.bytes_per_step())
        self.memory_report = fit.report
        if not fit.now:
            warnings.warn(fit.advice, stacklevel=2)
        if not fit.ever:
            self._too_large = fit.advice

    def bytes_per_step(self) -> int:
        """Bytes of main memory that a transition takes, in episodes that are much longer than a stack."""
        arrays = [self.actions, self.rewards, self.dones, self.timeouts]
        frames = 0
        for part in self._parts.values():
            if isinstance(part, PlainObservations):
                arrays += [part.observations, part.next_observations]
            else:
                arrays.append(part.references)
                frames += part.store.frame_size * part.dtype.itemsize if type(part.store) is FrameStore else 0
        return sum(int(array[0, 0].nbytes) for array in arrays) + frames

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep a transition of every environment.

        Raises:
            ValueError: If the next observation is not the observation moved on by one frame, the observations are of
                another number of environments, or the buffer is shorter than an n-step return. Nothing is kept then.
            MemoryError: If the buffer can never fit into memory.
        """
        self._check_memory()
        if self.buffer_size < self.n_steps:  # not at construction: an agent is loaded to predict with a buffer of 1
            raise ValueError(
                f"expected room for n_steps={self.n_steps} transitions of an environment, got {self.buffer_size} "
                f"(of {self.n_envs} environment(s)): raise buffer_size"
            )
        if not isinstance(self.observation_space, spaces.Dict):
            obs, next_obs = {_BOX: obs}, {_BOX: next_obs}
        checked: list[tuple[Any, Any]] = []
        for key, part in self._parts.items():
            checked.append((part, part.check(obs[key], next_obs[key])))
        for part, pair in checked:
            part.add(self.pos, pair)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.dones[self.pos] = done
        if self.handle_timeout_termination:
            self.timeouts[self.pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.pos = (self.pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Draw transitions with replacement.

        Args:
            batch_size: How many.
            env: Normalises their rewards, and observations where it does that.

        Raises:
            ValueError: If the buffer is empty or could never hold as many, or observations that a device keeps are to
                be normalised.
        """
        if self.size() == 0:
            raise ValueError("there is nothing to sample yet: add transitions first")
        if batch_size > self.buffer_size * self.n_envs:
            raise ValueError(
                f"expected batches of at most {self.buffer_size * self.n_envs} transitions, all that the buffer holds, "
                f"got batch_size={batch_size}: raise buffer_size or lower batch_size"
            )
        if self.storage == "device" and env is not None and env.norm_obs:
            raise ValueError("observations on a device cannot be normalised: use VecNormalize(…, norm_obs=False)")
        return super().sample(batch_size, env)

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> Any:
        # Stable-Baselines3's own sampling: it indexes the observations, which are rebuilt then
        stock = NStepReplayBuffer if self.n_steps > 1 else ReplayBuffer
        samples: ReplayBufferSamples = stock._get_samples(self, batch_inds, env)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return DictReplayBufferSamples(*samples) if is_dict else samples  # type: ignore[arg-type]

    @staticmethod
    def _normalize_obs(obs: Any, env: VecNormalize | None = None) -> Any:
        # without norm_obs Stable-Baselines3 would copy them
        return obs if env is None or not env.norm_obs else ReplayBuffer._normalize_obs(obs, env)

    def to_torch(self, array: Any, copy: bool = False) -> Any:
        """Tensors on the buffer's device, of an array or a dictionary; what is drawn is new and needs no copy."""
        if isinstance(array, dict):
            return {key: self.to_torch(value, copy) for key, value in array.items()}
        tensor = torch.as_tensor(array, device=self.device).contiguous()
        return tensor.clone() if copy else tensor

    def reset(self) -> None:
        super().reset()
        for part in self._parts.values():
            part.clear()

    def save_rows(self, rows: slice) -> dict[str, Array]:
        """The stacked observations of some rows, as arrays that :meth:`load_rows` takes."""
        saved = {key: part.save_rows(rows) for key, part in self._stacked()}
        return {f"{key}/{name}": array for key, arrays in saved.items() for name, array in arrays.items()}

    def load_rows(self, rows: slice, saved: Mapping[str, Array]) -> None:
        """Put what :meth:`save_rows` returned into a new buffer; the next observation that is added begins a new stack.

        Raises:
            KeyError: If arrays are missing.
            IndexError: If a reference has no frame.
            ValueError: If shapes do not fit.
            MemoryError: If the buffer can never fit into memory.
        """
        self._check_memory()
        for key, part in self._stacked():
            part.load_rows(rows, frames=saved[f"{key}/frames"], references=saved[f"{key}/references"])

    def _check_memory(self) -> None:
        if self._too_large is not None:
            raise MemoryError(self._too_large)

    def _stacked(self) -> list[tuple[str, StackedObservations]]:
        return [(key, part) for key, part in self._parts.items() if isinstance(part, StackedObservations)]


def _check_arguments(
    optimize_memory_usage: bool, n_steps: int, storage: str, memory_map: str | Path | None, unknown: Mapping[str, Any]
) -> None:
    if her := sorted(unknown.keys() & _HER_ARGUMENTS):
        raise TypeError(
            f"FrameReplayBuffer relabels no goals, and takes none of HerReplayBuffer's arguments; got {her}"
        )
    if unknown:
        raise TypeError(f"FrameReplayBuffer does not take the arguments {sorted(unknown)}")
    if optimize_memory_usage:
        raise ValueError("FrameReplayBuffer keeps every frame once already: leave optimize_memory_usage=False")
    if n_steps < 1:
        raise ValueError(f"n_steps must be ≥ 1, got {n_steps}")
    if storage not in ("memory", "device"):
        raise ValueError(f"storage must be 'memory' or 'device', got {storage!r}")
    if storage == "device" and memory_map is not None:
        raise ValueError("frames are kept on the device or in a mapped file: pass storage='device' or memory_map")


def _store_maker(
    storage: str, memory_map: str | Path | None, device: torch.device
) -> Callable[[int, int, np.dtype[Any]], FrameStore]:
    if memory_map is not None:
        return functools.partial(MappedFrameStore, folder=Path(memory_map))
    return functools.partial(DeviceFrameStore, device=device) if storage == "device" else FrameStore


def _spaces_by_key(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {_BOX: space}


def _stacks_by_key(space: spaces.Space[Any], n_stack: int | Mapping[str, int]) -> dict[str, int]:
    """The keys that are stacked, and of how many frames."""
    if not isinstance(space, spaces.Dict):
        if isinstance(n_stack, Mapping):
            raise ValueError(f"n_stack by key needs a Dict of observations, got {n_stack} for {space}")
        return {_BOX: n_stack}
    if isinstance(n_stack, Mapping):
        if missing := sorted(n_stack.keys() - space.spaces.keys()):
            raise ValueError(f"n_stack names {missing}, expected keys among {sorted(space.spaces)}")
        return dict(n_stack)
    images = [key for key, part in space.items() if isinstance(part, spaces.Box) and len(part.shape) >= 3]
    if not images:
        raise ValueError(
            f"no observation is an image, a Box of three axes or more: name those that are stacked, as in "
            f'n_stack={{"<key>": {n_stack}}}; got {space}'
        )
    return dict.fromkeys(images, n_stack)


def _orders_by_key(space: spaces.Space[Any], channels_order: str | Mapping[str, str]) -> dict[str, str]:
    keys = _spaces_by_key(space)
    if not isinstance(channels_order, Mapping):
        return dict.fromkeys(keys, channels_order)
    if missing := sorted(channels_order.keys() - keys):
        raise ValueError(f"channels_order names {missing}, expected keys among {sorted(keys)}")
    return {**dict.fromkeys(keys, "first"), **channels_order}
