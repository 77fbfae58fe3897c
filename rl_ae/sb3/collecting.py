"""What ``rl-ae collect`` does: episodes of an environment, played by several processes, as a data set of Minari.

Start and policy of an episode follow from its number and the seed alone, and an episode's file appears when it is
whole: the disk is all there is to remember. Whatever ends a collection or one of its processes, the missing files say
what is left to collect, and what is collected again is what was lost.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from rl_ae.envs import Frame, PixelConfig, shrink
from rl_ae.envs.suites import unknown
from rl_ae.files import write_atomically
from rl_ae.locking import LOCK_FILE, locked
from rl_ae.provenance import git_commit, versions
from rl_ae.sb3.checkpoint import STATE_FILE, load_agent, read_state
from rl_ae.sb3.datasets import DataSet, EpisodeFacts, EpisodeWriter, publish, read_facts
from rl_ae.sb3.evaluation import Predictor, RandomPolicy
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.runs import Run

#: Deaths of the process that collects an episode, after which nobody tries it again.
MOST_DEATHS = 3
PLAN_FILE = "collection.json"
#: Fields in which two sessions of a collection may differ: they do not change what an episode is.
_FREE_FIELDS = frozenset({"episodes"})

Actions = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A collection of episodes.

    Attributes:
        env: Id of an environment, as in training.
        env_kwargs: Its arguments, a JSON object.
        episodes: How many; a collection that is there is continued up to this number.
        policy: Who acts: random, held, brownian, or the folder of a run or of its checkpoint. Several take turns, an
            episode each; one that is named twice gets two turns.
        seed: Of starts and actions.
        size: Height and width of a frame.
        grayscale: One channel a frame instead of three.
        action_repeat: Environment frames a step; the last is stored.
        crop: Left, upper, right and lower edge of what is cut out of the environment's frame.
        max_steps: Steps after which an episode is cut off; by default the environment's own limit.

    Raises:
        ValueError: If a number is out of range, or no policy is named.
    """

    env: str
    env_kwargs: str = "{}"
    episodes: int = 100
    policy: tuple[str, ...] = ("random",)
    seed: int = 0
    size: tuple[int, int] = (64, 64)
    grayscale: bool = False
    action_repeat: int = 1
    crop: tuple[int, int, int, int] | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.seed < 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError(
                f"expected episodes ≥ 1, seed ≥ 0 and max_steps ≥ 1, got {self.episodes}, {self.seed} and "
                f"{self.max_steps}"
            )
        if not self.policy:
            raise ValueError(f"expected one or more policies: {', '.join(POLICIES)}, or folders of runs; got none")
        _ = self.pixels  # which refuses a size that is too small, say

    @property
    def pixels(self) -> PixelConfig:
        """Frames as they are stored, one an observation."""
        return PixelConfig(
            size=self.size,
            grayscale=self.grayscale,
            frame_stack=1,
            action_repeat=self.action_repeat,
            crop=self.crop,
        )

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a stored frame."""
        return *self.size, self.pixels.frame_channels

    def make_env(self, pixels: PixelConfig) -> gym.Env[Frame, Any]:
        """The environment: whole games and their own rewards."""
        return RunConfig(env=self.env, env_kwargs=self.env_kwargs, pixels=pixels).make_env(training=False)

    def policy_of(self, episode: int) -> str:
        """Who plays an episode."""
        return self.policy[episode % len(self.policy)]

    def seeds_of(self, episode: int) -> tuple[int, int]:
        """Of an episode's start and of its actions, 31 bits each, which every environment takes.

        Two, because environments and policies draw from generators of the same kind: by one seed a pendulum's first
        torque would be its first angle.
        """
        start, actions = np.random.SeedSequence([self.seed, episode]).generate_state(2)
        return int(start) >> 1, int(actions) >> 1


class Collection(NamedTuple):
    """A finished collection.

    Attributes:
        folder: Of the data set.
        name: Its id in Minari.
        episodes: Their number.
        frames: One more an episode than steps.
        size: Bytes of all episodes.
    """

    folder: Path
    name: str
    episodes: int
    frames: int
    size: int


# ---------------------------------------------------------------------- policies


class HeldPolicy:
    """Uniform actions, each held for 1 to 20 steps: what they lead to is seen, not only what they average to.

    Args:
        action_space: Space to draw from; seeded here.
        seed: Of actions and durations.
    """

    LONGEST = 20

    def __init__(self, action_space: spaces.Space[Any], seed: int) -> None:
        self._draws = RandomPolicy(action_space, seed)
        # not the actions' own numbers again
        self._generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self._left = 0

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, None]:
        """The action that is held, or a new one."""
        if self._left == 0:
            self._action, _ = self._draws.predict(observation)
            self._left = int(self._generator.integers(1, self.LONGEST, endpoint=True))
        self._left -= 1
        return self._action, None


class BrownianPolicy:
    """Actions that walk at random through their space, from anywhere in it, reflected at its bounds.

    So they go everywhere, as uniform ones do, and stay there for a while: a car that steers so turns, and leaves the
    track.

    Args:
        action_space: A ``Box`` with bounds.
        seed: Of start and walk.

    Raises:
        ValueError: If the actions are discrete or have no bounds.
    """

    #: Standard deviation of a step, in parts of the space's width.
    STEP = 0.1

    def __init__(self, action_space: spaces.Space[Any], seed: int) -> None:
        if not isinstance(action_space, spaces.Box) or not action_space.is_bounded("both"):
            raise ValueError(f"brownian actions need a Box with bounds, got {action_space}: try held")
        self._space = action_space
        self._generator = np.random.default_rng(seed)
        self._position = self._generator.uniform(size=action_space.shape)

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Actions, None]:
        """The next action of the walk."""
        low, high = self._space.low, self._space.high
        action = (low + (high - low) * self._position).astype(self._space.dtype)
        moved = self._position + self.STEP * self._generator.normal(size=self._position.shape)
        self._position = 1.0 - np.abs(1.0 - moved % 2.0)
        return np.clip(action, low, high), None


#: Name → makes the policy of an episode, of the action space and a seed.
POLICIES: dict[str, Callable[[spaces.Space[Any], int], Predictor]] = {
    "random": RandomPolicy,
    "held": HeldPolicy,
    "brownian": BrownianPolicy,
}


class Player(NamedTuple):
    """Who acts in which environment, and what is kept of what is seen there.

    Attributes:
        env: The environment.
        start: Makes the policy of an episode, of its seed.
        to_frame: An observation (C, H, W) to the frame (H, W, C) that is stored.
    """

    env: gym.Env[Frame, Any]
    start: Callable[[int], Predictor]
    to_frame: Callable[[Frame], Frame]


def open_player(config: CollectConfig, policy: str) -> Player:
    """The player of a policy.

    A run's agent sees what it saw in training, its own size and stack; of that the newest frame is stored, averaged
    down to the data set's size if it is larger.

    Args:
        config: The collection.
        policy: One of :data:`POLICIES`, or the folder of a run or its checkpoint.

    Raises:
        ValueError: If there is no such policy, or it cannot act here, or its frames cannot become the data set's.
        ImportError: If the environment lacks a package.
    """
    if policy in POLICIES:
        env = config.make_env(config.pixels)
        start = functools.partial(POLICIES[policy], env.action_space)
        start(config.seed)  # refuses here what it cannot do
        return Player(env, start, lambda observation: observation.transpose(1, 2, 0))
    run = _find_run(policy)
    pixels = run.read_config().pixels
    _check_pixels(config, policy, pixels)
    agent = load_agent(run.checkpoint, device="cpu", buffer_size=1)
    env = config.make_env(pixels)
    for kind, expected, found in (
        ("actions", env.action_space, agent.action_space),
        ("observations", env.observation_space, agent.observation_space),
    ):
        if expected != found:
            raise ValueError(
                f"the agent of {policy} does not fit {config.env}: expected {kind} {expected}, got {found}"
            )
    return Player(env, functools.partial(_seeded, agent), functools.partial(_newest_frame, config, pixels))


class _Exploring:
    """An agent with the noise that it explores with, which TD3 has beside its policy.

    Args:
        agent: Whose ``action_noise`` is added to actions on [-1, 1], as in its training.
    """

    def __init__(self, agent: OffPolicyAlgorithm) -> None:
        self._agent = agent

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Actions, Any]:
        action, state = self._agent.predict(observation, deterministic=deterministic)
        assert self._agent.action_noise is not None
        noise = np.atleast_2d(self._agent.action_noise())[0]  # a row for every environment, of several
        policy = self._agent.policy
        return policy.unscale_action(np.clip(policy.scale_action(action) + noise, -1.0, 1.0)), state


def _seeded(agent: BaseAlgorithm, seed: int) -> Predictor:
    """The agent as it explores, with all that it draws actions from set to a seed."""
    agent.set_random_seed(seed)
    if not isinstance(agent, OffPolicyAlgorithm) or agent.action_noise is None:
        return agent
    agent.action_noise.reset()
    return _Exploring(agent)


def _newest_frame(config: CollectConfig, pixels: PixelConfig, observation: Frame) -> Frame:
    frame = observation[-pixels.frame_channels :].transpose(1, 2, 0)
    if frame.shape == config.frame_shape:
        return frame
    return shrink(frame, config.size, config.grayscale, None).transpose(1, 2, 0)


def _find_run(policy: str) -> Run:
    folder = Path(policy)
    run = Run(folder.parent if (folder / STATE_FILE).exists() else folder)
    if not run.has_checkpoint:
        if folder.exists():
            raise ValueError(f"{policy} is no run with a checkpoint: expected {run.checkpoint / STATE_FILE}")
        raise unknown("policy, and no folder of a run,", policy, POLICIES)
    return run


def _check_pixels(config: CollectConfig, policy: str, pixels: PixelConfig) -> None:
    """Refuse an agent whose frames cannot become the data set's, or that decides at another rate."""
    wrong = [
        f"--{name.replace('_', '-')}: expected {getattr(pixels, name)}, got {getattr(config, name)}"
        for name in ("action_repeat", "crop")
        if getattr(pixels, name) != getattr(config, name)
    ]
    if pixels.size[0] < config.size[0] or pixels.size[1] < config.size[1]:
        wrong.append(f"--size: expected at most {pixels.size}, got {config.size}")
    if pixels.grayscale and not config.grayscale:
        wrong.append("--grayscale: expected it, for the agent sees no colours")
    if wrong:
        raise ValueError(f"the agent of {policy} cannot collect such frames: {'; '.join(wrong)}")


