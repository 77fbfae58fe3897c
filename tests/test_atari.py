import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, FireResetEnv, MaxAndSkipEnv, NoopResetEnv
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor

from rl_ae.envs import JoystickActions, PixelConfig, make_pixel_env, shrink
from rl_ae.envs.atari import FireAfterLife, LifeEpisodes

PIXELS = PixelConfig(size=(42, 42), grayscale=True, action_repeat=4)
OURS = (NoopResetEnv, MaxAndSkipEnv, Monitor, LifeEpisodes, FireResetEnv, FireAfterLife, ClipRewardEnv, JoystickActions)


class Recorder:
    """The emulator, and what it was told and gave since the game began."""

    def __init__(self, ale):
        self.ale = ale
        self.actions, self.strengths, self.rewards = [], [], []

    def __getattr__(self, name):
        return getattr(self.ale, name)

    def act(self, action, strength):
        reward = self.ale.act(action, strength)
        self.actions.append(action.name)
        self.strengths.append(strength)
        self.rewards.append(reward)
        return reward

    def reset_game(self):
        self.__init__(self.ale)
        self.ale.reset_game()


def record(env):
    env.unwrapped.ale = Recorder(env.unwrapped.ale)
    return env.unwrapped.ale


def chain(env):
    """Names of the wrappers that play, the innermost first."""
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.insert(0, type(env))
        env = env.env
    return [wrapper.__name__ for wrapper in wrappers if wrapper in OURS]


def start(env, seed=0):
    env.reset(seed=seed)
    env.action_space.seed(seed)
    return env


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_a_joystick_goes_where_a_discrete_action_has_it(threshold):
    env = make_pixel_env("cale:Pong", PIXELS, threshold=threshold, noop_max=0, sticky=0.0)
    while not isinstance(env, JoystickActions):
        env = env.env
    emulator = record(env)
    env.reset(seed=0)
    meanings = env.unwrapped.get_action_meanings()
    assert len(meanings) == 18
    for index in range(18):
        env.step(np.int64(index) if index % 2 else index)
    assert emulator.actions == meanings
    assert emulator.strengths == [meaning not in ("NOOP", "FIRE") for meaning in meanings]


def test_continuous_actions_of_any_float_type():
    env = make_pixel_env("cale:Pong", PIXELS, sticky=0.0)
    assert env.action_space.dtype == np.float32
    assert np.allclose(env.action_space.low, [0, -np.pi, 0]) and np.allclose(env.action_space.high, [1, np.pi, 1])
    emulator = record(env)
    env.reset(seed=0)
    emulator.actions.clear()
    for action in ([0.9, np.pi / 2, 0.6], [0.4, 0.0, 0.4], [0.6, -np.pi, 0.0]):
        env.step(np.array(action, np.float64))
    assert emulator.actions == ["UPFIRE"] * 4 + ["NOOP"] * 4 + ["LEFT"] * 4


@pytest.mark.parametrize("suite", ["ale", "cale"])
def test_the_chain_of_wrappers(suite):
    joystick = ["JoystickActions"] if suite == "cale" else []
    inside = [*joystick, "NoopResetEnv", "MaxAndSkipEnv", "Monitor"]
    env = f"{suite}:Breakout"
    assert chain(make_pixel_env(env, PIXELS)) == [*inside, "LifeEpisodes", "FireResetEnv", "ClipRewardEnv"]
    assert chain(make_pixel_env(env, PIXELS, False)) == [*inside, "FireResetEnv", "FireAfterLife"]
    assert chain(make_pixel_env(env, PIXELS, life_loss=False)) == [*inside, "FireResetEnv", "ClipRewardEnv"]
    assert chain(make_pixel_env(env, PIXELS, False, life_loss=False)) == [*inside, "FireResetEnv"]
    frames = PixelConfig(size=(42, 42))
    bare = {"noop_max": 0, "clip_reward": False, "life_loss": False}
    assert chain(make_pixel_env(env, frames, **bare)) == [*joystick, "Monitor", "FireResetEnv"]
    # a game that does not use FIRE, though all 18 actions have it
    assert "FireResetEnv" not in chain(make_pixel_env(f"{suite}:Freeway", PIXELS))


