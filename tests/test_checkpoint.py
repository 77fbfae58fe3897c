import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from safetensors.numpy import load_file, save_file
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from rl_ae import ConvConfig, RAEConfig
from rl_ae.sb3 import SACAE, FrameReplayBuffer, NonFiniteError, checkpoint
from rl_ae.sb3.checkpoint import CheckpointWriter, load_agent, read_state, resume_agent

CONFIG = RAEConfig(latent_dim=4, conv=ConvConfig(filters=(4,), strides=(2,)))


def make_env(n_envs=1):
    env = DummyVecEnv([lambda: DotEnv((1, 8, 8), episode_length=7)] * n_envs)
    return VecFrameStack(env, 3, channels_order="first")


FRAMES = {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": {"n_stack": 3}}
either_buffer = pytest.mark.parametrize("replay", [{}, FRAMES], ids=["sb3", "frames"])


def make_agent(n_envs=1, **kwargs):
    defaults = {"learning_starts": 8, "batch_size": 4, "buffer_size": 40, "device": "cpu", "seed": 0}
    policy_kwargs = {"net_arch": [4]}
    return SACAE(
        "CnnPolicy", make_env(n_envs), autoencoder=CONFIG, policy_kwargs=policy_kwargs, **{**defaults, **kwargs}
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_ROWS", 8)


def buffers_agree(one, other):
    for name in ("observations", "next_observations", "actions", "rewards"):
        if hasattr(one, name):
            size = one.size()
            assert np.array_equal(getattr(one, name)[:size], getattr(other, name)[:size]), name
    assert (one.pos, one.full) == (other.pos, other.full)


@either_buffer
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("steps", [(10,), (10, 16, 20), (30, 38, 40, 44), (60,), (20, 200), (39, 40, 41)], ids=str)
def test_the_replay_buffer_comes_back_after_any_sequence_of_saves(tmp_path, steps, n_envs, replay):
    agent, writer = make_agent(n_envs, gradient_steps=0, **replay), CheckpointWriter(tmp_path)
    for total in steps:
        agent.learn(total * n_envs - agent.num_timesteps, reset_num_timesteps=False)
        writer.save(agent, {"seconds": 1.5})
    resumed = resume_agent(tmp_path, make_env(n_envs))
    buffers_agree(agent.replay_buffer, resumed.replay_buffer)
    assert read_state(tmp_path)["extra"] == {"seconds": 1.5}
    assert resumed.num_timesteps == steps[-1] * n_envs


def test_only_changed_chunks_are_written_again(tmp_path):
    agent, writer = make_agent(gradient_steps=0), CheckpointWriter(tmp_path)
    agent.learn(20)
    writer.save(agent, {})
    first = read_state(tmp_path)["replay"]["chunks"]
    agent.learn(3, reset_num_timesteps=False)
    writer.save(agent, {})
    second = read_state(tmp_path)["replay"]["chunks"]
    assert first.keys() == second.keys() == {"0", "1", "2"}
    assert [first[k] == second[k] for k in "012"] == [True, True, False]
    named = {"state.json", "agent-23.zip", "random-23.pt", *second.values()}
    assert {path.name for path in tmp_path.iterdir()} == named


@either_buffer
@pytest.mark.parametrize("first", [16, 20, 24, 40])  # at the end of a chunk, within one, with a full buffer
def test_a_new_process_continues_the_same_chunks(tmp_path, first, replay):
    agent = make_agent(gradient_steps=0, **replay).learn(first)
    CheckpointWriter(tmp_path).save(agent, {})
    resumed = resume_agent(tmp_path, make_env())
    resumed.learn(5, reset_num_timesteps=False)
    CheckpointWriter(tmp_path).save(resumed, {})
    again = resume_agent(tmp_path, make_env())
    buffers_agree(resumed.replay_buffer, again.replay_buffer)
    kept = slice(0 if first < 40 else 5, first)
    assert np.array_equal(again.replay_buffer.observations[kept], agent.replay_buffer.observations[kept])
    assert again.replay_buffer.timeouts[first - 1] == 1  # the first session's end, still marked


def test_another_agents_folder_is_written_anew(tmp_path):
    CheckpointWriter(tmp_path).save(make_agent(gradient_steps=0).learn(30), {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    other = make_agent(gradient_steps=0, seed=7).learn(20)
    CheckpointWriter(tmp_path).save(other, {})
    buffers_agree(resume_agent(tmp_path, make_env()).replay_buffer, other.replay_buffer)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "notes").is_dir()
    assert len(list(tmp_path.glob("replay-*"))) == 3


def test_of_frames_only_those_of_a_chunks_rows_are_in_its_file(tmp_path):
    agent, writer = make_agent(gradient_steps=0, **FRAMES), CheckpointWriter(tmp_path)
    agent.learn(44)
    writer.save(agent, {})
    for name in read_state(tmp_path)["replay"]["chunks"].values():
        frames, references = (load_file(tmp_path / name)[f"/{array}"] for array in ("frames", "references"))
        assert len(frames) == len(np.unique(references)) <= 8 + 2 * 3  # a stack at its start, and another episode's


@pytest.mark.parametrize("kind", [DictReplayBuffer, FrameReplayBuffer])
def test_a_dict_of_observations_comes_back(tmp_path, kind):
    space = spaces.Dict({"camera": spaces.Box(0, 255, (2, 4, 4), np.uint8), "vector": spaces.Box(-1, 1, (3,))})
    kwargs = {"n_stack": 2} if kind is FrameReplayBuffer else {}

    def make_buffer():
        return kind(20, space, spaces.Discrete(2), device="cpu", **kwargs)

    buffer, rng = make_buffer(), np.random.default_rng(0)
    frames, vectors = rng.integers(0, 256, (27, 4, 4), dtype=np.uint8), rng.normal(size=(26, 1, 3))
    for row in range(25):
        now, then = ({"camera": frames[None, i : i + 2], "vector": vectors[i]} for i in (row, row + 1))
        buffer.add(now, then, np.array([row % 2]), np.array([row]), np.array([False]), [{}])
    saved = CheckpointWriter(tmp_path)._save_replay(SimpleNamespace(replay_buffer=buffer, num_timesteps=25))
    again = make_buffer()
    checkpoint._load_replay(again, json.loads(json.dumps(saved)), tmp_path)
    rows = np.arange(20)
    for name in ("observations", "next_observations"):
        for key in space:
            assert np.array_equal(getattr(again, name)[key][rows, 0], getattr(buffer, name)[key][rows, 0])
    assert np.array_equal(again.rewards, buffer.rewards) and (again.pos, again.full) == (5, True)


def test_arrays_of_an_unknown_buffer_are_kept(tmp_path):
    agent = make_agent(gradient_steps=0, replay_buffer_class=Prioritised).learn(20)
    agent.replay_buffer.priorities[:20] = np.arange(20)
    CheckpointWriter(tmp_path).save(agent, {})
    assert np.array_equal(resume_agent(tmp_path, make_env()).replay_buffer.priorities[:20], np.arange(20))


class Prioritised(ReplayBuffer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priorities = np.zeros(self.buffer_size)


def test_broken_weights_do_not_replace_good_ones(tmp_path):
    agent, writer = make_agent().learn(20), CheckpointWriter(tmp_path)
    writer.save(agent, {})
    with torch.no_grad():
        agent.actor.mu.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"actor.mu.bias is not finite at step 20"):
        writer.save(agent, {})
    assert torch.isfinite(resume_agent(tmp_path, make_env()).actor.mu.bias).all()


@either_buffer
def test_updates_and_draws_continue_where_they_were(tmp_path, replay):
    agent = make_agent(**replay).learn(20)
    CheckpointWriter(tmp_path).save(agent, {})
    draws = torch.rand(3), np.random.rand(3), agent.action_space.sample()
    agent.train(3, 4)
    torch.manual_seed(1), np.random.seed(1)
    resumed = resume_agent(tmp_path, make_env())
    again = torch.rand(3), np.random.rand(3), resumed.action_space.sample()
    assert torch.equal(draws[0], again[0]) and np.array_equal(draws[1], again[1]) and np.array_equal(draws[2], again[2])
    resumed.replay_buffer.timeouts[19] = agent.replay_buffer.timeouts[19]
    resumed.train(3, 4)
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name]), name


@either_buffer
@pytest.mark.parametrize("saved_at", [17, 40, 57])  # in an episode, with a full buffer, after wrapping
def test_no_n_step_return_crosses_the_boundary(tmp_path, saved_at, replay):
    agent = make_agent(n_steps=4, gradient_steps=0, **replay).learn(saved_at)
    CheckpointWriter(tmp_path).save(agent, {})
    resumed = resume_agent(tmp_path, make_env())
    boundary = (resumed.replay_buffer.pos - 1) % 40
    resumed.learn(6, reset_num_timesteps=False)
    buffer = resumed.replay_buffer
    samples = buffer._get_samples(np.array([boundary]))
    assert np.array_equal(samples.next_observations[0].numpy(), buffer.next_observations[boundary, 0])
    assert samples.rewards.item() == pytest.approx(buffer.rewards[boundary, 0])
    assert samples.dones.item() == 0.0
    before = buffer._get_samples(np.array([(boundary - 1) % 40]))
    assert before.discounts.item() >= 0.99**2 - 1e-6


def test_no_shared_next_observation_crosses_the_boundary(tmp_path):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = make_agent(gradient_steps=0, **kwargs).learn(17)
    CheckpointWriter(tmp_path).save(agent, {})
    resumed = resume_agent(tmp_path, make_env())
    assert np.array_equal(resumed.replay_buffer.observations[17], agent.replay_buffer.observations[17])
    resumed.learn(3, reset_num_timesteps=False)
    assert resumed.replay_buffer._get_samples(np.array([16])).dones.item() == 1.0


def test_a_kill_between_any_two_files_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    agent, writer = make_agent(gradient_steps=0), CheckpointWriter(tmp_path / "live")
    agent.learn(20)
    writer.save(agent, {})
    expected = agent.replay_buffer.observations.copy()
    agent.learn(30, reset_num_timesteps=False)

    states = []
    real = checkpoint.write_atomically

    def write_and_copy(path, write):
        result = real(path, write)
        shutil.copytree(tmp_path / "live", tmp_path / f"copy{len(states)}")
        states.append(path.name)
        return result

    monkeypatch.setattr(checkpoint, "write_atomically", write_and_copy)
    writer.save(agent, {})
    assert states[-1] == "state.json" and len(states) >= 5
    for index in range(len(states) - 1):
        resumed = resume_agent(tmp_path / f"copy{index}", make_env())
        assert resumed.num_timesteps == 20
        assert np.array_equal(resumed.replay_buffer.observations[:20], expected[:20])
    assert resume_agent(tmp_path / f"copy{len(states) - 1}", make_env()).num_timesteps == 50


@either_buffer
def test_damage_is_named(tmp_path, replay):
    agent = make_agent(gradient_steps=0, **replay).learn(20)
    CheckpointWriter(tmp_path / "good").save(agent, {})
    state = read_state(tmp_path / "good")

    def broken(name, content):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        file, data = content
        if data is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(data)
        return folder

    chunk = state["replay"]["chunks"]["1"]
    cases = {
        "no state": (("state.json", None), "is not a checkpoint: it has no state.json"),
        "half state": (("state.json", b'{"format": 1, "al'), "not a checkpoint of rl_ae"),
        "list": (("state.json", b"[]"), "not a checkpoint of rl_ae"),
        "format": (
            ("state.json", json.dumps({**state, "format": 2}).encode()),
            r"expected format 1 of \['DQN', 'PPO', .*'SACAE', 'TD3', 'TD3AE'\], got format 2",
        ),
        "algorithm": (("state.json", json.dumps({**state, "algorithm": "A3C"}).encode()), "got format 1 of A3C"),
        "missing chunk": ((chunk, None), "is incomplete: state.json names"),
        "half chunk": ((chunk, (tmp_path / "good" / chunk).read_bytes()[:100]), "is damaged"),
        "agent": ((state["agent"], b"not a zip"), "not a saved agent"),
        "random": ((state["random"], b"not a tensor"), "is damaged"),
        "no agent": (("state.json", b'{"format": 1, "algorithm": "SACAE"}'), "not a checkpoint of rl_ae"),
    }
    for name, (content, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            resume_agent(broken(name, content), make_env())
    with pytest.raises(ValueError, match=r"replay buffer .* does not fit: expected .*'n_envs': 2.*got .*'n_envs': 1"):
        resume_agent(tmp_path / "good", make_env(2))


def test_a_reference_without_a_frame_is_damage(tmp_path):
    CheckpointWriter(tmp_path).save(make_agent(gradient_steps=0, **FRAMES).learn(20), {})
    chunk = tmp_path / read_state(tmp_path)["replay"]["chunks"]["1"]
    arrays = load_file(chunk)
    save_file({**arrays, "/references": arrays["/references"] + 1}, chunk)
    with pytest.raises(ValueError, match=r"is damaged: IndexError"):
        resume_agent(tmp_path, make_env())


def test_an_agent_alone_loads_without_its_buffer(tmp_path):
    agent = make_agent(buffer_size=40).learn(20)
    CheckpointWriter(tmp_path).save(agent, {})
    loaded = load_agent(tmp_path, buffer_size=1)
    observation = make_env().reset()[0]
    assert np.array_equal(*(a.predict(observation, deterministic=True)[0] for a in (agent, loaded)))
    assert loaded.replay_buffer.buffer_size == 1
