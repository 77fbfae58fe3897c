"""Every code block of the README runs."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_ae.sb3 import SACAE, TD3AE

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
#: What a block says of itself: what a line prints, and the shape of what it makes.
PRINTED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)
SHAPED = re.compile(r"^ *\[?(\w+)\]? = .*  # (\(\d+(?:, \d+)+\))", re.MULTILINE)
#: Commands that start as a reader starts them, in processes of their own. The zoo has to: it patches Gymnasium.
IN_NEW_PROCESSES = ("rl-ae show interpolation", "python -m rl_ae.sb3.zoo")

# as in a script: warnings are printed
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """An empty folder to work in, episodes of Pendulum of 20 steps, and agents whose batches are of 16."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 20)
    for algorithm in (SACAE, TD3AE):
        monkeypatch.setitem(algorithm.__init__.__kwdefaults__, "batch_size", 16)


def shortened(code):
    """THE ONE RULE: counts shrink, as far as everything still happens.

    Agents learn for 4 steps, of which 3 are random, and 5 after resuming; a rollout is 64 steps, an evaluation one
    episode, what is collected two episodes of 40 steps; every other `--steps N` is 24.
    """
    code = re.sub(r"(?<= -n )\d+", "24", code)
    code = re.sub(r"(?<=--max-steps )\d+", "40", code)
    code = re.sub(r"(?<=learn\()[\d_]+", "4", code)
    code = re.sub(r"(?<=learning_starts=)[\d_]+", "3", code)
    code = re.sub(r"(?<=--learning-starts )\d+", "3", code)
    code = re.sub(r"(?<=n_steps=)\d+", "64", code)
    for command, episodes in (("collect", "2"), ("evaluate", "1")):
        if code.startswith(f"rl-ae {command}"):
            code = re.sub(r"(?<=--episodes )\d+", episodes, code)
    steps = ("5" if "--resume" in code else "4") if code.startswith("rl-ae train") else "24"
    return re.sub(r"(?<=--steps )\d+", steps, code)


def test_every_language_is_covered():
    assert {language for language, _ in BLOCKS} == {"python", "sh", "text"}
    assert len(PYTHON) >= 4 and len(SHELL) >= 6
    claims = "\n".join(PYTHON)
    assert len(PRINTED.findall(claims)) >= 1 and len(SHAPED.findall(claims)) >= 3


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("\n")[0])
def test_python(code, capsys):
    names = {"__name__": "__main__"}
    exec(compile(shortened(code), "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    for line in PRINTED.findall(code):
        assert line in printed
    for name, shape in SHAPED.findall(code):
        assert names[name].shape == ast.literal_eval(shape), name
    tensors = {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
    agents = {name: value for name, value in names.items() if isinstance(value, BaseAlgorithm)}
    assert [name for name, agent in agents.items() if ".learn(" in code and agent.num_timesteps == 0] == []


def test_shell(tmp_path, monkeypatch):
    [rl_ae] = entry_points(group="console_scripts", name="rl-ae")
    for line in SHELL:
        command = shortened(line)
        program, *arguments = shlex.split(command)
        if program == "make":  # .ci/run makes these targets for real; here, that they exist
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
            continue
        module, arguments = ("rl_ae.cli", arguments) if program == "rl-ae" else (arguments[1], arguments[2:])
        if command.startswith(IN_NEW_PROCESSES):
            subprocess.run([sys.executable, "-m", module, *arguments], check=True)
        else:
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            (rl_ae.load() if program == "rl-ae" else importlib.import_module(module).main)()
    targets = {line.split()[1] for line in SHELL if line.startswith("make")}
    made = set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert targets <= made | {"demo"}  # which test_demo.py makes
    assert {path.name for path in (tmp_path / "runs/pendulum").iterdir()} >= {
        "checkpoint",
        "config.json",
        "curve.csv",
        "curve.png",
        "evaluation.json",
        "evaluation.mp4",
        "logs",
        "reconstructions.png",
    }
