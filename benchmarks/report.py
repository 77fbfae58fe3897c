"""What did the runs reach, how sure is that, and what has been published? A page about a folder of runs.

    python -m benchmarks.report benchmarks/results
    python -m benchmarks.report runs/a runs/b --out report

Runs lie in ``<results>/<suite>/<task>/<label>/seed_<n>/``, as ``rl-ae train``, ``rl-ae evaluate`` and
``python -m benchmarks.run`` leave them, finished or not. ``report.md`` has the tables; ``report.html`` has curves and
reconstructions too, in one file that loads nothing from elsewhere. The same runs give the same report.
"""

import base64
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks import statistics
from benchmarks.collection import Collection, Record, collect, lookup
from benchmarks.comparison import METRICS, Aggregate, Suite
from benchmarks.curves import colours_of, draw_task
from benchmarks.pages import Picture, Section, Table, as_html, as_markdown
from benchmarks.published import Score, published_frames, task_key
from benchmarks.statistics import Estimate
from rl_ae.files import write_atomically

#: Where there is no number.
NOTHING = "–"
#: Seeds below which a cell is called an anecdote.
ENOUGH_SEEDS = 3
TITLE = "Benchmark runs"
RUN_COLUMNS = (
    *("suite", "task", "label", "seed", "steps", "frames", "score", "episodes", "random policy", "PSNR"),
    *("mean frame PSNR", "training", "steps/s", "sessions", "versions", "commit", "machine", "command"),
)


@dataclasses.dataclass
class Arguments:
    """What to report.

    Attributes:
        results: Folders of runs, searched recursively.
        out: Where report.md and report.html go; the first of the folders if not given.
        bootstrap: Resamples of the confidence intervals.
        seed: Of the bootstrap.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None
    bootstrap: int = statistics.RESAMPLES
    seed: int = 0


def compose(collection: Collection, resamples: int = statistics.RESAMPLES, seed: int = 0) -> list[Section]:
    """The report about some runs, the summary first."""
    records = collection.records
    suites = [
        Suite(name, [record for record in records if record.suite == name], resamples, seed)
        for name in sorted({record.suite for record in records})
    ]
    remarks = [
        f"{record.name} had {_number(record.frames, ',')} frames, not {_number(suite.budgets[record.task], ',')}: "
        "it is not compared"
        for suite in suites
        for record in suite.other_budgets
    ]
    sections = [summary(records), *warnings([*collection.warnings, *remarks])]
    for suite in suites:
        sections += suite_sections(suite)
    return [*sections, *unfinished(records), runs(records), times(suites), methods(resamples, seed)]


# ---------------------------------------------------------------------- of all runs


def summary(records: Sequence[Record]) -> Section:
    """How much there is to go by."""
    cells: dict[Any, int] = {}
    for record in records:
        cells[record.cell] = cells.get(record.cell, 0) + bool(record.evaluation)
    finished = sum(cells.values())
    few = sum(count < ENOUGH_SEEDS for count in cells.values())
    least, most = min(cells.values()), max(cells.values())
    seeds = _count(most, "finished seed") if least == most else f"{least} to {_count(most, 'finished seed')}"
    paragraphs = [
        f"{_count(len(records), 'run')}: {finished} finished, {len(records) - finished} not. "
        f"{_count(len(cells), 'cell')} (task × label) with {seeds} each."
    ]
    if few:
        paragraphs.append(
            f"{few} of {_count(len(cells), 'cell')} {'has' if few == 1 else 'have'} fewer than {ENOUGH_SEEDS} finished "
            "seeds. One seed is an anecdote: read no ranking from such cells."
        )
    return Section(TITLE, 1, paragraphs)


def warnings(messages: Sequence[str]) -> list[Section]:
    """What is wrong with the files, if anything is."""
    return [Section("Warnings", items=messages)] if messages else []


def unfinished(records: Iterable[Record]) -> list[Section]:
    """Runs without a score, if there are any."""
    rows = [
        [
            *record.cell,
            f"{record.seed}",
            _number(record.step, ","),
            _number(record.planned_steps, ","),
            _spread(_last(record, "return"), None),
            _spread(_last(record, "evaluation"), None),
        ]
        for record in records
        if not record.evaluation
    ]
    columns = ("suite", "task", "label", "seed", "step", "of", "last training return", "last evaluation")
    note = "Runs without a valid evaluation.json have no score; their curves are dashed."
    return [Section("Unfinished runs", paragraphs=[note], table=Table(columns, rows))] if rows else []


def runs(records: Iterable[Record]) -> Section:
    """A row a run."""
    note = (
        "Score: mean ± standard deviation over the deterministic episodes after training, from fixed starts. Mean "
        "frame PSNR is the best that a constant image reaches. Semicolons separate the versions, commits and machines "
        "of sessions that differ in them."
    )
    rows = [_run_row(record) for record in records]
    return Section("All runs", paragraphs=[note], table=Table(RUN_COLUMNS, rows))


def _run_row(record: Record) -> list[str]:
    returns = lookup(record.evaluation, "returns")
    return [
        *record.cell,
        f"{record.seed}",
        _number(record.step, ","),
        _number(record.frames, ","),
        _spread(record.score, record.evaluated("std_return")),
        f"{len(returns)}" if isinstance(returns, list) else NOTHING,
        _spread(record.evaluated("random_mean_return"), record.evaluated("random_std_return")),
        _number(record.evaluated("psnr"), ".1f", " dB"),
        _number(record.evaluated("mean_frame_psnr"), ".1f", " dB"),
        _number(record.seconds, ",.0f", " s"),
        _number(record.steps_per_second, ".1f"),
        f"{len(record.sessions)}" if record.sessions else NOTHING,
        _versions(record),
        _each(_short(session["commit"]) for session in record.sessions if session.get("commit")),
        machine_of(record),
        str(lookup(record.config, "command") or NOTHING),
    ]


def _short(commit: Any) -> str:
    """A commit's first digits, and what is said behind it."""
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]+", r"\1", str(commit))


