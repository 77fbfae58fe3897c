"""The benchmark scripts at a size of seconds: what they write, and that a finished run is not run again."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    auxiliary,
    codes,
    coverage,
    disentanglement,
    learning,
    rate,
    reconstruction,
    replay,
    reuse,
    roofline,
    seeing,
    streaming,
    throughput,
)
from benchmarks.fitting import Fit
from benchmarks.frames import HELD_OUT_SEED, SOURCES, load_frames
from benchmarks.records import in_new_process
from rl_ae import Autoencoder, ConvConfig, DiffusionConfig, RAEConfig, cli, create_autoencoder
from rl_ae.autoencoders.diffusion import Diffusion
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.losses import psnr
from rl_ae.pixels import to_unit
from rl_ae.sb3.collecting import CollectConfig, open_player
from rl_ae.sb3.datasets import MinariFrames
from rl_ae.sb3.run_config import AgentConfig


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call a script's ``main`` with its runs and results in a temporary folder."""

    def run(script, *flags):
        folders = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
        monkeypatch.setattr("sys.argv", [script.__name__, *flags, *folders])
        script.main()
        return tmp_path / "results"

    return run


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def forbid_training(monkeypatch, cls):
    def train(run, *arguments):
        raise AssertionError(f"{run.folder} is trained again")

    monkeypatch.setattr(cls, "train", train)


def test_disentanglement_scores_variational_and_plain_autoencoders(run, monkeypatch, capsys):
    flags = ["--variants", "vae", "rae", "--seeds", "0", "--steps", "4", "--samples", "300", "--votes", "20"]
    flags += ["--trees", "1"]
    results = run(disentanglement, *flags)
    vae, rae = read(results / "scores.csv")
    assert list(vae)[:3] == ["variant", "seed", "steps"]
    assert set(disentanglement.SCORES) <= vae.keys()
    assert (vae["variant"], vae["steps"], rae["variant"], rae["steps"]) == ("vae", "4", "rae", "4")
    assert float(vae["kl"]) > 0
    assert rae["kl"] == rae["reconstruction"] == ""
    for variant in ("vae", "rae"):
        curve = read(results / f"{variant}_seed0.csv")
        assert tuple(curve[0]) == disentanglement.CURVE_COLUMNS
        assert [row["step"] for row in curve] == ["4"]
        assert (curve[0]["kl"] == "") == (variant == "rae")
    assert (results / "traversals.png").stat().st_size > 0

    forbid_training(monkeypatch, disentanglement.Run)
    capsys.readouterr()
    run(disentanglement, *flags)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "| rae | 1 | 4 |" in lines[3]
    assert "| – | – |" in lines[3]


def test_disentanglement_shows_other_budgets_in_the_same_table(run, capsys):
    flags = ["--seeds", "0", "--samples", "300", "--votes", "20", "--trees", "1"]
    run(disentanglement, "--variants", "vae", "--steps", "4", *flags)
    run(disentanglement, "--variants", "ae", "--steps", "2", *flags)
    capsys.readouterr()
    run(disentanglement, "--report")
    assert [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["| vae", "1", "4"],
        ["| ae", "1", "2"],
    ]


def test_codes_are_compared_on_frames_of_other_episodes(run, monkeypatch):
    flags = ["--variants", "sqvae", "vqvae", "--steps", "3", "--frames", "20", "--held-out", "6"]
    results = run(codes, *flags)
    summary = json.loads((results / "summary.json").read_text())
    assert 0 < summary["mean_frame_psnr"] < 100
    assert [record["variant"] for record in summary["runs"]] == ["sqvae", "vqvae"]
    for record in summary["runs"]:
        assert {"command", "versions", "config", *codes.SCORES} <= record.keys()
        assert 1 <= record["perplexity"] <= record["used_codes"] <= codes.CODES
        curve = read(results / f"{record['variant']}_seed0.csv")
        assert tuple(curve[0]) == codes.CURVE_COLUMNS
        assert [row["step"] for row in curve] == ["3"]
        assert float(curve[0]["psnr"]) == record["psnr"]
    assert len((results / "table.md").read_text().splitlines()) == 4
    assert (results / "codes.png").stat().st_size > 0

    def collect(*arguments):
        raise AssertionError("frames are collected again")

    forbid_training(monkeypatch, Fit)
    monkeypatch.setattr("benchmarks.frames.collect", collect)
    run(codes, *flags)


