"""The benchmark scripts at a size of seconds: what they write, and that a finished run is not run again."""

import csv
import itertools
import json

import pytest

from benchmarks import auxiliary, codes, disentanglement, replay


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


def forbid_training(monkeypatch, script):
    def train(run, *arguments):
        raise AssertionError(f"{run.folder} is trained again")

    monkeypatch.setattr(script.Run, "train", train)


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

    forbid_training(monkeypatch, disentanglement)
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

    def drive(*arguments):
        raise AssertionError("frames are collected again")

    forbid_training(monkeypatch, codes)
    monkeypatch.setattr(codes, "drive", drive)
    run(codes, *flags)


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
