import dataclasses
import functools
import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from rl_ae.envs import (
    ACTION_REPEAT,
    DISTRACTIONS,
    MovingBackground,
    PixelConfig,
    RandomColors,
    action_repeat,
    choose_gl,
    gl,
    make_pixel_env,
)

SMALL = PixelConfig(size=(32, 40), frame_stack=1, action_repeat=4)
GEOM = 5  # of MuJoCo's mjtObj


OPEN = []


def make(task, pixels=SMALL, **kwargs):
    OPEN.append(make_pixel_env(f"dmc:{task}", pixels, **kwargs))
    return OPEN[-1]


plain_env = functools.cache(make)


@pytest.fixture(autouse=True, scope="module")
def closing():
    """Close what was opened: at the process's end Gymnasium's renderer takes EGL away from dm_control's."""
    yield
    for env in OPEN:
        env.close()


def image(observation):
    return observation[-3:].transpose(1, 2, 0)


def labels(env):
    """Names of the shapes that pixels show; "sky" for nothing, "" for all but shapes."""
    physics = env.unwrapped.physics
    seen = physics.render(**env.unwrapped.render_kwargs, segmentation=True)
    names = np.full(seen.shape[:2], "", dtype=object)
    names[seen[..., 1] == -1] = "sky"
    for index in np.unique(seen[..., 0][seen[..., 1] == GEOM]):
        names[(seen[..., 1] == GEOM) & (seen[..., 0] == index)] = physics.model.id2name(index, "geom")
    return names


def play(env, seed, actions):
    """Frames and rewards of an episode's beginning."""
    frames, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        frames.append(observation)
        rewards.append(reward)
    return np.array(frames), np.array(rewards)


def some_actions(env, count=3):
    return np.random.default_rng(0).uniform(
        env.action_space.low, env.action_space.high, (count, *env.action_space.shape)
    )


def test_frames_are_rendered_at_their_size_and_time_is_up_by_truncation(caplog):
    env = make("cheetah-run", PixelConfig(size=(40, 48), action_repeat=300))
    check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (9, 40, 48)
    assert np.array_equal(image(observation), env.render())
    assert env.action_space.dtype == np.float32 and env.action_space.shape == (6,)
    assert env.action_space.low.tolist() == [-1] * 6 and env.action_space.high.tolist() == [1] * 6
    ends = [env.step(env.action_space.sample())[2:] for _ in range(4)]
    assert [end[:2] for end in ends] == [(False, False)] * 3 + [(False, True)]
    assert ends[-1][2]["episode"]["l"] == 4
    assert not caplog.records  # dm_control warns of its own cheetah


def test_rewards_add_up_over_repeats():
    env = make("walker-walk", dataclasses.replace(SMALL, reward_scale=10.0))
    raw = gym.make("dm_control/walker-walk-v0")
    actions = some_actions(env, 2)
    raw.reset(seed=4)
    expected = [sum(raw.step(action)[1] for _ in range(4)) for action in actions]
    assert play(env, 4, actions)[1] == pytest.approx(10 * np.array(expected), rel=1e-6)
    assert min(expected) > 0


def test_cameras():
    frames = {}
    for camera in (None, 0, 2):
        env = make("quadruped-walk", camera=camera)
        frames[camera] = env.reset(seed=0)[0]
    assert np.array_equal(frames[None], frames[2]) and not np.array_equal(frames[0], frames[2])
    assert plain_env("cheetah-run").unwrapped.render_kwargs["camera_id"] == 0
    with pytest.raises(ValueError, match="9"):
        make("cheetah-run", camera=9)


def test_action_repeats_of_the_papers():
    six = {"cartpole-swingup": 8, "finger-spin": 2, "walker-walk": 2}
    six |= dict.fromkeys(("reacher-easy", "cheetah-run", "ball_in_cup-catch"), 4)
    assert six == ACTION_REPEAT
    assert {task: action_repeat(task) for task in six} == six
    assert action_repeat("dmc:cartpole-swingup") == 8
    assert action_repeat("quadruped-run") == action_repeat("cartpole-balance") == 2