# ---------------------------------------------------------------------- collecting


def collect(config: CollectConfig, out: str | Path, workers: int = 1) -> Collection:
    """Collect episodes, or what is missing of them, as a data set that :func:`minari.load_dataset` reads.

    Episodes are played by processes, which import the main module anew: a script that calls this needs
    ``if __name__ == "__main__":``.

    Args:
        config: The collection.
        out: Id of the data set in Minari, ``carracing/brownian-v0`` say, or a folder.
        workers: Processes.

    Returns:
        The collection, complete.

    Raises:
        ValueError: If an argument is wrong, ``out`` holds something else, or another process collects there.
        ImportError: If a package is missing.
        OSError: If the disk has not enough space for what is to come, or is full. What is done stays done, and the same
            call goes on from there.
        ChildProcessError: If the process that collects an episode dies again and again.
    """
    if workers < 1:
        raise ValueError(f"workers must be ≥ 1, got {workers}")
    data_set = DataSet.at(out)
    _refuse_foreign(data_set)
    with contextlib.ExitStack() as stack:
        players = {policy: open_player(config, policy) for policy in config.policy}
        for player in players.values():
            stack.callback(player.env.close)
        env = players[config.policy[0]].env
        env_spec, action_space = _full_spec(env), env.action_space
        longest = config.max_steps or _time_limit(env, config.action_repeat)
    with locked(data_set.folder, "collects"):
        # what has been published stays
        config = dataclasses.replace(config, episodes=max(config.episodes, data_set.published_episodes))
        _settle_plan(data_set.folder / PLAN_FILE, config)
        facts = {
            episode: fact
            for episode in range(config.episodes)
            if (fact := read_facts(data_set.episode(episode))) is not None
        }
        # a process that was killed may have collected the last episode and not published it
        if min(len(facts), data_set.published_episodes) < config.episodes:
            if missing := config.episodes - len(facts):
                print(_most_disk(config, data_set, missing, longest), file=sys.stderr)
            _collect_missing(config, data_set, workers, facts)
            publish(
                data_set,
                [facts[episode] for episode in range(config.episodes)],
                spaces.Box(0, 255, config.frame_shape, np.uint8),
                action_space,
                env_spec,
                {"algorithm_name": ", ".join(config.policy), "rl_ae": _describe(config)},
            )
    steps, sizes = zip(*facts.values(), strict=True)
    return Collection(data_set.folder, data_set.name, len(facts), sum(steps) + len(facts), sum(sizes))


