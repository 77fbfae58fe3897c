import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import DotEnv
from stable_baselines3.common.env_checker import check_env

from rl_ae.envs import SUITES, ActionRepeat, PixelConfig, choose_gl, make_pixel_env, shrink, wrap_pixels

PENDULUM = PixelConfig(size=(48, 48), grayscale=True, action_repeat=2, crop=(110, 110, 390, 390), reward_scale=0.1)


def test_pendulum_is_rendered_cropped_and_stacked():
    env = make_pixel_env("Pendulum-v1", PENDULUM)
    with pytest.warns(UserWarning, match="symmetric and normalized Box"):  # Pendulum's torques are in [-2, 2]
        check_env(env, skip_render_check=True)
    first, _ = env.reset(seed=0)
    assert first.shape == (3, 48, 48) and first.dtype == np.uint8
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[1], first[2])
    assert (first == 255).mean() > 0.8 and first.min() < 40  # a dark axle on white
    second, *_ = env.step(env.action_space.high)
    assert np.array_equal(second[:2], first[1:])
    assert not np.array_equal(second[2], first[2])


def test_rewards_add_up_over_repeats_and_returns_stay_unscaled():
    env, plain = make_pixel_env("Pendulum-v1", PENDULUM), gym.make("Pendulum-v1")
    env.reset(seed=3), plain.reset(seed=3)
    action, total, steps, done = np.array([0.7], np.float32), 0.0, 0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(action)
        both = sum(plain.step(action)[1] for _ in range(2))
        assert reward == pytest.approx(0.1 * both, rel=1e-6)
        total, steps, done = total + both, steps + 1, terminated or truncated
    assert steps == 100
    assert info["episode"]["r"] == pytest.approx(total, rel=1e-4)


def test_repeats_stop_with_the_episode():
    env = ActionRepeat(gym.make("Pendulum-v1", max_episode_steps=5), 3)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(2)] == [False, True]
    with pytest.raises(ValueError, match="at least once, got 0"):
        ActionRepeat(env, 0)


def test_carracing_frames_are_used_as_they_are():
    env = make_pixel_env("CarRacing-v3", PixelConfig(size=(64, 48)))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (9, 64, 48)
    raw = gym.make("CarRacing-v3", render_mode="rgb_array").reset(seed=0)[0]
    assert np.array_equal(observation[-3:], shrink(raw, (64, 48), False, None))
    env.close()


def test_shrinking_averages():
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:4, :4] = 200
    assert shrink(frame, (2, 2), True, None).tolist() == [[[200, 0], [0, 0]]]
    assert shrink(frame, (1, 1), False, None).flatten().tolist() == [50, 50, 50]
    assert shrink(frame, (1, 1), True, (0, 0, 4, 4)).item() == 200
    assert shrink(frame[..., :1], (2, 2), False, None).shape == (3, 2, 2)


def test_unknown_and_unrenderable_environments():
    with pytest.raises(ValueError, match="unknown environment"):
        make_pixel_env("Pendulumm-v1")
    with pytest.raises(ValueError, match="render_mode is None"):
        make_pixel_env("Pendulum-v1", render_mode=None)


#: Environment → the package it needs, and the extra that installs that.
NEEDED = {
    "Pendulum-v1": ("pygame", "demo"),
    "CartPole-v1": ("pygame", "demo"),
    "CarRacing-v3": ("Box2D", "box2d"),
    "shimmy:dm_control/cartpole-swingup-v0": ("shimmy", "dmc"),
    "ale_py:ALE/Pong-v5": ("ale_py", "atari"),
}


