"""The numbers behind the frames, of real simulators."""

import math

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from conftest import DotEnv

from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.envs.states import state_reader

SMALL = PixelConfig(size=(16, 16), frame_stack=1)


def played(env, steps=3):
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env


@pytest.fixture(scope="module")
def cheetah():
    env = played(make_pixel_env("dmc:cheetah-run", SMALL))
    yield env
    env.close()


def test_cheetahs_joints_by_name(cheetah):
    state, physics = state_reader(cheetah)(), cheetah.unwrapped.physics
    legs = ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert list(state["positions"]) == ["rootz", "sin rooty", "cos rooty", *legs]
    assert list(state["velocities"]) == ["rootx", "rootz", "rooty", *legs]
    assert state["place"] == {"rootx": physics.named.data.qpos["rootx"]}
    for name in ("rootz", *legs):
        assert state["positions"][name] == physics.named.data.qpos[name]
    np.testing.assert_allclose(list(state["velocities"].values()), physics.data.qvel)
    pitch = physics.named.data.qpos["rooty"].item()
    assert state["positions"]["sin rooty"] == pytest.approx(math.sin(pitch))
    assert state["positions"]["cos rooty"] == pytest.approx(math.cos(pitch))
    assert np.ptp(list(state["velocities"].values())) > 0.1  # it moves


def test_a_turn_has_no_seam(cheetah):
    read, physics = state_reader(cheetah), cheetah.unwrapped.physics
    before = physics.named.data.qpos["rooty"].item()
    first = read()["positions"]
    physics.named.data.qpos["rooty"] = before + 2 * math.pi
    assert read()["positions"] == pytest.approx(first)
    physics.named.data.qpos["rooty"] = before


def test_a_free_body_is_a_height_and_a_rotation():
    """Of a quaternion and its negative, which are the same rotation, the same."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint name='ball'/><geom size='1'/>"
        "<body><joint name='arm' type='ball'/><geom size='1'/></body></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    quaternion = np.array([0.5, -0.1, 0.7, 0.5]) / np.linalg.norm([0.5, -0.1, 0.7, 0.5])
    data.qpos[:] = [1.0, 2.0, 3.0, *quaternion, *quaternion]
    data.qvel[:] = np.arange(9)
    env = gym.Env()
    env.model, env.data = model, data
    state = state_reader(env)()
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    columns = matrix.reshape(3, 3)[:, :2].T.ravel()
    assert state["place"] == {"ball.x": 1.0, "ball.y": 2.0}
    axes = ["xx", "xy", "xz", "yx", "yy", "yz"]
    assert list(state["positions"]) == ["ball.z", *(f"ball.{a}" for a in axes), *(f"arm.{a}" for a in axes)]
    assert list(state["positions"].values()) == pytest.approx([3.0, *columns, *columns])
    assert list(state["velocities"]) == [f"ball.{a}" for a in ("vx", "vy", "vz", "wx", "wy", "wz")] + [
        f"arm.{a}" for a in ("wx", "wy", "wz")
    ]
    data.qpos[3:] *= -1
    assert state_reader(env)()["positions"] == pytest.approx(state["positions"])


def test_pongs_ram():
    env = played(make_pixel_env("ale:Pong", SMALL))
    state = state_reader(env)()
    assert list(state) == ["ram"] and len(state["ram"]) == 128
    assert list(state["ram"].values()) == env.unwrapped.ale.getRAM().tolist() and max(state["ram"].values()) > 0


def test_a_car_on_its_track():
    env = make_pixel_env("CarRacing-v3", SMALL)
    env.reset(seed=0)
    read, simulator = state_reader(env), env.unwrapped
    start = read()
    assert start["positions"]["cos heading"] == pytest.approx(1.0, abs=0.01)  # it starts along the track
    assert abs(start["positions"]["off centre"]) < 1.0 and start["velocities"]["forward"] == pytest.approx(0, abs=1e-3)
    for _ in range(30):
        env.step(np.array([0.0, 0.5, 0.0], np.float32))
    driven = read()
    assert driven["velocities"]["forward"] > 5 and abs(driven["velocities"]["sideways"]) < 1
    assert driven["velocities"]["rear left wheel"] > 5
    assert (driven["place"]["x"], driven["place"]["y"]) == pytest.approx(tuple(simulator.car.hull.position))
    for _ in range(15):
        env.step(np.array([-1.0, 0.2, 0.0], np.float32))  # to the left
    turned = read()
    assert turned["velocities"]["yaw"] > 0.1 and turned["positions"]["steering"] > 0.1
    assert turned["positions"]["sin heading"] > 0.05
    assert turned["positions"]["sin heading"] ** 2 + turned["positions"]["cos heading"] ** 2 == pytest.approx(1.0)
    env.close()


@pytest.mark.parametrize(
    ("name", "numbers", "positions", "velocities"),
    [
        ("Pendulum-v1", (4.0, -2.0), {"sin angle": math.sin(4), "cos angle": math.cos(4)}, {"angle": -2.0}),
        ("CartPole-v1", (1.0, 2.0, 0.1, 3.0), {"cart": 1.0, "pole": 0.1}, {"cart": 2.0, "pole": 3.0}),
        ("MountainCar-v0", (-0.5, 0.01), {"car": -0.5}, {"car": 0.01}),
        (
            "Acrobot-v1",
            (1.0, 2.0, 3.0, 4.0),
            {"sin upper": math.sin(1), "cos upper": math.cos(1), "sin lower": math.sin(2), "cos lower": math.cos(2)},
            {"upper": 3.0, "lower": 4.0},
        ),
    ],
)
def test_classic_control(name, numbers, positions, velocities):
    env = gym.make(name)
    env.unwrapped.state = numbers
    assert state_reader(env)() == {"positions": pytest.approx(positions), "velocities": velocities}


def test_an_environment_may_say_itself():
    env = DotEnv()
    with pytest.raises(ValueError, match=r"state of DotEnv is not known: expected .* simulator_state\(\)"):
        state_reader(env)
    env.simulator_state = lambda: {"positions": {"x": float(env.steps)}}
    played(env, 3)
    assert state_reader(env)() == {"positions": {"x": 3.0}}
