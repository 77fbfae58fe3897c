"""The report about a tree of runs: what it says of them, of their files and of published work."""

import base64
import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from benchmarks import collection, curves, pages, published, report, statistics
from benchmarks.comparison import Suite

REPEAT = {"cartpole-swingup": 8, "walker-walk": 2, "Pong": 4}
SESSION = {
    "step": 0,
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "commit": "0123456789abcdef+changes",
    "machine": {"processor": "A | B", "cores": 2, "threads": 1, "gpu": None},
}
BOOTSTRAP = 100


def write_run(root, suite, task, label, seed, score=None, *, frames=100_000, rows=8, config=None, random=20.0):
    """A run's folder; finished if it has a score."""
    folder = root / suite / task / label / f"seed_{seed}"
    folder.mkdir(parents=True)
    repeat = REPEAT[task]
    steps = frames // repeat
    content = {
        "config": {"steps": steps, "seed": seed, "pixels": {"action_repeat": repeat}, "agent": {"batch_size": 128}},
        "sessions": [SESSION],
        "command": f"rl-ae train --seed {seed}",
    }
    (folder / "config.json").write_text(json.dumps(content | (config or {})))
    reached = steps if score is not None else steps // 2
    with (folder / "curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "frames", "seconds", "episodes", "return", "reconstruction", "evaluation"])
        for step in np.linspace(reached / rows, reached, rows).astype(int):
            evaluation = float(step) if step == reached else float("nan")
            writer.writerow([step, step * repeat, step * 0.5, 1, step / 10 + seed, 1.0, evaluation])
    if score is not None:
        evaluation = {"step": steps, "returns": [score - 1, score + 1], "mean_return": score, "std_return": 1.0}
        evaluation |= {"random_mean_return": random, "random_std_return": 2.0, "psnr": 31.25, "mean_frame_psnr": None}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.fixture
def results(tmp_path):
    """Two labels on two tasks, three seeds and two; one run unfinished, one broken, one half-written."""
    root = tmp_path / "results"
    for seed, score in enumerate((200.0, 300.0, 400.0)):
        write_run(root, "dmc100k", "cartpole-swingup", "sac_ae", seed, score)
        write_run(root, "dmc100k", "walker-walk", "sac_ae", seed, 2 * score)
    write_run(root, "dmc100k", "cartpole-swingup", "td3_ae", 0, 250.0)
    write_run(root, "dmc100k", "cartpole-swingup", "td3_ae", 1, 350.0)
    write_run(root, "dmc100k", "walker-walk", "td3_ae", 0)
    (write_run(root, "dmc100k", "walker-walk", "td3_ae", 1) / "config.json").write_text('{"config": {')
    half = write_run(root, "dmc100k", "cartpole-swingup", "td3_ae", 2, 1.0)
    (half / "evaluation.json").write_text('{"step": 125')
    with (half / "curve.csv").open("a") as file:
        file.write("12600,1008")
    return root


@pytest.fixture
def drawn():
    """Curves are drawn, which takes most of a report's time."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(report, "draw_task", lambda *arguments: "<svg></svg>")


def compose(*folders):
    return report.compose(collection.collect(folders), BOOTSTRAP)


def section(sections, title, suite="dmc100k"):
    """The section of a suite, or of the whole report."""
    titles = [each.title for each in sections]
    start = titles.index(suite) if suite in titles and title not in {"Warnings", "All runs"} else 0
    return next(each for each in sections[start:] if each.title == title)


def rows_of(table):
    """First cell → the others, by column."""
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def published_at(suite, frames, *tasks):
    """Name → published method."""
    methods = published.published_methods(published.benchmark_of(suite), dict.fromkeys(tasks, frames))
    return {method.name: method for method in methods}


def write_report(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["report", *map(str, flags), "--bootstrap", str(BOOTSTRAP)])
    report.main()


# ---------------------------------------------------------------------- runs and their files


def test_runs_have_a_row_each_finished_or_not(results):
    table = section(compose(results), "All runs").table
    assert len(table.rows) == 10
    by_run = {tuple(row[1:4]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert by_run["cartpole-swingup", "sac_ae", "1"] == {
        "suite": "dmc100k",
        "task": "cartpole-swingup",
        "label": "sac_ae",
        "seed": "1",
        "steps": "12,500",
        "frames": "100,000",
        "score": "300 ± 1",
        "episodes": "2",
        "random policy": "20 ± 2",
        "PSNR": "31.2 dB",
        "mean frame PSNR": "–",
        "training": "6,250 s",
        "steps/s": "2.0",
        "sessions": "1",
        "versions": "python 3.11.2, torch 2.13.0",
        "commit": "0123456789+changes",
        "machine": "A | B, 2 cores, 1 thread, no GPU",
        "command": "rl-ae train --seed 1",
    }
    unfinished = by_run["walker-walk", "td3_ae", "0"]
    assert (unfinished["steps"], unfinished["frames"], unfinished["score"]) == ("25,000", "50,000", "–")


def test_unfinished_and_broken_runs_are_listed(results):
    sections = compose(results)
    assert section(sections, "Warnings").items == [
        "dmc100k/cartpole-swingup/td3_ae/seed_2/curve.csv: 1 of 9 rows cannot be read",
        "dmc100k/cartpole-swingup/td3_ae/seed_2/evaluation.json cannot be read (JSONDecodeError): "
        "the run counts as unfinished",
        "dmc100k/walker-walk/td3_ae/seed_1/config.json cannot be read (JSONDecodeError): the run is left out",
    ]
    table = section(sections, "Unfinished runs").table
    assert [list(row) for row in table.rows] == [
        ["dmc100k", "cartpole-swingup", "td3_ae", "2", "12,500", "12,500", "1,252", "12,500"],
        ["dmc100k", "walker-walk", "td3_ae", "0", "25,000", "50,000", "2,500", "25,000"],
    ]


def test_summary_counts_runs_and_calls_few_seeds_an_anecdote(results):
    counts, remark = compose(results)[0].paragraphs
    assert counts == "10 runs: 8 finished, 2 not. 4 cells (task × label) with 0 to 3 finished seeds each."
    assert remark.startswith("2 of 4 cells have fewer than 3 finished seeds. One seed is an anecdote")


def test_enough_seeds_are_no_anecdote(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", seed, 300.0)
    sections = compose(tmp_path)
    assert sections[0].paragraphs == ["3 runs: 3 finished, 0 not. 1 cell (task × label) with 3 finished seeds each."]
    assert not {"Warnings", "Unfinished runs"} & {each.title for each in sections}


def test_older_runs_with_less_in_their_files_are_reported(tmp_path):
    folder = write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 0)
    (folder / "config.json").write_text("{}")
    (folder / "curve.csv").write_text("step,frames\n100,200\n")
    (folder / "evaluation.json").write_text('{"step": 100, "mean_return": 5.5, "psnr": null}')
    sections = compose(tmp_path)
    [row] = section(sections, "All runs").table.rows
    assert row[3:] == ["0", "100", "200", "5.5", *["–"] * 11]
    assert section(sections, "Time").table.rows == []
    assert "Warnings" not in {each.title for each in sections}


def test_a_finished_run_needs_an_evaluation_of_its_last_step(tmp_path):
    folder = write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 0)
    (folder / "evaluation.json").write_text('{"step": 25000, "mean_return": 5.5}')
    other = write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 1)
    (other / "evaluation.json").write_text('{"step": 50000, "mean_return": NaN}')
    sections = compose(tmp_path)
    assert section(sections, "Warnings").items == [
        "dmc100k/walker-walk/sac_ae/seed_0/evaluation.json is of step 25,000 of 50,000: the run counts as unfinished",
        "dmc100k/walker-walk/sac_ae/seed_1/evaluation.json has no mean_return: the run counts as unfinished",
    ]
    assert "Scores" not in {each.title for each in sections}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("curve.csv", b"step,return\n1,2\n", "curve.csv has no column frames: the run is left out"),
        ("curve.csv", b"\xff\xfe\x00", "curve.csv cannot be read (UnicodeDecodeError): the run is left out"),
        ("config.json", b"[]", "config.json is not a JSON object: the run is left out"),
        ("config.json", None, "config.json cannot be read (FileNotFoundError): the run is left out"),
        ("curve.csv", None, "curve.csv cannot be read (FileNotFoundError): the run is left out"),
        ("reconstructions.png", b"not a PNG", "reconstructions.png is not a PNG"),
        ("config.json", b'{"config": {"seed": 7}}', "config.json says seed 7"),
    ],
)
def test_a_broken_file_is_named_and_the_others_are_reported(tmp_path, name, content, message):
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 0, 300.0)
    broken = write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 1, 300.0) / name
    broken.unlink(missing_ok=True)
    if content is not None:
        broken.write_bytes(content)
    sections = compose(tmp_path)
    assert section(sections, "Warnings").items == [f"dmc100k/walker-walk/sac_ae/seed_1/{message}"]
    assert len(section(sections, "All runs").table.rows) == (1 if message.endswith("left out") else 2)


def test_seeds_of_a_cell_must_differ_in_nothing_else(tmp_path):
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 0, 300.0)
    config = {"steps": 50_000, "seed": 1, "pixels": {"action_repeat": 2}, "agent": {"batch_size": 64, "new": 1}}
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 1, 300.0, config={"config": config})
    write_run(tmp_path, "dmc100k", "walker-walk", "other", 0, 300.0, config={"config": config | {"seed": 0}})
    assert section(compose(tmp_path), "Warnings").items == [
        "dmc100k/walker-walk/sac_ae/seed_1 is not configured as seed 0: agent.batch_size"
    ]


def test_runs_of_another_budget_are_not_compared(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", seed, 300.0)
    config = {"config": {"seed": 2}}
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 2, 900.0, frames=200_000, config=config)
    sections = compose(tmp_path)
    remark = "dmc100k/walker-walk/sac_ae/seed_2 had 200,000 frames, not 100,000: it is not compared"
    assert section(sections, "Warnings").items == [remark]
    assert rows_of(section(sections, "Scores").table)["sac_ae"]["walker-walk"] == "300 ± 0 (2)"


def test_tasks_may_have_budgets_of_their_own(tmp_path):
    write_run(tmp_path, "dmc", "walker-walk", "sac_ae", 0, 300.0, frames=500_000)
    write_run(tmp_path, "dmc", "cartpole-swingup", "sac_ae", 0, 300.0, frames=100_000)
    sections = compose(tmp_path)
    found = section(sections, "Scores", "dmc")
    assert "at 100,000 (cartpole-swingup), 500,000 (walker-walk) frames" in found.paragraphs[0]
    row = rows_of(found.table)["SAC-AE (DrQ's table)"]
    assert (row["cartpole-swingup"], row["walker-walk"]) == ("276 ± 38", "858 ± 82")
    assert "Warnings" not in {each.title for each in sections}


def test_a_run_found_twice_counts_once(tmp_path):
    write_run(tmp_path / "a", "dmc100k", "walker-walk", "sac_ae", 0, 300.0)
    assert len(collection.collect([tmp_path / "a", tmp_path / "a" / "dmc100k", tmp_path]).records) == 1
    write_run(tmp_path / "b", "dmc100k", "walker-walk", "sac_ae", 0, 400.0)
    records, warnings = collection.collect([tmp_path / "a", tmp_path / "b"])
    assert [record.score for record in records] == [300.0]
    assert warnings == ["dmc100k/walker-walk/sac_ae/seed_0 is there twice: the first is used"]


def test_a_run_elsewhere_is_named_without_the_machines_path(tmp_path):
    write_run(tmp_path / "runs", "dmc100k", "walker-walk", "sac_ae", 0, 300.0).rename(tmp_path / "runs" / "demo")
    write_run(tmp_path / "runs", "dmc100k", "walker-walk", "sac_ae", 0, 300.0)
    _, warnings = collection.collect([tmp_path / "runs"])
    assert warnings == ["runs/demo is not at <suite>/<task>/<label>/seed_<n>: the run is left out"]


def test_folders_without_runs_end_with_a_message(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # of something else
    with pytest.raises(SystemExit, match=r"no run \(config.json and curve.csv\) in .*"):
        collection.collect([tmp_path])
    with pytest.raises(SystemExit, match="nowhere is not a folder"):
        collection.collect([tmp_path / "nowhere"])
    with pytest.raises(SystemExit, match="in no folder"):
        collection.collect([])


# ---------------------------------------------------------------------- scores


def test_scores_stand_above_published_ones_of_the_same_tasks_and_frames(results):
    table = section(compose(results), "Scores").table
    rows = rows_of(table)
    assert table.own == 3
    assert rows["sac_ae"] == {
        "cartpole-swingup": "300 ± 100 (3)",
        "walker-walk": "600 ± 200 (3)",
        "source": "this report",
    }
    assert rows["td3_ae"]["cartpole-swingup"] == "300 ± 71 (2)"
    assert rows["td3_ae"]["walker-walk"] == "–"
    assert rows["random policy"]["walker-walk"] == "20"
    assert rows["SAC-AE (DrQ's table)"]["cartpole-swingup"] == "276 ± 38"
    assert "2004.13649" in rows["SAC-AE (DrQ's table)"]["source"]
    assert rows["SAC-AE (CURL's table)"]["walker-walk"] == "394 ± 22"
    assert rows["pixel SAC (CURL's table)"]["walker-walk"] == "42 ± 12"
    assert rows["DrQ (per seed)"]["cartpole-swingup"] == "759 ± 93 (10)"
    assert rows["RAD (rliable)"]["cartpole-swingup"] == "633"
    assert rows["TD-MPC2 (pixels)"] | {"source": ""} == {
        "cartpole-swingup": "–",
        "walker-walk": "464 ± 29 (3)",
        "source": "",
    }


def test_other_frames_have_other_published_scores_or_none(tmp_path):
    write_run(tmp_path, "dmc500k", "walker-walk", "sac_ae", 0, 300.0, frames=500_000)
    write_run(tmp_path, "dmc50k", "walker-walk", "sac_ae", 0, 300.0, frames=50_000)
    write_run(tmp_path, "cale100k", "Pong", "sac_ae", 0, -15.0, frames=400_000)
    sections = compose(tmp_path)
    rows = rows_of(section(sections, "Scores", "dmc500k").table)
    assert rows["SAC-AE (DrQ's table)"]["walker-walk"] == "858 ± 82"
    assert rows["sac_ae"]["walker-walk"] == "300 (1)"
    short = section(sections, "Scores", "dmc50k")
    assert len(short.table.rows) == short.table.own == 2
    assert short.paragraphs[-1].endswith("there are some at 100,000, 500,000 frames.")
    assert section(sections, "Scores", "cale100k").paragraphs[-1].endswith("at this budget are known here.")


def test_aggregates_are_of_normalised_scores(results):
    sections = compose(results)
    rows = rows_of(section(sections, "Aggregates").table)
    sac = rows["sac_ae"]
    assert (sac["tasks"], sac["runs"]) == ("2", "6")
    assert [sac[name].split()[0] for name in ("IQM", "median", "mean", "optimality gap")] == [
        "0.425",  # (0.3 + 0.4 + 0.4 + 0.6) / 4
        "0.450",
        "0.450",
        "0.550",
    ]
    low, high = map(float, re.fullmatch(r"0.450 \[(.*), (.*)\]", sac["mean"]).groups())
    assert 0.3 <= low < 0.45 < high <= 0.6
    assert rows["td3_ae"]["mean"] == "0.300 [–]"  # one task
    assert rows["DrQ (per seed)"]["tasks"] == "2"
    assert "SAC-AE (DrQ's table)" not in rows  # no seeds
    common = section(sections, "Aggregates over common tasks")
    assert common.paragraphs == ["Over the tasks that all labels have: cartpole-swingup."]
    assert rows_of(common.table)["sac_ae"]["mean"] == "0.300 [–]"


def test_atari_is_normalised_by_the_human_and_the_random_player(tmp_path):
    halfway = (14.6 - 20.7) / 2
    write_run(tmp_path, "atari100k", "Pong", "dqn", 0, halfway, frames=400_000)
    write_run(tmp_path, "cale100k", "Pong", "sac_ae", 0, 14.6, frames=400_000)
    sections = compose(tmp_path)
    assert rows_of(section(sections, "Aggregates", "atari100k").table)["dqn"]["mean"] == "0.500 [–]"
    assert rows_of(section(sections, "Aggregates", "cale100k").table)["sac_ae"]["mean"] == "1.000 [–]"
    rows = rows_of(section(sections, "Scores", "atari100k").table)
    assert rows["human"]["Pong"] == "14.6 (1)"
    assert rows["IRIS"]["Pong"] == "14.6 ± 5.4 (5)"


def test_an_unknown_suite_is_not_aggregated(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "pendulum", "Pong", "sac_ae", seed, -200.0)
    found = section(compose(tmp_path), "Aggregates", "pendulum")
    assert found.table is None
    assert found.paragraphs == ["Not aggregated, as no scale is known: Pong."]


def test_probability_of_improvement_is_over_common_tasks(results):
    rows = section(compose(results), "Probability of improvement").table.rows
    found = {(x, y): (tasks, value) for x, y, tasks, value in rows}
    assert found["sac_ae", "td3_ae"] == ("1", "0.500 [–]")
    assert found["sac_ae", "DrQ (per seed)"][0] == "2"
    assert not {("DrQ (per seed)", "DreamerV3"), ("td3_ae", "sac_ae")} & found.keys()
    scores = {"cartpole": ([200, 300, 400], "cartpole_swingup"), "walker": ([400, 600, 800], "walker_walk")}
    drq = published_at("dmc100k", 100_000, "cartpole_swingup", "walker_walk")["DrQ (per seed)"]
    expected = np.mean([np.mean(np.array(mine)[:, None] > drq.scores[task].seeds) for mine, task in scores.values()])
    assert found["sac_ae", "DrQ (per seed)"][1].startswith(f"{expected:.3f} [")


def test_a_label_named_as_a_published_method_stays_itself(tmp_path):
    for seed, score in enumerate((1.0, 2.0)):
        for task in ("walker-walk", "cartpole-swingup"):
            write_run(tmp_path, "dmc100k", task, "DreamerV3", seed, score)
    [own, *others] = Suite("dmc100k", collection.collect([tmp_path]).records, BOOTSTRAP).aggregates()
    assert (own.own, own.estimates["mean"].value) == (True, pytest.approx(0.0015))
    assert [other.own for other in others if other.method == "DreamerV3"] == [False]


# ---------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    ("method", "iqm"), [("SimPLe", 0.130), ("DrQ(eps)", 0.280), ("SPR", 0.337), ("IRIS", 0.501), ("human", 1.0)]
)
def test_published_atari_scores_have_the_published_interquartile_mean(method, iqm):
    benchmark = published.benchmark_of("atari100k")
    with (published.FOLDER / "seeds.csv").open(newline="") as file:
        games = [row["task"] for row in csv.DictReader(file) if row["method"] == "human"]
    found = published_at("atari100k", 400_000, *games)[method]
    assert len(found.scores) == 26
    scores = [published.normalise(benchmark, task, score.seeds) for task, score in found.scores.items()]
    assert statistics.interquartile_mean(scores) == pytest.approx(iqm, abs=0.0006)


@pytest.mark.parametrize(
    ("method", "frames", "task", "mean", "std", "seeds"),
    [
        ("SAC-AE (DrQ's table)", 500_000, "ball_in_cup_catch", 810, 121, None),
        ("SAC-AE (CURL's table)", 100_000, "finger_spin", 740, 64, None),
        ("CURL (its table)", 100_000, "reacher_easy", 538, 233, None),
        ("DrQ (its table)", 100_000, "cheetah_run", 344, 67, None),
        ("RAD (rliable)", 500_000, "walker_walk", 772, None, None),
        ("state SAC (CURL's table)", 100_000, "ball_in_cup_catch", 746, None, None),
        ("state SAC (DrQ's table)", 100_000, "ball_in_cup_catch", 957, None, None),
        ("DreamerV3", 100_000, "finger_spin", 502, 97, 10),
        ("TD-MPC2 (pixels)", 100_000, "finger_spin", 981, 5, 3),
    ],
)
def test_published_values(method, frames, task, mean, std, seeds):
    score = published_at("dmc", frames, task)[method].scores[task]
    assert round(score.mean) == mean
    assert (None if score.std is None else round(score.std)) == std
    assert (None if score.seeds is None else len(score.seeds)) == seeds


def test_every_published_score_has_a_source_and_every_source_scores():
    def read(name):
        with (published.FOLDER / name).open(newline="") as file:
            return list(csv.DictReader(file))

    scores = [*read("tables.csv"), *read("seeds.csv")]
    sources = {(row["benchmark"], row["method"]) for row in read("sources.csv")}
    assert {(row["benchmark"], row["method"]) for row in scores} == sources
    keys = [(row["benchmark"], row["method"], row["frames"], row["task"]) for row in scores]
    assert len(set(keys)) == len(keys)


# ---------------------------------------------------------------------- curves


def test_curves_are_means_of_parts_of_the_frames(results):
    [record] = [each for each in collection.collect([results]).records if each.name.endswith("sac_ae/seed_2")][:1]
    edges = np.linspace(0, 100_000, 5)
    frames, values = curves.binned(record, "return", edges)
    rows = np.array([[row["frames"], row["return"]] for row in record.rows])
    assert frames == pytest.approx(rows[:, 0].reshape(4, 2).mean(axis=1))
    assert values == pytest.approx(rows[:, 1].reshape(4, 2).mean(axis=1))
    frames, values = curves.binned(record, "evaluation", edges)
    assert np.isnan(values[:3]).all()
    assert (frames[3], values[3]) == (100_000, 12_500)


def test_bands_need_two_seeds_and_hold_the_mean():
    values = np.array([[1.0, 10.0, np.nan], [3.0, 10.0, 2.0], [8.0, 10.0, 2.0]])
    mean, (low, high) = curves.mean_and_band(values, 500)
    assert mean == pytest.approx([4.0, 10.0, np.nan], nan_ok=True)
    assert 1.0 <= low[0] < 4.0 < high[0] <= 8.0
    assert low[1] == high[1] == 10.0
    assert np.isnan([low[2], high[2]]).all()
    mean, band = curves.mean_and_band(values[:1])
    assert band is None
    assert mean == pytest.approx(values[0], nan_ok=True)


def test_legend_says_how_many_seeds_there_are(results, drawn):
    pictures = section(compose(results), "Learning curves").pictures
    cartpole, walker = (set(re.findall("<!-- (.*?) -->", picture.svg)) for picture in pictures)
    assert {"sac_ae, 3 seeds", "td3_ae, 2 seeds", "td3_ae, unfinished", "random policy"} <= cartpole
    assert {"sac_ae, 3 seeds", "td3_ae, unfinished"} <= walker
    assert not {"td3_ae, 1 seed", "td3_ae, 2 seeds"} & walker


def test_a_single_seed_is_a_line_without_a_band(tmp_path, drawn):
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 0, 300.0)
    one = section(compose(tmp_path), "Learning curves").pictures[0].svg
    assert "<!-- sac_ae, 1 seed -->" in one
    assert "FillBetween" not in one
    write_run(tmp_path, "dmc100k", "walker-walk", "sac_ae", 1, 300.0)
    assert "FillBetween" in section(compose(tmp_path), "Learning curves").pictures[0].svg


# ---------------------------------------------------------------------- pages


class Elements(HTMLParser):
    """Tags, ids and everything that a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references = set(), [], []
        self.feed(text)
        self.references += re.findall(r"url\(([^)]*)\)", text) + re.findall(r"@import[^;]*", text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name.split(":")[-1] in {"src", "href", "srcset", "action", "data", "poster"}:
                self.references.append(value)


def test_page_loads_nothing_and_its_links_lead_somewhere(results, drawn):
    Image.new("RGB", (8, 4)).save(results / "dmc100k/walker-walk/sac_ae/seed_1/reconstructions.png")
    page = Elements(pages.as_html(compose(results)))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & page.tags
    assert {"svg", "img", "nav", "table"} <= page.tags
    assert len(set(page.ids)) == len(page.ids)
    inner = [reference[1:] for reference in page.references if reference.startswith("#")]
    outer = [reference for reference in page.references if not reference.startswith("#")]
    assert set(inner) <= set(page.ids)
    assert {"dmc100k", "dmc100k-scores", "all-runs", "warnings"} <= set(inner)
    assert [reference.split(",")[0] for reference in outer] == ["data:image/png;base64"]


def test_strips_are_of_the_first_seed_that_has_one(results):
    folder = results / "dmc100k/walker-walk/sac_ae"
    images = {}
    for seed, name, colour in ((1, "reconstructions", "red"), (1, "evaluation", "green"), (2, "evaluation", "blue")):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 4), colour).save(buffer, "png")
        images[seed, name] = buffer.getvalue()
        (folder / f"seed_{seed}" / f"{name}.png").write_bytes(buffer.getvalue())
    [picture] = section(compose(results), "Reconstructions").pictures
    assert picture.caption == "walker-walk, sac_ae, seed 1"
    assert base64.b64decode(picture.png) == images[1, "evaluation"]