def test_autoencoders_are_compared_on_frames_of_other_episodes(run, monkeypatch, tmp_path):
    variants = ["rae", "pyramid_skips", "hierarchical", "sqvae"]
    flags = ["--sources", "car_racing", "--steps", "2", "--frames", "40", "--held-out", "6", "--variants"]
    results = run(reconstruction, *flags, *reversed(variants)) / "car_racing"
    summary = json.loads((results / "summary.json").read_text())
    runs = dict(zip(variants, summary["runs"], strict=True))
    assert [record["variant"] for record in summary["runs"]] == variants
    assert [record["numbers"] for record in summary["runs"]] == [32, 32, 32, 64]

    arguments = reconstruction.Arguments(runs=tmp_path / "runs", steps=2, frames=40, held_out=6)
    frames = reconstruction.frames_of(arguments, "car_racing")
    train, held_out = to_unit(frames.train), to_unit(frames.held_out)
    mean = train.mean(dim=0)
    axes = torch.linalg.svd((train - mean).flatten(1), full_matrices=False).Vh[:32]
    centred = (held_out - mean).flatten(1)
    assert summary["rulers"] == {
        "mean frame": pytest.approx(psnr(centred.square().mean()).item(), abs=1e-3),
        "32 principal components": pytest.approx(
            psnr((centred - centred @ axes.T @ axes).square().mean()).item(), abs=0.01
        ),
    }
    for variant, record in runs.items():
        assert {"command", "machine", "config", *reconstruction.SCORES} <= record.keys()
        curve = read(results / f"{variant}_seed0.csv")
        assert [row["step"] for row in curve] == ["2"] and float(curve[0]["psnr"]) == record["psnr"]
        autoencoder = reconstruction.fit_of(arguments, "car_racing", variant, 0).learner.autoencoder.eval()
        with torch.no_grad():
            latent = autoencoder.encode(held_out)
            for name, z in (("psnr", latent.mode), ("psnr_latent", latent.mode[:, : autoencoder.latent_dim])):
                error = (autoencoder.decode(z) - held_out).square().mean()
                assert record[name] == pytest.approx(psnr(error).item(), abs=1e-3)
            told = reconstruction.told(autoencoder, latent, torch.Generator())
            assert told.shape == (6, autoencoder.latent_dim)
            if variant == "pyramid_skips":
                kl = 0.5 * (latent.mu.square() + latent.logvar.exp() - 1.0 - latent.logvar).sum(dim=1).mean()
                assert record["kl"] == pytest.approx(kl.item(), rel=1e-4) and record["psnr"] != record["psnr_latent"]
            if variant == "sqvae":
                assert torch.equal(told, latent.mode)
                sigma = (autoencoder.decode(autoencoder.encode(train).mode) - train).square().mean().sqrt()
                mass = reconstruction.gaussian_level_log_probability(autoencoder.decode(told), held_out, sigma)
                assert record["kl"] == pytest.approx(64 * np.log(512))
                assert record["bits"] == pytest.approx(
                    (record["kl"] - mass.mean().item()) / (12_288 * np.log(2)), rel=1e-4
                )
    assert runs["rae"]["bits"] is runs["rae"]["kl"] is None
    assert 0 < runs["pyramid_skips"]["bits"] < 20 and 0 < runs["hierarchical"]["bits"] < 20
    assert len((results / "table.md").read_text().splitlines()) == 2 + 2 + 4
    assert (results / "frames.png").stat().st_size > 0
    forbid_training(monkeypatch, Fit)
    run(reconstruction, *flags, *variants)