def times(suites: Iterable[Suite]) -> Section:
    """Seconds and steps a second, by label."""
    columns = ("suite", "label", "runs", "hours in all", "a finished run", "steps/s", "min–max", "frames/s", "machine")
    rows = []
    for suite in suites:
        for label in suite.labels:
            records = [record for record in suite.records if record.label == label and record.seconds > 0]
            if records:
                rows.append([suite.name, label, f"{len(records)}", *_time_cells(records)])
    note = (
        "Training alone, all runs. Rates are medians over runs, of all tasks, whose action repeats differ. Runs that "
        "shared a machine slowed each other down, so the times compare only runs made alike on the same machine."
    )
    return Section("Time", paragraphs=[note], table=Table(columns, rows))


def _time_cells(records: Sequence[Record]) -> list[str]:
    finished = [record.seconds for record in records if record.evaluation]
    steps = np.array([record.steps_per_second for record in records])
    frames = np.array([record.steps_per_second * record.frames_per_step for record in records])
    return [
        f"{sum(record.seconds for record in records) / 3600:.2f}",
        f"{np.mean(finished):,.0f} s" if finished else NOTHING,
        f"{np.median(steps):.1f}",
        f"{steps.min():.1f}–{steps.max():.1f}",
        f"{np.median(frames):.1f}",
        _each(machine_of(record) for record in records),
    ]


def machine_of(record: Record) -> str:
    """The machines of a run's sessions, in words."""
    return _each(_machine(session.get("machine")) for session in record.sessions)


def _machine(machine: Any) -> str:
    if not isinstance(machine, dict):
        return NOTHING
    counts = [_count(machine[f"{noun}s"], noun) for noun in ("core", "thread") if machine.get(f"{noun}s")]
    names = [machine.get("processor") or "unknown processor", *counts, machine.get("gpu") or "no GPU"]
    return ", ".join(map(str, names))


def _versions(record: Record) -> str:
    versions = [session["versions"] for session in record.sessions if isinstance(session.get("versions"), dict)]
    return _each(", ".join(f"{name} {version}" for name, version in each.items()) for each in versions)


# ---------------------------------------------------------------------- of a suite