@pytest.mark.parametrize("distraction", DISTRACTIONS)
def test_seeds_reproduce_and_distractions_leave_the_task_alone(distraction):
    env, plain = make("walker-walk", distraction=distraction), plain_env("walker-walk")
    actions = some_actions(env)
    frames, rewards = play(env, 7, actions)
    state = env.unwrapped.physics.get_state()
    env.reset()
    again, same_rewards = play(env, 7, actions)
    assert np.array_equal(frames, again) and np.array_equal(rewards, same_rewards)
    assert not np.array_equal(frames[0], play(env, 8, [])[0][0])

    plain_frames, plain_rewards = play(plain, 7, actions)
    assert np.array_equal(rewards, plain_rewards) and np.array_equal(state, plain.unwrapped.physics.get_state())
    assert np.array_equal(frames, plain_frames) == (distraction == "none")


def test_a_distraction_has_its_own_seed():
    one, other = (make("walker-walk", distraction="video", distraction_seed=n) for n in (1, 2))
    assert not np.array_equal(one.reset(seed=7)[0], other.reset(seed=7)[0])
    assert np.array_equal(one.unwrapped.physics.get_state(), other.unwrapped.physics.get_state())


@pytest.mark.parametrize(
    ("task", "distraction", "replaced", "present"),
    [
        ("cheetah-run", "video", {"sky"}, {"torso", "ground"}),
        ("cheetah-run", "video_hard", {"sky", "ground"}, {"torso"}),
        ("reacher-easy", "video", {"sky"}, {"ground", "wall_x", "target", "arm"}),
        (
            "reacher-easy",
            "video_hard",
            {"sky", "ground", "wall_x", "wall_neg_x", "wall_y", "wall_neg_y", "root"},
            {"target", "arm"},
        ),
    ],
)
def test_only_backgrounds_are_replaced(task, distraction, replaced, present):
    env, plain = make(task, distraction=distraction), plain_env(task)
    for seed in (0, 1):
        frame, plain_frame = image(env.reset(seed=seed)[0]), image(plain.reset(seed=seed)[0])
        names = labels(plain)
        changed = np.any(frame != plain_frame, axis=-1)
        assert present <= set(names.flat)
        assert np.array_equal(changed, changed & np.isin(names, list(replaced)))
        for name in replaced & set(names.flat):
            assert changed[names == name].mean() > 0.9


def test_the_video_moves_smoothly_and_with_time_alone():
    env = make("cheetah-run", distraction="video")
    first = image(env.reset(seed=0)[0]).astype(float)
    sky = labels(env) == "sky"
    assert np.array_equal(env.render(), first)  # looking twice does not move it
    second = image(env.step(np.zeros(6))[0]).astype(float)
    still = sky & (labels(env) == "sky")
    step = np.abs(second - first)[still].mean()
    apart = np.abs(image(env.reset(seed=1)[0]).astype(float) - first)[still].mean()
    assert 0.5 < step < 0.6 * apart


def test_colors_change_every_episode_and_shapes_never():
    env = make("cheetah-run", distraction="color")
    model = env.unwrapped.physics.model
    frames = [image(env.reset(seed=0)[0])]
    before = model.mat_rgba.copy(), model.light_diffuse.copy()
    shapes = labels(env)
    frames += [image(env.step(np.zeros(6))[0])]
    rest = labels(env) == shapes
    frames += [image(env.reset()[0])]
    plain = np.all(model.mat_texid < 0, axis=1)
    changed = np.all((model.mat_rgba != before[0])[plain], axis=0), model.light_diffuse != before[1]
    assert changed[0].tolist() == [True, True, True, False] and changed[1].all()
    both = rest & (labels(env) == shapes)
    for name in ("sky", "ground", "torso"):
        here = both & (shapes == name)
        moved, redrawn = (np.abs(frames[index].astype(int) - frames[0])[here].mean() for index in (1, 2))
        assert moved < 0.5 * redrawn and redrawn > 5, name