def _time_limit(env: gym.Env[Any, Any], action_repeat: int) -> int | None:
    """The most steps of an episode; None where that is not known."""
    limit = None if env.spec is None else env.spec.max_episode_steps
    return None if limit is None else math.ceil(limit / action_repeat)


def _full_spec(env: gym.Env[Any, Any]) -> EnvSpec | None:
    """As :func:`gymnasium.make` was given it, where that can be written down.

    An environment's own lacks the limit of its steps.
    """
    if env.unwrapped.spec is None:
        return None
    spec = copy.deepcopy(gym.spec(env.unwrapped.spec.id))
    spec.kwargs = env.unwrapped.spec.kwargs
    try:
        spec.to_json()
    except (ValueError, TypeError):  # it is of a class, not of its name, or has arguments like that
        return None
    return spec


def _refuse_foreign(data_set: DataSet) -> None:
    """Leave a folder alone that holds something else."""
    folder = data_set.folder
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= {LOCK_FILE}:
        if not (folder / PLAN_FILE).exists():
            raise ValueError(f"{folder} holds something else (no {PLAN_FILE}): choose another place with --out")
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, or the id of a data set")


def _describe(config: CollectConfig) -> dict[str, Any]:
    """What an episode depends on, JSON-ready: the configuration, and how far the agents among its policies were."""
    runs = {policy: _find_run(policy) for policy in config.policy if policy not in POLICIES}
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "agent_steps": {policy: read_state(run.checkpoint)["step"] for policy, run in runs.items()},
        "versions": versions(),
        "commit": git_commit(),
    }


