"""The benchmark scripts at a size of seconds: what they write, and that a finished run is not run again."""

import csv
import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import auxiliary, codes, disentanglement, learning, reconstruction, replay, roofline, throughput
from benchmarks.fitting import Fit
from rl_ae import cli


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


def test_autoencoders_are_compared_on_frames_of_other_episodes(run, monkeypatch):
    flags = "--sources car_racing --variants rae pyramid_skips hierarchical --steps 2 --frames 40 --held-out 6".split()
    results = run(reconstruction, *flags) / "car_racing"
    summary = json.loads((results / "summary.json").read_text())
    mean_frame, components = summary["rulers"].values()
    assert 0 < mean_frame < components < 100
    rae, skips, hierarchical = summary["runs"]
    assert [record["variant"] for record in summary["runs"]] == ["rae", "pyramid_skips", "hierarchical"]
    for record in summary["runs"]:
        assert {"command", "machine", "config", *reconstruction.SCORES} <= record.keys()
        curve = read(results / f"{record['variant']}_seed0.csv")
        assert [row["step"] for row in curve] == ["2"] and float(curve[0]["psnr"]) == record["psnr"]
    assert rae["bits"] == rae["kl"] == float("inf")
    assert skips["psnr_latent"] != skips["psnr"] and hierarchical["psnr_latent"] == hierarchical["psnr"]
    assert 0 < skips["bits"] < 20 and 0 < hierarchical["bits"] < 20
    assert len((results / "table.md").read_text().splitlines()) == 2 + 2 + 3
    assert (results / "frames.png").stat().st_size > 0
    forbid_training(monkeypatch, Fit)
    run(reconstruction, *flags)


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