def test_a_fit_that_was_killed_while_it_cooled_down_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    frames = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    config = RAEConfig(latent_dim=4, conv=ConvConfig(filters=(4, 4), strides=(2, 2))).for_shape((3, 16, 16))
    used = []

    def fit(name, cooldown=0.5):
        return Fit(tmp_path / name, "rae", config, 0, 4, cooldown)

    def train(name, steps, killed_after=None):
        fitted = fit(name)
        update = fitted.learner.update

        def spy(images):
            used.append({group["lr"] for optimizer in fitted.learner.optimizers for group in optimizer.param_groups})
            return update(images)

        def after_step():
            if fitted.learner.step == killed_after:
                raise KeyboardInterrupt

        monkeypatch.setattr(fitted.learner, "update", spy)
        with pytest.raises(KeyboardInterrupt) if killed_after else contextlib.nullcontext():
            fitted.train(steps, frames, lambda autoencoder: {}, 1, after_step)
        return fitted.learner.autoencoder.state_dict()

    whole = train("whole", 8)
    assert used == [{1e-3 * share} for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]
    train("parts", 8, killed_after=3)
    train("parts", 8, killed_after=6)
    with pytest.raises(ValueError, match="cooled down for 8 steps, not for 12"):
        train("parts", 12)
    parts = train("parts", 8)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    train("early", 8, killed_after=3)
    with pytest.raises(ValueError, match="at step 3 and not cooled down, which for 4 steps begins at 2"):
        train("early", 4)
    train("early", 6)  # where nothing has been cooled down, another number of steps is as good
    assert fit("early").cooled_for == 6


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(run, monkeypatch, tmp_path):
    flags = ["--sources", "car_racing", "--frames", "40", "--held-out", "6", "--variants"]
    frames = torch.zeros(46, 3, 64, 64, dtype=torch.uint8)
    (tmp_path / "runs").mkdir()
    np.savez(tmp_path / "runs/car_racing.npz", train=frames[:40], held_out=frames[40:])
    run(reconstruction, *flags, "rae", "--steps", "2")
    forbid_training(monkeypatch, Fit)
    with pytest.raises(ValueError, match="rae_0 is at step 2, beyond 1; use another --runs"):
        run(reconstruction, *flags, "conv_vae", "rae", "--steps", "1")
    with pytest.raises(ValueError, match="seeds ≥ 0"):
        reconstruction.Arguments(seeds=(-1,))


