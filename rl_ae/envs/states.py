"""States: the numbers behind the frames, which a simulator knows and an autoencoder has to find.

A state is ``{group: {name: number}}``. Groups are averaged apart:

===============  =================================================================================
``positions``    what a frame shows: joint angles and offsets, the car's place on the track
``velocities``   what a stack of frames shows
``place``        where things are on a ground that goes on for ever: no frame of a moving camera shows that
``ram``          Atari's 128 bytes
===============  =================================================================================

An angle that can go round is given as sine and cosine. An environment of one's own is read if it has a method
``simulator_state`` that returns such a dictionary.
"""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

State = dict[str, dict[str, float]]

#: MuJoCo's kinds of joints, its ``mjtJoint``.
_FREE, _BALL, _SLIDE = 0, 1, 2
_AXES = "xyz"
#: What the numbers of ``state`` are in Gymnasium's classic control: angles that go round, positions, velocities.
_CLASSIC = {
    "PendulumEnv": (("angle",), (), ("angle",)),
    "AcrobotEnv": (("upper", "lower"), (), ("upper", "lower")),
    "MountainCarEnv": ((), ("car",), ("car",)),
    "Continuous_MountainCarEnv": ((), ("car",), ("car",)),
}


def state_reader(env: gym.Env[Any, Any]) -> Callable[[], State]:
    """What reads the state an environment is in now.

    Args:
        env: Of the DeepMind Control Suite, MuJoCo, Atari, CarRacing or classic control, wrapped as it may be; or one
            with a method ``simulator_state``.

    Returns:
        A function of no arguments; its state has the same groups and names every time.

    Raises:
        ValueError: If it is none of these.
    """
    simulator: Any = env.unwrapped
    for knows, read in _READERS:
        if knows(simulator):
            return functools.partial(read, simulator)
    raise ValueError(
        f"the state of {type(simulator).__name__} is not known: expected an environment of the DeepMind Control Suite, "
        "MuJoCo, Atari, CarRacing or classic control, or one with a method simulator_state() that returns "
        '{"positions": {"x": 0.5}, "velocities": {"x": 0.1}}'
    )


def _atari(simulator: Any) -> State:
    return {"ram": {f"ram[{index}]": float(byte) for index, byte in enumerate(simulator.ale.getRAM())}}


# ---------------------------------------------------------------------- MuJoCo


def _mujoco(model: Any, data: Any) -> State:
    """Joint by joint. Sideways on an endless ground is a place: the suite's own observations leave it out as well."""
    state: State = {"positions": {}, "velocities": {}, "place": {}}
    for joint in range(model.njnt):
        name = model.joint(joint).name or f"joint{joint}"
        positions, place = _joint_positions(model, data.qpos, joint, name)
        state["positions"] |= positions
        state["place"] |= place
        first = model.jnt_dofadr[joint]
        suffixes = _velocity_suffixes(model.jnt_type[joint])
        state["velocities"] |= {f"{name}{suffix}": float(data.qvel[first + i]) for i, suffix in enumerate(suffixes)}
    return {group: numbers for group, numbers in state.items() if numbers}


def _joint_positions(model: Any, qpos: Any, joint: int, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """What is a position of a joint, and what its place."""
    kind, first, limited = model.jnt_type[joint], model.jnt_qposadr[joint], bool(model.jnt_limited[joint])
    if kind == _FREE:
        x, y, z = qpos[first : first + 3]
        rotation = _rotation(name, qpos[first + 3 : first + 7])
        return {f"{name}.z": float(z), **rotation}, {f"{name}.x": float(x), f"{name}.y": float(y)}
    if kind == _BALL:
        return _rotation(name, qpos[first : first + 4]), {}
    value = float(qpos[first])
    if kind == _SLIDE and not limited and abs(model.jnt_axis[joint] @ model.opt.gravity) < 1e-6:
        return {}, {name: value}
    if kind == _SLIDE or limited:
        return {name: value}, {}
    return _turn(name, value), {}


def _velocity_suffixes(kind: int) -> list[str]:
    linear, angular = [f".v{axis}" for axis in _AXES], [f".w{axis}" for axis in _AXES]
    return {_FREE: linear + angular, _BALL: angular}.get(kind, [""])


def _turn(name: str, angle: float) -> dict[str, float]:
    """An angle without the jump at the end of a turn."""
    return {f"sin {name}": float(np.sin(angle)), f"cos {name}": float(np.cos(angle))}


def _rotation(name: str, quaternion: Any) -> dict[str, float]:
    """Two columns of a quaternion's rotation matrix, from which the third follows (arXiv 1812.07035, section 4.2).

    A quaternion and its negative are the same rotation, so that its own numbers jump.
    """
    w, x, y, z = (float(number) for number in quaternion)
    first = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)
    second = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)
    return {
        f"{name}.{column}{axis}": number
        for column, numbers in (("x", first), ("y", second))
        for axis, number in zip(_AXES, numbers, strict=True)
    }