def _settle_plan(path: Path, config: CollectConfig) -> None:
    """Write the plan; refuse to continue another one."""
    new = _describe(config)
    if path.exists():
        try:
            old = json.loads(path.read_text())
            was, now = ({**plan["config"], "agent_steps": plan["agent_steps"]} for plan in (old, new))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a collection's: {error!r}") from error
        changed = [name for name in now if name not in _FREE_FIELDS and was.get(name) != now[name]]
        if changed:
            listing = "; ".join(f"{name}: expected {was.get(name)}, got {now[name]}" for name in changed)
            raise ValueError(f"{path.parent} holds another collection ({listing}); choose another place with --out")
    write_atomically(path, lambda file: file.write_text(json.dumps(new, indent=2)))


def _collect_missing(config: CollectConfig, data_set: DataSet, workers: int, facts: dict[int, EpisodeFacts]) -> None:
    """Fill in the facts of all episodes as they get done."""
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs no animation
    total, announced = config.episodes, False
    missing = [episode for episode in range(total) if episode not in facts]
    with (
        tqdm(total=total, initial=len(facts), unit="episode", dynamic_ncols=True, mininterval=interval) as bar,
        contextlib.closing(_work_through(config, data_set, missing, workers)) as done,
    ):
        for episode, fact in done:
            facts[episode] = fact
            bar.update()
            every_policy = {config.policy_of(each) for each in facts} >= set(config.policy[:total])
            if not announced and every_policy and len(facts) < total:
                bar.write(_check_disk(config, data_set, facts), file=sys.stderr)
                announced = True


def _most_disk(config: CollectConfig, data_set: DataSet, episodes: int, longest: int | None) -> str:
    """What episodes can take at most, in one line: before any of them tells how well its frames are compressed."""
    frame = math.prod(config.frame_shape)
    most = "" if longest is None else f", {episodes * (longest + 1) * frame / 1e6:,.1f} MB at most"
    free = shutil.disk_usage(data_set.folder).free
    return (
        f"{episodes} episodes to collect, {frame / 1e3:.1f} kB a frame before compression{most}; {free / 1e6:,.1f} MB "
        "of disk are free"
    )


