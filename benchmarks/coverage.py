"""Where does a car go whose driver knows nothing? What the policies of ``rl-ae collect`` see of CarRacing.

    OMP_NUM_THREADS=1 python -m benchmarks.coverage

Plays the episodes that a collection with ``--policy random held brownian`` has (the extra ``box2d``), and counts the
frames in which no wheel is on the road. Table and numbers go to ``--results``.
"""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.records import write_json
from rl_ae.files import write_atomically
from rl_ae.provenance import git_commit
from rl_ae.sb3.collecting import POLICIES, CollectConfig, open_player

RESULTS = Path(__file__).parent / "results" / "coverage"
ENV = "CarRacing-v3"


@dataclasses.dataclass
class Arguments:
    """What to play.

    Attributes:
        episodes: Of each policy.
        steps: Of an episode.
        action_repeat: Frames of the environment a step.
        seed: Of starts and actions.
        results: Folder of the results.
    """

    episodes: int = 5
    steps: int = 250
    action_repeat: int = 4
    seed: int = 0
    results: Path = RESULTS


def is_off_road(env: gym.Env[Any, Any]) -> bool:
    """Whether no wheel of CarRacing's car touches the road."""
    simulator: Any = env.unwrapped
    return not any(wheel.tiles for wheel in simulator.car.wheels)


def drive(config: CollectConfig, episode: int) -> dict[str, Any]:
    """Play an episode of a collection: how often it was off the road, and its return."""
    policy, (start_seed, action_seed) = config.policy_of(episode), config.seeds_of(episode)
    env, start, _ = open_player(config, policy)
    actor = start(action_seed)
    observation, _ = env.reset(seed=start_seed)
    off, total, done = list[bool](), 0.0, False
    while not done and len(off) != config.max_steps:
        observation, reward, terminated, truncated, _ = env.step(actor.predict(observation, deterministic=False)[0])
        off.append(is_off_road(env))
        total, done = total + float(reward), terminated or truncated
    env.close()
    return {"policy": policy, "episode": episode, "steps": len(off), "off_road": float(np.mean(off)), "return": total}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over a policy's episodes, as Markdown."""
    lines = ["| policy | episodes | frames off the road | episodes that leave it | return |", "|---|---|---|---|---|"]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        off, returns = np.array([(row["off_road"], row["return"]) for row in rows if row["policy"] == policy]).T
        lines.append(
            f"| {policy} | {len(off)} | {off.mean():.0%} | {np.mean(off > 0):.0%} | {returns.mean():.0f} |",
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Play, count, write."""
    arguments = tyro.cli(Arguments, description="Count what is seen off the road.")
    config = CollectConfig(
        env=ENV,
        episodes=arguments.episodes * len(POLICIES),
        policy=tuple(POLICIES),
        seed=arguments.seed,
        action_repeat=arguments.action_repeat,
        max_steps=arguments.steps,
    )
    rows = [drive(config, episode) for episode in tqdm(range(config.episodes), unit="episode")]
    arguments.results.mkdir(parents=True, exist_ok=True)
    record = {"collection": dataclasses.asdict(config), "episodes": rows, "commit": git_commit()}
    write_json(arguments.results / "summary.json", record)
    text = table(rows)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
