"""FrameReplayBuffer returns what Stable-Baselines3's buffers return, and keeps every frame once."""

import dataclasses
import itertools
import pickle
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from rl_ae import ConvConfig, RAEConfig
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.sb3 import SACAE, FrameReplayBuffer, memory
from rl_ae.sb3.evaluation import spread_observations
from rl_ae.sb3.memory import Memory
from rl_ae.sb3.run_config import RunConfig

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
DISCRETE = spaces.Discrete(3)


# ---------------------------------------------------------------------- random streams of stacked episodes


@dataclasses.dataclass
class Layout:
    """How frames (C, 2, 2) become an observation."""

    name: str
    channels: int = 1

    @property
    def order(self):
        return "last" if self.name.endswith("last") else "first"

    def stack(self, frames):
        """(n, C, 2, 2) to an observation."""
        n = len(frames)
        return {
            "channels_first": lambda: frames.reshape(n * self.channels, 2, 2),
            "channels_last": lambda: frames.transpose(2, 3, 0, 1).reshape(2, 2, n * self.channels),
            "gymnasium_chw": lambda: frames,
            "gymnasium_hwc": lambda: frames.transpose(0, 2, 3, 1),
            "vector_last": lambda: frames.reshape(n, -1).ravel(),
        }[self.name]()


LAYOUTS = ["channels_first", "channels_last", "gymnasium_chw", "gymnasium_hwc", "vector_last"]


@dataclasses.dataclass
class Stream:
    """Transitions of ``n_envs`` environments, as ``OffPolicyAlgorithm`` passes them on.

    Few values a pixel, so that frames repeat and episodes begin as others ended.
    """

    rng: np.random.Generator
    layout: Layout
    n_stack: int
    n_envs: int
    dtype: type
    longest_episode: int
    padding: str

    def __post_init__(self):
        self.windows = [self.start() for _ in range(self.n_envs)]
        self.left = [self.length() for _ in range(self.n_envs)]

    def frame(self):
        return self.rng.integers(0, 2, (self.layout.channels, 2, 2)).astype(self.dtype)

    def length(self):
        return self.rng.integers(1, self.longest_episode + 1)

    def start(self):
        first = self.frame()
        pad = {"zero": lambda: np.zeros_like(first), "repeat": lambda: first, "other": self.frame}[self.padding]
        return [*(pad() for _ in range(self.n_stack - 1)), first]

    def observe(self):
        return np.stack([self.layout.stack(np.stack(window)) for window in self.windows])

    def space(self):
        shape = self.layout.stack(np.zeros((self.n_stack, self.layout.channels, 2, 2))).shape
        return spaces.Box(0, 255, shape, self.dtype)

    def step(self):
        """(observation, next observation, done, infos)."""
        observation = self.observe()
        self.windows = [[*window[1:], self.frame()] for window in self.windows]
        next_observation = self.observe()
        dones, infos = np.zeros(self.n_envs, bool), []
        for env in range(self.n_envs):
            self.left[env] -= 1
            reset_unseen = self.rng.random() < 0.05  # by a second learn()
            dones[env] = self.left[env] == 0 and not reset_unseen
            infos.append({"TimeLimit.truncated": self.rng.random() < 0.5} if dones[env] else {})
            if self.left[env] == 0 or reset_unseen:
                self.windows[env], self.left[env] = self.start(), self.length()
        return observation, next_observation, dones, infos


@st.composite
def cases(draw):
    n_envs = draw(st.integers(1, 3))
    n_steps = draw(st.integers(1, 5))
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "layouts": [
            (Layout(draw(st.sampled_from(LAYOUTS)), draw(st.integers(1, 3))), draw(st.integers(1, 4))) for _ in range(2)
        ],
        "n_envs": n_envs,
        "n_steps": n_steps,
        "rows": draw(st.integers(n_steps, 12)),
        "steps": draw(st.integers(1, 40)),
        "dtype": draw(st.sampled_from([np.uint8, np.float32])),
        "longest_episode": draw(st.sampled_from([1, 2, 5, 30])),
        "padding": draw(st.sampled_from(["zero", "repeat", "other"])),
        "handle_timeout_termination": draw(st.booleans()),
        "actions": draw(st.sampled_from([ACTIONS, DISCRETE])),
        "normalize": draw(st.booleans()),
        "storage": draw(st.sampled_from(["memory", "memory", "device"])),
    }