def suite_sections(suite: Suite) -> list[Section]:
    """A suite: scores beside published ones, aggregates, curves and reconstructions."""
    finished = [record for record in suite.records if record.evaluation]
    intro = f"{_count(len(suite.records), 'run')}, {len(finished)} finished, on {_count(len(suite.tasks), 'task')}."
    sections = [Section(suite.name, paragraphs=[intro])]
    if suite.finished:
        sections += [scores(suite), *aggregates(suite), *improvements(suite)]
    return [*sections, *curves(suite), *reconstructions(suite)]


def scores(suite: Suite) -> Section:
    """Returns by task, our labels above the published methods."""
    tasks = sorted({record.task for record in suite.finished})
    rows = []
    for label in suite.labels:
        if own := suite.scores(label):
            cells = [_score(_summary(own[task])) if task in own else NOTHING for task in tasks]
            rows.append([label, *cells, "this report"])
    rows.append(["random policy", *(_random_policy(suite, task) for task in tasks), "measured with the runs"])
    count = len(rows)
    for method in suite.published:
        found = [method.scores.get(task_key(task)) for task in tasks]
        if any(found):
            rows.append([method.name, *(_score(score) if score else NOTHING for score in found), method.source])
    notes = [
        f"Mean return ± sample standard deviation over seeds, at {_budgets(suite)} frames; in brackets the number of "
        "seeds, where each seed's score is known."
    ]
    if len(rows) == count:
        budgets = ", ".join(f"{frames:,}" for frames in published_frames(suite.benchmark))
        notes.append(
            "No published scores of these tasks at this budget are known here"
            + (f"; there are some at {budgets} frames." if budgets else ".")
        )
    return Section("Scores", 3, notes, Table(["method", *tasks, "source"], rows, count))


def _budgets(suite: Suite) -> str:
    """The frames of all tasks, or of each where they differ."""
    frames = suite.budgets
    if len(set(frames.values())) == 1:
        return _number(next(iter(frames.values())), ",")
    return ", ".join(f"{_number(budget, ',')} ({task})" for task, budget in sorted(frames.items()))


def _random_policy(suite: Suite, task: str) -> str:
    returns = [record.evaluated("random_mean_return") for record in suite.finished if record.task == task]
    known = [value for value in returns if np.isfinite(value)]
    return _spread(float(np.mean(known)), None) if known else NOTHING


def aggregates(suite: Suite) -> list[Section]:
    """Metrics over tasks on the benchmark's normalised scale."""
    own, _ = suite.normalised()
    missing = f" Not aggregated, as no scale is known: {', '.join(suite.unscaled)}." if suite.unscaled else ""
    if not own:
        return [Section("Aggregates", 3, [missing.strip()])]
    note = (
        f"Normalised score: {suite.benchmark.normalisation}.{missing} In brackets the 95 % stratified bootstrap "
        f"interval; {NOTHING} where a task has one seed, or there is one task. Rows over different tasks do not "
        "compare."
    )
    sections = [Section("Aggregates", 3, [note], _aggregate_table(suite.aggregates()))]
    if common := suite.common_tasks():
        names = ", ".join(task for task in suite.tasks if task_key(task) in common)
        note = f"Over the tasks that all labels have: {names}."
        sections.append(Section("Aggregates over common tasks", 3, [note], _aggregate_table(suite.aggregates(common))))
    return sections


def _aggregate_table(found: Sequence[Aggregate]) -> Table:
    rows = [
        [each.method, f"{each.tasks}", f"{each.runs}", *(_estimate(each.estimates[name]) for name in METRICS)]
        for each in found
    ]
    return Table(["method", "tasks", "runs", *METRICS], rows, sum(each.own for each in found))


def improvements(suite: Suite) -> list[Section]:
    """Probabilities of improvement, if there is anything to compare."""
    rows = [[each.method, each.other, f"{each.tasks}", _estimate(each.estimate)] for each in suite.improvements()]
    note = (
        "P(X > Y) + ½ P(X = Y) for a run X of the first method and Y of the second on the same task, averaged over the "
        "tasks that both have. An interval around 0.5 tells nothing apart; one without width says that the runs do not "
        "overlap, not that it is certain."
    )
    table = Table(["X", "Y", "tasks", "probability that X is better"], rows)
    return [Section("Probability of improvement", 3, [note], table)] if rows else []