def test_a_collection_of_frames_that_was_killed_goes_on(monkeypatch, tmp_path):
    played = []

    def episode(seed):
        if len(played) == 3:
            played.append("killed")
            raise KeyboardInterrupt
        played.append(seed)
        yield from np.full((4, 3, 64, 64), seed % 256, np.uint8)

    monkeypatch.setitem(SOURCES, "car_racing", lambda: episode)
    path = tmp_path / "car_racing.npz"
    with pytest.raises(KeyboardInterrupt):
        load_frames(path, "car_racing", 10, 6)
    frames = load_frames(path, "car_racing", 10, 6)
    assert frames.train[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert len(frames.held_out) == 6 and not (frames.held_out[0] == frames.held_out[4]).all()
    assert played == [0, 1, 2, "killed", HELD_OUT_SEED, HELD_OUT_SEED + 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_diffusion_models_bits_are_of_every_noise_level_alike(monkeypatch):
    pytest.importorskip("diffusers", reason="the extra diffusion is missing")
    drawn = []

    def velocity_errors(self, images, maps, levels, generator):
        drawn.append(levels)
        return images.flatten(1)[:, 0] * (levels == 0)  # all that a frame is worth is seen at one level

    monkeypatch.setattr(Diffusion, "velocity_errors", velocity_errors)
    autoencoder = create_autoencoder(DiffusionConfig(latent_dim=2, diffusion_steps=40, sample_steps=8), (3, 16, 16))
    images = torch.full((10, 3, 16, 16), 200 / 255)
    with torch.no_grad():
        likelihood = autoencoder.likelihood(torch.zeros(10, 2))
        bounds = reconstruction.diffusion_level_log_probability(likelihood, images, torch.Generator())
    assert drawn[0].bincount().tolist() == [1] * 40 and bounds.shape == (10,)
    diffusion = likelihood.diffusion
    constant = 768 * (diffusion.elbo_constant - 8 * np.log(2))
    expected = constant - diffusion.elbo_weights[0].item() * 200.5 / 256 / 40
    assert bounds.mean().item() == pytest.approx(expected, abs=diffusion.elbo_weights[0].item() / 256 / 40)


def test_a_discretised_gaussian_gives_its_mass_to_the_levels():
    levels = torch.arange(256).reshape(-1, 1, 1, 1) / 255.0
    for mean in (-0.3, 0.0, 0.502, 1.2):
        for sigma in (1e-3, 0.02, 1.0):
            log_mass = reconstruction.gaussian_level_log_probability(
                torch.full_like(levels, mean), levels, torch.tensor(sigma)
            )
            assert torch.isfinite(log_mass).all()
            assert log_mass.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_the_auxiliary_loss_is_compared_with_none(run, monkeypatch):
    monkeypatch.setattr(auxiliary, "CURVE_EVERY", 25)
    monkeypatch.setattr(auxiliary, "EPISODES", 1)
    monkeypatch.setattr(auxiliary, "AGENT", {**auxiliary.AGENT, "learning_starts": 10})
    flags = ["--seeds", "0", "--steps", "60"]
    results = run(auxiliary, *flags)
    records = json.loads((results / "summary.json").read_text())["runs"]
    assert [record["variant"] for record in records] == ["alone", "callback"]
    for record in records:
        curve = read(results / f"{record['variant']}_seed0.csv")
        assert tuple(curve[0]) == auxiliary.CURVE_COLUMNS
        assert [row["step"] for row in curve] == ["25", "50", "60"]
        assert record["evaluation"] >= 8.0  # frames a pole takes to fall
        assert (record["psnr"] is None) == (record["variant"] == "alone")
        assert (float(curve[-1]["psnr"]) > 0.0) == (record["variant"] == "callback")
    assert len((results / "table.md").read_text().splitlines()) == 2 + 2 * 2
    assert (results / "curves.png").stat().st_size > 0

    def train(*arguments):
        raise AssertionError(f"trained again: {arguments}")

    monkeypatch.setattr(auxiliary, "run", train)
    run(auxiliary, *flags)


def test_an_agent_sees_the_state_what_is_in_the_picture_or_that_with_errors():
    pixels = PixelConfig(size=(16, 16), frame_stack=1, action_repeat=seeing.REPEAT)
    env = make_pixel_env(f"dmc:{seeing.TASK}", pixels)
    env.reset(seed=0)
    eyes = {name: seeing.Seeing(env, eyes, seed=0) for name, eyes in seeing.EYES.items()}
    looks = [
        {name: one.observation(frame)["state"] for name, one in eyes.items()}
        for frame, *_ in (env.step(np.ones(1, np.float32)) for _ in range(60))
    ]
    env.close()
    seen = {name: np.array([look[name] for look in looks]) for name in eyes}
    inside = np.abs(seen["state"][:, 0]) < seeing.EDGE
    assert 5 < inside.sum() < 55, "the cart leaves the picture"
    np.testing.assert_allclose(np.hypot(seen["state"][:, 1], seen["state"][:, 2]), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(seen["visible"][inside], seen["state"][inside])
    np.testing.assert_allclose(seen["visible"][~inside], [[seeing.EDGE, 0.0, 0.0, 0.0, 0.0]] * (~inside).sum())
    np.testing.assert_array_equal(seen["blurred"][~inside], seen["visible"][~inside])
    errors = (seen["blurred"] - seen["visible"])[inside] / seeing.ERRORS
    assert np.all((np.abs(errors) > 0.0) & (np.abs(errors) < 5.0))


def test_the_ruler_of_seeing_is_written_and_run_once(monkeypatch, tmp_path, capsys):
    results = tmp_path / "results"
    monkeypatch.setattr(seeing, "CURVE_EVERY", 130)
    monkeypatch.setattr("sys.argv", ["seeing", "--eyes", "visible", "--frames", "1040", "--results", str(results)])
    seeing.main()
    [record] = json.loads((results / "summary.json").read_text())
    [row] = read(results / record["curve"])
    assert (row["step"], row["frames"]) == ("130", "1040")
    assert 0.0 < float(row["return"]) == record["return"] < 1_000.0
    assert record["edge"] == seeing.EDGE and record["blur"] == 0.0
    assert (results / "curves.png").stat().st_size > 0
    monkeypatch.setattr(seeing, "run", None)
    seeing.main()
    assert capsys.readouterr().out.count("after 1_040 frames") == 2
    with pytest.raises(ValueError, match="unknown eyes \\['closed'\\], expected some of"):
        seeing.Arguments(eyes=("closed",))


def test_frozen_eyes_are_compared_with_an_encoder_from_scratch(run, monkeypatch):
    small = dataclasses.replace(
        reuse.TASKS["pendulum"].scratch,
        log_every=10,
        eval_every=50,
        eval_episodes=1,
        agent=AgentConfig(autoencoder="rae_compact", net_arch=(16,), learning_starts=20, catch_up_updates=2),
    )
    task = reuse.TASKS["pendulum"]._replace(
        scratch=dataclasses.replace(small, pixels=dataclasses.replace(small.pixels, size=(16, 16), action_repeat=20)),
        collect="--env Pendulum-v1 --episodes 3 --max-steps 5 --policy random --size 16 16 --grayscale --workers 1",
        pretrain="--autoencoder rae_compact --latent-dim 4 --batch-size 4 --steps 2",
        goals=(-2_000.0, 0.0),
    )
    monkeypatch.setitem(reuse.TASKS, "pendulum", task)
    flags = ("pendulum", "--seeds", "1", "--steps", "60")
    results = run(reuse, *flags) / "pendulum"
    summary = json.loads((results / "summary.json").read_text())
    assert summary["eyes"].keys() == {"collecting", "pretraining", "held_out_psnr"}
    assert [(record["agent"], record["seed"]) for record in summary["runs"]] == [("scratch", 1), ("frozen", 1)]
    for record, steps in zip(summary["runs"], (60, 120), strict=True):
        rows = read(results / record["curve"])
        assert record["steps"] == steps and record["frames"] == 20 * steps
        assert (rows[-1]["step"], rows[-1]["frames"]) == (str(steps), str(20 * steps))
        assert -2_000.0 < record["return"] < 0.0 and -2_000.0 < record["evaluation"] < 0.0
        ended = [row for row in rows if row["return"] != "nan"]
        assert record["reached"]["0"] is None
        at = {"step": int(ended[4]["step"]), "seconds": float(ended[4]["seconds"])} if len(ended) > 4 else None
        assert record["reached"]["-2000"] == at
    monkeypatch.setattr(reuse, "train_run", None)
    monkeypatch.setattr(reuse, "SAC", None)
    monkeypatch.setattr(reuse.cli, "main", None)
    monkeypatch.setattr(reuse, "git_commit", lambda: "another")
    run(reuse, *flags)
    assert json.loads((results / "summary.json").read_text())["runs"] == summary["runs"]

    env = reuse.see_with(results.parents[1] / "runs/pendulum/eyes/autoencoder", task.scratch, training=True)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(env.action_space.sample())
    env.close()
    assert first.shape == (12,) and not np.array_equal(first, second)
    np.testing.assert_array_equal(second[:8], first[4:])  # the newest latent is the last


def test_the_costs_of_eyes_are_those_of_all_sessions(monkeypatch, tmp_path):
    stopped = iter([True, False, False])

    def work(arguments):
        time.sleep(0.2)
        if next(stopped):
            raise KeyboardInterrupt

    monkeypatch.setattr(reuse.cli, "main", work)
    (tmp_path / "eyes").mkdir()
    losses = "step,validation_total,validation_psnr\n1,0.3,20\n2,,\n3,0.1,25\n4,0.2,30\n"
    (tmp_path / "eyes/metrics.csv").write_text(losses)
    with pytest.raises(KeyboardInterrupt):
        reuse.train_eyes(reuse.TASKS["pendulum"], tmp_path)
    costs = reuse.train_eyes(reuse.TASKS["pendulum"], tmp_path).costs
    assert costs.keys() == {"collecting", "pretraining", "held_out_psnr"}
    assert costs["collecting"] >= 0.4 and costs["pretraining"] >= 0.2
    assert costs["held_out_psnr"] == 25.0  # of the one that is kept
    assert reuse.binned([{"step": 500, "seconds": 1.0, "return": np.nan}]) == []


def test_rate_and_distortion_are_of_episodes_never_trained_on(run, monkeypatch, tmp_path):
    data = tmp_path / "data"
    episodes = str(2 * rate.TEST_EVERY)
    flags = ("--max-steps", "3", "--policy", "random", "--size", "64", "64", "--workers", "1")
    cli.main(["collect", "--env", "Pendulum-v1", "--episodes", episodes, *flags, "--out", str(data)])
    training, test = rate.load(data, "56x64")
    assert (len(training), len(test)) == (14, 2)
    stored = MinariFrames(data, size=(56, 64))
    np.testing.assert_array_equal(test[1], stored.read(15, 0, stored.episode_lengths[15]))
    np.testing.assert_array_equal(rate.spread(test, 2).numpy(), np.stack([test[0][0], test[1][-1]]))

    flags = ("--data", str(data), "--sizes", "56x64", "--nats", "2", "--steps", "2", "--batch-size", "4")
    monkeypatch.setattr(rate, "COMPONENTS_FROM", 40)
    results = run(rate, *flags)
    [record] = json.loads((results / "summary.json").read_text())
    assert (record["size"], record["free_nats"], record["training_frames"]) == ("56x64", 2.0, 56)
    autoencoder = Autoencoder.from_pretrained(tmp_path / "runs/56x64_2/autoencoder")
    images = to_unit(torch.as_tensor(np.concatenate(test)))
    with torch.no_grad():
        latent = autoencoder.encode(images)
        assert record["nats"] == pytest.approx(latent.kl().sum(dim=1).mean().item(), rel=1e-4)
        errors = (autoencoder.decode(latent.mode) - images).square().mean(dim=(1, 2, 3))
        assert record["psnr"] == pytest.approx(psnr(errors.mean()).item())
        assert record["median_psnr"] == pytest.approx(psnr(errors.median()).item())
    assert {path.name for path in results.iterdir()} == {"summary.json", "table.md", "curve.png", "frames_56x64_2.png"}
    (results / "summary.json").unlink()
    run(rate, *flags[:-3], "1", *flags[-2:])  # fewer steps than were made
    assert [record] == json.loads((results / "summary.json").read_text())
    monkeypatch.setattr(rate, "pretrain", None)
    run(rate, *flags)
    with pytest.raises(ValueError, match="expected sizes like 64x64, got '64'"):
        rate.load(data, "64")


def test_coverage_counts_the_frames_off_the_road(monkeypatch, tmp_path, capsys):
    flags = ["--episodes", "1", "--steps", "6", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["coverage", *flags])
    coverage.main()
    record = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["policy"], row["steps"]) for row in record["episodes"]] == [
        ("random", 6),
        ("held", 6),
        ("brownian", 6),
    ]
    assert "| random | 1 |" in capsys.readouterr().out == (tmp_path / "table.md").read_text() + "\n"

    env, *_ = open_player(CollectConfig(env=coverage.ENV, action_repeat=1), "random")
    env.reset(seed=0)
    seen = [coverage.is_off_road(env)]
    for _ in range(150):  # full throttle to the left, from the middle of the road
        env.step(np.array([-1.0, 1.0, 0.0], np.float32))
        seen.append(coverage.is_off_road(env))
    env.close()
    assert not any(seen[5:15]) and any(seen[50:]), "the car drives off"


def test_replay_measures_memory_and_time(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(replay, "in_new_process", lambda measure, *arguments: measure(*arguments))
    monkeypatch.setattr(replay, "CASES", {"images": replay.CASES["images"]})
    flags = "--transitions 500 --n-envs 1 2 --episodes 50 --timed-transitions 200 --rounds 20".split()
    monkeypatch.setattr("sys.argv", ["replay", *flags, "--results", str(tmp_path)])
    replay.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(record["episode"], record["n_envs"]) for record in summary["memory"]] == [(50, 1), (50, 2)]
    for record in summary["memory"]:  # without a new process also memory that was free before
        assert record["bytes"] < 1.3 * 500 * 3 * 84 * 84 + 5_000_000
    assert [(r["what"], r["n_envs"]) for r in summary["microseconds"]][:2] == [("sample", 1), ("sample", 2)]
    assert all(0 < low <= middle <= high for r in summary["microseconds"] for low, middle, high in [r["ratio"]])
    assert len(read(tmp_path / "memory.csv")) == 2 * 55
    assert (tmp_path / "replay.png").stat().st_size > 0
    assert "| 50 | 1 | 0.0" in capsys.readouterr().out


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_streams_of_the_memory_benchmark_are_stacks(n_envs):
    stream = replay.transitions(n_envs, episode=4)
    steps = [next(stream) for _ in range(9)]
    assert [done for *_, done in steps] == [False] * 3 + [True] + [False] * 3 + [True] + [False]
    for (observation, moved, done), (following, *_) in itertools.pairwise(steps):
        assert (observation[:, 3:] == moved[:, :-3]).all() and (observation != moved).any()
        assert (following == moved).all() != done
    assert (steps[4][0][:, :6] == 0).all()


@pytest.mark.usefixtures("bf16")
def test_throughput_compares_updates_memory_and_whole_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "in_new_process", lambda measure, *arguments: measure(*arguments))
    monkeypatch.setattr(throughput, "EDGE", 36)
    monkeypatch.setattr(throughput, "BATCH_SIZE", 4)
    monkeypatch.setattr(throughput, "TRANSITIONS", 20)
    monkeypatch.setattr(throughput, "HIDDEN", 32)
    some = (throughput.UNFUSED, "SACAE fused bf16", "TD3AE paper fp32", "SB3 SAC")
    monkeypatch.setattr(throughput, "SUBJECTS", {name: throughput.SUBJECTS[name] for name in some})
    monkeypatch.setattr(throughput, "GROWING", some[:2])
    monkeypatch.setattr(throughput, "RUNS", {"SACAE fused bf16": throughput.RUNS["SACAE fused bf16"]})
    flags = "--rounds 2 --batches 2 4 --edges 36 48 --sweep-rounds 1 --steps 3".split()
    monkeypatch.setattr("sys.argv", ["throughput", *flags, "--results", str(tmp_path)])
    throughput.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["seconds"]) == set(summary["bytes"]) == set(some)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in summary["seconds"].values())
    assert [list(sizes) for sizes in summary["growth"].values()] == [["2", "4"], ["36", "48"]]
    parts = summary["milliseconds_a_step"]["SACAE fused bf16"]
    assert tuple(parts) == throughput.PARTS and all(value > 0 for value in parts.values())
    assert {"processor", "cores", "threads", "versions", "command"} <= summary.keys()
    printed = capsys.readouterr().out
    assert f"| {throughput.UNFUSED} |" in printed and "**1.00** (1.00–1.00)" in printed
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_a_part_that_calls_another_is_not_counted_twice():
    clock, now = throughput.Clock(), [0.0]

    def inner():
        now[0] += 2.0

    def outer():
        now[0] += 1.0
        timed()
        now[0] += 4.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput.time, "perf_counter", lambda: now[0])
        clock._since = 0.0
        timed = clock.part("inner", inner)
        clock.part("outer", outer)()
        now[0] += 8.0  # of no part
        clock.part("inner", inner)()
    assert clock.seconds == {"outer": 5.0, "inner": 4.0}


