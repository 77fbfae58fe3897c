"""Probing autoencoders and agents: of a dot whose place and speed are known."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.logger import configure

from rl_ae import Autoencoder, ConvConfig, RAEConfig, VAEConfig, cli, create_autoencoder, create_learner
from rl_ae.analysis.probes import split_episodes, successors
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import to_unit
from rl_ae.sb3 import SACAE, AutoencoderExtractor, ProbeCallback
from rl_ae.sb3.evaluation import RandomPolicy
from rl_ae.sb3.playing import HeldActions, ProbeSet, play
from rl_ae.sb3.probe_callback import agent_extractor
from rl_ae.sb3.probing import (
    NEXT_LATENT,
    ProbeSource,
    Score,
    _make_env,
    encode,
    format_table,
    principal_components,
    probe,
    score,
    small_pixels,
    summarize,
    train_ceiling,
    untrained,
)
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.sb3.runs import Run, train_run
from rl_ae.sb3.show import Subject

PIXELS = PixelConfig(size=(16, 16), grayscale=True, frame_stack=2)
CONFIG = RAEConfig(conv=ConvConfig(filters=(8, 16), strides=(2, 2)), latent_dim=6)


def make_env():
    return make_pixel_env("moving_dot:MovingDot-v0", PIXELS)


@pytest.fixture(scope="module")
def data():
    env = make_env()
    return play(env, HeldActions(env.action_space, 0, hold=4), episodes=24, steps=40, progress_bar=False)


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    learner = create_learner(CONFIG, (2, 16, 16))
    learner.fit(data.observations, steps=300, batch_size=64, progress_bar=False, generator=torch.Generator())
    return learner.autoencoder


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    trained.save_pretrained(tmp_path_factory.mktemp("models") / "eyes")
    return tmp_path_factory.getbasetemp() / "models0" / "eyes"


# ---------------------------------------------------------------------- what is played


def test_rows_are_what_lay_behind_the_frames(data):
    assert data.observations.shape == (24 * 25, 2, 16, 16) and data.observations.dtype == np.uint8
    assert data.names == ("row", "column", "colour", "down", "right", "reward")
    assert data.groups == ("positions",) * 3 + ("velocities",) * 2 + ("reward",)
    assert data.episodes.tolist() == np.repeat(np.arange(24), 25).tolist()
    rows, columns = data.targets[:, :2].T
    corners = [np.argwhere(frame[-1])[0] for frame in data.observations]  # of the newest frame
    np.testing.assert_array_equal(corners, np.round((np.column_stack([rows, columns]) + 1) * 6))
    np.testing.assert_allclose(data.targets[:, 5], -np.hypot(rows, columns), rtol=1e-6)  # led here
    after = np.clip(data.targets[:-1, :2] + 0.1 * data.actions[:-1], -1, 1)  # of the next row: the action leads there
    inside = np.diff(data.episodes) == 0
    np.testing.assert_allclose(after[inside], data.targets[1:, :2][inside], atol=1e-6)


def test_the_same_seed_plays_the_same_and_another_does_not():
    def observe(seed):
        env = make_env()
        return play(env, HeldActions(env.action_space, seed), 3, 4, seed, progress_bar=False).observations

    assert np.array_equal(observe(1), observe(1)) and not np.array_equal(observe(1), observe(2))


def test_random_actions_are_held_and_an_agent_has_its_turns():
    space = spaces.Box(-1, 1, (1,))

    class One:
        def predict(self, observation, *, deterministic):
            assert deterministic
            return np.array([2.0]), None

    actions = [HeldActions(space, 0, hold=5, agent=agent) for agent in (None, One())]
    alone, mixed = (np.array([policy.predict(None)[0][0] for _ in range(400)]) for policy in actions)
    turns = np.diff(np.flatnonzero(np.diff(alone)))
    assert set(turns) == {1, 2, 3, 4, 5} and np.abs(alone).max() <= 1
    assert 0.35 < (mixed == 2.0).mean() < 0.65
    assert np.diff(np.flatnonzero(np.diff(mixed == 2.0))).mean() > 2  # whole turns, several in a row


def test_how_long_an_action_is_held_does_not_depend_on_the_actions():
    policy = HeldActions(spaces.Box(-1, 1, (1,)), 0, hold=5)
    actions = np.array([policy.predict(None)[0][0] for _ in range(2_000)])
    starts = np.array([0, *np.flatnonzero(np.diff(actions)) + 1])
    shared = np.diff(starts)[1::2]  # of one stream with the actions, each second duration has the bits of an action
    assert len(shared) > 200 and abs(np.corrcoef(actions[starts][: len(shared)], shared)[0, 1]) < 0.25


def test_discrete_actions_become_rows_of_a_one():
    env = make_pixel_env("CartPole-v1", PIXELS)
    played = play(env, RandomPolicy(env.action_space), 3, 4, progress_bar=False)
    assert played.actions.shape == (len(played.episodes), 2) and (played.actions.sum(axis=1) == 1).all()
    assert set(played.groups) == {"positions", "velocities", "reward"}
    env.close()


# ---------------------------------------------------------------------- what is read


def means_of(scores):
    return {(row.representation, row.probe): row.means for row in summarize(scores)}


def test_a_trained_latent_holds_the_state_and_its_controls_do_what_they_should(data, trained):
    split = split_episodes(data.episodes)
    scores = score("latent", encode(trained, data.observations), data, split)
    scores += score("state", data.targets[:, :5], data, split)
    scores += score("nothing", np.random.default_rng(0).normal(size=(len(data.episodes), 6)), data, split)
    scores += score("pixels", small_pixels(data.observations), data, split, mlp=False)
    means = means_of(scores)
    assert means["state", "ridge"]["positions"] == pytest.approx(1) == means["state", "ridge"]["velocities"]
    assert means["state", "ridge"]["next latent"] > 0.8  # but for the walls, it is linear
    assert means["state", "ridge"]["reward"] < 0.1 and means["state", "MLP"]["reward"] > 0.9  # a distance: not linear
    assert means["nothing", "ridge"]["positions"] < 0.02 and means["nothing", "MLP"]["next latent"] < 0.02
    assert means["latent", "MLP"]["positions"] > 0.9 and means["latent", "ridge"]["positions"] > 0.8
    assert means["pixels", "ridge"]["positions"] > 0.9 and ("pixels", "MLP") not in means
    assert means["latent", "no change"]["next latent"] < means["latent", "ridge"]["next latent"]
    colour = [row.r2 for row in scores if row.target == "colour"]
    assert len(colour) == 7 and np.isnan(colour).all()


def test_the_next_latent_follows_from_this_one_and_what_is_done_then():
    rng = np.random.default_rng(0)
    episodes, actions, latents = np.repeat(np.arange(8), 30), rng.normal(size=(240, 2)), rng.normal(size=(240, 2))
    for row in successors(episodes):
        latents[row + 1] = 0.5 * latents[row] + actions[row]
    noise = rng.normal(size=(240, 1))
    data = ProbeSet(np.empty((240, 0)), actions, episodes, noise, names=("noise",), groups=("noise",))
    found = score("", latents, data, split_episodes(episodes))
    ahead = {row.probe: row.r2 for row in found if row.group == NEXT_LATENT}
    assert ahead["ridge"] == pytest.approx(1.0, abs=1e-6) and ahead["MLP"] > 0.9 and ahead["no change"] < 0.2


def test_of_latents_side_by_side_only_the_newest_is_foretold():
    rng = np.random.default_rng(0)
    episodes, actions, noise = np.repeat(np.arange(8), 30), rng.normal(size=(240, 2)), rng.normal(size=(240, 2))
    three = np.column_stack([np.roll(noise, 2, axis=0), np.roll(noise, 1, axis=0), noise])
    data = ProbeSet(np.empty((240, 0)), actions, episodes, noise, names=("a", "b"), groups=("noise", "noise"))

    def foretold(newest):
        found = score("", three, data, split_episodes(episodes), newest=newest)
        return {row.probe: row.r2 for row in found if row.group == NEXT_LATENT}

    alone = foretold(2)
    assert alone["ridge"] < 0.05 and alone["MLP"] < 0.05 and alone["no change"] < -0.5  # nothing can be foretold
    assert foretold(None)["ridge"] > 0.5  # but what stands in the row already
    assert foretold(0) == {}


def test_the_ceiling_learns_from_the_states(data, trained):
    split = split_episodes(data.episodes)
    before = torch.get_rng_state()
    predictions = train_ceiling(trained, data, split, updates=200, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), before)
    error = np.square(predictions - data.targets[split.test]).mean(axis=0)
    r2 = 1 - error[[0, 1, 3, 4]] / data.targets[split.test].var(axis=0)[[0, 1, 3, 4]]
    assert r2[:2].min() > 0.9 and r2[2:].min() > 0.1
    assert np.array_equal(predictions, train_ceiling(trained, data, split, updates=200, progress_bar=False))


def test_held_out_rows_do_not_decide_the_ceiling(data, trained):
    split = split_episodes(data.episodes)
    targets = data.targets.copy()
    targets[split.test] *= -3.0
    alone, beside = (
        train_ceiling(trained, each, split, updates=20, progress_bar=False)
        for each in (data, data._replace(targets=targets))
    )
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("part", ["fit", "validation", "test"])
def test_a_target_without_a_score_does_not_disturb_the_ceiling(part, data, trained):
    """A byte of Atari's memory, say, that counts to 255 in some of the episodes only."""
    split = split_episodes(data.episodes)
    counter = np.random.default_rng(0).integers(256, size=(len(data.episodes), 1)).astype(float)
    counter[getattr(split, part)] = 7.0
    with_counter = data._replace(targets=np.hstack([data.targets, counter]))
    alone, beside = (
        train_ceiling(trained, each, split, updates=20, progress_bar=False) for each in (data, with_counter)
    )
    np.testing.assert_array_equal(beside[:, :-1], alone)
    np.testing.assert_allclose(beside[:, -1], counter[split.fit].mean())
    assert np.ptp(alone[:, :2], axis=0).min() > 0 == np.ptp(alone[:, 2])  # the colour is constant