def normalizer():
    env = VecNormalize(DummyVecEnv([DotEnv]), norm_obs=False)
    env.ret_rms.var = np.array(7.0)
    return env


NORMALIZER = normalizer()


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif one is not None:
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


def assert_same_draws(buffer, reference, seed, batch_size, env):
    """Both draw the same and leave the generator in the same state."""
    samples, states = [], []
    for source in (buffer, reference):
        np.random.seed(seed)
        samples.append(source.sample(batch_size, env=env))
        states.append([*np.random.get_state()[1].tolist(), np.random.get_state()[2]])
    assert states[0] == states[1]
    assert type(samples[0]) is type(samples[1])
    for one, other in zip(*samples, strict=True):
        assert_same(one, other)


def assert_what_is_referred_to_is_kept(part):
    """No frame is lost, none is kept for nothing."""
    used = np.unique(part.references[part.references >= 0])
    assert part.store.kept == len(used)
    assert not set(used.tolist()) & set(part.store._free)


def replay(case, streams, buffer, reference, join):
    """Add a stream to both and compare draws on the way."""
    rng = np.random.default_rng(case["seed"])
    env = NORMALIZER if case["normalize"] else None
    for step in range(case["steps"]):
        observations, next_observations, dones, infos = join([stream.step() for stream in streams])
        actions = np.array([case["actions"].sample() for _ in range(case["n_envs"])])
        rewards = rng.normal(size=case["n_envs"])
        for target in (buffer, reference):
            target.add(observations, next_observations, actions, rewards, dones, infos)
        if step % 7 == 0 or step == case["steps"] - 1:
            batch_size = min(16, case["rows"] * case["n_envs"])
            assert_same_draws(buffer, reference, int(rng.integers(2**32)), batch_size, env)
            for part in buffer._parts.values():
                if hasattr(part, "references"):
                    assert_what_is_referred_to_is_kept(part)


def make_streams(case, count):
    """Streams of the same episodes: same generator, same lengths."""
    names = ("n_envs", "dtype", "longest_episode", "padding")
    return [
        Stream(np.random.default_rng(case["seed"]), layout, n_stack, **{name: case[name] for name in names})
        for layout, n_stack in case["layouts"][:count]
    ]


def arguments_of(case, space):
    """What all classes take, and what those for n-step returns take."""
    arguments = (case["rows"] * case["n_envs"], space, case["actions"])
    common = {"device": "cpu", "n_envs": case["n_envs"]}
    common["handle_timeout_termination"] = case["handle_timeout_termination"]
    return arguments, common, {"n_steps": case["n_steps"], "gamma": 0.9}


@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_it_returns_what_sb3s_buffers_return(case):
    (stream,) = make_streams(case, 1)
    arguments, common, n_step = arguments_of(case, stream.space())
    stacking = {"n_stack": stream.n_stack, "channels_order": stream.layout.order}
    buffer = FrameReplayBuffer(*arguments, **common, **n_step, **stacking, storage=case["storage"])
    if case["n_steps"] > 1:
        reference = NStepReplayBuffer(*arguments, **common, **n_step)
    else:
        reference = ReplayBuffer(*arguments, **common)
    replay(case, [stream], buffer, reference, lambda steps: steps[0])  # asserts on the way
    assert (buffer.size(), buffer.pos, buffer.full) == (reference.size(), reference.pos, reference.full)
    assert np.array_equal(buffer.dones, reference.dones) and np.array_equal(buffer.rewards, reference.rewards)