@pytest.mark.parametrize("suite", ["ale", "cale"])
def test_lives_are_episodes_but_reported_returns_are_of_whole_games(suite):
    env = make_pixel_env(f"{suite}:SpaceInvaders", dataclasses.replace(PIXELS, reward_scale=0.5))
    emulator = record(env)
    start(env)
    lives, clipped, ends = 3, 0.0, []
    while len(ends) < 3:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert reward in (0, 0.5) and not truncated
        clipped += reward
        if terminated:
            assert info["lives"] == lives - 1
            lives -= 1
            ends.append("episode" in info)
            if lives:
                env.reset()
        else:
            assert "episode" not in info
    assert ends == [False, False, True]
    assert info["episode"]["r"] == sum(emulator.rewards) > clipped > 0


@pytest.mark.parametrize("suite", ["ale", "cale"])
def test_the_evaluation_is_of_a_whole_game_with_its_own_rewards(suite):
    env = start(make_pixel_env(f"{suite}:SpaceInvaders", PIXELS, training=False))
    total, lives, done = 0.0, set(), False
    while not done:
        _, reward, done, truncated, info = env.step(env.action_space.sample())
        assert not truncated and ("episode" in info) == done
        total += reward
        lives.add(info["lives"])
    assert lives == {0, 1, 2, 3}
    assert info["episode"]["r"] == total and total >= 5 and total % 5 == 0


def test_every_life_of_the_evaluation_begins_with_fire():
    env = make_pixel_env("ale:Breakout", PIXELS, training=False)
    env.reset(seed=0)
    emulator = record(env)
    for step in itertools.count(1):
        _, _, done, _, info = env.step(0)
        if done:
            break
        assert step < 500, "the ball was not served"
    assert info["lives"] == 0
    served = ["".join(map(str, group)) for group, _ in itertools.groupby(emulator.actions)]
    assert served == ["NOOP", "FIRE", "RIGHT"] * 4 + ["NOOP"]

    env = make_pixel_env("ale:Breakout", PIXELS, training=False, life_loss=False)
    env.reset(seed=0)
    assert not any(env.step(0)[2] for _ in range(500))  # it has to press the button itself


def test_a_life_lost_while_the_next_begins_is_not_lost_sight_of():
    class Lives(gym.Env):
        """Loses a life at these steps; action and reward are counted."""

        observation_space, action_space = spaces.Discrete(1), spaces.Discrete(3)

        def __init__(self, lives):
            self.later, self.actions = list(lives), []
            self.ale = self

        def lives(self):
            return self.now

        def reset(self, *, seed=None, options=None):
            self.now = self.later.pop(0)
            return 0, {}

        def step(self, action):
            self.actions.append(action)
            self.now = self.later.pop(0)
            return 0, 1.0, self.now == 0, False, {}

    game = Lives([3, 3, 2, 2, 2, 2, 2, 1, 0])
    env = FireAfterLife(game)
    env.reset()
    rewards = [env.step(5)[1] for _ in range(3)]
    assert rewards == [1, 4, 1] and game.actions == [5, 5, 0, 1, 2, 5]
    assert env.step(5)[:3] == (0, 2.0, True) and game.actions[6:] == [5, 0]


@pytest.mark.parametrize("suite", ["ale", "cale"])
def test_seeds_reproduce_games_with_sticky_actions_at_any_time(suite):
    env = make_pixel_env(f"{suite}:SpaceInvaders", PIXELS, sticky=0.25)

    def play(seed, steps=40):
        start(env, seed)
        return [env.step(env.action_space.sample())[:2] for _ in range(steps)]

    def same(one, other):
        return all(np.array_equal(a, b) and r == s for (a, r), (b, s) in zip(one, other, strict=True))

    first = play(3)
    assert same(first, play(3))  # while the game goes on
    while not env.step(env.action_space.sample())[2]:
        pass
    assert same(first, play(3))  # after a lost life
    assert not same(first, play(4))


