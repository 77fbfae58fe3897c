"""Collecting episodes: what is stored, and what survives a kill, a death and a full disk."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import psutil
import pytest
from gymnasium import spaces

from rl_ae import cli
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.sb3 import collecting
from rl_ae.sb3.checkpoint import load_agent
from rl_ae.sb3.collecting import PLAN_FILE, BrownianPolicy, CollectConfig, HeldPolicy, collect, open_player
from rl_ae.sb3.datasets import EpisodeFacts, read_facts
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.sb3.runs import train_run

DOTS = CollectConfig(env="fragile:Fragile-v0", episodes=6, policy=("brownian", "random"), seed=3, size=(24, 24))
#: Where processes find the module of that environment.
TESTS = str(Path(__file__).parent)


def with_kwargs(config, **kwargs):
    return dataclasses.replace(config, env_kwargs=json.dumps(kwargs))


def episodes(folder):
    """{number: what its file holds}, of the episodes that are whole."""
    return {
        int(path.stem): (read_facts(path), path.read_bytes())
        for path in sorted(Path(folder).glob("data/episodes/[0-9]*.hdf5"))
    }


@pytest.fixture(scope="module", autouse=True)
def minaris_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """A collection by one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("collections") / "dots"
    collect(DOTS, folder)
    return folder


# ---------------------------------------------------------------------- what is stored


@pytest.fixture(scope="module")
def cars():
    config = CollectConfig(
        env="CarRacing-v3", episodes=3, policy=("held", "brownian"), size=(40, 56), action_repeat=2, max_steps=5
    )
    return collect(config, "tests/cars-v0", workers=2)


