"""Runs of every algorithm: what they leave, how they go on, and that two never share a folder."""

import dataclasses
import fcntl
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC, TD3

from rl_ae import ConvVAEConfig, create_autoencoder
from rl_ae.envs import PixelConfig
from rl_ae.sb3 import AutoencoderExtractor
from rl_ae.sb3.algorithms import ALGORITHMS
from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.checkpoint import load_agent, read_state
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.sb3.runs import Run, evaluate_run, train_run
from rl_ae.sb3.zoo import rl_zoo3

OFF_POLICY = AgentConfig(buffer_size=500, learning_starts=20, batch_size=8)
CONFIG = RunConfig(
    env="Pendulum-v1",
    steps=60,
    log_every=20,
    checkpoint_every=20,
    eval_every=30,
    eval_episodes=1,
    device="cpu",
    pixels=PixelConfig(size=(16, 16), grayscale=True, action_repeat=20),
)
CARTPOLE = {"env": "CartPole-v1", "pixels": PixelConfig(size=(16, 24), grayscale=True)}
RAE = {"autoencoder": "rae_compact", "latent_dim": 6, "net_arch": (8,)}


def config(algo, auxiliary=False, **agent):
    off_policy = {name: value for name, value in dataclasses.asdict(OFF_POLICY).items() if value is not None}
    common = {"random": {}, "ppo": {"n_steps": 20, "batch_size": 20, "n_epochs": 2}}.get(algo, off_policy)
    environment = CARTPOLE if algo in ("dqn", "ppo") else {}
    return dataclasses.replace(
        CONFIG, algo=algo, auxiliary=auxiliary, agent=AgentConfig(**{**common, **agent}), **environment
    )


STOCK = {
    "sac+rae": config("sac", auxiliary=True, **RAE),
    "td3+rae": config("td3", **RAE, action_noise=0.3),
    "dqn+rae": config("dqn", auxiliary=True, **RAE),
    "ppo+rae": config("ppo", auxiliary=True, **RAE),
    "random": config("random"),
}


def trained(settings, folder, steps):
    return train_run(dataclasses.replace(settings, steps=steps), folder, resume=True)


@pytest.mark.parametrize("name", list(STOCK))
def test_every_algorithm_trains_goes_on_and_is_evaluated(name, tmp_path):
    settings = STOCK[name]
    trained(settings, tmp_path / "run", 40)
    run = trained(settings, tmp_path / "run", 60)
    sessions = json.loads(run.config.read_text())["sessions"]
    assert [session["step"] for session in sessions] == [0, 40]
    assert all(session["machine"]["cores"] >= 1 and "torch" in session["versions"] for session in sessions)
    rows = read_curve(run.curve)
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert np.isfinite([row["return"] for row in rows[1:]]).any()
    assert np.isfinite(rows[-1]["reconstruction"]) == settings.auxiliary
    beat = json.loads(run.progress.read_text())
    assert (beat["step"], beat["steps"], beat["first_step"]) == (60, 60, 40)

    agent = load_agent(run.checkpoint, device="cpu", buffer_size=1)
    assert type(agent) is ALGORITHMS[settings.algo] and agent.num_timesteps == 60
    if settings.algo != "random":
        encoders = [m for m in agent.policy.modules() if isinstance(m, AutoencoderExtractor)]
        assert encoders and all(encoder.encoder.latent_dim == 6 for encoder in encoders)

    record = evaluate_run(run.folder, episodes=2, device="cpu")
    assert record["psnr"] is None and len(record["returns"]) == 2
    assert record["step"] == 60 and np.isfinite(record["mean_return"])
    if settings.algo == "random":
        assert record["returns"] != record["random_returns"]


def test_the_auxiliary_loss_goes_on_where_it_was(tmp_path):
    settings = STOCK["dqn+rae"]
    run = trained(settings, tmp_path / "run", 40)
    state = read_state(run.checkpoint)
    [folder] = run.checkpoint.glob("auxiliary-*")
    assert folder.name == state["auxiliary"] == "auxiliary-40"
    before = json.loads((folder / "auxiliary.json").read_text())["state"]["learners"]["observation"]["encoders"]
    trained(settings, tmp_path / "run", 60)
    [folder] = run.checkpoint.glob("auxiliary-*")  # the old one is gone
    after = json.loads((folder / "auxiliary.json").read_text())["state"]["learners"]["observation"]["encoders"]
    [(owner, encoder)] = before.items()
    # DQN makes an update every four steps
    assert (encoder["step"], after[owner]["step"]) == (5, 10)