@pytest.mark.usefixtures("bf16")
def test_roofline_counts_and_times_every_part(monkeypatch, tmp_path):
    for name, value in (("EDGE", 36), ("BATCH_SIZE", 4), ("TRANSITIONS", 20)):
        monkeypatch.setattr(roofline, name, value)
        monkeypatch.setattr(throughput, name, value)
    monkeypatch.setattr("sys.argv", ["roofline", "--rounds", "1", "--results", str(tmp_path)])
    roofline.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    paper, fused = (summary["modes"][mode] for mode in ("paper fp32", "fused fp32"))
    # by hand: convolutions of 36×36×9 to 17, 15, 13 and 11 pixels a side, two heads, the actor, two Q networks
    forward = 2 * 4 * 32 * 9 * (17**2 * 9 + (15**2 + 13**2 + 11**2) * 32) / 1e9
    actor, critics = (50 + 1024 + 2 * 6) * 1024, 2 * (56 + 1024 + 1) * 1024
    others = 2 * 4 * (2 * 11**2 * 32 * 50 + actor + critics) / 1e9
    assert fused["values of the next observations"]["gflop"] == pytest.approx(2 * forward + others, rel=1e-6)
    # a second forward pass and two backward passes but for the pixels' gradient, and as much for the decoder
    difference = sum(part["gflop"] for part in paper.values()) - sum(part["gflop"] for part in fused.values())
    pixels = 2 * 4 * 32 * 9 * 17**2 * 9 / 1e9
    assert difference == pytest.approx(3 * forward - pixels, rel=0.1)
    assert all(part["seconds"] > 0 for parts in summary["modes"].values() for part in parts.values())
    assert "| fused bf16 | **all** |" in (tmp_path / "table.md").read_text()