def test_texts_are_escaped(tmp_path):
    label = "<b>&|*"
    write_run(tmp_path, "dmc100k", "walker-walk", label, 0, 300.0)
    sections = compose(tmp_path)
    html, markdown = pages.as_html(sections), pages.as_markdown(sections)
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;|*" in html
    assert "| **&lt;b>&amp;\\|\\*** | 300 (1) |" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| dmc100k |")]
    assert {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in rows} == {len(report.RUN_COLUMNS), 9}


def test_the_same_runs_give_the_same_files(results, monkeypatch, tmp_path, drawn):
    for name in ("first", "second"):
        write_report(monkeypatch, results, "--out", tmp_path / name)
    for name in ("report.md", "report.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    text = (tmp_path / "first" / "report.md").read_text()
    assert str(tmp_path) not in text + (tmp_path / "first" / "report.html").read_text()
    assert text.startswith("# Benchmark runs\n\n10 runs: 8 finished, 2 not.")


def test_the_bootstraps_seed_changes_the_intervals(results, monkeypatch, tmp_path):
    for seed in (0, 1):
        write_report(monkeypatch, results, "--out", tmp_path / f"{seed}", "--seed", seed)
    first, second = ((tmp_path / f"{seed}" / "report.md").read_text() for seed in (0, 1))
    assert first != second
    assert re.sub(r" \[0\.\d+, \d\.\d+\]|seed \d", "", first) == re.sub(r" \[0\.\d+, \d\.\d+\]|seed \d", "", second)


def test_the_report_lies_with_the_runs_by_default(results, monkeypatch, capsys):
    write_report(monkeypatch, results)
    assert capsys.readouterr().out.split() == [str(results / name) for name in ("report.md", "report.html")]
    assert (results / "report.html").read_text().startswith("<!DOCTYPE html>")
    write_report(monkeypatch, results)  # its own files are no runs


def test_markdown_aligns_numbers_and_marks_ours(results):
    text = pages.as_markdown(compose(results))
    assert "| method | cartpole-swingup | walker-walk | source |\n| --- | --: | --: | --- |\n| **sac_ae** |" in text
    assert "On the page report.html: cartpole-swingup; walker-walk." in text


def test_without_jinja2_the_extra_is_named(results, monkeypatch):
    sections = compose(results)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "rl-ae\[report\]"'):
        pages.as_html(sections)


def test_resamples_are_checked(results, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", str(results), "--bootstrap", "0"])
    with pytest.raises(SystemExit, match="--bootstrap must be ≥ 1, got 0"):
        report.main()