def curves(suite: Suite) -> list[Section]:
    """Learning curves, a picture a task."""
    colours = colours_of(suite.labels)
    pictures = []
    for task in suite.tasks:
        records = [record for record in suite.records if record.task == task]
        pictures.append(Picture(task, svg=draw_task(records, colours, suite.resamples, suite.seed)))
    note = (
        "Thick: mean over a label's finished runs, in twenty parts of the longest run; band: 95 % bootstrap interval "
        "of that mean, where there are two seeds or more; thin: single runs; dashed: unfinished runs."
    )
    return [Section("Learning curves", 3, [note], pictures=pictures)]


def reconstructions(suite: Suite) -> list[Section]:
    """Frames above their reconstructions, of each cell's first seed that has some."""
    first: dict[Any, Record] = {}
    for record in suite.records:
        if record.strip:
            first.setdefault(record.cell, record)
    pictures = [
        Picture(f"{run.task}, {run.label}, seed {run.seed}", png=base64.b64encode(run.strip or b"").decode())
        for run in first.values()
    ]
    note = "Frames above their reconstructions; the first seed of each label that has a strip."
    return [Section("Reconstructions", 3, [note], pictures=pictures)] if pictures else []


def methods(resamples: int, seed: int) -> Section:
    """How the numbers were computed."""
    items = [
        "Aggregates after Agarwal et al., arXiv 2108.13264. IQM: mean of all runs of all tasks without the best and "
        "the worst quarter. Median and mean: of the tasks' means. Optimality gap: 1 − mean(min(score, 1)), less is "
        "better.",
        "Each task weighs the same, also where it has fewer seeds.",
        f"Intervals: percentiles of {resamples:,} bootstrap resamples (seed {seed}) of the seeds within each task. "
        "With a handful of seeds such intervals are too narrow; they say nothing about other tasks.",
        "Published per-seed scores go through the same computation; means of tables are quoted as printed. Action "
        "repeats, image sizes and numbers of evaluation episodes differ between sources.",
    ]
    return Section("How it is computed", items=items)


# ---------------------------------------------------------------------- cells


def _number(value: float | None, form: str = ".0f", unit: str = "") -> str:
    if value is None or not np.isfinite(value):
        return NOTHING
    return f"{value:{',.0f' if form == ',' else form}}{unit}"


def _spread(mean: float, std: float | None) -> str:
    """Mean ± standard deviation; small returns with a decimal, unless both are whole as in a paper's table."""
    if not np.isfinite(mean):
        return NOTHING
    known = [mean] if std is None or not np.isfinite(std) else [mean, std]
    form = ",.0f" if abs(mean) >= 100 or all(value.is_integer() for value in known) else ".1f"
    return " ± ".join(f"{value:{form}}" for value in known)


def _score(score: Score) -> str:
    seeds = "" if score.seeds is None else f" ({len(score.seeds)})"
    return _spread(score.mean, score.std) + seeds


def _summary(seeds: statistics.Array) -> Score:
    return Score(float(seeds.mean()), float(seeds.std(ddof=1)) if len(seeds) > 1 else None, seeds)


def _estimate(estimate: Estimate) -> str:
    interval = estimate.interval
    return f"{estimate.value:.3f} [{f'{interval.low:.3f}, {interval.high:.3f}' if interval else NOTHING}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _each(texts: Iterable[str]) -> str:
    """Different texts, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text != NOTHING)) or NOTHING


def _last(record: Record, column: str) -> float:
    return next((row[column] for row in reversed(record.rows) if np.isfinite(row[column])), float("nan"))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.bootstrap < 1:
        raise SystemExit(f"--bootstrap must be ≥ 1, got {arguments.bootstrap}")
    sections = compose(collect(arguments.results), arguments.bootstrap, arguments.seed)
    out = arguments.out or arguments.results[0]
    for path, text in ((out / "report.md", as_markdown(sections)), (out / "report.html", as_html(sections))):
        print(write_atomically(path, functools.partial(Path.write_text, data=text, encoding="utf-8")))


if __name__ == "__main__":
    main()