def test_learning_reports_its_modes_and_runs_none_twice(monkeypatch, tmp_path, capsys):
    flags = (
        "--env Pendulum-v1 --steps 60 --size 16 16 --grayscale --action-repeat 50 --learning-starts 50 --batch-size 4 "
        "--autoencoder rae_compact --net-arch 8 --catch-up-updates 0 --log-every 4"
    )
    monkeypatch.setitem(learning.TASKS, "pendulum", learning.Task(flags, "a test", -1e9))

    def run_here(command, check):
        assert command[:3] == [sys.executable, "-m", "rl_ae.cli"] and check
        cli.main([str(argument) for argument in command[3:]])

    monkeypatch.setattr(learning, "subprocess", SimpleNamespace(run=run_here))
    arguments = ["learning", "pendulum", "--seeds", "0", "--modes", "paper_fp32", "fused_fp32"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", [*arguments, *folders])
    learning.main()
    results = tmp_path / "results" / "pendulum"
    records = json.loads((results / "summary.json").read_text())["runs"]
    assert [(record["mode"], record["steps"], record["frames"]) for record in records] == [
        ("paper_fp32", 60, 3000),
        ("fused_fp32", 60, 3000),
    ]
    assert all(record["solved_at_step"] == 20 for record in records)  # the fifth episode of four steps
    assert records[1]["command"].endswith("--update fused --precision fp32 --seed 0 && rl-ae evaluate RUN")
    assert (results / "curves.png").stat().st_size > 0

    def run(*arguments, **kwargs):
        raise AssertionError("run again")

    monkeypatch.setattr(learning.subprocess, "run", run)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*arguments[:-1], *folders, "--report"])
    learning.main()
    assert "| fused_fp32 | all |" in capsys.readouterr().out  # of the earlier call
    with pytest.raises(SystemExit, match="no finished run"):
        other = ["--runs", str(tmp_path / "none"), "--results", str(tmp_path / "none")]
        monkeypatch.setattr("sys.argv", [*arguments, *other, "--report"])
        learning.main()


