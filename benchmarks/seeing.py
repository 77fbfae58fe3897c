"""How far would an agent come whose encoder were perfect? A ruler for what is learned from pixels.

    OMP_NUM_THREADS=1 python -m benchmarks.seeing --eyes state visible blurred --seeds 0

SACAE with the rates, intervals, batches and networks that it has from pixels, on cartpole-swingup (the extra ``dmc``),
whose simulator tells it the state: all of it, what of it is in the picture, or that with the errors of a trunk. No
encoder learns: the images show nothing. Runs that are written are not run again. Curves, summary and plot go to
``--results`` after every run.
"""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from benchmarks.records import write_json, write_rows
from rl_ae import ConvConfig, RAEConfig
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.envs.dmc import action_repeat
from rl_ae.envs.states import state_reader
from rl_ae.files import write_atomically
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.sb3 import SACAE

RESULTS = Path(__file__).parent / "results" / "seeing"
TASK = "cartpole-swingup"
REPEAT = action_repeat(TASK)
#: Metres from the rail's middle to the edge of the picture, a square in the task's default camera.
EDGE = 1.3
#: Cart, sine and cosine of the pole's angle, and their velocities: root mean square errors, where the cart is in the
#: picture, of the trunk of ``sac_ae_shift`` after 1,000 supervised updates on 4,000 frames.
ERRORS = (0.08, 0.11, 0.09, 0.5, 1.5)


@dataclasses.dataclass(frozen=True)
class Eyes:
    """What an agent sees of the state.

    Attributes:
        label: For people.
        edge: How far from the middle the cart is seen, in metres; beyond, its side is all that is known.
        blur: Factor of ERRORS, the standard deviations of what is added anew at every step.
    """

    label: str
    edge: float = np.inf
    blur: float = 0.0


EYES = {
    "state": Eyes("the state"),
    "visible": Eyes("what is in the picture", EDGE),
    "blurred": Eyes("what is in the picture, with errors", EDGE, 1.0),
}

CURVE_EVERY = 625  # steps
CURVE_COLUMNS = ("step", "frames", "return", "seconds")
#: Episodes whose mean is the return of a row.
LAST_EPISODES = 10


class Seeing(gym.ObservationWrapper[Any, Any, Any]):
    """The state beside an image that shows nothing, which SACAE asks for.

    Args:
        env: Of TASK.
        eyes: What is seen.
        seed: Of the errors.
    """

    def __init__(self, env: gym.Env[Any, Any], eyes: Eyes, seed: int) -> None:
        super().__init__(env)
        self._read, self._eyes, self._rng = state_reader(env), eyes, np.random.default_rng(seed)
        state = spaces.Box(-np.inf, np.inf, (len(ERRORS),), np.float32)
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (3, 16, 16), np.uint8), "state": state})

    def observation(self, observation: Any) -> dict[str, Any]:
        groups = self._read()
        state = np.array([*groups["positions"].values(), *groups["velocities"].values()])
        if abs(state[0]) > self._eyes.edge:
            state = np.sign(state[0]) * self._eyes.edge * np.eye(len(ERRORS))[0]
        else:
            state += self._eyes.blur * self._rng.normal(scale=ERRORS)
        return {"image": np.zeros((3, 16, 16), np.uint8), "state": state.astype(np.float32)}


class Curve(BaseCallback):
    """A row every so many steps: the mean return of the last episodes."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar, self.rows, self.returns = bar, list[dict[str, float]](), list[float]()
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.bar.update()
        if self.num_timesteps % CURVE_EVERY == 0:
            mean = round(float(np.mean(self.returns[-LAST_EPISODES:])), 2)
            seconds = round(time.monotonic() - self.started, 1)
            row = (self.num_timesteps, self.num_timesteps * REPEAT, mean, seconds)
            self.rows.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
            self.bar.set_postfix_str(f"return {mean:.0f}")
        return True


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        eyes: Names in EYES.
        seeds: Training seeds.
        frames: Of the environment, in every run.
        results: Folder of the results.
    """

    eyes: tuple[str, ...] = tuple(EYES)
    seeds: tuple[int, ...] = (0,)
    frames: int = 50_000
    results: Path = RESULTS

    def __post_init__(self) -> None:
        if unknown := [name for name in self.eyes if name not in EYES]:
            raise ValueError(f"unknown eyes {unknown}, expected some of {list(EYES)}")
        if self.frames < CURVE_EVERY * REPEAT:
            raise ValueError(f"frames must be ≥ {CURVE_EVERY * REPEAT}, a row of the curve; got {self.frames}")


def run(eyes: Eyes, seed: int, frames: int, bar: Any) -> list[dict[str, float]]:
    """Train; the curve."""
    pixels = PixelConfig(size=(16, 16), frame_stack=1, action_repeat=REPEAT)
    env = Seeing(make_pixel_env(f"dmc:{TASK}", pixels), eyes, seed)
    blind = RAEConfig(latent_dim=4, conv=ConvConfig(filters=(4,), kernel_size=4, strides=(4,), padding=0))
    autoencoders = {"image": blind, "state": None}
    model = SACAE("MultiInputPolicy", env, seed=seed, autoencoder=autoencoders, decoder_update_interval=0, device="cpu")
    curve = Curve(bar)
    model.learn(frames // REPEAT, callback=curve)
    env.close()
    return curve.rows


def plot(records: list[dict[str, Any]], results: Path) -> None:
    """Training returns of all runs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for record in records:
        with (results / record["curve"]).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        frames, returns = ([float(row[column]) for row in rows] for column in ("frames", "return"))
        colour = f"C{list(EYES).index(record['eyes'])}"
        axes.plot(frames, returns, color=colour, label=f"{record['label']}, seed {record['seed']}")
    axes.set(title=f"{TASK} from the state", xlabel="frames", ylabel=f"return, last {LAST_EPISODES} episodes")
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomically(results / "curves.png", lambda path: figure.savefig(path, dpi=120))


def main() -> None:
    """Run what has no curve yet, and write down what all runs reached."""
    arguments = tyro.cli(Arguments, description="Train on the state.")
    arguments.results.mkdir(parents=True, exist_ok=True)
    summary = arguments.results / "summary.json"
    records: list[dict[str, Any]] = json.loads(summary.read_text()) if summary.exists() else []
    for name in arguments.eyes:
        for seed in arguments.seeds:
            if any((r["eyes"], r["seed"], r["frames"]) == (name, seed, arguments.frames) for r in records):
                continue
            with tqdm(total=arguments.frames // REPEAT, desc=f"{name} {seed}", unit="step") as bar:
                rows = run(EYES[name], seed, arguments.frames, bar)
            curve = f"{name}_{seed}.csv"
            write_rows(arguments.results / curve, rows, CURVE_COLUMNS)
            record = {
                "eyes": name,
                "seed": seed,
                "frames": arguments.frames,
                "return": rows[-1]["return"],
                "curve": curve,
                "command": f"python -m benchmarks.seeing --eyes {name} --seeds {seed} --frames {arguments.frames}",
                **dataclasses.asdict(EYES[name], dict_factory=lambda pairs: {k: v for k, v in pairs if v != np.inf}),
                "errors": ERRORS,
                "machine": describe_machine(),
                "commit": git_commit(),
            }
            records = [r for r in records if (r["eyes"], r["seed"]) != (name, seed)] + [record]
            records.sort(key=lambda r: (list(EYES).index(r["eyes"]), r["seed"]))
            write_json(summary, records)
            plot(records, arguments.results)
    for record in records:
        print(f"{record['label']}, seed {record['seed']}: {record['return']:.0f} after {record['frames']:_} frames")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
