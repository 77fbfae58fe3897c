"""Grids of runs: what is run, what is not run again, and what survives the death of a process or of a node."""

import dataclasses
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks import run as benchmark
from benchmarks.execution import Job, Resources, on_ray, one_after_another
from benchmarks.presets import DEFAULTS, PRESETS, apply, preset_of
from benchmarks.run import Arguments, jobs_of, progress_table, run_grid
from benchmarks.suites import ATARI_26, PLANET, SUITES
from rl_ae.envs import PixelConfig
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.sb3.runs import Run

TINY = RunConfig(
    env="Pendulum-v1",
    algo="sac_ae",
    steps=60,
    log_every=10,
    checkpoint_every=10,
    eval_every=1000,
    eval_episodes=1,
    device="cpu",
    pixels=PixelConfig(size=(16, 16), grayscale=True, action_repeat=50),
    agent=AgentConfig(
        autoencoder="rae_compact",
        net_arch=(8,),
        batch_size=4,
        buffer_size=500,
        learning_starts=10,
        catch_up_updates=0,
    ),
)


def job(folder, seed=0, **changes):
    config = dataclasses.replace(TINY, seed=seed, **changes)
    return Job("tests", "Pendulum-v1", "tiny", config, folder / f"seed_{seed}", f"python -m this --seed {seed}")


def table_text(jobs, states, now):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(progress_table(jobs, states, now))
    return console.export_text()


# ---------------------------------------------------------------------- what is run


def test_a_grid_has_a_run_for_each_task_and_seed(tmp_path):
    jobs = jobs_of(Arguments("dmc100k", seeds=2, first_seed=3, runs=tmp_path))
    assert [j.name for j in jobs[:3]] == [
        "dmc100k/finger-spin/sac_ae_fast/seed_3",
        "dmc100k/finger-spin/sac_ae_fast/seed_4",
        "dmc100k/cartpole-swingup/sac_ae_fast/seed_3",
    ]
    # CURL's table 3: 100,000 frames are so many steps
    steps = dict(zip(PLANET, (50_000, 12_500, 25_000, 25_000, 50_000, 25_000), strict=True))
    assert {j.task: j.config.steps for j in jobs} == steps
    assert all(j.config.steps * j.config.pixels.action_repeat == 100_000 for j in jobs)
    assert {j.config.env for j in jobs} == {f"dmc:{task}" for task in PLANET}
    assert {j.config.seed for j in jobs} == {3, 4}
    assert jobs[0].folder == tmp_path / jobs[0].name


def test_settings_override_the_presets_and_name_the_runs(tmp_path):
    arguments = Arguments(
        "dmc500k",
        preset="sac_ae_shift",
        tasks=("walker-walk",),
        set=("n_steps=3", "net_arch=[64,32]", "update=paper"),
        steps=70,
        runs=tmp_path,
    )
    [only] = jobs_of(arguments)
    agent = only.config.agent
    assert (agent.n_steps, agent.net_arch, agent.update, agent.augmentation) == (3, (64, 32), "paper", "random_shift")
    assert only.config.steps == 70 and only.label == "sac_ae_shift+n_steps=3+net_arch=[64,32]+update=paper"
    expected = (
        "--preset sac_ae_shift --tasks walker-walk --first-seed 0 --set n_steps=3 'net_arch=[64,32]' update=paper"
    )
    assert expected in only.command and str(tmp_path) not in only.command