def test_streaming_measures_memory_and_pairs_and_deletes_its_frames(monkeypatch, tmp_path, capsys):
    written, write_json = [], streaming.write_json
    monkeypatch.setattr(streaming, "write_json", lambda *file: (written.append(1), write_json(*file)))
    monkeypatch.setattr(streaming, "in_new_process", lambda measure, *arguments: measure(*arguments))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "summary.json"
    streaming.main(gigabytes=0.03, batch_size=32, buffer_mb=1.0, steps=2, pairs=2, scratch=scratch, out=out)
    record = json.loads(out.read_text())
    assert len(written) == 3 and not list(scratch.iterdir())
    assert record["memory"]["data_gb"] == pytest.approx(2 * 1000 * 3 * 64 * 64 / 1e9)
    assert record["memory"]["read_gb"] == pytest.approx(62 * 32 * 3 * 64 * 64 / 1e9)  # all but the last, short batch
    assert record["memory"]["peak_gb"] >= record["memory"]["before_gb"] > 0
    pairs = record["throughput"]["pairs"]
    assert [pair["updates"] for pair in pairs] == [2, 2]  # 64 of the 81 frames that a buffer holds, whole runs
    assert record["throughput"]["ratios"] == [pair["memory"] / pair["disk"] for pair in pairs]
    assert "of that from memory" in capsys.readouterr().out


def test_a_streaming_that_is_ended_leaves_nothing_behind(tmp_path):
    started = time.monotonic()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended, streaming.cleaned_up(), tempfile.TemporaryDirectory(dir=tmp_path):
        timer.start()
        in_new_process(time.sleep, 600)
    assert ended.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    assert time.monotonic() - started < 300