# ---------------------------------------------------------------------- CarRacing


def _car_racing(simulator: Any) -> State:
    """The car on its track: the camera follows it and turns with it, so place and heading show in no frame."""
    hull = simulator.car.hull
    heading = np.array([-np.sin(hull.angle), np.cos(hull.angle)])  # at angle 0 the car drives along y
    position, velocity = np.array(hull.position), np.array(hull.linearVelocity)
    centres = np.array([tile[2:4] for tile in simulator.track])
    nearest = int(np.square(centres - position).sum(axis=1).argmin())
    # tracks are closed, so there is a tile before the first
    along = centres[(nearest + 1) % len(centres)] - centres[nearest - 1]
    along = along / np.linalg.norm(along)
    left, car_left = np.array([-along[1], along[0]]), np.array([-heading[1], heading[0]])
    wheels = list(zip(("front left", "front right", "rear left", "rear right"), simulator.car.wheels, strict=True))
    return {
        "positions": {
            "off centre": float((position - centres[nearest]) @ left),
            "sin heading": float(heading @ left),
            "cos heading": float(heading @ along),
            "steering": float(simulator.car.wheels[0].joint.angle),
        },
        "velocities": {
            "forward": float(velocity @ heading),
            "sideways": float(velocity @ car_left),
            "yaw": float(hull.angularVelocity),
            **{f"{name} wheel": float(wheel.omega) for name, wheel in wheels},
        },
        "place": {"x": float(position[0]), "y": float(position[1]), **_turn("angle", hull.angle)},
    }


# ---------------------------------------------------------------------- classic control


def _classic(simulator: Any) -> State:
    """Positions first, then velocities, as all but CartPole have them."""
    numbers, (turns, offsets, speeds) = simulator.state, _CLASSIC[type(simulator).__name__]
    positions: dict[str, float] = {}
    for name, number in zip(turns + offsets, numbers, strict=False):
        positions |= _turn(name, float(number)) if name in turns else {name: float(number)}
    velocities = zip(speeds, numbers[len(turns + offsets) :], strict=True)
    return {"positions": positions, "velocities": {name: float(number) for name, number in velocities}}


def _cart_pole(simulator: Any) -> State:
    cart, cart_velocity, pole, pole_velocity = (float(number) for number in simulator.state)
    return {
        "positions": {"cart": cart, "pole": pole},
        "velocities": {"cart": cart_velocity, "pole": pole_velocity},
    }


#: Tells a simulator → reads it; the first that knows it does.
_READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], State]], ...] = (
    (lambda simulator: hasattr(simulator, "simulator_state"), lambda simulator: simulator.simulator_state()),
    (
        lambda simulator: hasattr(simulator, "physics"),
        lambda simulator: _mujoco(simulator.physics.model.ptr, simulator.physics.data.ptr),
    ),
    (
        lambda simulator: hasattr(getattr(simulator, "model", None), "jnt_type"),
        lambda simulator: _mujoco(simulator.model, simulator.data),
    ),
    (lambda simulator: hasattr(simulator, "ale"), _atari),
    (lambda simulator: hasattr(simulator, "car") and hasattr(simulator, "track"), _car_racing),
    (lambda simulator: type(simulator).__name__ == "CartPoleEnv", _cart_pole),
    (lambda simulator: type(simulator).__name__ in _CLASSIC, _classic),
)