def test_stock_agents_get_the_settings_they_name():
    arguments = AgentConfig(net_arch=(32, 16), n_steps=3).arguments(stock=True)
    assert arguments == {"n_steps": 3, "policy_kwargs": {"net_arch": [32, 16]}}
    assert AgentConfig().arguments(stock=True) == {}  # Stable-Baselines3's own encoder
    ours = AgentConfig(actor_input="latent", beta=0.5, autoencoder="vae").arguments()
    assert ours["policy_kwargs"] == {"actor_input": "latent"} and ours["autoencoder"].beta == 0.5
    with pytest.raises(ValueError, match="the autoencoder 'rae' has no beta to set"):
        AgentConfig(autoencoder="rae", beta=1.0).arguments()
    with pytest.raises(ValueError, match="latent_dim are an autoencoder's, and there is none"):
        AgentConfig(latent_dim=3).arguments(stock=True)


def test_a_saved_autoencoder_keeps_its_numbers(tmp_path):
    saved = str(tmp_path / "eyes")
    create_autoencoder(ConvVAEConfig(latent_dim=4, beta=2.0), (3, 16, 16)).save_pretrained(saved)
    for fitting in ({}, {"input_centre": 1.0}, {"latent_dim": 4}, {"beta": 2.0}):
        assert AgentConfig(autoencoder=saved, **fitting).arguments() == {"autoencoder": saved}
    for stock in (False, True):
        with pytest.raises(ValueError, match=r"eyes keeps its latent_dim: expected 4 or none, got 7"):
            AgentConfig(autoencoder=saved, latent_dim=7).arguments(stock)
    with pytest.raises(ValueError, match=r"eyes keeps its beta: expected 2.0 or none, got 1.0"):
        AgentConfig(autoencoder=saved, beta=1.0).arguments()


@pytest.mark.parametrize(
    ("algo", "agent", "foreign"),
    [
        ("dqn", {"tau": 0.1, "encoder_tau": 0.1}, "encoder_tau"),
        ("ppo", {"buffer_size": 3}, "buffer_size"),
        ("random", {"learning_rate": 1.0}, "learning_rate"),
        ("sac_ae", {"n_epochs": 3}, "n_epochs"),
    ],
)
def test_settings_of_another_algorithm_are_refused(algo, agent, foreign, tmp_path):
    settings = dataclasses.replace(config("random"), algo=algo, agent=AgentConfig(**agent))
    with pytest.raises(ValueError, match=f"{algo} has no {foreign}"):
        train_run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("algo", "autoencoder"), [("sac_ae", "rae"), ("sac", None), ("random", None)])
def test_an_auxiliary_loss_needs_a_stock_agent_with_an_autoencoder(algo, autoencoder):
    with pytest.raises(ValueError, match="an auxiliary loss is for a stock algorithm with an autoencoder"):
        dataclasses.replace(CONFIG, algo=algo, auxiliary=True, agent=AgentConfig(autoencoder=autoencoder))


def test_the_zoo_keeps_its_own_algorithms():
    assert [rl_zoo3.ALGOS[name] for name in ("sac", "td3", "dqn", "ppo")] == [SAC, TD3, DQN, PPO]
    assert "random" not in rl_zoo3.ALGOS


def test_random_actions_are_uniform_and_follow_the_seed():
    env = dataclasses.replace(CONFIG, algo="random").make_env()
    agent = ALGORITHMS["random"]("CnnPolicy", env, seed=3)
    observation = np.zeros((4000, 3, 16, 16), np.uint8)
    actions, _ = agent.predict(observation)
    assert actions.shape == (4000, 1) and np.abs(actions).max() <= 2.0
    assert abs(actions.mean()) < 0.1 and abs(actions.std() - 2.0 / np.sqrt(3.0)) < 0.05
    again, _ = ALGORITHMS["random"]("CnnPolicy", env, seed=3).predict(observation)
    assert np.array_equal(actions, again)


def test_two_processes_never_train_in_one_folder(tmp_path):
    settings = config("random")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process trains in .*run: wait for it"):
            train_run(settings, tmp_path / "run", resume=True)
    train_run(settings, tmp_path / "run", resume=True)  # released


def test_a_retried_run_waits_for_the_one_before_to_end(tmp_path):
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    command = [sys.executable, "-c", hold + "time.sleep(1.5)", str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        start = time.monotonic()
        run = train_run(config("random"), tmp_path / "run", resume=True, patience=60.0)
        assert time.monotonic() - start > 0.5
    assert Run(run.folder).has_checkpoint


def test_pixel_sac_is_sac_ae_that_never_decodes(tmp_path):
    settings = dataclasses.replace(
        CONFIG,
        agent=dataclasses.replace(
            OFF_POLICY, autoencoder="rae_compact", net_arch=(8,), decoder_update_interval=0, catch_up_updates=0
        ),
    )
    run = train_run(settings, tmp_path / "run")
    rows = read_curve(run.curve)
    assert np.isnan([row["reconstruction"] for row in rows]).all()
    agent = load_agent(run.checkpoint, device="cpu", buffer_size=1)
    assert agent._n_updates > 0 and agent.learner.step == 0