def _check_disk(config: CollectConfig, data_set: DataSet, facts: Mapping[int, EpisodeFacts]) -> str:
    """What the episodes to come will take, in one line; refuses if the disk has not as much.

    An episode counts as one of its policy does on average.
    """
    sizes: dict[str, list[int]] = {}
    for episode, fact in facts.items():
        sizes.setdefault(config.policy_of(episode), []).append(fact.size)
    left = [episode for episode in range(config.episodes) if episode not in facts]
    needed = sum(float(np.mean(sizes[config.policy_of(episode)])) for episode in left)
    frames = sum(fact.steps + 1 for fact in facts.values())
    free = shutil.disk_usage(data_set.folder).free
    report = (
        f"{len(left)} episodes to come need about {needed / 1e6:,.1f} MB of disk, by the {len(facts)} that are done "
        f"({sum(map(sum, sizes.values())) / frames / 1e3:.1f} kB a frame); {free / 1e6:,.1f} MB are free"
    )
    if needed > free:
        raise OSError(f"{report}: make room, or collect fewer --episodes; those that are done stay")
    return report


class _Worker(NamedTuple):
    """A process that collects, and what it has not sent yet, in its order.

    Attributes:
        process: The process.
        episodes: What it has yet to collect.
    """

    process: BaseProcess
    episodes: list[int]


def _work_through(
    config: CollectConfig, data_set: DataSet, episodes: list[int], workers: int
) -> Generator[tuple[int, EpisodeFacts], None, None]:
    """Let processes collect episodes, each its share; where one dies, a new one goes on."""
    # not forked from this process, whose threads and OpenGL do not survive that; from one that has imported all this
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    working: dict[Connection, _Worker] = {}
    deaths: Counter[int] = Counter()

    def start(share: list[int]) -> None:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(config, data_set, share, there), daemon=True)
        process.start()
        there.close()  # the only one left is the process's: when it dies, this end says so
        working[here] = _Worker(process, share)

    try:
        for share in (episodes[first::workers] for first in range(min(workers, len(episodes)))):
            start(share)
        while working:
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                process, share = working[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    del working[connection]
                    process.join()
                    if share:
                        _count_death(share[0], deaths, process.exitcode, data_set)
                        start(share)
                    continue
                if isinstance(message, Exception):
                    raise message
                share.remove(message[0])
                yield message
    finally:
        for worker in working.values():
            worker.process.terminate()
            worker.process.join()


def _count_death(episode: int, deaths: Counter[int], exit_code: int | None, data_set: DataSet) -> None:
    deaths[episode] += 1
    if deaths[episode] >= MOST_DEATHS:
        reason = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
        raise ChildProcessError(
            f"the process that collects episode {episode} died {MOST_DEATHS} times ({reason}; 9 is what the system "
            f"sends when memory is out). What is done in {data_set.folder} stays, and the same command goes on"
        )


def _work(config: CollectConfig, data_set: DataSet, episodes: list[int], connection: Connection) -> None:
    """What a process does: collect its share, tell of each episode or of what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the command ends its workers
    command = multiprocessing.parent_process()
    assert command is not None
    threading.Thread(target=_end_with, args=(command.sentinel,), daemon=True).start()
    torch.set_num_threads(1)  # others collect beside it
    open_once = functools.cache(functools.partial(open_player, config))
    try:
        for episode in list(episodes):
            connection.send((episode, _collect_episode(config, data_set, episode, open_once)))
    except (ValueError, ImportError) as error:
        connection.send(error)
    except OSError as error:
        # the disk perhaps: whatever it is, it is not the episode's fault
        advice = f"what is done in {data_set.folder} stays, and the same command goes on"
        connection.send(OSError(f"episode {episode} cannot be collected ({error}); {advice}"))


def _end_with(sentinel: int) -> None:
    """End this process when the command that started it has ended, however it did."""
    wait([sentinel])
    os._exit(1)


def _collect_episode(
    config: CollectConfig, data_set: DataSet, episode: int, player_of: Callable[[str], Player]
) -> EpisodeFacts:
    """Play an episode and write its file."""
    policy, (start_seed, action_seed) = config.policy_of(episode), config.seeds_of(episode)
    env, start, to_frame = player_of(policy)
    actor = start(action_seed)
    observation, _ = env.reset(seed=start_seed)
    writer = EpisodeWriter(to_frame(observation))
    steps, done = 0, False
    while not done:
        action, _ = actor.predict(observation, deterministic=False)
        observation, reward, terminated, truncated, _ = env.step(action)
        steps += 1
        truncated = truncated or steps == config.max_steps
        writer.add(to_frame(observation), np.asarray(action), float(reward), terminated, truncated)
        done = terminated or truncated
    writer.write(data_set.episode(episode), episode, start_seed, policy)
    facts = read_facts(data_set.episode(episode))
    assert facts is not None
    return facts