def test_a_frame_is_the_maximum_of_the_last_two_and_stacked():
    pixels = PixelConfig(size=(42, 40), action_repeat=3, frame_stack=2)
    env = make_pixel_env("ale:MsPacman", pixels, noop_max=0)
    raw = gym.make("ALE/MsPacman-v5", frameskip=1, repeat_action_probability=0.0)
    stack = [env.reset(seed=1)[0][3:]]
    assert np.array_equal(stack[0], shrink(raw.reset(seed=1)[0], (42, 40), False, None))
    flickers = False
    for action in (2, 3, 2, 1, 4, 0):
        frames = [raw.step(action)[0] for _ in range(3)]
        stack.append(shrink(np.maximum(*frames[1:]), (42, 40), False, None))
        observation, *_, info = env.step(action)
        assert np.array_equal(observation, np.concatenate(stack[-2:]))
        flickers |= not np.array_equal(*frames[1:])
    assert flickers and info["episode_frame_number"] == 18
    single = make_pixel_env("ale:MsPacman", PixelConfig(size=(42, 40), frame_stack=1), noop_max=0)
    raw.reset(seed=1), single.reset(seed=1)
    assert np.array_equal(single.step(2)[0], shrink(raw.step(2)[0], (42, 40), False, None))


def test_noops_begin_a_game():
    some, none = (make_pixel_env("ale:MsPacman", PIXELS, noop_max=noop_max) for noop_max in (2, 0))
    counts = {some.reset(seed=seed)[1]["episode_frame_number"] for seed in range(5)}
    assert counts == {1, 2} and none.reset()[1]["episode_frame_number"] == 0


def test_long_games_are_truncated():
    env = make_pixel_env("ale:MsPacman", PIXELS, False, max_frames=100, noop_max=0)
    env.reset(seed=0)
    ends = [env.step(0)[2:] for _ in range(25)]
    assert [end[:2] for end in ends] == [(False, False)] * 24 + [(False, True)]
    assert ends[-1][2]["episode"]["l"] == 25


def test_sticky_actions_are_frames_that_repeat_the_one_before():
    def differs(sticky):
        env = make_pixel_env("ale:Breakout", PIXELS, noop_max=0, sticky=sticky)
        plays = []
        for seed in (0, 1):
            env.reset(seed=seed)
            plays.append([env.step(action)[0] for action in [2, 3] * 10])
        return not np.array_equal(*plays)

    assert differs(0.25) and not differs(0.0)


def test_spaces_and_crops():
    env = make_pixel_env("ale:Pong", PIXELS)
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape == (3, 42, 42) and env.action_space == spaces.Discrete(6)
    assert make_pixel_env("ale:Pong", PIXELS, full_action_space=True).action_space == spaces.Discrete(18)
    with pytest.warns(UserWarning, match="symmetric and normalized Box"):
        check_env(make_pixel_env("cale:Pong", PIXELS), skip_render_check=True)
    crop = make_pixel_env("ale:Pong", PixelConfig(size=(80, 80), crop=(0, 34, 160, 194), frame_stack=1))
    assert crop.reset(seed=0)[0].shape == (3, 80, 80)


def test_games_without_a_noop():
    env = make_pixel_env("ale:Backgammon", PIXELS)
    assert chain(env) == ["MaxAndSkipEnv", "Monitor", "LifeEpisodes", "ClipRewardEnv"]
    assert env.reset(seed=0)[0].shape == (3, 42, 42)


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        ("ale:pong", {}, "unknown game of Atari 'pong', did you mean Pong.* Zaxxon$"),
        ("cale:Space_Invaders", {}, "did you mean SpaceInvaders"),
        ("ale:Pong", {"sticky": 1.0}, r"sticky must be in \[0, 1\), got 1.0"),
        ("ale:Pong", {"noop_max": -1}, "noop_max must be ≥ 0 and max_frames ≥ 1, got -1 and 108000"),
        (
            "ale:Pong",
            {"threshold": 0.5},
            r"ale:Pong does not take the arguments \['threshold'\], expected some of sticky",
        ),
        ("cale:Pong", {"threshold": 1.0}, r"threshold must be in \(0, 1\), got 1.0"),
        ("cale:Pong", {"full_action_space": True}, r"does not take the arguments \['full_action_space'\]"),
    ],
    ids=str,
)
def test_what_cannot_be_made(env, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_pixel_env(env, **kwargs)