def test_encoding_leaves_no_trace(data):
    vae = create_autoencoder(VAEConfig(conv=CONFIG.conv, latent_dim=3, hidden=(8,)), (2, 16, 16)).train()
    vae.decoder.eval()
    modes = [module.training for module in vae.modules()]
    found = encode(vae, data.observations[:70])
    assert [module.training for module in vae.modules()] == modes
    with torch.no_grad():
        expected = vae.eval().encode(to_unit(torch.as_tensor(data.observations[:70]))).mu
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_latents_in_a_row_are_of_frames_one_later_each():
    autoencoder = create_autoencoder(CONFIG, (2, 16, 16))
    frames = np.random.default_rng(0).integers(256, size=(5, 4, 16, 16), dtype=np.uint8)  # two for each of two stacks
    windows = [encode(autoencoder, frames[:, start : start + 2]) for start in (0, 1, 2)]
    np.testing.assert_allclose(encode(autoencoder, frames, latents=3), np.concatenate(windows, axis=1), atol=1e-6)
    for latents, channels in ((1, 4), (2, 2), (4, 4), (1, 1)):
        with pytest.raises(ValueError, match=f"{latents} latents of 2 channels cannot be of {channels} channels"):
            encode(autoencoder, frames[:, :channels], latents)


def test_a_probe_of_latents_in_a_row_plays_as_many_frames(tmp_path):
    create_autoencoder(CONFIG, (1, 16, 16)).save_pretrained(tmp_path / "eyes")
    source = ProbeSource(env="moving_dot:MovingDot-v0", grayscale=True, latents=2)
    report = probe(tmp_path / "eyes", source, episodes=4, steps=8, ceiling_updates=1)
    names = ["2 latents", "random encoder", "PCA-12", "raw pixels", "supervised ceiling"]
    assert list(dict.fromkeys(row.representation for row in report.scores)) == names
    assert json.loads((tmp_path / "eyes" / "probe.json").read_text())["source"]["latents"] == 2
    with pytest.raises(ValueError, match="latents must be ≥ 1, got 0"):
        ProbeSource(latents=0)


