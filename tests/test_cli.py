"""The command line on real environments; in processes of its own where one is killed, stopped or followed."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DotEnv, in_clean_process
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_ae import Autoencoder, ConvConfig, SQVAEConfig, VAEConfig, cli, create_autoencoder
from rl_ae.analysis import plot_interpolation, plot_reconstructions, plot_samples, plot_traversals
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.pixels import to_unit
from rl_ae.sb3 import SACAE
from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.checkpoint import load_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, RandomPolicy, play_episode
from rl_ae.sb3.export import OnnxPolicy
from rl_ae.sb3.run_config import PENDULUM, PRESETS, AgentConfig, RunConfig
from rl_ae.sb3.runs import Run, train_run

SMALL = (
    "--size 24 24 --grayscale --learning-starts 20 --batch-size 8 --autoencoder rae_compact "
    "--net-arch 16 --latent-dim 8 --buffer-size 500 --checkpoint-every 10 --eval-every 30 --eval-episodes 1 "
    "--action-repeat 4 --log-every 20"
).split()
TRAIN = ["train", "--env", "Pendulum-v1", *SMALL]


def run_process(*arguments, cwd):
    command = [sys.executable, "-m", "rl_ae.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, env=environment).stdout


@contextlib.contextmanager
def started(*arguments):
    """A command in a process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "rl_ae.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def run_cli(capsys):
    """What a command prints, in this process."""

    def run(*arguments):
        capsys.readouterr()
        cli.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    in_clean_process(cli.main, [*TRAIN, "--steps", "110", "--run", str(folder), "--seed", "3"])
    return folder


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()} - {"evaluation.json", "evaluation.png", "evaluation.mp4"}
    pictures = {"curve.png", "reconstructions.png"}
    assert names == {"config.json", "checkpoint", "curve.csv", *pictures, "logs", "progress.json", ".lock"}
    config = json.loads((finished / "config.json").read_text())
    [session] = config["sessions"]
    assert config["seed"] == 3 and session["versions"].keys() >= {"torch", "stable-baselines3", "rl-ae", "python"}
    agent = config["resolved"]["agent"]
    assert (agent["tau"], agent["net_arch"], agent["train_freq"]) == (0.01, [16], [1, "step"])  # with defaults
    assert (agent["autoencoder"]["latent_dim"], agent["autoencoder"]["observation_shape"]) == (8, [3, 24, 24])
    assert config["resolved"]["device"] == "cpu" and config["config"]["device"] == "auto"