class BufferAKey:
    """A reference for n-step returns of a Dict, which have no class in SB3: its buffer for each key alone."""

    def __init__(self, space, make):
        self.buffers = {key: make(part) for key, part in space.items()}

    def add(self, observations, next_observations, *rest):
        for key, buffer in self.buffers.items():
            buffer.add(observations[key], next_observations[key], *rest)

    def sample(self, batch_size, env):
        state = np.random.get_state()
        samples = {}
        for key, buffer in self.buffers.items():
            np.random.set_state(state)
            samples[key] = buffer.sample(batch_size, env=env)
        first = samples["vector"]
        return DictReplayBufferSamples(
            {key: sample.observations for key, sample in samples.items()},
            first.actions,
            {key: sample.next_observations for key, sample in samples.items()},
            *first[3:],
        )


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_it_returns_what_sb3s_buffers_return_of_a_dict(case):
    streams = make_streams(case, 2)
    rng = np.random.default_rng(case["seed"])
    space = spaces.Dict(
        {
            "left": streams[0].space(),
            "right": streams[1].space(),
            "vector": spaces.Box(-1, 1, (3,)),
            "mode": spaces.Discrete(5),
        }
    )

    def others():
        return {"vector": rng.normal(size=(case["n_envs"], 3)), "mode": rng.integers(0, 5, case["n_envs"])}

    def join(steps):
        (left, next_left, dones, infos), (right, next_right, *_) = steps
        now, then = {"left": left, "right": right} | others(), {"left": next_left, "right": next_right} | others()
        return now, then, dones, infos

    arguments, common, n_step = arguments_of(case, space)
    keys = dict(zip(("left", "right"), streams, strict=True))
    stacking = {
        "n_stack": {key: stream.n_stack for key, stream in keys.items()},
        "channels_order": {key: stream.layout.order for key, stream in keys.items()},
    }
    buffer = FrameReplayBuffer(*arguments, **common, **n_step, **stacking, storage=case["storage"])
    if case["n_steps"] > 1:
        size, _, actions = arguments
        reference = BufferAKey(space, lambda part: NStepReplayBuffer(size, part, actions, **common, **n_step))
    else:
        reference = DictReplayBuffer(*arguments, **common)
    replay(case, streams, buffer, reference, join)  # asserts on the way
    assert buffer.size() == min(case["steps"], case["rows"]) and buffer.full == (case["steps"] >= case["rows"])


# ---------------------------------------------------------------------- one stream, looked at closely

SPACE = spaces.Box(0, 255, (6, 4, 4), np.uint8)


def frames_of(count, seed=0):
    """Frames (count, 2, 4, 4), all different."""
    frames = np.random.default_rng(seed).integers(0, 256, (count, 2, 4, 4), dtype=np.uint8)
    frames[:, 0, 0, 0] = np.arange(count)
    return frames


def transitions(frames, padding=None, n_stack=3):
    """(observation, next observation) of an episode, padded with its first frame or another."""
    padding = frames[0] if padding is None else padding
    padded = [*[padding] * (n_stack - 1), *frames]
    stacks = [np.concatenate(padded[i : i + n_stack])[None] for i in range(len(frames))]
    return list(itertools.pairwise(stacks))


def add(buffer, episodes):
    zeros = np.zeros((buffer.n_envs, buffer.action_dim), np.float32)
    for episode in episodes:
        for index, (observation, next_observation) in enumerate(episode):
            done = np.full(buffer.n_envs, index == len(episode) - 1)
            buffer.add(observation, next_observation, zeros, np.arange(buffer.n_envs), done, [{}] * buffer.n_envs)


def make_buffer(size=20, space=SPACE, n_stack=3, **kwargs):
    return FrameReplayBuffer(size, space, ACTIONS, device="cpu", n_stack=n_stack, **kwargs)


def store_of(buffer, key=""):
    return buffer._parts[key].store


def test_a_long_episode_is_kept_as_one_frame_a_transition():
    buffer = make_buffer()
    add(buffer, [transitions(frames_of(50))])
    assert buffer.full
    assert store_of(buffer).kept == 20 + 3  # 20 next frames, and the stack before them
    assert len(store_of(buffer)._frames) == 20 + 20 // 16 + 3  # it has not grown


@pytest.mark.parametrize(("padding", "frames"), [(None, 3), (np.zeros((2, 4, 4), np.uint8), 4)])
def test_padding_is_kept_once(padding, frames):
    buffer = make_buffer()
    add(buffer, [transitions(frames_of(3), padding)])
    assert store_of(buffer).kept == frames


def test_a_frame_that_does_not_move_is_kept_once():
    buffer = make_buffer()
    add(buffer, [transitions(frames_of(2).repeat(5, axis=0))])
    assert buffer.size() == 9 and store_of(buffer).kept == 2