def test_an_untrained_twin_is_new_and_draws_from_no_global_generator(trained):
    before = torch.get_rng_state()
    first, again, other = untrained(trained, 1), untrained(trained, 1), untrained(trained, 2)
    assert torch.equal(torch.get_rng_state(), before) and first.config == trained.config
    weights = [next(autoencoder.parameters()) for autoencoder in (first, again, other, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])


def test_components_come_from_the_training_rows_alone(data):
    split = split_episodes(data.episodes)
    rows = split.train
    pixels = data.observations[rows].reshape(len(rows), -1) / 255.0
    centred = pixels - pixels.mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[1][:3]
    found = principal_components(data.observations, rows, 3)
    assert found.shape == (len(data.observations), 3)
    np.testing.assert_allclose(np.linalg.norm(found[rows], axis=0), expected, rtol=1e-3)
    changed = data.observations.copy()
    changed[split.test] = 255 - changed[split.test]
    np.testing.assert_allclose(principal_components(changed, rows, 3)[rows], found[rows], atol=1e-4)
    assert principal_components(data.observations, rows[:5], 50).shape[1] == 4


def test_small_pixels_are_averages():
    frames = np.random.default_rng(0).integers(256, size=(3, 2, 64, 32), dtype=np.uint8)
    blocks = frames.reshape(3, 2, 16, 4, 16, 2).mean(axis=(3, 5)) / 255
    np.testing.assert_allclose(small_pixels(frames, 16), blocks.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(small_pixels(frames, 100), frames.reshape(3, -1) / 255, atol=1e-6)  # small enough


# ---------------------------------------------------------------------- the command


def test_the_command_writes_table_numbers_and_chart(folder, tmp_path, capsys):
    command = [
        "probe",
        str(folder),
        "--env",
        "moving_dot:MovingDot-v0",
        "--grayscale",
        "--episodes",
        "6",
        "--steps",
        "20",
    ]
    cli.main([*command, "--ceiling-updates", "20", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    with (tmp_path / "probe.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "probe.json").read_text())
    names = ["latent", "random encoder", "PCA-6", "raw pixels", "supervised ceiling"]
    assert list(dict.fromkeys(row["representation"] for row in rows)) == names
    assert content["dropped"] == ["colour (positions)"] and "colour (positions)" in shown
    assert content["env"] == "moving_dot:MovingDot-v0" and sum(content["rows"].values()) == 6 * 20
    latent = content["means"][0]
    places = [float(row["r2"]) for row in rows[:2]]
    assert (latent["representation"], latent["probe"]) == ("latent", "ridge")
    assert [row["target"] for row in rows[:2]] == ["row", "column"]
    assert latent["positions"] == pytest.approx(np.mean(places))
    assert f"{latent['positions']:.3f}" in shown.splitlines()[1]
    with Image.open(tmp_path / "probe.png") as picture:
        assert np.ptp(np.asarray(picture)) == 255
    assert not (folder / "probe.csv").exists()
    first = (tmp_path / "probe.csv").read_text()
    cli.main([*command, "--ceiling-updates", "0", "--out", str(tmp_path)])
    again = (tmp_path / "probe.csv").read_text()
    assert "supervised" not in again and first.startswith(again)


def test_a_table_is_aligned():
    rows = [Score("latent", "ridge", "positions", "x", 0.5), Score("latent", "ridge", "reward", "reward", np.nan)]
    assert format_table(summarize(rows)).splitlines() == [
        "R² on held-out episodes         positions  reward",
        "latent                   ridge      0.500       –",
    ]


def test_what_cannot_be_probed_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="saved autoencoder, which has no environment"):
        probe(folder, ProbeSource())
    with pytest.raises(ValueError, match="crop would have no effect without an env"):
        ProbeSource(crop=(0, 0, 8, 8))
    with pytest.raises(ValueError, match="ceiling_updates must be ≥ 0, got -1"):
        probe(folder, ProbeSource(env="moving_dot:MovingDot-v0", grayscale=True), ceiling_updates=-1)
    with pytest.raises(ValueError, match="episodes ≥ 3 and steps ≥ 2, got 2 and 150"):
        probe(folder, ProbeSource(env="moving_dot:MovingDot-v0", grayscale=True), episodes=2)
    create_autoencoder("ae", (7,)).save_pretrained(tmp_path / "vectors")
    with pytest.raises(ValueError, match=r"autoencoder of images, this one is of vectors \(7,\)"):
        probe(tmp_path / "vectors", ProbeSource(env="moving_dot:MovingDot-v0"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        probe(tmp_path / "nothing", ProbeSource(env="moving_dot:MovingDot-v0"))


# ---------------------------------------------------------------------- while an agent learns


def make_agent(algorithm=SACAE, **kwargs):
    arguments = {"buffer_size": 200, "learning_starts": 8, "batch_size": 4, "policy_kwargs": {"net_arch": [8]}}
    if algorithm is SACAE:
        arguments |= {"autoencoder": CONFIG, "catch_up_updates": 1}
    return algorithm("CnnPolicy", make_env(), seed=0, **{**arguments, **kwargs})


def test_a_curve_while_an_agent_learns(tmp_path):
    agent = make_agent()
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    callback = ProbeCallback(make_env(), 10, tmp_path / "probe.csv", episodes=4, steps=10)
    agent.learn(25, callback=callback, log_interval=1)
    assert [row["step"] for row in callback.rows] == [0, 10, 20, 25]
    assert list(callback.rows[0]) == ["step", "positions_r2", "velocities_r2", "reward_r2"]
    assert len({row["positions_r2"] for row in callback.rows}) >= 3  # the encoder has moved
    with (tmp_path / "probe.csv").open(newline="") as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert written == callback.rows
    assert "probe/positions_r2" in (tmp_path / "progress.csv").read_text().splitlines()[0]
    expected = score("", callback._features(callback._data.observations), callback._data, callback._split, mlp=False)
    assert means_of(expected)["", "ridge"]["velocities"] == callback.rows[-1]["velocities_r2"]

    resumed = ProbeCallback(make_env(), 10, tmp_path / "probe.csv", episodes=4, steps=10)
    agent.learn(10, callback=resumed, reset_num_timesteps=False)
    assert [row["step"] for row in resumed.rows] == [0, 10, 20, 25, 35]
    assert resumed.rows[:4] == callback.rows
    agent.learn(12, callback=resumed)
    assert [row["step"] for row in resumed.rows] == [0, 10, 20, 25, 35, 0, 10, 12]  # of steps that are counted anew
    assert resumed.rows[5]["positions_r2"] == resumed.rows[4]["positions_r2"]
    agent.logger.close()


def test_an_agent_that_is_probed_learns_the_same():
    weights = []
    for callback in (None, ProbeCallback(make_env(), 5, episodes=3, steps=5)):
        agent = make_agent()
        agent.learn(16, callback=callback)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]))
    assert torch.equal(*weights)


def test_what_is_probed_is_what_the_critic_sees():
    for agent in (make_agent(), make_agent(actor_trains_trunk=True)):
        callback = ProbeCallback(make_env(), 5, episodes=3, steps=5)
        callback.init_callback(agent)
        frames = make_env().reset(seed=0)[0][None].repeat(3, axis=0)
        expected = encode(agent.policy.autoencoder, frames)
        np.testing.assert_allclose(callback._features(frames), expected, atol=1e-6)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_stock_agents_are_probed(algorithm):
    """Through the extractor that their critic, or their only network, has."""
    kwargs = {"features_extractor_class": AutoencoderExtractor, "features_extractor_kwargs": {"autoencoder": CONFIG}}
    own = {"n_steps": 8, "batch_size": 4} if algorithm is PPO else {"buffer_size": 50, "learning_starts": 100}
    agent = algorithm("CnnPolicy", make_env(), policy_kwargs={"net_arch": [8], **kwargs}, seed=0, **own)
    callback = ProbeCallback(make_env(), 8, episodes=3, steps=5)
    agent.learn(16, callback=callback)
    assert [row["step"] for row in callback.rows] == [0, 8, 16]
    owner = agent.policy if algorithm is PPO else agent.policy.critic
    assert agent_extractor(agent) is owner.features_extractor


def test_a_probe_of_another_environment_is_refused():
    with pytest.raises(ValueError, match=r"the agent observes Box.*\(2, 16, 16\).*got Box.*\(6, 16, 16\)"):
        other = make_pixel_env("moving_dot:MovingDot-v0", dataclasses.replace(PIXELS, grayscale=False))
        make_agent().learn(1, callback=ProbeCallback(other, 5))
    with pytest.raises(ValueError, match="every must be ≥ 1, got 0"):
        ProbeCallback(make_env(), 0)
    with pytest.raises(ValueError, match="state of DotEnv is not known"):
        ProbeCallback(make_pixel_env(DotEnv((1, 16, 16)), PIXELS), 5)


def test_a_run_is_probed_while_it_trains_and_afterwards(tmp_path):
    agent = AgentConfig(autoencoder="rae_compact", latent_dim=4, net_arch=(8,), learning_starts=8, batch_size=4)
    sizes = {"log_every": 10, "checkpoint_every": 10, "eval_every": 100, "eval_episodes": 1}
    config = RunConfig(env="moving_dot:MovingDot-v0", steps=20, probe_every=10, pixels=PIXELS, agent=agent, **sizes)
    run = train_run(config, tmp_path / "run")
    with (run.folder / "probe_curve.csv").open(newline="") as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == [0, 10, 20]
    assert Run(run.folder).read_config() == config
    report = probe(run.folder, ProbeSource(), episodes=3, steps=5, ceiling_updates=0)
    assert report.folder == run.folder and (run.folder / "probe.png").exists()
    assert json.loads((run.folder / "probe.json").read_text())["env"] == "moving_dot:MovingDot-v0"
    elsewhere = ProbeSource(env="CartPole-v1")  # where its actions mean nothing
    assert probe(run.folder, elsewhere, episodes=3, steps=5, ceiling_updates=0, out=tmp_path / "out").scores
    settings = json.loads((tmp_path / "out/probe.json").read_text())
    assert settings["env"] == settings["source"]["env"] == "CartPole-v1" and settings["ceiling_updates"] == 0
    with pytest.raises(ValueError, match="probe_every must be ≥ 0, got -1"):
        dataclasses.replace(config, probe_every=-1)


def test_a_runs_three_grey_frames_are_no_coloured_one():
    pixels = dataclasses.replace(PIXELS, frame_stack=3)
    config = RunConfig(env="moving_dot:MovingDot-v0", pixels=pixels)
    subject = Subject(create_autoencoder(CONFIG, (3, 16, 16)), config)
    env = _make_env(subject, ProbeSource(env="Pendulum-v1"), Path())  # whose rod is red
    first, _ = env.reset(seed=0)
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[1], first[2]) and np.ptp(first) > 0
    for _ in range(5):
        stack = env.step(np.array([2.0], np.float32))[0]
    assert not np.array_equal(stack[1], stack[2])
    env.close()


def test_a_killed_runs_curve_goes_on_in_step(tmp_path):
    agent, path = make_agent(), tmp_path / "probe.csv"
    agent.learn(15, callback=ProbeCallback(make_env(), 10, path, episodes=3, steps=5))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # without the row of an orderly end
    resumed = ProbeCallback(make_env(), 10, path, episodes=3, steps=5)
    agent.learn(10, callback=resumed, reset_num_timesteps=False)
    assert [row["step"] for row in resumed.rows] == [0, 10, 20, 25]


def test_scores_of_a_class_of_ones_own(data):
    """The controls are of that class, too."""

    class Mine(type(create_autoencoder(CONFIG, (2, 16, 16)))):
        pass

    assert type(untrained(Mine((2, 16, 16)))) is Mine and issubclass(Mine, Autoencoder)