def test_missing_extras_are_named():
    """Where none is installed."""
    script = f"""
import sys
for package, _ in {NEEDED}.values():
    sys.modules[package] = None
from rl_ae.envs import make_pixel_env
for env in {NEEDED}:
    try:
        make_pixel_env(env)
    except ImportError as error:
        print(repr(error))
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert len(lines) == len(NEEDED)
    for line, (env, (package, extra)) in zip(lines, NEEDED.items(), strict=True):
        assert f'{env} needs a package that is not installed: pip install "rl-ae[{extra}]" (' in line
        assert package.lower() in line.split("(")[-1].lower(), line


@pytest.mark.parametrize(
    ("env", "package", "extra"),
    [
        ("dmc:cheetah-run", "shimmy", "dmc"),
        ("dmc:cheetah-run", "dm_control.suite", "dmc"),
        ("ale:Pong", "ale_py", "atari"),
        ("cale:Pong", "ale_py", "atari"),
    ],
)
def test_a_suite_names_its_missing_extra(env, package, extra, monkeypatch):
    choose_gl()
    import shimmy  # noqa: F401 imported without dm_control, it would never register the suite in this process

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"not installed: pip install \"rl-ae\[{extra}\]\""):
        make_pixel_env(env)


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("env", ["CarRacing-v1", "no such id", "nowhere/Env-v0", "ALE/Pong-v5"])
def test_other_ids_are_refused(env, monkeypatch):
    monkeypatch.delitem(gym.registry, "ALE/Pong-v5", raising=False)  # other tests import what registers it
    with pytest.raises(ValueError, match="unknown environment"):
        make_pixel_env(env)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("dcm:cheetah-run", r"suite 'dcm', did you mean dmc\? expected one of ale, cale, dmc$"),
        ("nowhere.near:thing", r"suite 'nowhere.near', expected one of ale, cale, dmc$"),
        (":thing", r"suite '', expected one of ale, cale, dmc$"),
    ],
)
def test_unknown_suites(env, message):
    with pytest.raises(ValueError, match=message):
        make_pixel_env(env)


def test_modules_are_still_imported_by_a_prefix():
    with pytest.raises(ImportError, match="needs a package that is not installed"):
        make_pixel_env("nowhere:Thing-v0")
    with pytest.raises(ValueError, match="unknown environment"):
        make_pixel_env("json:thing")


def test_options_are_those_of_the_suite():
    assert set(SUITES) == {"dmc", "ale", "cale"}
    with pytest.raises(ValueError, match=r"ale:Pong does not take the arguments \['camera', 'distraction'\], expected"):
        make_pixel_env("ale:Pong", distraction="video", camera=1)
    for env in ("Pendulum-v1", "HalfCheetah-v5"):
        with pytest.raises(ValueError, match=f"distractions are of dmc:domain-task environments, {env} has none"):
            make_pixel_env(env, distraction="video")


def test_mujoco_of_gymnasium_is_rendered():
    env = make_pixel_env("HalfCheetah-v5", PixelConfig(size=(32, 40), frame_stack=1), width=80, height=64)
    first, _ = env.reset(seed=0)
    assert first.shape == (3, 32, 40)
    raw = env.render()
    assert raw.shape == (64, 80, 3) and np.array_equal(shrink(raw, (32, 40), False, None), first)
    assert first.std() > 10
    second, *_ = env.step(env.action_space.high)
    assert not np.array_equal(first, second)
    env.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Gymnasium's viewer frees what it has not
@pytest.mark.parametrize("by_id", [True, False])
def test_mujoco_of_gymnasium_that_cannot_be_rendered(by_id, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    env = "HalfCheetah-v5" if by_id else gym.make("HalfCheetah-v5", render_mode="rgb_array")
    with pytest.raises(ImportError, match=r"HalfCheetah-v5 cannot be rendered with MUJOCO_GL=off .*libosmesa6"):
        make_pixel_env(env)


def test_wrapping_takes_the_fields_of_the_config():
    assert wrap_pixels(DotEnv(), size=(24, 24), grayscale=True).observation_space.shape == (3, 24, 24)


@pytest.mark.parametrize("shape", [(20, 24, 3), (3, 20, 24), (20, 24, 1)], ids=str)
def test_own_environments_with_channels_anywhere(shape):
    class Gradient(DotEnv):
        def _observe(self):
            return np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(np.uint8)

    env = make_pixel_env(Gradient(shape), PixelConfig(size=(20, 24), frame_stack=1))
    frame = Gradient(shape).reset()[0]
    expected = frame if shape[0] == 3 else np.broadcast_to(frame.transpose(2, 0, 1), (3, 20, 24))
    assert np.array_equal(env.reset(seed=0)[0], expected)


def test_other_channels_and_arguments_are_refused():
    with pytest.raises(ValueError, match=r"1 or 3 channels, first or last.* got \(4, 20, 20\)"):
        make_pixel_env(DotEnv((4, 20, 20)))
    with pytest.raises(ValueError, match=r"takes no arguments, got \['foo'\]"):
        make_pixel_env(DotEnv(), foo=1)
    with pytest.raises(ValueError, match=r"Pendulum-v1 does not take the arguments \['foo'\]"):
        make_pixel_env("Pendulum-v1", foo=1)


def test_a_crop_outside_the_frame_is_refused():
    with pytest.raises(ValueError, match=r"= \(0, 0, 600, 100\) is not inside the frame, 500×500 pixels"):
        make_pixel_env("Pendulum-v1", PixelConfig(crop=(0, 0, 600, 100)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": (7, 40)}, "size must be at least 8×8, got 7×40"),
        ({"frame_stack": 0}, "must be ≥ 1"),
        ({"action_repeat": 0}, "must be ≥ 1"),
        ({"size": (9, 40)}, r"more rows and columns than channels.* \(9, 9, 40\)"),
    ],
    ids=str,
)
def test_numbers_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PixelConfig(**kwargs)