def test_short_episodes_let_the_store_grow_and_are_all_kept():
    frames = frames_of(200).reshape(20, 10, 2, 4, 4)
    episodes = [[(np.concatenate(f[:3])[None], np.concatenate(f[1:4])[None])] for f in frames]  # of one step
    buffer = make_buffer()
    add(buffer, episodes)
    assert store_of(buffer).kept == 20 * 4 == len(np.unique(buffer._parts[""].references))
    for row, ((observation, next_observation),) in enumerate(episodes):
        assert np.array_equal(buffer.observations[row, 0], observation[0])
        assert np.array_equal(buffer.next_observations[row, 0], next_observation[0])
    add(buffer, [*episodes, transitions(frames_of(100, seed=1))])
    assert store_of(buffer).kept == 20 + 3
    assert store_of(buffer)._used == 20 * 4 + 4  # slots are taken again; a row comes in before another goes


def test_observations_are_indexed_like_sb3s_array():
    buffer, reference = make_buffer(), ReplayBuffer(20, SPACE, ACTIONS, device="cpu")
    for target in (buffer, reference):
        add(target, [transitions(frames_of(30))])
    rows = np.array([3, 19, 0])
    for index in ((rows, 0), (rows, np.zeros(3, int), slice(None)), slice(4), 7, (slice(2, 9, 3), 0)):
        for name in ("observations", "next_observations"):
            assert np.array_equal(getattr(buffer, name)[index], getattr(reference, name)[index])
    assert np.array_equal(spread_observations(buffer, 4), spread_observations(reference, 4))
    on_device = make_buffer(storage="device")
    add(on_device, [transitions(frames_of(30))])
    assert np.array_equal(spread_observations(on_device, 4), spread_observations(reference, 4))


def test_what_is_drawn_is_nobody_elses():
    buffer = make_buffer()
    add(buffer, [transitions(frames_of(10))])
    before = buffer.observations[:9].copy()
    for sample in (buffer.sample(8), buffer.sample(8)):
        sample.observations.zero_(), sample.next_observations.zero_(), sample.actions.fill_(7), sample.rewards.fill_(7)
    assert np.array_equal(buffer.observations[:9], before)
    assert not buffer.actions.any() and not buffer.rewards.any()
    array = np.ones(3)
    buffer.to_torch(array, copy=True).zero_()
    assert array.all()


def test_arrays_may_be_used_again_by_who_passed_them():
    """VecFrameStack.reset writes into the array it has returned."""
    buffer = make_buffer()
    observation, next_observation = (stack.copy() for stack in transitions(frames_of(2))[0])
    add(buffer, [[(observation, next_observation)]])
    kept = next_observation.copy()
    next_observation[:] = 5
    (_, after) = transitions(frames_of(2, seed=1), padding=np.full((2, 4, 4), 5, np.uint8))[0]
    moved = np.concatenate([next_observation[:, 2:], after[:, -2:]], axis=1)
    add(buffer, [[(next_observation, moved)]])
    assert np.array_equal(buffer.next_observations[0, 0], kept[0])
    assert (buffer.observations[1, 0] == 5).all()


def test_reset_forgets_everything():
    buffer, fresh = make_buffer(), make_buffer()
    episode = transitions(frames_of(40))
    add(buffer, [episode[:30]])
    buffer.reset()
    assert buffer.size() == 0 and store_of(buffer).kept == 0
    for target in (buffer, fresh):
        add(target, [episode[30:]])  # which continues what is forgotten
    assert np.array_equal(buffer.observations[:9], fresh.observations[:9])
    assert store_of(buffer).kept == store_of(fresh).kept


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, bool])
def test_a_frame_may_be_one_number(dtype):
    space = spaces.Box(0, 1, (3,), dtype)
    targets = make_buffer(space=space), ReplayBuffer(20, space, ACTIONS, device="cpu")
    numbers = np.random.default_rng(0).integers(0, 2, 40).astype(dtype)
    for target in targets:
        add(target, [[(numbers[None, i : i + 3], numbers[None, i + 1 : i + 4]) for i in range(30)]])
    assert_same_draws(*targets, 0, 16, None)
    assert np.array_equal(targets[0].observations[:20], targets[1].observations)


def test_observations_are_normalised_as_by_sb3():
    space = spaces.Box(-9, 9, (4,), np.float32)
    env = VecNormalize(DummyVecEnv([lambda: DotEnv((4,), dtype=np.float32)]), norm_obs=True)
    env.obs_rms.mean[:], env.obs_rms.var[:] = 0.3, 2.0
    targets = make_buffer(space=space, n_stack=2), ReplayBuffer(20, space, ACTIONS, device="cpu")
    episode = np.arange(24, dtype=np.float32).reshape(12, 2)
    pairs = [(episode[i : i + 2].reshape(1, 4), episode[i + 1 : i + 3].reshape(1, 4)) for i in range(10)]
    for target in targets:
        add(target, [pairs])
    assert_same_draws(*targets, 0, 16, env)
    on_device = make_buffer(space=space, n_stack=2, storage="device")
    add(on_device, [pairs])
    with pytest.raises(ValueError, match=r"on a device cannot be normalised"):
        on_device.sample(4, env)