def test_shapes_get_other_colors_where_they_have_their_own():
    choose_gl()
    from dm_control import mujoco

    class Shapes(gym.Env):
        render_mode = "rgb_array"

        def __init__(self):
            self.physics = mujoco.Physics.from_xml_string("""<mujoco>
                <asset><material name="grey" rgba=".2 .2 .2 1"/></asset>
                <worldbody>
                    <geom size="1" rgba=".1 .2 .3 .4"/>
                    <geom size="1" material="grey"/>
                    <geom size="1" material="grey" rgba=".5 .6 .7 .8"/>
                    <geom size="1"/>
                </worldbody></mujoco>""")

        def reset(self, *, seed=None, options=None):
            return 0, {}

    env = RandomColors(Shapes())
    model = env.physics.model
    before = model.geom_rgba.copy()
    env.reset(seed=0)
    changed = model.geom_rgba != before
    assert changed.tolist() == [[own, own, own, False] for own in (True, False, True, True)]
    assert np.all(model.mat_rgba[0, :3] != np.float32(0.2)) and model.mat_rgba[0, 3] == 1


def test_distractions_need_dm_control():
    with pytest.raises(ValueError, match="need an environment of dm_control with render_mode='rgb_array', got"):
        MovingBackground(gym.make("Pendulum-v1", render_mode="rgb_array"))
    plain_env("cheetah-run")  # registers the suite
    with pytest.raises(ValueError, match="with None"):
        RandomColors(gym.make("dm_control/walker-walk-v0"))


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        ("cheetah_run", {}, "unknown task of dm_control 'cheetah_run', did you mean cheetah-run.* walker-walk$"),
        (
            "cheetah-run",
            {"distraction": "videos"},
            "distraction 'videos', did you mean video.* color, none, video, video_",
        ),
        ("cheetah-run", {"distraction_seed": -1}, "distraction_seed must be ≥ 0, got -1"),
        ("cheetah-run", {"pixels": PixelConfig(crop=(0, 0, 9, 9))}, r"choose a camera, not crop=\(0, 0, 9, 9\)"),
        ("cheetah-run", {"pixels": PixelConfig(size=(500, 500))}, "500"),
        ("lqr-lqr_2_1", {}, "actions of lqr-lqr_2_1 have no bounds"),
    ],
    ids=str,
)
def test_what_cannot_be_made(task, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(task, **kwargs)


@pytest.mark.parametrize(
    ("libraries", "chosen"),
    [
        (["libEGL.so.1", "libOSMesa.so.8"], "egl"),
        (["libOSMesa.so.8"], "osmesa"),
        (["libOSMesa.so.6"], "osmesa"),
    ],
    ids=str,
)
def test_gl_is_chosen_by_the_libraries_there_are(libraries, chosen, monkeypatch):
    headless(monkeypatch, libraries)
    choose_gl()
    assert os.environ["MUJOCO_GL"] == chosen


@pytest.mark.parametrize(
    ("name", "value"), [("MUJOCO_GL", "glfw"), ("DISPLAY", ":0"), ("WAYLAND_DISPLAY", "wayland-0")]
)
def test_gl_is_left_to_the_user_and_to_displays(name, value, monkeypatch):
    headless(monkeypatch, {"libEGL.so.1"})
    monkeypatch.setenv(name, value)
    choose_gl()
    assert os.environ.get("MUJOCO_GL") == (value if name == "MUJOCO_GL" else None)


def test_gl_that_is_missing_or_fails_is_explained(monkeypatch):
    plain_env("cheetah-run")  # imports dm_control

    def fail(max_width, max_height):
        raise RuntimeError(f"no context of {max_width}×{max_height}")

    with monkeypatch.context() as patch:
        patch.setattr("dm_control._render.Renderer", fail)
        with pytest.raises(ImportError, match=r"dmc:cheetah-run cannot be rendered with .*no context of .*libegl1"):
            make("cheetah-run")
    headless(monkeypatch, set())
    for env in ("dmc:cheetah-run", "HalfCheetah-v5", "shimmy:dm_control/cheetah-run-v0"):
        with pytest.raises(ImportError, match="apt-get install libegl1 libgl1 libosmesa6"):
            make_pixel_env(env, SMALL)


def headless(monkeypatch, libraries):
    """A machine without a display that has these libraries."""

    def load(name):
        if name not in libraries:
            raise OSError(name)

    monkeypatch.setattr(gl, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(gl, "ctypes", SimpleNamespace(CDLL=load))
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # restored afterwards, also what is set meanwhile
        monkeypatch.delenv(name)