def test_minari_loads_what_happened(cars):
    collection = cars
    data_set = minari.load_dataset("tests/cars-v0")
    assert (data_set.total_episodes, data_set.total_steps, data_set.id) == (3, 15, "tests/cars-v0")
    assert (collection.episodes, collection.frames, collection.name) == (3, 18, "tests/cars-v0")
    assert data_set.observation_space == spaces.Box(0, 255, (40, 56, 3), np.uint8)
    metadata = list(data_set.storage.get_episode_metadata(range(3)))
    assert [each["policy"] for each in metadata] == ["held", "brownian", "held"]
    assert len({each["seed"] for each in metadata}) == 3
    env = make_pixel_env("CarRacing-v3", PixelConfig(size=(40, 56), frame_stack=1, action_repeat=2))
    for episode, facts in zip(data_set, metadata, strict=True):
        frame, _ = env.reset(seed=facts["seed"])
        played, rewards = [frame], []
        for action in episode.actions:
            frame, reward, *_ = env.step(action)
            played.append(frame)
            rewards.append(reward)
        np.testing.assert_array_equal(episode.observations, np.stack(played).transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(episode.rewards, rewards)
        assert episode.observations.dtype == np.uint8 and episode.observations.std() > 10
        assert episode.truncations.tolist() == [False] * 4 + [True] and not episode.terminations.any()
    assert data_set.storage.metadata["rl_ae"]["config"]["action_repeat"] == 2


def test_the_environment_can_be_made_again(cars):
    env = minari.load_dataset("tests/cars-v0").recover_environment()
    assert env.spec.id == "CarRacing-v3" and env.spec.max_episode_steps == 1000
    assert env.action_space == minari.load_dataset("tests/cars-v0").action_space


def test_an_environment_that_cannot_be_written_down_is_left_out(dots):
    assert minari.MinariDataset(dots / "data").env_spec is None  # Fragile is registered by its class


def test_frames_are_compressed_without_loss(dots):
    import h5py

    with h5py.File(dots / "data/main_data.hdf5") as file:
        frames = file["episode_0/observations"]
        assert frames.compression == "gzip" and frames.chunks[1:] == (24, 24, 3)
        assert frames.chunks[0] * 24 * 24 * 3 <= 2**18
    assert json.loads((dots / "data/metadata.json").read_text())["jpeg_encoding"] is False


def test_a_data_set_can_be_moved_and_combined(dots, tmp_path):
    root = Path(os.environ["MINARI_DATASETS_PATH"])
    for name in ("first-v0", "second-v0"):
        collect(dataclasses.replace(DOTS, episodes=2), tmp_path / "here" / name)
        shutil.copytree(tmp_path / "here" / name, root / name)
    shutil.rmtree(tmp_path / "here")
    both = minari.combine_datasets([minari.load_dataset(name) for name in ("first-v0", "second-v0")], "both-v0")
    assert both.total_episodes == 4
    np.testing.assert_array_equal(both[3].observations, minari.MinariDataset(dots / "data")[1].observations)


# ---------------------------------------------------------------------- the same again


def test_episodes_depend_on_their_number_and_the_seed_alone(dots, tmp_path):
    collect(dataclasses.replace(DOTS, episodes=2), tmp_path / "dots")
    assert len(minari.MinariDataset(tmp_path / "dots/data")) == 2
    collect(DOTS, tmp_path / "dots", workers=3)  # which goes on with the other four
    assert episodes(tmp_path / "dots") == episodes(dots)
    assert len(minari.MinariDataset(tmp_path / "dots/data")) == 6
    other = collect(dataclasses.replace(DOTS, seed=4, episodes=1), tmp_path / "other")
    assert episodes(other.folder)[0] != episodes(dots)[0]


def test_a_finished_collection_is_left_as_it_is(dots):
    before = {path: path.stat().st_mtime_ns for path in dots.glob("data/**/*")}
    assert collect(DOTS, dots).episodes == 6
    assert {path: path.stat().st_mtime_ns for path in dots.glob("data/**/*")} == before


def test_fewer_episodes_than_there_are_take_none_away(dots, tmp_path):
    folder = tmp_path / "dots"
    shutil.copytree(dots, folder)
    fewer = dataclasses.replace(DOTS, episodes=2)
    assert collect(fewer, folder).episodes == 6 == len(episodes(folder))
    broken = folder / "data/episodes/000005.hdf5"
    broken.write_bytes(broken.read_bytes()[:3_000])
    assert collect(fewer, folder).episodes == 6 and episodes(folder) == episodes(dots)


def test_a_killed_command_goes_on(dots, tmp_path):
    config = with_kwargs(DOTS, pause=0.2)
    command = [sys.executable, "-m", "rl_ae.cli", "collect", "--env", config.env, "--env-kwargs", config.env_kwargs]
    command += "--episodes 6 --policy brownian random --seed 3 --size 24 24 --workers 2 --out dots".split()
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not episodes(tmp_path / "dots") and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(episodes(tmp_path / "dots")) < 6
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(ValueError, match="No data found"):
        minari.MinariDataset(tmp_path / "dots/data")
    collect(config, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == episodes(dots)


def test_what_a_dead_process_had_begun_is_collected_again(dots, tmp_path):
    config = with_kwargs(DOTS, notes=str(tmp_path), doomed=DOTS.seeds_of(3)[0], deaths=2)
    collect(config, tmp_path / "dots", workers=2)
    assert len(list(tmp_path.glob("death-*"))) == 2
    assert episodes(tmp_path / "dots") == episodes(dots)


def test_an_episode_that_always_kills_is_named(dots, tmp_path):
    config = with_kwargs(DOTS, notes=str(tmp_path), doomed=DOTS.seeds_of(2)[0], deaths=collecting.MOST_DEATHS)
    with pytest.raises(ChildProcessError, match=r"collects episode 2 died 3 times \(signal 9; .* goes on"):
        collect(config, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == {number: episodes(dots)[number] for number in (0, 1)}
    collect(config, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == episodes(dots)


def test_episodes_that_were_not_published_any_more_are(dots, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def die(*arguments):
        raise KilledError

    collect(dataclasses.replace(DOTS, episodes=2), tmp_path / "dots")
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "publish", die)
        with pytest.raises(KilledError):
            collect(DOTS, tmp_path / "dots")
    assert len(episodes(tmp_path / "dots")) == 6 and len(minari.MinariDataset(tmp_path / "dots/data")) == 2
    collect(DOTS, tmp_path / "dots")
    assert len(minari.MinariDataset(tmp_path / "dots/data")) == 6


def test_a_damaged_description_is_written_again(dots, tmp_path):
    shutil.copytree(dots, tmp_path / "dots")
    description = tmp_path / "dots/data/metadata.json"
    whole = json.loads(description.read_text())
    description.write_text(description.read_text()[:100])
    collect(DOTS, tmp_path / "dots")
    assert json.loads(description.read_text())["total_steps"] == whole["total_steps"]


def test_a_damaged_episode_is_collected_again(dots, tmp_path):
    shutil.copytree(dots, tmp_path / "dots")
    (tmp_path / "dots/data/metadata.json").unlink()
    broken = tmp_path / "dots/data/episodes/000004.hdf5"
    broken.write_bytes(broken.read_bytes()[:3_000])
    collect(DOTS, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == episodes(dots)


# ---------------------------------------------------------------------- the disk


def test_a_full_disk_leaves_what_is_done(dots, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    config = with_kwargs(DOTS, notes=str(notes))
    collect(dataclasses.replace(config, episodes=2), tmp_path / "dots")
    (notes / "full").touch()
    with pytest.raises(OSError, match=r"episode 2 cannot be collected \(.*too large.*same command goes on"):
        collect(config, tmp_path / "dots")
    names = [path.name for path in (tmp_path / "dots/data/episodes").iterdir()]
    assert sorted(names) == ["000000.hdf5", "000001.hdf5"]
    assert len(minari.MinariDataset(tmp_path / "dots/data")) == 2
    (notes / "full").unlink()
    collect(config, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == episodes(dots)


def free(space):
    return lambda folder: shutil._ntuple_diskusage(10**12, 10**12 - space, space)


def test_the_estimate_is_by_policy(tmp_path, monkeypatch):
    config = dataclasses.replace(DOTS, episodes=10)  # 4 brownian to come, and 4 random
    facts = {0: EpisodeFacts(steps=99, size=2_000_000), 1: EpisodeFacts(steps=299, size=500_000)}
    monkeypatch.setattr(shutil, "disk_usage", free(10_000_000))
    report = collecting._check_disk(config, collecting.DataSet.at(tmp_path), facts)
    assert report.startswith("8 episodes to come need about 10.0 MB of disk, by the 2 that are done (6.2 kB a frame)")
    monkeypatch.setattr(shutil, "disk_usage", free(9_900_000))
    with pytest.raises(OSError, match=r"10\.0 MB of disk.*9\.9 MB are free: make room"):
        collecting._check_disk(config, collecting.DataSet.at(tmp_path), facts)


def test_the_most_that_episodes_can_take_is_said_before_they_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", free(10_000_000))
    config, data_set = CollectConfig(env="Pendulum-v1", size=(10, 20), action_repeat=3), collecting.DataSet.at(tmp_path)
    env = open_player(config, "random").env
    longest = collecting._time_limit(env, 3)
    env.close()
    assert longest == 67  # of 200 steps
    said = collecting._most_disk(config, data_set, 50, longest)
    assert said == "50 episodes to collect, 0.6 kB a frame before compression, 2.0 MB at most; 10.0 MB of disk are free"


def test_a_disk_that_is_too_small_is_refused_early(dots, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", free(1_000))
    config = with_kwargs(DOTS, pause=0.1)
    with pytest.raises(OSError, match=r"episodes to come need about .* make room"):
        collect(config, tmp_path / "dots")
    done = episodes(tmp_path / "dots")
    assert 2 <= len(done) < 6 and done == {number: episodes(dots)[number] for number in done}
    monkeypatch.undo()
    collect(config, tmp_path / "dots")
    assert episodes(tmp_path / "dots") == episodes(dots)
    assert "episodes to come need about" in capsys.readouterr().err


# ---------------------------------------------------------------------- who acts


def test_held_actions_are_held():
    policy = HeldPolicy(spaces.Discrete(1_000), seed=1)
    actions = np.array([policy.predict(None)[0] for _ in range(5_000)])
    ends = np.flatnonzero(np.diff(actions)) + 1
    runs = np.diff([0, *ends])
    assert runs.min() == 1 and runs.max() == 20
    assert runs.mean() == pytest.approx(10.5, abs=1.0)
    again = HeldPolicy(spaces.Discrete(1_000), seed=1)
    assert [again.predict(None)[0] for _ in range(50)] == actions[:50].tolist()


def test_how_long_an_action_is_held_does_not_depend_on_the_actions():
    policy = HeldPolicy(spaces.Box(-1, 1, (1,)), seed=1)
    actions = np.array([policy.predict(None)[0][0] for _ in range(5_000)])
    starts = np.array([0, *np.flatnonzero(np.diff(actions)) + 1])
    held, chosen = np.diff(starts), actions[starts]
    shared = held[1::2]  # of one stream with the actions, each second duration has the bits of an action
    assert len(shared) > 200 and abs(np.corrcoef(chosen[: len(shared)], shared)[0, 1]) < 0.25


@pytest.mark.parametrize("policy", collecting.POLICIES.values(), ids=collecting.POLICIES)
def test_the_first_action_does_not_depend_on_the_start(policy):
    config = CollectConfig(env="Pendulum-v1")
    env = gym.make(config.env)
    firsts = []
    for start, actions in map(config.seeds_of, range(200)):
        env.reset(seed=start)
        firsts.append((env.unwrapped.state[0], policy(env.action_space, actions).predict(None)[0][0]))
    assert abs(np.corrcoef(np.transpose(firsts))[0, 1]) < 0.25
    assert np.abs(np.mean(firsts, axis=0)).max() < 0.5 and np.std(firsts, axis=0).min() > 1.0


def test_brownian_actions_walk_everywhere_in_small_steps():
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
    policy = BrownianPolicy(space, seed=0)
    actions = np.stack([policy.predict(None)[0] for _ in range(20_000)])
    assert actions.dtype == np.float32 and all(space.contains(action) for action in actions)
    parts = (actions - space.low) / (space.high - space.low)
    quarters = [np.histogram(part, bins=4, range=(0, 1))[0] / len(part) for part in parts.T]
    np.testing.assert_allclose(quarters, 0.25, atol=0.05)  # reflected, it stays nowhere longer
    steps = np.abs(np.diff(parts, axis=0))
    assert np.sqrt(np.mean(steps**2)) == pytest.approx(0.1, abs=0.01) and steps.max() < 0.5


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (2,))], ids=str)
def test_brownian_actions_need_bounds(space):
    with pytest.raises(ValueError, match=r"need a Box with bounds, got .*: try held"):
        BrownianPolicy(space, seed=0)


RUN = RunConfig(
    env="fragile:Fragile-v0",
    steps=12,
    eval_episodes=1,
    device="cpu",
    pixels=PixelConfig(size=(32, 32), frame_stack=3, action_repeat=2),
    agent=AgentConfig(autoencoder="rae_compact", latent_dim=4, net_arch=(8,), buffer_size=20),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An agent that has not learned, but sees three frames of 32×32."""
    return train_run(RUN, tmp_path_factory.mktemp("runs") / "run")


def test_an_agent_collects_what_it_sees(run, tmp_path):
    config = dataclasses.replace(DOTS, policy=("random", str(run.folder)), size=(16, 16), action_repeat=2, episodes=2)
    collect(config, tmp_path / "dots", workers=2)
    _, episode = minari.MinariDataset(tmp_path / "dots/data")
    agent = load_agent(run.checkpoint, device="cpu", buffer_size=1)
    env = run.read_config().make_env(training=False)
    start, actions = config.seeds_of(1)
    agent.set_random_seed(actions)
    observation, _ = env.reset(seed=start)
    for step, stored in enumerate(episode.actions):
        pooled = observation[-3:].reshape(3, 16, 2, 16, 2).mean(axis=(2, 4)).transpose(1, 2, 0)
        # Pillow averages rows, then columns, and rounds both times
        np.testing.assert_allclose(episode.observations[step], pooled, atol=1.0)
        action, _ = agent.predict(observation, deterministic=False)
        np.testing.assert_array_equal(stored, action)
        observation, *_ = env.step(action)
    plan = json.loads((tmp_path / "dots" / PLAN_FILE).read_text())
    assert plan["agent_steps"] == {str(run.folder): 12}


def test_an_agent_explores_with_its_noise(tmp_path):
    agent = dataclasses.replace(RUN.agent, action_noise=0.2)
    run = train_run(dataclasses.replace(RUN, algo="td3_ae", agent=agent), tmp_path / "run")
    player = open_player(dataclasses.replace(DOTS, action_repeat=2), str(run.folder))
    observation, _ = player.env.reset(seed=0)
    chosen, _ = load_agent(run.checkpoint, device="cpu", buffer_size=1).predict(observation, deterministic=True)

    def explore(seed):
        policy = player.start(seed)
        return np.stack([policy.predict(observation, deterministic=False)[0] for _ in range(500)])

    noise = explore(1) / 2.0 - chosen / 2.0  # actions are in [-2, 2]
    assert noise.std() == pytest.approx(0.2, abs=0.02) and abs(noise.mean()) < 0.02
    assert np.array_equal(explore(1), explore(1)) and not np.array_equal(explore(1), explore(2))
    player.env.close()


def test_a_checkpoints_folder_is_its_run(run):
    config = dataclasses.replace(DOTS, action_repeat=2)
    assert open_player(config, str(run.checkpoint)).env.observation_space.shape == (9, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (40, 24)}, r"--size: expected at most \(32, 32\), got \(40, 24\)"),
        ({"action_repeat": 1}, "--action-repeat: expected 2, got 1"),
        ({"crop": (0, 0, 8, 8)}, r"--crop: expected None, got \(0, 0, 8, 8\)"),
        ({"env": "CartPole-v1"}, r"does not fit CartPole-v1: expected actions Discrete\(2\), got Box"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_agent_that_does_not_fit_is_refused(run, changes, message):
    config = dataclasses.replace(DOTS, **{"action_repeat": 2, **changes})
    with pytest.raises(ValueError, match=message):
        open_player(config, str(run.folder))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes ≥ 1.* got 0, 3 and None"),
        ({"max_steps": 0}, "max_steps ≥ 1, got 6, 3 and 0"),
        ({"seed": -1}, "seed ≥ 0"),
        ({"policy": ()}, "one or more policies: random, held, brownian"),
        ({"size": (4, 64)}, "size must be at least 8×8, got 4×64"),
        ({"policy": ("brownain",)}, "'brownain', did you mean brownian"),
        ({"policy": (TESTS,)}, "no run with a checkpoint: expected .*state.json"),
        ({"policy": ("brownian",), "env": "CartPole-v1"}, "try held"),
        ({"env": "Fragil-v0"}, "unknown environment"),
        ({"env_kwargs": "[]"}, "must be a JSON object"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        collect(dataclasses.replace(DOTS, **arguments), tmp_path / "dots")
    assert not (tmp_path / "dots").exists()


def test_places_that_are_taken(dots, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(no collection.json\): choose another"):
        collect(DOTS, tmp_path)
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        collect(DOTS, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"another collection \(seed: expected 3, got 9\)"):
        collect(dataclasses.replace(DOTS, seed=9), dots)
    with pytest.raises(ValueError, match="workers must be ≥ 1, got 0"):
        collect(DOTS, dots, workers=0)
    with collecting.locked(dots, "collects"), pytest.raises(ValueError, match="another process collects in"):
        collect(DOTS, dots)


def test_the_command(tmp_path, capsys):
    arguments = "collect --env fragile:Fragile-v0 --episodes 1 --policy held --size 24 24 --grayscale --out".split()
    cli.main([*arguments, str(tmp_path / "dots")])
    output, announced = capsys.readouterr()
    assert "1 episodes" in output and "rl-ae pretrain --data" in output
    assert "1 episodes to collect, 0.6 kB a frame before compression; " in announced  # whose length nobody limits
    assert minari.MinariDataset(tmp_path / "dots/data")[0].observations.shape[1:] == (24, 24, 1)
    with pytest.raises(SystemExit, match=r"rl-ae: unknown policy, .*'none'"):
        cli.main([*arguments, str(tmp_path / "other"), "--policy", "none"])