# ---------------------------------------------------------------------- storages and files


@pytest.mark.parametrize("storage", ["memory", "device", "map"])
@pytest.mark.parametrize("added", [1, 13, 45])
def test_a_pickled_buffer_goes_on_in_the_middle_of_an_episode(tmp_path, storage, added):
    kwargs = {"memory_map": tmp_path} if storage == "map" else {"storage": storage}
    buffer, reference = make_buffer(n_steps=3, **kwargs), NStepReplayBuffer(20, SPACE, ACTIONS, device="cpu", n_steps=3)
    episode = transitions(frames_of(60))
    for target in (buffer, reference):
        add(target, [episode[:added]])
    again = pickle.loads(pickle.dumps(buffer, protocol=pickle.HIGHEST_PROTOCOL))
    del buffer
    assert_same_draws(again, reference, 5, 16, None)
    kept = store_of(again).kept
    for target in (again, reference):
        add(target, [episode[added : added + 2]])
    assert store_of(again).kept == min(kept + 2, 23)  # it knows the stack that goes on
    assert_same_draws(again, reference, 6, 16, None)


def test_a_pickle_holds_the_frames_there_are():
    small, large = make_buffer(100), make_buffer(10_000)
    for buffer in (small, large):
        add(buffer, [transitions(frames_of(50))])
    sizes = [len(pickle.dumps(store_of(buffer))) for buffer in (small, large)]
    assert 50 * 32 < sizes[0] < sizes[1] + 10 < 50 * 32 + 500


