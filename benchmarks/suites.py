"""Suites: the tasks of a benchmark, and what belongs to its protocol, whoever learns."""

from collections.abc import Callable
from typing import NamedTuple

from rl_ae.envs import PixelConfig, action_repeat
from rl_ae.sb3.run_config import PRESETS, RunConfig

#: The six of PlaNet (arXiv 1811.04551), on which SAC-AE, CURL, RAD and DrQ report.
PLANET = ("finger-spin", "cartpole-swingup", "reacher-easy", "cheetah-run", "walker-walk", "ball_in_cup-catch")
#: The 26 games of Atari-100k (SimPLe, arXiv 1903.00374).
ATARI_26 = tuple(
    (
        "Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber DemonAttack "
        "Freeway Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong PrivateEye Qbert RoadRunner "
        "Seaquest UpNDown"
    ).split()
)


class Suite(NamedTuple):
    """A benchmark.

    Attributes:
        tasks: What is run unless tasks are named; others of the kind may be.
        config: A task's run, but for who learns.
        family: What its presets are called by, see :data:`~benchmarks.presets.DEFAULTS`.
    """

    tasks: tuple[str, ...]
    config: Callable[[str], RunConfig]
    family: str


def _dmc(frames: int) -> Callable[[str], RunConfig]:
    """The DeepMind Control Suite as SAC-AE, CURL and DrQ have it: their action repeats, three stacked frames."""

    def config(task: str) -> RunConfig:
        repeat = action_repeat(task)
        return RunConfig(
            env=f"dmc:{task}",
            steps=frames // repeat,
            checkpoint_every=2_500,
            eval_every=10_000 // repeat,
            pixels=PixelConfig(action_repeat=repeat),
        )

    return config


def _atari(prefix: str) -> Callable[[str], RunConfig]:
    """Atari-100k: 100,000 decisions of four frames each, two hours of play; grey 84×84, four stacked.

    Without sticky actions, and lives are episodes in training: with continuous actions too (Dopamine's configuration of
    CALE's SAC at 100k).
    """

    def config(game: str) -> RunConfig:
        return RunConfig(
            env=f"{prefix}:{game}",
            env_kwargs='{"sticky": 0.0}',
            steps=100_000,
            eval_every=10_000,
            eval_episodes=3,
            pixels=PixelConfig(grayscale=True, frame_stack=4, action_repeat=4),
        )

    return config


def _gym(task: str) -> RunConfig:
    """Environments of Gymnasium: those that have a preset of ``rl-ae train``, and whatever renders."""
    named = {"pendulum": PRESETS["pendulum"], "car_racing": CAR_RACING}
    return named.get(task, RunConfig(env=task))


#: CarRacing-v3, whose frames are observations already; action repeat 4.
CAR_RACING = RunConfig(
    env="CarRacing-v3", steps=100_000, pixels=PixelConfig(size=(64, 64), action_repeat=4), checkpoint_every=2_500
)


def _smoke(task: str) -> RunConfig:
    """A task in a minute: enough to see that everything runs, not to learn."""
    return RunConfig(
        env=task,
        steps=400,
        log_every=50,
        checkpoint_every=100,
        eval_every=200,
        eval_episodes=1,
        pixels=PixelConfig(size=(32, 32), action_repeat=8 if task.startswith("dmc") else 4),
    )


SUITES = {
    "dmc100k": Suite(PLANET, _dmc(100_000), "dmc"),
    "dmc500k": Suite(PLANET, _dmc(500_000), "dmc"),
    "atari100k": Suite(ATARI_26, _atari("ale"), "atari"),
    "cale100k": Suite(ATARI_26, _atari("cale"), "cale"),
    "gym": Suite(("pendulum", "car_racing"), _gym, "gym"),
    "smoke": Suite(("Pendulum-v1", "dmc:cartpole-swingup"), _smoke, "smoke"),
}


def suite_of(name: str) -> Suite:
    """A suite by name.

    Raises:
        ValueError: If there is none of that name; lists those there are.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}, expected one of {sorted(SUITES)}")
    return SUITES[name]
