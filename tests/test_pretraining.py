"""Pretraining: what it learns, how it goes on, how it is divided, and what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_ae import (
    CONFIGS,
    Autoencoder,
    BetaBConfig,
    BTCVAEConfig,
    ConvConfig,
    FactorConfig,
    HierarchicalConfig,
    SQVAEConfig,
    VAEConfig,
    VQVAEConfig,
    cli,
    create_autoencoder,
    create_learner,
    generators,
    learner,
    pretraining,
)
from rl_ae.autoencoders.diffusion import Diffusion
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.locking import LOCK_FILE, locked
from rl_ae.noise import PartOfNoise
from rl_ae.pixels import dequantize, to_unit
from rl_ae.pretraining import ArrayFrames, PretrainConfig, pretrain
from rl_ae.sb3 import SACAE

CONV = ConvConfig(filters=(8, 8), kernel_size=4, strides=(2, 2), padding=1)
TINY = VAEConfig(latent_dim=8, conv=CONV, hidden=(32,), target_bits=5, likelihood="squared_error")
#: A buffer of 80 of the 216 frames to train on: windows change within a pass.
CONFIG = PretrainConfig(
    steps=24,
    batch_size=16,
    validate_every=8,
    log_every=5,
    checkpoint_every=10,
    buffer_mb=0.064,
    accelerator="cpu",
    held_out=0.25,
    learning_rate=None,
)


def swings(episodes=8, length=36):
    """Real frames of a pendulum that is pushed at random."""
    env = make_pixel_env("Pendulum-v1", PixelConfig(size=(20, 20), frame_stack=2, grayscale=True))
    arrays = []
    for seed in range(episodes):
        frames = [env.reset(seed=seed)[0]]
        env.action_space.seed(seed)
        frames += [env.step(env.action_space.sample())[0] for _ in range(length - 1)]
        arrays.append(np.stack(frames))
    env.close()
    return arrays


@pytest.fixture(scope="module")
def episodes():
    return swings()


@pytest.fixture(scope="module")
def source(episodes):
    return ArrayFrames(episodes)


def train(source, folder, config=CONFIG, autoencoder=TINY, **kwargs):
    return pretrain(source, config, folder, autoencoder=autoencoder, progress_bar=False, **kwargs)


def state(files):
    return torch.load(files.checkpoint, weights_only=True)


def equal(one, other):
    """Whether nested states are the same, bit for bit; times aside."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# ---------------------------------------------------------------------- what it learns and leaves


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    config = dataclasses.replace(CONFIG, steps=1000, validate_every=500, log_every=50, seed=1)
    rates = {"encoder_learning_rate": 5e-3, "decoder_learning_rate": 5e-3}
    # centred on the bright background, without which the pendulum is not seen for long
    fast = dataclasses.replace(TINY, **rates, beta=1e-2, input_centre=1.0)
    return train(source, tmp_path_factory.mktemp("pretrain") / "run", config, fast)