def test_frames_are_in_a_file_of_the_folder_that_goes_with_the_buffer(tmp_path):
    buffer = make_buffer(memory_map=tmp_path / "frames")
    assert not (tmp_path / "frames").exists()  # an agent that is loaded to predict leaves no trace
    add(buffer, [transitions(frames_of(4))] * 10)  # of three steps, so that it grows
    store = store_of(buffer)
    assert isinstance(store._frames.base.base, np.memmap | type(store._frames.base.base))
    size = store.capacity * 32
    assert store._file.seek(0, 2) == size > (20 + 20 // 16 + 3) * 32
    assert list((tmp_path / "frames").iterdir()) == []  # it has no name
    assert buffer.bytes_per_step() == make_buffer().bytes_per_step() - 32


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    buffer, reference = make_buffer(memory_map=tmp_path), make_buffer()
    episodes = [transitions(frames_of(4, seed)) for seed in range(8)]  # short, so that the store grows
    add(buffer, episodes[:1])
    with monkeypatch.context() as full:
        full.setattr("rl_ae.sb3.replay.shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
        with pytest.raises(OSError, match=r"frames need 0.0 GB more, 0.0 GB are free"):
            add(buffer, episodes[1:])
    assert 10 < buffer.size() < 20
    add(reference, [[*itertools.chain(*episodes)][: buffer.size()]])
    for target in (buffer, reference):
        add(target, episodes[:1])
    size = buffer.size()
    assert np.array_equal(buffer.observations[:size], reference.observations[:size])
    assert np.array_equal(buffer.next_observations[:size], reference.next_observations[:size])
    assert store_of(buffer).kept == store_of(reference).kept


def test_a_full_disk_is_an_error_when_a_pickle_is_read_too(tmp_path, monkeypatch):
    buffer = make_buffer(memory_map=tmp_path)
    add(buffer, [transitions(frames_of(19))])
    pickled, size = pickle.dumps(buffer), store_of(buffer).capacity * 32

    def free(number):
        monkeypatch.setattr("rl_ae.sb3.replay.shutil.disk_usage", lambda folder: SimpleNamespace(free=number))

    free(size - 1)  # room for all but a byte of the new file, and for all that the frames do not fill
    with pytest.raises(OSError, match=r"frames need 0.0 GB more"):
        pickle.loads(pickled)
    free(size)
    again = pickle.loads(pickled)
    assert np.array_equal(again.observations[:18], buffer.observations[:18])


def test_what_is_expected_to_fit_is_what_it_takes():
    buffer = make_buffer(100_000, spaces.Box(0, 255, (9, 84, 84), np.uint8), 3)
    assert buffer.bytes_per_step() == 3 * 84 * 84 + 4 * 4 + 2 * 4 + 3 * 4
    both = spaces.Dict({"camera": SPACE, "vector": spaces.Box(-1, 1, (5,))})
    assert make_buffer(space=both).bytes_per_step() == 32 + 4 * 4 + 2 * 20 + 2 * 4 + 3 * 4


def test_it_warns_above_what_is_free_and_refuses_transitions_above_the_limit(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: Memory(free=50_000, limit=60_000))
    each = make_buffer().bytes_per_step()
    with pytest.warns(UserWarning, match=rf"needs 0.0 GB \({55_000 // each} transitions of {each} bytes"):
        add(make_buffer(55_000 // each), [transitions(frames_of(3))])
    with pytest.warns(UserWarning, match=r"buffer_size=\d+ fits"):
        buffer = make_buffer(65_000 // each)
    assert buffer.memory_report.startswith(f"replay buffer needs 0.0 GB ({65_000 // each} transitions")
    for _ in range(2):
        with pytest.raises(MemoryError, match=r"buffer_size=\d+ fits"):
            add(buffer, [transitions(frames_of(3))])
    with pytest.raises(MemoryError, match=r"buffer_size=\d+ fits"):
        buffer.load_rows(slice(0, 1), {})
    assert buffer.size() == 0 and store_of(buffer)._frames is None


@pytest.mark.parametrize("algorithm", [SAC, SACAE])
def test_an_agent_is_loaded_to_predict_on_a_small_machine(algorithm, monkeypatch, tmp_path):
    kwargs = {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": {"n_stack": 3}}
    kwargs |= {"autoencoder": AUTOENCODER} if algorithm is SACAE else {}
    policy, small = "CnnPolicy" if algorithm is SACAE else "MlpPolicy", {"policy_kwargs": {"net_arch": [8]}}
    agent = algorithm(policy, pixel_env(), buffer_size=10_000, device="cpu", **small, **kwargs)
    agent.save(tmp_path / "agent")
    monkeypatch.setattr(memory, "available_memory", lambda: Memory(free=500_000, limit=1_000_000))
    with pytest.warns(UserWarning, match=r"10_000 transitions.*buffer_size=\d+ fits"):
        loaded = algorithm.load(tmp_path / "agent")
    observation = pixel_env().reset(seed=0)[0]
    actions = [model.predict(observation, deterministic=True)[0] for model in (agent, loaded)]
    assert np.array_equal(*actions)
    with pytest.warns(UserWarning, match="fits"):
        loaded = algorithm.load(tmp_path / "agent", env=pixel_env())
    with pytest.raises(MemoryError, match=r"buffer_size=\d+ fits"):
        loaded.learn(5)


# ---------------------------------------------------------------------- errors


def test_a_stream_that_is_no_stack_is_refused_and_nothing_is_kept():
    both = spaces.Dict({"camera": SPACE, "other": SPACE})
    buffer = make_buffer(space=both)
    episode = transitions(frames_of(6))
    good = [({"camera": a, "other": a}, {"camera": b, "other": b}) for a, b in episode]
    add(buffer, [good[:2]])
    bad = ({"camera": episode[2][0], "other": episode[2][0]}, {"camera": episode[2][1], "other": episode[4][1]})
    with pytest.raises(ValueError, match=r"observation 'other' is not a frame stack of n_stack=3 along the first axis"):
        add(buffer, [[bad]])
    assert buffer.size() == 2 and [store_of(buffer, key).kept for key in both] == [3, 3]
    add(buffer, [good[2:]])
    for key in both:
        assert np.array_equal(buffer.observations[key][:5, 0], np.concatenate([a for a, _ in episode]))
        assert store_of(buffer, key).kept == 6


@pytest.mark.parametrize("n_stack", [2, 6])
def test_another_number_of_frames_is_noticed(n_stack):
    with pytest.raises(ValueError, match=rf"is not a frame stack of n_stack={n_stack} .* in environment 0"):
        add(make_buffer(n_stack=n_stack), [transitions(frames_of(3))])


def test_the_environment_is_named():
    buffer = make_buffer(n_envs=2)
    (a, b), (_, d) = transitions(frames_of(3))
    with pytest.raises(ValueError, match=r"in environment 1 the next observation's 2 older frames"):
        add(buffer, [[(np.concatenate([a, a]), np.concatenate([b, d]))]])
    assert buffer.size() == 0


BOTH = spaces.Dict({"camera": SPACE, "vector": spaces.Box(-1, 1, (5,))})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_stack": 4}, ValueError, r"n_stack=4 does not divide the first axis of \(6, 4, 4\), which is 6 long"),
        ({"channels_order": "last"}, ValueError, r"n_stack=3 does not divide the last axis"),
        ({"channels_order": "middle"}, ValueError, r"channels_order must be 'first' or 'last', got 'middle'"),
        ({"n_stack": 0}, ValueError, r"n_stack must be a whole number ≥ 1, got 0"),
        ({"n_stack": 1.5}, ValueError, r"n_stack must be a whole number ≥ 1, got 1.5"),
        ({"n_stack": {"camera": 3}}, ValueError, r"n_stack by key needs a Dict"),
        ({"space": BOTH, "n_stack": {"cam": 3}}, ValueError, r"n_stack names \['cam'\], expected keys among"),
        ({"space": BOTH, "channels_order": {"cam": "first"}}, ValueError, r"channels_order names \['cam'\]"),
        (
            {"space": spaces.Dict({"v": BOTH["vector"]})},
            ValueError,
            r'no observation is an image.*n_stack={"<key>": 3}',
        ),
        ({"space": spaces.Discrete(3)}, ValueError, r"a frame stack is a Box of at least one axis, got Discrete"),
        ({"optimize_memory_usage": True}, ValueError, r"leave optimize_memory_usage=False"),
        ({"n_steps": 0}, ValueError, r"n_steps must be ≥ 1, got 0"),
        ({"storage": "gpu"}, ValueError, r"storage must be 'memory' or 'device', got 'gpu'"),
        ({"storage": "device", "memory_map": "here"}, ValueError, r"pass storage='device' or memory_map"),
        ({"n_sampled_goal": 4}, TypeError, r"HerReplayBuffer's arguments; got \['n_sampled_goal'\]"),
        ({"n_step": 3}, TypeError, r"does not take the arguments \['n_step'\]"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        make_buffer(**kwargs)


@pytest.mark.parametrize("bases", [(FrameReplayBuffer, HerReplayBuffer), (HerReplayBuffer, FrameReplayBuffer)])
def test_her_is_refused_as_a_base_class(bases):
    both = type("Both", bases, {})
    with pytest.raises(TypeError, match=r"cannot be combined with HerReplayBuffer"):
        both(20, BOTH, ACTIONS, env=None, n_stack=3)


def test_a_buffer_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"n_steps=5 transitions of an environment, got 4 \(of 2 environment"):
        add(make_buffer(8, n_envs=2, n_steps=5), [[(np.zeros((2, 6, 4, 4)),) * 2]])
    buffer = make_buffer(8)
    with pytest.raises(ValueError, match=r"there is nothing to sample yet"):
        buffer.sample(4)
    add(buffer, [transitions(frames_of(3))])
    assert len(buffer.sample(8).observations) == 8  # drawn with replacement, as by SB3
    with pytest.raises(ValueError, match=r"batches of at most 8 transitions.*got batch_size=9"):
        buffer.sample(9)


# ---------------------------------------------------------------------- in agents


class Discretised(gym.ActionWrapper):
    """DotEnv for DQN."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Discrete(2)

    def action(self, action):
        return np.full(2, 2.0 * action - 1.0, np.float32)


class TwoKeys(gym.ObservationWrapper):
    """DotEnv with its position as a vector."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"camera": env.observation_space, "vector": spaces.Box(-1, 1, (2,))})

    def observation(self, observation):
        return {"camera": observation, "vector": self.unwrapped.position.astype(np.float32)}


class ChannelsLast(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def observation(self, observation):
        return observation.transpose(1, 2, 0)


def dots(*wrappers, n_envs=2, shape=(3, 16, 16)):
    def make():
        env = DotEnv(shape, episode_length=7)
        for wrapper in wrappers:
            env = wrapper(env)
        return env

    return DummyVecEnv([make] * n_envs)


#: What is trained, on which environment, with which arguments of the buffer.
AGENTS = {
    "DQN, VecFrameStack, channels last": (
        lambda **kwargs: DQN("MlpPolicy", VecFrameStack(dots(ChannelsLast, Discretised), 4), **kwargs),
        {"n_stack": 4},
    ),
    "TD3, VecFrameStack, VecNormalize": (
        lambda **kwargs: TD3(
            "MlpPolicy", VecNormalize(VecFrameStack(dots(), 3, channels_order="first"), norm_obs=False), **kwargs
        ),
        {"n_stack": 3},
    ),
    "SAC, Gymnasium": (
        lambda **kwargs: SAC(
            "MlpPolicy",
            dots(lambda env: FrameStackObservation(env, 3, padding_type="zero"), shape=(1, 16, 16)),
            **kwargs,
        ),
        {"n_stack": 3},
    ),
    "SAC, Dict": (
        lambda **kwargs: SAC("MultiInputPolicy", VecFrameStack(dots(TwoKeys, shape=(1, 36, 36)), 3), **kwargs),
        {"n_stack": {"camera": 3, "vector": 3}, "channels_order": {"vector": "last"}},
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_a_stock_agent_learns_the_same(name):
    make, kwargs = AGENTS[name]
    parameters = []
    for buffer in ({}, {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": kwargs}):
        settings = {"buffer_size": 40, "learning_starts": 10, "batch_size": 8, "seed": 0, "device": "cpu"}
        agent = make(**settings, **buffer, policy_kwargs={"net_arch": [8]}, train_freq=4)
        agent.learn(60)
        agent.learn(40)  # which resets the environments in the middle of an episode
        parameters.append(agent.policy.state_dict())
    assert isinstance(agent.replay_buffer, FrameReplayBuffer) and agent.replay_buffer.full and agent._n_updates > 10
    for key, tensor in parameters[0].items():
        assert torch.equal(tensor, parameters[1][key]), key


AUTOENCODER = RAEConfig(latent_dim=4, conv=ConvConfig(filters=(4,), strides=(2,)))


def make_sac_ae(env, replay_buffer_class=FrameReplayBuffer, **kwargs):
    replay_buffer_kwargs = {"n_stack": 3} if replay_buffer_class is FrameReplayBuffer else {}
    settings = {"learning_starts": 10, "batch_size": 8, "buffer_size": 40, "device": "cpu", "seed": 0} | kwargs
    return SACAE(
        "CnnPolicy",
        env,
        autoencoder=AUTOENCODER,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=replay_buffer_class,
        replay_buffer_kwargs=replay_buffer_kwargs,
        **settings,
    )


def pixel_env():
    return make_pixel_env(DotEnv((3, 16, 16), episode_length=7), PixelConfig(size=(12, 12)))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_sac_ae_learns_the_same(n_steps):
    """Its n-step returns are the agent's, without naming them again."""
    agents = [
        make_sac_ae(pixel_env(), kind, n_steps=n_steps, gamma=0.9).learn(40) for kind in (None, FrameReplayBuffer)
    ]
    assert (agents[1].replay_buffer.n_steps, agents[1].replay_buffer.gamma) == (n_steps, 0.9)
    for name, tensor in agents[0].policy.state_dict().items():
        assert torch.equal(tensor, agents[1].policy.state_dict()[name]), name


def test_an_agents_buffer_is_saved_and_loaded(tmp_path):
    agent = make_sac_ae(pixel_env()).learn(30)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = SACAE.load(tmp_path / "agent", env=pixel_env(), device="cpu")
    assert isinstance(loaded.replay_buffer, FrameReplayBuffer) and loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert_same_draws(loaded.replay_buffer, agent.replay_buffer, 0, 16, None)
    loaded.learn(5, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 35

    several = SACAE.load(tmp_path / "agent", env=DummyVecEnv([pixel_env] * 2), device="cpu")
    several.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"expected shape \(1, 9, 12, 12\), for a buffer of 1 environment.*got \(2, 9"):
        several.learn(5)


def test_a_run_replays_frames_unless_told_otherwise():
    config = RunConfig(env="CartPole-v1", pixels=PixelConfig(frame_stack=2))
    assert config.replay_arguments() == {
        "replay_buffer_class": FrameReplayBuffer,
        "replay_buffer_kwargs": {"n_stack": 2},
    }
    assert dataclasses.replace(config, replay="sb3").replay_arguments() == {}
