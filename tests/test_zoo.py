"""rl-baselines3-zoo trains and plays our agents; in a process of its own, because the zoo patches Gymnasium."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rl_ae
from rl_ae.envs import PixelConfig, make_pixel_env, wrap_pixels
from rl_ae.sb3 import SACAE, TD3AE, FrameReplayBuffer
from rl_ae.sb3.run_config import PENDULUM, PENDULUM_TD3

SCRIPT = """
import inspect, json, torch
torch.set_num_threads(1)
from rl_ae.sb3 import zoo
from rl_ae.sb3.hyperparameters import sac_ae, td3_ae
import gymnasium, rl_zoo3, shimmy

of_the_zoo = {"n_timesteps", "n_envs", "env_kwargs", "env_wrapper"}
files = {"sac_ae": sac_ae.hyperparams, "td3_ae": td3_ae.hyperparams}
try:
    zoo.main(["plot"])
except SystemExit as exit:
    message = str(exit)
ours = "--algo sac_ae --env E"
commands = ("--algo sac", f"{ours} --conf-file mine.yml", f"{ours} --env-kwargs g:5", ours)
print("FACTS", json.dumps({
    "algorithms": [name for name, cls in rl_zoo3.ALGOS.items() if zoo.AUTOENCODER_AGENTS.get(name) is cls],
    "unknown settings": [
        f"{algorithm}: {name}"
        for algorithm, hyperparams in files.items()
        for name in set().union(*hyperparams.values()) - of_the_zoo
        if name not in inspect.signature(zoo.AUTOENCODER_AGENTS[algorithm]).parameters
    ],
    "unknown environments": sorted(set().union(*files.values()) - set(gymnasium.registry) - {"default"}),
    "message": message,
    "flags": [zoo._settings_flags(command.split()) for command in commands],
    "steps": {env: settings["n_timesteps"] for env, settings in sac_ae.hyperparams.items()},
}))
run = ["--algo", "sac_ae", "--env", "Pendulum-v1", "-f", "logs", "--seed", "1"]
zoo.main(["train", *run, "-n", "24", "--eval-freq", "24", "--eval-episodes", "1", "--hyperparams", *SETTINGS])
zoo.main(["enjoy", *run, "--no-render", "-n", "100"])
td3 = ["--algo", "td3_ae", "--env", "Pendulum-v1", "-f", "logs", "--seed", "1"]
zoo.main(["train", *td3, "-n", "20", "--eval-freq", "-1", "--hyperparams", *SETTINGS])
zoo.main(["enjoy", *td3, "--no-render", "-n", "5"])
"""
SETTINGS = ["learning_starts:16", "catch_up_updates:1", "batch_size:4", "policy_kwargs:dict(net_arch=[8])"]


@pytest.fixture(scope="module")
def zoo_run(tmp_path_factory):
    """The folder of short runs through the zoo, and what was printed."""
    folder = tmp_path_factory.mktemp("zoo")
    script = f"SETTINGS = {SETTINGS}\n{SCRIPT}"
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "logs", result.stdout


def test_our_algorithms_and_settings_are_known(zoo_run):
    facts = json.loads(re.search("^FACTS (.*)$", zoo_run[1], re.MULTILINE)[1])
    assert facts["algorithms"] == ["sac_ae", "td3_ae"]
    assert facts["unknown settings"] == facts["unknown environments"] == []
    assert facts["message"] == "usage: python -m rl_ae.sb3.zoo {train,enjoy} …, got 'plot'"
    file = str(Path(rl_ae.__file__).parent / "sb3/hyperparameters/sac_ae.py")
    ours = ["--conf-file", file]
    assert facts["flags"] == [[], [], ours, [*ours, "--eval-env-kwargs", "render_mode:'rgb_array'"]]
    assert facts["steps"]["Pendulum-v1"] == PENDULUM.steps
    assert facts["steps"]["dm_control/cartpole-swingup-v0"] == 500_000 / 8


def test_an_agent_is_trained_saved_evaluated_and_played(zoo_run):
    logs, printed = zoo_run
    folder = logs / "sac_ae/Pendulum-v1_1"
    env = make_pixel_env("Pendulum-v1", PENDULUM.pixels)
    model = SACAE.load(folder / "Pendulum-v1.zip", env=env, device="cpu")
    assert (model.num_timesteps, model._n_updates) == (24, 1 + 4)
    assert (model.batch_size, model.train_freq.frequency, model.actor_update_interval) == (4, 2, 1)  # given; shipped
    assert model.policy.net_arch == [8]
    assert isinstance(model.replay_buffer, FrameReplayBuffer)
    config = model.policy.autoencoder.config
    assert (config.input_centre, config.output_centre) == (1.0, 1.0)
    assert model.observation_space.shape == (3, 48, 48)

    evaluated = np.load(folder / "evaluations.npz")
    assert evaluated["ep_lengths"].tolist() == [[100]] and -2000 < evaluated["results"].item() < -100
    played = float(re.search(r"Mean reward: ([-\d.]+)", printed)[1])
    assert -200 < played < -10  # in the scale the agent learns from, a tenth


def test_td3_ae_is_trained_and_played(zoo_run):
    env = make_pixel_env("Pendulum-v1", PENDULUM_TD3.pixels)
    model = TD3AE.load(zoo_run[0] / "td3_ae/Pendulum-v1_1/Pendulum-v1.zip", env=env, device="cpu")
    assert (model.num_timesteps, model._n_updates) == (20, 1 + 2)
    assert (model.policy_delay, model.tau, model.policy.net_arch) == (1, 0.01, [8])  # shipped, shipped, given
    assert isinstance(model.replay_buffer, FrameReplayBuffer)


def test_wrap_pixels_takes_what_yaml_has():
    pixels = {"size": [16, 18], "grayscale": True, "crop": [50, 50, 450, 450], "action_repeat": 3}
    config = PixelConfig(size=(16, 18), grayscale=True, crop=(50, 50, 450, 450), action_repeat=3)
    expected = make_pixel_env("Pendulum-v1", config)
    env = wrap_pixels(make_pixel_env("Pendulum-v1").unwrapped, **pixels)
    assert env.observation_space == expected.observation_space
    assert np.array_equal(env.reset(seed=4)[0], expected.reset(seed=4)[0])