def test_the_curve_has_a_row_every_so_many_steps(finished):
    rows = read_curve(finished / "curve.csv")
    assert [row["step"] for row in rows] == [20, 40, 60, 80, 100, 110]
    assert [row["frames"] for row in rows] == [80, 160, 240, 320, 400, 440]
    assert [row["episodes"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [np.isfinite(row["return"]) for row in rows] == [False, False, True, False, True, False]
    assert all(-2000 < row["return"] < 0 for row in (rows[2], rows[4]))
    assert [np.isfinite(row["reconstruction"]) for row in rows] == [False] + 5 * [True]
    evaluated = [row["evaluation"] for row in rows if np.isfinite(row["evaluation"])]
    assert len(evaluated) == 3 and all(-2000 < value < 0 for value in evaluated)


def test_tensorboard_has_scalars_and_reconstructions(finished):
    [folder] = {path.parent for path in finished.glob("logs/events*")}
    events = EventAccumulator(str(folder)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/critic_loss",
        "train/reconstruction",
        "rollout/ep_rew_mean",
        "time/fps",
        "eval/mean_reward",
    } <= scalars
    assert events.Tags()["images"] == ["reconstructions"]
    assert -2000 < events.Scalars("rollout/ep_rew_mean")[0].value < -50


def test_a_finished_run_is_evaluated(finished, run_cli):
    printed = run_process("evaluate", finished, "--episodes", 2, cwd=finished)
    assert "random policy" in printed and "trained policy" in printed and "dB PSNR" in printed
    record = json.loads((finished / "evaluation.json").read_text())
    assert len(record["returns"]) == 2
    assert record["mean_return"] == pytest.approx(np.mean(record["returns"]))
    assert record["step"] == 110 and record["psnr"] > 0
    assert (finished / "evaluation.mp4").exists() and (finished / "evaluation.png").exists()
    assert run_cli("evaluate", finished, "--episodes", 2) == printed


def test_an_existing_run_is_not_overwritten(finished):
    before = (finished / "checkpoint/state.json").read_text()
    with pytest.raises(SystemExit, match="exists: continue it with --resume"):
        cli.main([*TRAIN, "--steps", "110", "--run", str(finished), "--seed", "3"])
    assert (finished / "checkpoint/state.json").read_text() == before


def test_a_run_resumed_with_other_settings_is_refused(finished):
    with pytest.raises(SystemExit, match=r"another configuration \(seed: expected 3, got 4\)"):
        cli.main(["train", "--run", str(finished), "--resume", "--seed", "4"])
    with pytest.raises(SystemExit, match=r"\(agent.tau: expected None, got 0.5\)"):
        cli.main(["train", "--run", str(finished), "--resume", "--tau", "0.5"])


def test_a_lost_picture_is_drawn_again(finished):
    (finished / "curve.png").unlink()
    cli.main(["train", "--run", str(finished), "--resume"])
    assert (finished / "curve.png").exists()
    assert [session["step"] for session in json.loads((finished / "config.json").read_text())["sessions"]] == [0]


def test_a_killed_run_goes_on(tmp_path, run_cli):
    state = tmp_path / "run/checkpoint/state.json"
    deadline = time.monotonic() + 600  # of a machine that is busy with others' work
    with started(*TRAIN, "--steps", 100_000, "--run", tmp_path / "run") as process:
        while not (state.exists() and json.loads(state.read_text())["step"] >= 60):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)

    killed_at = json.loads(state.read_text())["step"]
    before = [row for row in read_curve(tmp_path / "run/curve.csv") if row["step"] <= killed_at]
    assert before and before[-1]["episodes"] >= 1
    total = killed_at + 60
    printed = run_cli("train", "--run", tmp_path / "run", "--resume", "--steps", total)
    assert f"at step {killed_at:_} of {total:_}" in printed
    assert json.loads(state.read_text())["step"] == total
    rows = read_curve(tmp_path / "run/curve.csv")
    assert str(rows[: len(before)]) == str(before)  # as text: NaN is not equal to itself
    assert rows[-1]["step"] == total and rows[-1]["episodes"] > before[-1]["episodes"]
    for name in ("step", "seconds", "episodes"):
        assert all(later[name] >= earlier[name] for earlier, later in itertools.pairwise(rows)), name
    assert len(list((tmp_path / "run/logs").glob("progress_*.csv"))) == 2

    printed = run_cli("train", "--run", tmp_path / "run", "--resume")
    assert "nothing to train" in printed and "next: rl-ae evaluate" in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_keeps_its_last_step(tmp_path, number, run_cli):
    log = tmp_path / "run/logs/progress_1.csv"  # the curve is written with a checkpoint
    arguments = ["--steps", 100_000, "--checkpoint-every", 100_000, "--run", tmp_path / "run"]
    with started(*TRAIN, *arguments) as process:
        while not log.exists() or len(log.read_text().splitlines()) < 3:  # two rows, at steps 20 and 40
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    step = json.loads((tmp_path / "run/checkpoint/state.json").read_text())["step"]
    assert process.returncode == 1 and f"stopped at step {step:_}, where --resume continues" in errors
    assert read_curve(tmp_path / "run/curve.csv")[-1]["step"] == step
    printed = run_cli("train", "--run", tmp_path / "run", "--resume", "--steps", step + 5)
    assert f"at step {step:_} of" in printed


def test_a_run_without_a_checkpoint_starts_again_with_other_settings(tmp_path, run_cli):
    config = RunConfig(env="Pendulum-v1", steps=3)
    (tmp_path / "run").mkdir()
    content = {"config": config.to_dict(), "sessions": []}
    (tmp_path / "run/config.json").write_text(json.dumps(content))
    printed = run_cli(*TRAIN, "--steps", 25, "--run", tmp_path / "run", "--resume")
    assert "has no checkpoint yet: starting from step 0" in printed
    assert json.loads((tmp_path / "run/checkpoint/state.json").read_text())["step"] == 25


def test_carracing_runs(tmp_path, run_cli):
    """Shorter than an episode, and still logged, evaluated and drawn."""
    lap = '{"max_episode_steps": 30}'
    arguments = [*SMALL, "--env", "CarRacing-v3", "--env-kwargs", lap, "--steps", 28, "--run", tmp_path / "runs/car"]
    run_cli("train", *arguments, "--eval-every", 1000)
    run = tmp_path / "runs/car"
    state = json.loads((run / "checkpoint/state.json").read_text())
    assert state["step"] == 28 and state["replay"]["obs_shape"] == [3, 24, 24]
    with (run / "logs/progress_1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {name: [row[name] for row in rows if row[name]][-1] for name in rows[0]}
    assert float(last["train/n_updates"]) == 20 + 8
    assert np.isfinite(float(last["eval/mean_reward"])) and np.isfinite(float(last["train/reconstruction"]))


def test_resuming_needs_only_what_names_the_run(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_cli(*TRAIN, "--steps", 25)
    printed = run_cli("train", "--env", "Pendulum-v1", "--resume", "--steps", 30)
    assert "resuming runs/sac_ae_Pendulum-v1_0 at step 25 of 30" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--env", "Pendulumm-v1"], "unknown environment"),
        (["train", "--env", "CartPole-v1", "--size", "16", "16"], "Discrete"),
        (["train", "--env", "Pendulum-v1", "--autoencoder", "nae"], r"unknown autoencoder 'nae', expected one of"),
        (
            ["train", "--preset", "penduluum"],
            r"unknown preset 'penduluum', expected one of \['cartpole_swingup', 'pendulum', 'pendulum_td3'\]",
        ),
        (["train", "--env", "Pendulum-v1", "--size", "4", "4"], "size must be at least 8×8, got 4×4"),
        (["evaluate", "nowhere"], "nowhere is not a run: it has no config.json"),
        (["show", "samples", "nowhere"], "there is no folder nowhere"),
        (["export", "nowhere", "autoencoder"], "nowhere is not a run: it has no config.json"),
        (["train", "--env", "Pendulum-v1", "--device", "gpu"], "device must be auto, cpu, cuda .* got 'gpu'"),
        (["train", "--env", "Pendulum-v1", "--train-freq", "0"], "train_freq must be ≥ 1, got 0"),
        (["train", "--env", "Pendulum-v1", "--eval-every", "0"], "eval_every must be ≥ 1, got 0"),
        (["train", "--env", "Pendulum-v1", "--env-kwargs", "[1]"], r"must be a JSON object .*got '\[1\]'"),
        (["train", "--env", "Pendulum-v1", "--env-kwargs", "{g: 1}"], "must be a JSON object"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments)
    assert not any(tmp_path.iterdir())  # nothing is left that would be in the way of the next try


def test_a_foreign_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exists and is not a run"):
        cli.main(["train", "--env", "Pendulum-v1", "--run", str(tmp_path), "--resume"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="not a run's configuration"):
        cli.main(["evaluate", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "config.json"}


def test_configs_survive_json():
    for config in (PENDULUM, RunConfig(env="x", agent=AgentConfig(net_arch=(3, 4)))):
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PRESETS["pendulum"] is PENDULUM


def test_a_nan_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def poisoned(self, batch, noise=None):
        metrics = train_on(self, batch, noise)
        return metrics | {"critic_loss": metrics["critic_loss"] * float("nan")} if self._n_updates > 40 else metrics

    train_on = SACAE.train_on
    monkeypatch.setattr("rl_ae.sb3.sac_ae.SACAE.train_on", poisoned)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="critic_loss is nan at update 41"):
        cli.main([*TRAIN, "--steps", "100", "--run", "run"])
    assert json.loads(Path("run/checkpoint/state.json").read_text())["step"] == 40
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    config = RunConfig.from_dict(json.loads(Path("run/config.json").read_text())["config"])
    run = train_run(config, Path("run"), resume=True)
    assert json.loads((run.checkpoint / "state.json").read_text())["step"] == 100


# ---------------------------------------------------------------------- show and export


def pixels_of(picture):
    """Of a figure, as it is written, or of a file."""
    file = picture
    if not isinstance(picture, Path):
        file = io.BytesIO()
        picture.savefig(file)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def save_autoencoder(folder, config=VAEConfig, shape=(2, 24, 24), **fields):
    torch.manual_seed(0)
    conv = ConvConfig(filters=(4,), strides=(4,), kernel_size=4)
    autoencoder = create_autoencoder(config(conv=conv, **fields), shape)
    autoencoder.save_pretrained(folder)
    return autoencoder


def episode(policy, env, seed=0):
    return to_unit(torch.as_tensor(play_episode(policy, env, FIRST_START_SEED + seed).observations))


def test_a_run_is_shown_with_its_own_agent_and_environment(finished, tmp_path, capsys):
    agent = load_agent(finished / "checkpoint", device="cpu", buffer_size=1)
    autoencoder, env = (
        agent.policy.autoencoder,
        RunConfig.from_dict(json.loads((finished / "config.json").read_text())["config"]).make_env(),
    )
    images = episode(agent, env)
    assert images.shape == (50, 3, 24, 24)  # grey frames, which could be taken for one of colours
    expected = {
        "reconstructions": plot_reconstructions(autoencoder, images[[0, 7, 14, 21, 28, 35, 42, 49]], frame_channels=1),
        "traversals": plot_traversals(autoencoder, images[25], 10, reference=images, frame_channels=1),
        "interpolation": plot_interpolation(autoencoder, images[0], images[-1], frame_channels=1),
    }
    for kind, figure in expected.items():
        out = tmp_path / f"{kind}.png"
        cli.main(["show", kind, str(finished), "--out", str(out)])
        assert capsys.readouterr().out == f"{out}\n"
        assert np.array_equal(pixels_of(out), pixels_of(figure)), kind
    cli.main(["show", "reconstructions", str(finished), "--out", str(tmp_path / "other.png"), "--seed", "1"])
    assert not np.array_equal(pixels_of(tmp_path / "other.png"), pixels_of(expected["reconstructions"]))
    with pytest.raises(SystemExit, match="ConvAutoencoder has no prior"):
        cli.main(["show", "samples", str(finished), "--out", str(tmp_path / "samples.png")])
    assert not (tmp_path / "samples.png").exists()


def test_a_saved_autoencoder_is_shown_an_environment_played_at_random(tmp_path):
    autoencoder = save_autoencoder(tmp_path / "vae", latent_dim=4)
    pixels = PixelConfig(size=(24, 24), grayscale=True, frame_stack=2, action_repeat=8, crop=(50, 50, 450, 450))
    env = make_pixel_env("Pendulum-v1", pixels, g=5.0)
    images = episode(RandomPolicy(env.action_space, 3), env, 3)
    arguments = ["--env", "Pendulum-v1", "--env-kwargs", '{"g": 5.0}', "--action-repeat", "8", "--rows", "2"]
    arguments += ["--crop", "50", "50", "450", "450", "--seed", "3"]
    cli.main(["show", "traversals", str(tmp_path / "vae"), *arguments])
    figure = plot_traversals(autoencoder, images[len(images) // 2], 2, reference=images)
    assert np.array_equal(pixels_of(tmp_path / "vae/show_traversals.png"), pixels_of(figure))
    assert {path.name for path in (tmp_path / "vae").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "show_traversals.png",
    }


def test_samples_follow_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    autoencoder = save_autoencoder("vae", latent_dim=4, shape=(3, 24, 24))
    for seed in (0, 5):
        cli.main(["show", "samples", "vae", "--out", f"{seed}.png", "--seed", str(seed)])
        figure = plot_samples(autoencoder, generator=torch.Generator().manual_seed(seed))
        assert np.array_equal(pixels_of(Path(f"{seed}.png")), pixels_of(figure))
    cli.main(["show", "samples", "vae", "--grayscale", "--out", "folder/picture"])  # three grey frames; no suffix
    figure = plot_samples(autoencoder, generator=torch.Generator().manual_seed(0), frame_channels=1)
    assert np.array_equal(pixels_of(Path("folder/picture")), pixels_of(figure))
    assert [path.name for path in Path("folder").iterdir()] == ["picture"]


def test_frames_are_read_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    autoencoder = save_autoencoder("vae", latent_dim=4)
    frames = np.random.default_rng(0).integers(256, size=(300, 2, 24, 24), dtype=np.uint8)
    np.save("frames.npy", frames)
    np.savez("frames.npz", frames[:2] / np.float32(255))
    np.save("frame.npy", frames[7])
    picture = frames[:, 0].reshape(-1, 24)[:48].repeat(2, axis=1)  # (48, 48)
    Image.fromarray(picture).save("picture.png")
    still = torch.tensor(np.asarray(Image.fromarray(picture).resize((24, 24), Image.Resampling.BOX)))
    images = to_unit(torch.as_tensor(frames))

    def shown(kind, *files):
        cli.main(["show", kind, "vae", "--out", "out.png", "--frames", *files])
        return pixels_of(Path("out.png"))

    ends = pixels_of(plot_interpolation(autoencoder, images[0], images[299]))
    assert np.array_equal(shown("interpolation", "frames.npy"), ends)
    pair = pixels_of(plot_reconstructions(autoencoder, images[:2]))
    assert np.array_equal(shown("reconstructions", "frames.npz"), pair)
    mixed = torch.stack([images[7], to_unit(still).expand(2, -1, -1)])
    assert np.array_equal(
        shown("reconstructions", "frame.npy", "picture.png"), pixels_of(plot_reconstructions(autoencoder, mixed))
    )


def test_bad_frames_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_autoencoder("vae", latent_dim=4)
    save_autoencoder("codes", SQVAEConfig, codes=3, code_dim=2)
    torch.manual_seed(0)
    create_autoencoder(VAEConfig(latent_dim=3), (6,)).save_pretrained("vectors")
    Path("empty").mkdir()
    np.save("good.npy", np.zeros((2, 24, 24), np.uint8))
    np.save("last.npy", np.zeros((5, 24, 24, 2), np.uint8))
    np.save("none.npy", np.zeros((0, 2, 24, 24), np.uint8))
    np.save("integers.npy", np.zeros((5, 2, 24, 24), np.int64))
    np.save("bytes.npy", np.full((5, 2, 24, 24), 255.0))
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(1))
    for name in ("text.npy", "text.npz", "text.png"):
        Path(name).write_text("no array")
    Path("nothing.npy").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for arguments, message in (
        (["vae"], "a saved autoencoder has no environment: give it an env or frames"),
        (["vae", "--env", "Pendulum-v1", "--frames", "good.npy"], "from an env or from files: got Pendulum-v1 and 1"),
        (["vae", "--action-repeat", "2"], "action_repeat would have no effect without an env or frames"),
        (["vae", "--env", "Pendulumm-v1"], "unknown environment"),
        (["vae", "--frames", "missing.npy"], r"No such file.*missing\.npy"),
        (["vae", "--frames", "missing.png"], r"No such file.*missing\.png"),
        (["vae", "--frames", "last.npy"], r"expected observations of shape \(T, 2, 24, 24\), got \(5, 24, 24, 2\)"),
        (["vae", "--frames", "none.npy"], r"got \(0, 2, 24, 24\)"),
        (["vae", "--frames", "integers.npy"], r"integers.npy: expected uint8 or floats in \[0, 1\], got int64"),
        (["vae", "--frames", "bytes.npy"], r"expected floats in \[0, 1\], got values from 255 to 255"),
        (["vae", "--frames", "two.npz"], r"two.npz: expected one array, got \['a', 'b'\]"),
        (["vae", "--frames", "text.npy"], "text.npy is not a file of arrays"),
        (["vae", "--frames", "text.npz"], "text.npz is not a file of arrays"),
        (["vae", "--frames", "nothing.npy"], "nothing.npy is not a file of arrays"),
        (["vae", "--frames", "text.png"], "cannot identify image file"),
        (["vae", "--frames", "good.npy", "--rows", "0"], "at least 1 dimension, got 0"),
        (["vae", "--frames", "good.npy", "--out", "out.xyz"], "Format 'xyz' is not supported"),
        (["codes", "--frames", "good.npy"], "SQVAE has a grid of codes"),
        (["vectors", "--frames", "good.npy"], r"vectors: figures need an autoencoder of images, .* vectors \(6,\)"),
        (
            ["empty"],
            "neither a saved autoencoder nor a run with a checkpoint: it has no model.safetensors and no check",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["show", "traversals", *arguments])
    with pytest.raises(SystemExit, match="an interpolation needs two frames, got one"):
        cli.main(["show", "interpolation", "vae", "--frames", "good.npy"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # no picture, nor half of one


def test_a_runs_autoencoder_is_exported_for_another_agent(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(finished), "deep/autoencoder", "--no-onnx"])
    assert {path.name for path in Path("deep").iterdir()} == {"autoencoder"}
    trained = load_agent(finished / "checkpoint", device="cpu", buffer_size=1).policy.autoencoder
    exported = Autoencoder.from_pretrained("deep/autoencoder")
    assert exported.config == trained.config
    state = trained.state_dict()
    assert exported.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in exported.state_dict().items())
    policy_kwargs = {"net_arch": [4]}
    agent = SACAE(
        "CnnPolicy", DotEnv((3, 24, 24)), autoencoder="deep/autoencoder", buffer_size=5, policy_kwargs=policy_kwargs
    )
    assert all(torch.equal(tensor, state[name]) for name, tensor in agent.policy.autoencoder.state_dict().items())


def test_a_runs_policy_acts_without_its_agent(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    cli.main(["export", str(run)])
    printed = capsys.readouterr().out
    names = {"README.md", "config.json", "model.safetensors", "policy.onnx"}
    assert {path.name for path in (run / "export").iterdir()} == names
    agent, policy = load_agent(run / "checkpoint", device="cpu"), OnnxPolicy(run / "export/policy.onnx")
    frames = play_episode(agent, Run(run).read_config().make_env(), FIRST_START_SEED).observations
    expected = agent.predict(frames, deterministic=True)[0]
    np.testing.assert_allclose(policy.predict(frames)[0], expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1e-4  # it looks at the frames
    pattern = rf"{run}/export/policy.onnx: .* one observation takes ([\d.]+) ms, and ([\d.]+) ms in predict"
    assert all(0.0 < float(number) < 1e4 for number in re.search(pattern, printed).groups())
    with pytest.raises(SystemExit, match="export exists: choose another folder"):
        cli.main(["export", str(run)])


def test_an_export_overwrites_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = (finished / "config.json").read_text()
    with pytest.raises(SystemExit, match="exists: choose another folder"):
        cli.main(["export", str(finished), str(finished)])
    assert (finished / "config.json").read_text() == config
    Path("file").touch()
    with pytest.raises(SystemExit, match="file exists: choose another folder"):
        cli.main(["export", str(finished), "file"])
    Path("empty").mkdir()

    def fail(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("half")
        raise OSError("disk full")

    def refuse(*arguments):
        raise ValueError("the actions differ")

    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "save_pretrained", fail)
        with pytest.raises(SystemExit, match="disk full"):
            cli.main(["export", str(finished), "empty"])
    with monkeypatch.context() as patch:
        patch.setattr("rl_ae.sb3.export.export_onnx", refuse)
        with pytest.raises(SystemExit, match="the actions differ"):
            cli.main(["export", str(finished), "empty"])
        assert {path.name for path in tmp_path.rglob("*")} == {"file", "empty"}
        cli.main(["export", str(finished), "empty", "--no-onnx"])
    assert Autoencoder.from_pretrained("empty").latent_dim == 8