def test_the_loss_falls_on_episodes_that_were_held_out(finished, episodes):
    rows = {row["step"]: row for row in finished.read_metrics()}
    assert list(rows) == list(range(50, 1001, 50))
    assert rows[1000]["validation_total"] < 0.9 * rows[500]["validation_total"]
    assert rows[1000]["train_reconstruction"] < 0.5 * rows[50]["train_reconstruction"]
    held_out = pretraining.hold_out(8, 0.25, int(pretraining.random(1, 0).integers(2**31)))[1]
    images = to_unit(torch.from_numpy(np.concatenate([episodes[episode] for episode in held_out])))
    autoencoder = Autoencoder.from_pretrained(finished.autoencoder)
    error = (autoencoder.reconstruct(images[:64]) - images[:64]).square().mean().item()  # four whole batches of 72
    blind = (images - images.mean(dim=0)).square().mean().item()
    assert error < 0.8 * blind
    assert rows[1000]["validation_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_it_leaves_metrics_pictures_and_logs(finished):
    names = {path.name for path in finished.folder.iterdir()}
    pictures = {"reconstructions.png", "traversals.png"}
    assert names == {"config.json", "checkpoint.pt", "metrics.csv", "autoencoder", "logs", LOCK_FILE, *pictures}
    assert all((finished.folder / name).read_bytes()[1:4] == b"PNG" for name in pictures)
    logged = EventAccumulator(str(finished.logs)).Reload()
    last = logged.Scalars("validation/psnr")[-1]
    assert (last.step, last.value) == (1000, pytest.approx(finished.read_metrics()[-1]["validation_psnr"]))
    assert [scalar.step for scalar in logged.Scalars("train/kl")] == list(range(50, 1001, 50))
    described = json.loads(finished.config.read_text())
    assert described["data"]["episodes"] == 8 and described["data"]["observation_shape"] == [2, 20, 20]
    assert described["autoencoder"]["latent_dim"] == 8 and described["sessions"][0]["machine"]["cores"] >= 1


def test_an_agent_sees_through_what_was_pretrained(finished):
    env = make_pixel_env("Pendulum-v1", PixelConfig(size=(20, 20), frame_stack=2, grayscale=True))
    agent = SACAE(
        "CnnPolicy",
        env,
        autoencoder=str(finished.autoencoder),
        freeze_encoder=True,
        learning_starts=6,
        batch_size=4,
        buffer_size=50,
        policy_kwargs={"net_arch": [8]},
    )
    pretrained = Autoencoder.from_pretrained(finished.autoencoder).encoder.state_dict()
    agent.learn(12)
    encoder = agent.policy.autoencoder.encoder.state_dict()
    assert encoder.keys() == pretrained.keys()
    assert all(torch.equal(encoder[name], tensor) for name, tensor in pretrained.items())
    env.close()


def test_random_numbers_outside_are_left_alone(source, tmp_path):
    torch.manual_seed(7)
    before = generators.capture()
    train(source, tmp_path / "run", dataclasses.replace(CONFIG, steps=2))
    assert equal(generators.capture(), before)


def test_a_saved_autoencoder_is_trained_on(finished, source, tmp_path):
    config = dataclasses.replace(CONFIG, steps=1, autoencoder=str(finished.autoencoder))
    [row] = train(source, tmp_path / "run", config, autoencoder=None).read_metrics()
    best = min(row.get("validation_total", np.inf) for row in finished.read_metrics())
    assert row["validation_total"] == pytest.approx(best, rel=0.1)
    with pytest.raises(ValueError, match=r"autoencoder' has no latent_dim to set"):
        dataclasses.replace(config, latent_dim=3).resolve(source.observation_shape)


# ---------------------------------------------------------------------- how it goes on


class KilledError(Exception):
    """What a process is ended by."""


def kill_after(steps, monkeypatch):
    update = pretraining._Run._update

    def dying(run):
        if run.learner.step == steps:
            raise KilledError
        return update(run)

    monkeypatch.setattr(pretraining._Run, "_update", dying)


@pytest.mark.parametrize(
    ("autoencoder", "changes"),
    [
        (TINY, {"accumulate": 2}),
        (TINY, {"shards": 2, "patience": 5}),
        (FactorConfig(latent_dim=4, conv=CONV, hidden=(16,), discriminator_hidden=8, warmup_steps=20), {}),
        (VQVAEConfig(conv=CONV, codes=16, code_dim=4, dead_code_threshold=1.0), {"held_out": 0.0}),
    ],
    ids=["accumulation", "shards", "adversary", "codebook"],
)
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(autoencoder, changes, source, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, **changes)
    straight = train(source, tmp_path / "straight", config, autoencoder)
    with monkeypatch.context() as patch:
        kill_after(17, patch)  # after a checkpoint at 10, of which 7 steps are lost
        with pytest.raises(KilledError):
            train(source, tmp_path / "killed", config, autoencoder)
    torch.manual_seed(99)
    resumed = train(source, tmp_path / "killed", config, autoencoder, resume=True)
    assert equal(state(straight), state(resumed))
    assert state(resumed)["learner"]["step"] == 24 and state(resumed)["position"]["epoch"] >= 1
    without_time = [[{**row, "seconds": 0} for row in files.read_metrics()] for files in (straight, resumed)]
    assert without_time[0] == without_time[1]
    assert [s["step"] for s in json.loads(resumed.config.read_text())["sessions"]] == [0, 10]
    kept = [Autoencoder.from_pretrained(files.autoencoder).state_dict() for files in (straight, resumed)]
    assert equal(*map(dict, kept))


def signal_at(step, number, monkeypatch):
    update = pretraining._Run._update

    def signalled(run):
        if run.learner.step == step:
            os.kill(os.getpid(), number)
        return update(run)

    monkeypatch.setattr(pretraining._Run, "_update", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_keeps_its_last_step(number, source, tmp_path, monkeypatch):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        signal_at(12, number, patch)
        with pytest.raises(KeyboardInterrupt, match=r"stopped at step 13 of 24, where --resume continues"):
            train(source, tmp_path / "run")
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    stopped = pretraining.Pretraining(tmp_path / "run")
    assert state(stopped)["learner"]["step"] == 13  # no checkpoint is due there
    assert stopped.read_metrics()[-1]["step"] == 10 and not (stopped.folder / "traversals.png").exists()
    resumed = train(source, tmp_path / "run", resume=True)
    assert equal(state(resumed), state(train(source, tmp_path / "straight")))


def test_one_process_at_a_time_trains_in_a_folder(source, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2)
    with locked(tmp_path / "run", "trains"):
        for resume in (False, True):
            with pytest.raises(ValueError, match=r"another process trains in .*run: wait for it, or end it"):
                train(source, tmp_path / "run", config, resume=resume)
    assert not (tmp_path / "run").exists()
    train(source, tmp_path / "run", config)


def test_a_finished_run_goes_on_if_it_is_given_more_steps(source, tmp_path):
    short = dataclasses.replace(CONFIG, steps=10, validate_every=5)
    train(source, tmp_path / "run", short)
    longer = train(source, tmp_path / "run", dataclasses.replace(short, steps=20), resume=True)
    straight = train(source, tmp_path / "straight", dataclasses.replace(short, steps=20))
    assert equal(state(longer)["learner"], state(straight)["learner"])


def test_a_step_is_logged_once_however_often_the_run_was_killed(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(17, patch)
        with pytest.raises(KilledError):
            train(source, tmp_path / "run")
    resumed = train(source, tmp_path / "run", resume=True)
    logged = EventAccumulator(str(resumed.logs)).Reload()
    assert [scalar.step for scalar in logged.Scalars("train/kl")] == [5, 10, 15, 20, 24]
    assert [scalar.step for scalar in logged.Scalars("validation/kl")] == [8, 16, 24]


def test_another_run_is_not_continued(source, episodes, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2)
    folder = tmp_path / "run"
    train(source, folder, config)
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="exists: continue it with resume"):
        train(source, folder, config)
    changed = dataclasses.replace(config, batch_size=8, seed=1)
    with pytest.raises(ValueError, match=r"\(config.batch_size: expected 16, got 8; config.seed: expected 0, got 1\)"):
        train(source, folder, changed, resume=True)
    with pytest.raises(ValueError, match=r"\(autoencoder.beta: expected 1.0, got 2.0\)"):
        train(source, folder, config, dataclasses.replace(TINY, beta=2.0), resume=True)
    with pytest.raises(ValueError, match=r"data.observations: expected 288, got 252"):
        train(ArrayFrames(episodes[:7]), folder, config, resume=True)
    assert (folder / "checkpoint.pt").read_bytes() == before
    (folder / "checkpoint.pt").write_bytes(before[:1000])
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged"):
        train(source, folder, config, resume=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a pretraining"):
        train(source, tmp_path / "foreign", config)


# ---------------------------------------------------------------------- how it is divided

#: A small one of each kind, by the names that configs have.
SMALL = {
    "sqvae": {"codes": 8, "code_dim": 4, "conv": CONV},
    "vqvae": {"codes": 8, "code_dim": 4, "conv": CONV},
    "fsq": {"conv": CONV},
    "hierarchical": {"base_channels": 8, "groups": (1, 1), "latent_channels": 2},
    "diffusion": {"density_filters": 8, "condition_maps": 4},
    "flow": {"density_filters": 8, "condition_maps": 4, "couplings": 2},
    "pyramid": {"base_channels": 4, "latent_dim": 8},
    "factor": {"discriminator_hidden": 8},
}
NAMES = sorted(CONFIGS)


def gradient(learner, images, parts):
    """Of a batch's loss, computed in parts, each a context of its own."""
    learner.autoencoder.zero_grad()
    learner.loss.zero_grad()
    rows = len(images) // parts
    for part, observations in enumerate(images.split(rows)):
        torch.manual_seed(5)
        with PartOfNoise(part * rows, rows, len(images)):
            (learner.losses(observations, n_data=100).total / parts).backward()
    return torch.cat([p.grad.flatten() for p in learner.autoencoder.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_divided_says_so(name, monkeypatch):
    """A loss is of the whole batch if and only if it declares it; of the others the parts have the same gradient."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIGS[name], observation_shape=(3, 16, 20), **SMALL.get(name, {}))
    subject = create_learner(config)
    images = torch.rand(12, 3, 16, 20).mul(255).round() / 255
    # its levels are spread evenly over a batch to lower the loss's variance: here each image has its own
    monkeypatch.setattr(
        Diffusion, "draw_levels", lambda self, count, device, generator: (torch.rand(count) * 1000).long()
    )
    whole, divided = gradient(subject, images, 1), gradient(subject, images, 3)
    difference = ((whole - divided).norm() / whole.norm()).item()
    # what depends on the batch follows the gradient step, or shows where the capacity is between the parts' KLs
    if name in ("factor", "vqvae", "beta_b"):
        assert subject.whole_batch
    else:
        assert (difference < 1e-5) == (not subject.whole_batch), difference


def test_a_part_draws_its_rows_of_the_whole_noise():
    latent = torch.zeros(6, 5)

    def draws(rows):
        torch.manual_seed(1)
        filled = torch.empty(rows, 2).normal_()
        return (
            torch.randn(latent[:rows].shape),
            torch.rand(rows, 1, 1),
            filled,
            dequantize(torch.zeros(rows, 3, 3, 3), 5),
            torch.rand(()),
        )

    whole = draws(6)
    for start, rows in ((0, 2), (2, 3), (5, 1)):
        with PartOfNoise(start, rows, 6):
            parts = draws(rows)
        for part, noise in zip(parts[:-1], whole[:-1], strict=True):
            assert torch.equal(part, noise[start : start + rows])
        assert torch.equal(parts[-1], whole[-1])
    with pytest.raises(ValueError, match="rows 4 to 7 are not a part of a batch of 6"):
        PartOfNoise(4, 3, 6)


#: Trains what this file trains, in as many processes as it is told; the last ends itself at a step, if it is told one.
SCRIPT = """
import os
import signal
import sys
import numpy as np
from rl_ae import ConvConfig, VAEConfig
from rl_ae import pretraining
from rl_ae.pretraining import ArrayFrames, PretrainConfig, pretrain

update = pretraining._Run._update


def signalled(run):
    if run.learner.step == int(sys.argv[4]) and run.fabric.global_rank == run.fabric.world_size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(run)


pretraining._Run._update = signalled
episodes = np.load(sys.argv[1])
conv = ConvConfig(filters=(8, 8), kernel_size=4, strides=(2, 2), padding=1)
config = PretrainConfig(
    steps=6, batch_size=16, accumulate=2, validate_every=3, buffer_mb=0.064, accelerator="cpu", held_out=2.0,
    checkpoint_every=6, shards=2, devices=int(sys.argv[3]),
)
autoencoder = VAEConfig(latent_dim=8, conv=conv, hidden=(32,), target_bits=5, likelihood="squared_error")
pretrain(ArrayFrames(list(episodes)), config, sys.argv[2], autoencoder=autoencoder, progress_bar=False, resume=True)
"""


def train_in_two(folder, episodes, name, signal_at=-1):
    """The finished process, and what it printed."""
    np.save(folder / "episodes.npy", np.stack(episodes))
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "episodes.npy", name, "2", str(signal_at)]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=600)


def test_a_signal_to_one_process_stops_all_after_the_same_step(episodes, tmp_path):
    stopped = train_in_two(tmp_path, episodes, "run", signal_at=3)
    assert stopped.returncode != 0 and stopped.stderr.count("stopped at step 4 of 6") >= 1, stopped.stderr
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["learner"]["step"] == 4
    resumed = train_in_two(tmp_path, episodes, "run")
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["learner"]["step"] == 6


def test_two_processes_learn_what_one_does_with_the_doubled_batch(episodes, tmp_path):
    done = train_in_two(tmp_path, episodes, "two")
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    config = PretrainConfig(
        steps=6,
        batch_size=16,
        validate_every=3,
        buffer_mb=0.064,
        accelerator="cpu",
        held_out=2.0,
        shards=2,
        checkpoint_every=1,
    )
    one = state(train(ArrayFrames(episodes), tmp_path / "one", config))
    two = torch.load(tmp_path / "two/checkpoint.pt", weights_only=True)
    assert one["position"] == two["position"] and one["learner"]["step"] == two["learner"]["step"] == 6
    for optimizer in ("encoder_optimizer", "decoder_optimizer"):  # the moments are means of gradients
        moments = [
            torch.cat([moment["exp_avg"].flatten() for moment in trained["learner"][optimizer]["state"].values()])
            for trained in (one, two)
        ]
        assert (moments[0] - moments[1]).norm() < 1e-6 * moments[0].norm()
    initial = create_weights()
    for name, weight in one["learner"]["autoencoder"].items():
        assert (weight - two["learner"]["autoencoder"][name]).abs().max() < 1e-5, name
        assert not torch.equal(weight, initial[name])
    assert two["best"] == pytest.approx(one["best"], rel=1e-5)


def create_weights():
    torch.manual_seed(0)
    return create_autoencoder(TINY, (2, 20, 20)).state_dict()


@pytest.mark.parametrize("parts", [{"accumulate": 2}, {"devices": 2}], ids=["accumulation", "processes"])
@pytest.mark.parametrize(
    ("autoencoder", "reason"),
    [
        (BetaBConfig(conv=CONV), "BetaBConfig .* the capacity is compared with the batch's mean KL"),
        (BTCVAEConfig(conv=CONV), "BTCVAEConfig .* the aggregate posterior is estimated from the batch"),
        (FactorConfig(conv=CONV), "FactorConfig .* the discriminator learns from latents permuted over the batch"),
        (VQVAEConfig(conv=CONV), "VQVAEConfig .* the codebook follows the batch"),
        (SQVAEConfig(conv=CONV), "SQVAEConfig .* an optimal Gaussian's variance is the batch's error"),
        (
            HierarchicalConfig(likelihood="squared_error"),
            "HierarchicalConfig .* during the warm-up, groups are balanced",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_losses_of_the_whole_batch_are_not_divided(autoencoder, reason, parts, source, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, **parts)
    # one process is enough to refuse: none is started
    monkeypatch.setattr(pretraining, "_fabric", lambda config: make_single_fabric())
    with pytest.raises(ValueError, match=f"{reason}.*: use devices=1, nodes=1 and accumulate=1"):
        train(source, tmp_path / "run", config, autoencoder)
    assert not (tmp_path / "run").exists()


def make_single_fabric():
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


# ---------------------------------------------------------------------- when it ends


def test_it_stops_early_and_keeps_the_best(source, tmp_path):
    # the learning rate is so large that it gets worse at once
    worse = dataclasses.replace(TINY, encoder_learning_rate=0.3, decoder_learning_rate=0.3)
    config = dataclasses.replace(CONFIG, steps=200, validate_every=2, patience=3, log_every=1)
    files = train(source, tmp_path / "run", config, worse)
    losses = {row["step"]: row["validation_total"] for row in files.read_metrics() if "validation_total" in row}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2 * 3 < 200
    assert state(files)["best"] == losses[best] and state(files)["stale"] == 3
    again = train(source, tmp_path / "run", config, worse, resume=True)
    assert state(again)["learner"]["step"] == best + 6
    last = state(files)["learner"]["autoencoder"]
    kept = Autoencoder.from_pretrained(files.autoencoder).state_dict()
    assert not any(torch.equal(kept[name], last[name]) for name in kept)


def test_validation_losses_are_compared_when_schedules_have_ended(source, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2, validate_every=1, log_every=1)
    rows = train(source, tmp_path / "run", config, dataclasses.replace(TINY, warmup_steps=1000)).read_metrics()
    for row in rows:
        total = row["validation_reconstruction"] + row["validation_kl"]
        assert row["validation_total"] == pytest.approx(total / (2 * 20 * 20), rel=1e-5)
    assert rows[0]["train_total"] == pytest.approx(rows[0]["train_reconstruction"] / 800, rel=1e-5)


def test_what_is_not_finite_is_named_after_the_last_good_step(source, tmp_path, monkeypatch):
    losses = learner.RepresentationLearner.losses

    def poisoned(self, *args, **kwargs):
        evaluated = losses(self, *args, **kwargs)
        if self.step == 7:
            evaluated.terms["kl"] = evaluated.terms["kl"] * float("nan")
        return evaluated

    with monkeypatch.context() as patch:
        patch.setattr(learner.RepresentationLearner, "losses", poisoned)
        with pytest.raises(FloatingPointError, match=r"kl is nan after 7 steps; .*checkpoint.pt is of the last good"):
            train(source, tmp_path / "run")
    assert state(pretraining.Pretraining(tmp_path / "run"))["learner"]["step"] == 7
    resumed = train(source, tmp_path / "run", resume=True)
    assert equal(state(resumed), state(train(source, tmp_path / "straight")))


def test_a_lost_process_is_told_from_other_errors(source, tmp_path, monkeypatch):
    errors = [RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), RuntimeError("shapes")]

    def fail(run):
        raise errors.pop(0)

    monkeypatch.setattr(pretraining._Run, "_update", fail)
    with pytest.raises(ChildProcessError, match=r"another process .* has died \(.*by peer\): --resume continues"):
        train(source, tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        train(source, tmp_path / "run", resume=True)


def test_weights_that_are_not_finite_are_not_saved(source, tmp_path):
    # the first step's loss is finite, its weights are not
    exploding = dataclasses.replace(TINY, encoder_learning_rate=1e39, decoder_learning_rate=1e39)
    with pytest.raises(FloatingPointError, match=r"is (nan|inf) after 1 steps"):
        train(source, tmp_path / "run", dataclasses.replace(CONFIG, checkpoint_every=1), exploding)
    assert not (tmp_path / "run/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be ≥ 1, got 0"),
        ({"batch_size": 10, "accumulate": 4}, "batch_size must be divisible"),
        ({"devices": 2, "shards": 3}, "shards must be a multiple of the 2 processes, got 3"),
        ({"patience": 2, "held_out": 0.0}, "patience counts validations"),
        ({"held_out": -0.1}, "held_out must be ≥ 0"),
        ({"precision": "fp8"}, "precision must be one of"),
    ],
)
def test_configs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)


def test_frames_that_cannot_be_drawn_are_refused_before_they_are_trained_on(source, tmp_path):
    config = dataclasses.replace(CONFIG, frame_channels=3)
    with pytest.raises(ValueError, match=r"frame_channels must be 1 or 3 and divide the image's 2, got 3"):
        train(source, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_numbers_go_to_the_autoencoder():
    config = PretrainConfig(autoencoder="beta_h", latent_dim=5, beta=2.0, learning_rate=1e-4)
    resolved = config.resolve((3, 32, 32))
    assert (resolved.latent_dim, resolved.beta, resolved.encoder_learning_rate) == (5, 2.0, 1e-4)
    assert resolved.decoder_learning_rate == 1e-4
    resolved = PretrainConfig(autoencoder="wm_vae", free_nats=8.0, input_centre=1.0).resolve((3, 64, 64))
    assert (resolved.free_nats, resolved.input_centre) == (8.0, 1.0)
    assert PretrainConfig(autoencoder="rae", output_centre=1.0).resolve((3, 32, 32)).output_centre == 1.0
    with pytest.raises(ValueError, match="the autoencoder 'rae' has no beta to set"):
        PretrainConfig(autoencoder="rae", beta=2.0).resolve((3, 32, 32))


def test_the_extra_is_named_where_it_is_missing(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(ImportError, match=r'pip install "rl-ae\[distributed\]"'):
        train(source, tmp_path / "run")
    assert not Path(tmp_path / "run").exists()


# ---------------------------------------------------------------------- the command


@pytest.mark.filterwarnings("ignore:.* is set to None:UserWarning")  # Minari would know more of the author
@pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning")
def test_the_command_trains_on_a_data_set_of_minari(episodes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    frames = [np.repeat(episode[:, :1], 3, axis=1).transpose(0, 2, 3, 1) for episode in episodes[:4]]
    minari.create_dataset_from_buffers(
        "pendulum/pixels-v0",
        buffer=[
            EpisodeBuffer(
                id=number,
                observations=images,
                actions=np.zeros((35, 1), np.float32),
                rewards=np.zeros(35),
                terminations=np.zeros(35, bool),
                truncations=np.arange(35) == 34,
            )
            for number, images in enumerate(frames)
        ],
        observation_space=spaces.Box(0, 255, (20, 20, 3), np.uint8),
        action_space=spaces.Box(-1.0, 1.0, (1,)),
    )
    command = "pretrain --data pendulum/pixels-v0 --autoencoder vae --latent-dim 4 --steps 4 --batch-size 8".split()
    command += "--held-out 1 --validate-every 2 --frame-stack 3 --grayscale --accelerator cpu --out".split()
    command.append(str(tmp_path / "run"))
    cli.main(command)
    shown = capsys.readouterr().out
    assert "held-out episodes, step 4: reconstruction" in shown and "next: rl-ae train" in shown
    autoencoder = Autoencoder.from_pretrained(tmp_path / "run/autoencoder")
    assert (autoencoder.observation_shape, autoencoder.latent_dim) == ((3, 20, 20), 4)
    settings = json.loads((tmp_path / "run/config.json").read_text())
    assert settings["config"]["frame_channels"] == 1 and settings["data"]["observations"] == 4 * 36
    with pytest.raises(SystemExit, match=r"rl-ae: .* exists: continue it with resume"):
        cli.main(command)