def test_every_suite_has_environments_and_every_preset_an_agent(tmp_path):
    assert len(ATARI_26) == 26 and len(PLANET) == 6
    for suite in SUITES.values():
        assert DEFAULTS[suite.family].keys() <= {preset.algo for preset in PRESETS.values()}
        for algo in DEFAULTS[suite.family]:
            _, preset = preset_of(suite.family, algo, None)
            assert apply(preset, suite.config(suite.tasks[0]), {}, seed=0).algo == algo
    for preset in PRESETS.values():
        assert preset.source
        config = apply(preset, TINY, {}, seed=1)
        config.agent.arguments(stock=preset.algo not in ("sac_ae", "td3_ae"))
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "dmc"}, r"unknown suite 'dmc', expected one of \['atari100k', 'cale100k', 'dmc100k'"),
        ({"algo": "a3c"}, r"unknown algorithm 'a3c', expected one of \['dqn'"),
        ({"preset": "best"}, r"unknown preset 'best', expected one of \["),
        ({"preset": "td3_ae_fast"}, "the preset 'td3_ae_fast' is of td3_ae, got --algo sac_ae"),
        ({"algo": "dqn"}, r"dqn has no preset for dmc: name one with --preset, of \['atari100k'"),
        ({"set": ("n_step=3",)}, r"unknown settings \['n_step'\], expected some of \["),
        ({"set": ("n_steps",)}, "expected name=value, got 'n_steps'"),
        ({"seeds": 0}, "seeds and cores must be ≥ 1"),
        ({"steps": 0}, "steps must be ≥ 1, got 0"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(arguments, message):
    with pytest.raises(ValueError, match=message):
        jobs_of(Arguments(**{"suite": "dmc100k", **arguments}))
    if "suite" in arguments:
        with pytest.raises(SystemExit, match=message):
            benchmark.main(["--suite", arguments["suite"]])


# ---------------------------------------------------------------------- one after the other


def test_a_grid_runs_keeps_its_results_and_runs_nothing_twice(tmp_path, capfd):
    jobs = [job(tmp_path / "runs", seed) for seed in (0, 1)]
    jobs.append(job(tmp_path / "runs", 2, env="NoSuch-v0"))
    arguments = Arguments("smoke", results=tmp_path / "results")
    failures = run_grid(arguments, jobs)
    assert list(failures) == [jobs[2].name] and "NoSuch" in str(failures[jobs[2].name])
    assert [j.is_done for j in jobs] == [True, True, False]
    for done in jobs[:2]:
        kept = tmp_path / "results" / "tests" / "Pendulum-v1" / "tiny" / f"seed_{done.config.seed}"
        assert {path.name for path in kept.iterdir()} == {
            "config.json",
            "curve.csv",
            "evaluation.json",
            "evaluation.png",
        }
        described = json.loads((kept / "config.json").read_text())
        assert described["command"] == done.command and described["seed"] == done.config.seed
        assert (kept / "curve.csv").read_bytes() == (done.folder / "curve.csv").read_bytes()
        assert "episodes" in Run(done.folder).output.read_text()
    assert "2 of 3 runs done" in capfd.readouterr().err

    before = {j.name: Run(j.folder).evaluation.stat().st_mtime_ns for j in jobs[:2]}
    longer = [dataclasses.replace(j.config, steps=80) for j in jobs[:1]]
    jobs = [jobs[0]._replace(config=longer[0]), jobs[1]]
    assert run_grid(arguments, jobs) == {}
    after = {j.name: Run(j.folder).evaluation.stat().st_mtime_ns for j in jobs}
    assert after[jobs[1].name] == before[jobs[1].name] and after[jobs[0].name] > before[jobs[0].name]
    sessions = json.loads(Run(jobs[0].folder).config.read_text())["sessions"]
    assert [session["step"] for session in sessions] == [0, 60]  # the longer run went on


def test_a_killed_process_takes_no_other_run_with_it(tmp_path):
    jobs = [job(tmp_path, 0, steps=2_000), job(tmp_path, 1)]
    with one_after_another(Resources(1, 0.0)) as submit:
        first, second = (submit(j) for j in jobs)
        wait_for_step(jobs[0], 20)
        [child] = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="terminated abruptly"):
            first.result(timeout=60)
        assert second.result(timeout=120) < 0.0
    assert jobs[1].is_done and not jobs[0].is_done
    shorter = jobs[0]._replace(config=dataclasses.replace(jobs[0].config, steps=60))
    with one_after_another(Resources(1, 0.0)) as submit:
        submit(shorter).result(timeout=120)
    sessions = json.loads(Run(shorter.folder).config.read_text())["sessions"]
    assert [session["step"] > 0 for session in sessions] == [False, True]


def wait_for_step(waited, step, seconds=400.0):
    """Until a run's checkpoint is past a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = Run(waited.folder).checkpoint / "state.json"
        if state.exists() and json.loads(state.read_text())["step"] >= step:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{waited.name} did not reach step {step}: {Run(waited.folder).output.read_text()[-2000:]}")


def test_the_table_says_where_runs_are(tmp_path):
    jobs = [job(tmp_path, seed) for seed in range(4)]
    beats = {0: (60, 30.0, -100.0, 0.0), 1: (15, 30.0, None, 0.0), 2: (15, 30.0, -7.0, 1_000.0)}
    for seed, (step, seconds, mean, age) in beats.items():
        jobs[seed].folder.mkdir(parents=True)
        beat = {"step": step, "steps": 60, "first_step": 0, "seconds": seconds, "return": mean, "time": 5_000.0 - age}
        Run(jobs[seed].folder).progress.write_text(json.dumps(beat))
    states = {j.name: "done" if j.config.seed == 0 else "waiting" for j in jobs}
    lines = [line for line in table_text(jobs, states, now=5_000.0).splitlines() if "seed_" in line]
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[2:-1]] for line in lines]
    assert cells == [
        ["done", "60/60", "-100.0", "2.00", "–"],
        ["running", "15/60", "–", "0.50", "2 min"],
        ["waiting", "15/60", "-7.0", "0.50", "2 min"],  # no beat for a long time
        ["waiting", "–", "–", "–", "–"],
    ]


def test_from_the_command_line_a_stopped_grid_goes_on(tmp_path, monkeypatch, capsys):
    flags = "--suite smoke --tasks Pendulum-v1 --set learning_starts=10 catch_up_updates=0 net_arch=[8]"
    arguments = [*flags.split(), "--runs", "runs", "--results", "results", "--steps"]
    command = [sys.executable, "-m", "benchmarks.run", *arguments, "100000"]  # it cannot be done before it is stopped
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waited = job(tmp_path)._replace(
        folder=tmp_path
        / "runs/smoke/Pendulum-v1/sac_ae_smoke+learning_starts=10+catch_up_updates=0+net_arch=[8]/seed_0"
    )
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for_beat(waited)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopped; the same command goes on" in errors
    stopped = json.loads((Run(waited.folder).checkpoint / "state.json").read_text())["step"]
    assert stopped >= 12
    monkeypatch.chdir(tmp_path)
    arguments.append(str(stopped + 30))
    benchmark.main(arguments)
    assert "next: python -m benchmarks.report results/smoke" in capsys.readouterr().out
    kept = tmp_path / "results" / waited.folder.relative_to(tmp_path / "runs")
    sessions = json.loads((kept / "config.json").read_text())["sessions"]
    assert [session["step"] for session in sessions] == [0, stopped]
    benchmark.main([*arguments, "--dry"])
    assert capsys.readouterr().out.startswith("done    smoke/Pendulum-v1/sac_ae_smoke+")


def wait_for_beat(waited, step=12, seconds=400.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        progress = Run(waited.folder).progress
        if progress.exists() and json.loads(progress.read_text())["step"] >= step:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{waited.folder} has no progress")


# ---------------------------------------------------------------------- Ray


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, and two nodes of one core each: three raylets."""
    monkeypatch.setenv("RAY_health_check_failure_threshold", "10")  # a busy machine's node is late, and not dead
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "500")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_dead_node_loses_nothing(cluster, tmp_path):
    cluster, nodes = cluster
    jobs = [job(tmp_path / "runs", seed, steps=150) for seed in (0, 1)]
    arguments = Arguments("smoke", ray_address=cluster.address, results=tmp_path / "results")
    killed = []

    def kill_when_under_way():
        for j in jobs:
            wait_for_step(j, 20)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.append(True)

    killer = threading.Thread(target=kill_when_under_way)
    killer.start()
    failures = run_grid(arguments, jobs)
    killer.join()
    assert killed == [True] and failures == {}
    assert all(j.is_done for j in jobs)
    first_steps = sorted(
        [session["step"] for session in json.loads(Run(j.folder).config.read_text())["sessions"]] for j in jobs
    )
    assert first_steps[0] == [0]  # on the other node
    assert len(first_steps[1]) == 2 and first_steps[1][1] >= 20  # from its checkpoint
    kept = list((tmp_path / "results").rglob("evaluation.json"))
    assert len(kept) == 2


def test_an_unreachable_ray_is_said_at_once():
    message = r"no Ray answers at '127.0.0.1:1' .*expected host:port"
    with pytest.raises(ConnectionError, match=message), on_ray(Resources(1, 0.0), "127.0.0.1:1", retries=0):
        pass
