"""Run a grid of tasks, presets and seeds; what is done is not done again, what was stopped goes on.

    python -m benchmarks.run --suite dmc100k --algo sac_ae --seeds 5
    python -m benchmarks.run --suite dmc100k --algo sac_ae --preset sac_ae_shift --tasks cartpole-swingup --ray
    python -m benchmarks.run --suite atari100k --algo dqn --preset atari100k+rae --tasks Pong --seeds 1

A run is a folder, ``<runs>/<suite>/<task>/<label>/seed_<n>``. Configuration, curve, evaluation and reconstructions are
copied to the same path below ``--results``, from which ``python -m benchmarks.report`` makes its page. Runs follow one
another, or with ``--ray`` go on side by side where there is room.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks.execution import Job, Resources, on_ray, one_after_another, run_name
from benchmarks.presets import PRESETS, apply, preset_of
from benchmarks.records import write_json
from benchmarks.suites import SUITES, suite_of
from rl_ae.files import write_atomically
from rl_ae.sb3.runs import Run

RESULTS = Path(__file__).parent / "results"
#: Files of a run that are results, beside its configuration.
_KEPT = ("curve.csv", "evaluation.json", "evaluation.png")


@dataclasses.dataclass
class Arguments:
    """What to run.

    Attributes:
        suite: A benchmark.
        algo: Who learns.
        preset: With which settings; the suite's for the algorithm if omitted.
        tasks: Of the suite, all of them if omitted; others of its kind may be named.
        seeds: How many, from the first one.
        first_seed: The first.
        set: Settings that override the preset's, as name=value; the value is JSON or a word.
        label: What the runs are called; the preset's name, and what is set.
        steps: Agent steps, instead of the suite's.
        cores: Threads of a run.
        gpus: GPUs of a run, or the fraction of one; with Ray.
        ray: Use a Ray of this machine's own.
        ray_address: host:port of a Ray cluster, whose nodes see the same folders.
        retries: How often Ray starts a run again that died.
        runs: Folder of the runs.
        results: Folder of the results.
        dry: List the runs, and run none.
    """

    suite: Annotated[str, tyro.conf.arg(help=f"One of: {', '.join(SUITES)}.")]
    algo: str = "sac_ae"
    preset: Annotated[str | None, tyro.conf.arg(help=f"One of: {', '.join(PRESETS)}.")] = None
    tasks: tuple[str, ...] = ()
    seeds: int = 1
    first_seed: int = 0
    set: tuple[str, ...] = ()
    label: str | None = None
    steps: int | None = None
    cores: int = 1
    gpus: float = 0.0
    ray: bool = False
    ray_address: str | None = None
    retries: int = 3
    runs: Path = Path("runs/benchmarks")
    results: Path = RESULTS
    dry: bool = False


def jobs_of(arguments: Arguments) -> list[Job]:
    """The runs of a grid, the seeds of a task one after the other.

    Raises:
        ValueError: If the suite, a task, the algorithm, the preset or a setting is unknown, or a number out of range.
    """
    if min(arguments.seeds, arguments.cores) < 1 or min(arguments.gpus, arguments.retries) < 0:
        raise ValueError("seeds and cores must be ≥ 1, gpus and retries ≥ 0")
    suite = suite_of(arguments.suite)
    name, preset = preset_of(suite.family, arguments.algo, arguments.preset)
    label = arguments.label or "+".join([name, *arguments.set])
    changes = dict(_setting(text) for text in arguments.set)
    jobs = []
    for task in arguments.tasks or suite.tasks:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            config = apply(preset, suite.config(task), changes, seed)
            if arguments.steps is not None:
                config = dataclasses.replace(config, steps=arguments.steps)
            folder = arguments.runs / run_name(arguments.suite, task, label, seed)
            jobs.append(Job(arguments.suite, task, label, config, folder, _command(arguments, name, task, seed)))
    return jobs


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected name=value, got {text!r}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        read = value
    return name, tuple(read) if isinstance(read, list) else read


def _command(arguments: Arguments, preset: str, task: str, seed: int) -> str:
    """What makes one run alone, without the paths of this machine."""
    words = ["python", "-m", "benchmarks.run", "--suite", arguments.suite, "--algo", arguments.algo]
    words += ["--preset", preset, "--tasks", task, "--first-seed", str(seed)]
    words += ["--set", *arguments.set] if arguments.set else []
    words += ["--label", arguments.label] if arguments.label else []
    words += ["--steps", str(arguments.steps)] if arguments.steps is not None else []
    return shlex.join(words)


# ---------------------------------------------------------------------- the grid


def run_grid(arguments: Arguments, jobs: list[Job]) -> dict[str, BaseException]:
    """Run what is not done yet, and keep the results of each run as it ends.

    Returns:
        What went wrong, by the name of the run.
    """
    resources = Resources(arguments.cores, arguments.gpus)
    where = (
        on_ray(resources, arguments.ray_address, arguments.retries)
        if arguments.ray or arguments.ray_address
        else one_after_another(resources)
    )
    failures: dict[str, BaseException] = {}
    with where as submit, Live(console=_console(), auto_refresh=False) as live:
        pending = {submit(job): job for job in jobs if not job.is_done}
        states = dict.fromkeys((job.name for job in jobs), "done") | {job.name: "waiting" for job in pending.values()}
        try:
            while pending:
                ended, _ = concurrent.futures.wait(pending, timeout=2.0, return_when="FIRST_COMPLETED")
                for future in ended:
                    job = pending.pop(future)
                    states[job.name] = _end(future, job, failures)
                    keep(job, arguments.results)
                _show(live, jobs, states, ended=bool(ended))
        finally:
            for job in pending.values():  # stopped: as far as they got
                keep(job, arguments.results)
        _show(live, jobs, states, ended=True)
    for job in jobs:  # those of earlier calls
        if job.is_done:
            keep(job, arguments.results)
    return failures


def _end(future: "Future[float]", job: Job, failures: dict[str, BaseException]) -> str:
    """What became of a run."""
    error = future.exception()
    if error is None:
        return "done"
    failures[job.name] = error
    return "failed"


def keep(job: Job, results: Path) -> None:
    """Copy what a run has to show, of a finished one or as far as it is."""
    run, target = Run(job.folder), results / job.name
    if not run.config.exists():
        return
    write_json(target / run.config.name, {"command": job.command, **json.loads(run.config.read_text())})
    for name in _KEPT:
        source = run.folder / name
        if source.exists():
            write_atomically(target / name, functools.partial(shutil.copyfile, source))


# ---------------------------------------------------------------------- progress


def _console() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def _show(live: Live, jobs: list[Job], states: dict[str, str], ended: bool) -> None:
    """Draw the table; where nobody watches, print it when a run has ended."""
    if live.console.is_terminal:
        live.update(progress_table(jobs, states), refresh=True)
    elif ended:
        live.console.print(progress_table(jobs, states))


def progress_table(jobs: list[Job], states: dict[str, str], now: float | None = None) -> Table:
    """A row a run: where it is, what it returns, how long it will take."""
    table = Table(title=f"{sum(state == 'done' for state in states.values())} of {len(jobs)} runs done")
    for column in ("run", "state", "step", "return", "steps/s", "time left"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for job in jobs:
        table.add_row(job.name, *_progress(job, states[job.name], time.time() if now is None else now))
    return table


def _progress(job: Job, state: str, now: float) -> Iterator[str]:
    try:
        beat = json.loads(Run(job.folder).progress.read_text())
    except (OSError, json.JSONDecodeError):
        yield from (state, "–", "–", "–", "–")
        return
    rate = beat["step"] / max(beat["seconds"], 1e-9)
    fresh = now - beat["time"] < 300.0
    yield "running" if state == "waiting" and fresh else state
    yield f"{beat['step']:,}/{beat['steps']:,}"
    yield "–" if beat["return"] is None else f"{beat['return']:.1f}"
    yield f"{rate:.2f}"
    left = (beat["steps"] - beat["step"]) / max(rate, 1e-9)
    yield "–" if state in ("done", "failed") or beat["step"] == 0 else f"{left / 60:.0f} min"


def _stop(number: int, frame: object) -> None:
    """Let the processes of runs write their checkpoints, as Ctrl-C does, which reaches them by itself."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Entry point; fails if a run did."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        given = tyro.cli(Arguments, args=arguments, description=__doc__)
        jobs = jobs_of(given)
        if given.dry:
            for job in jobs:
                print(f"{'done   ' if job.is_done else 'to run '} {job.name}: {job.command}")
            return
        failures = run_grid(given, jobs)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"benchmarks.run: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("benchmarks.run: stopped; the same command goes on") from None
    for name, error in failures.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    if failures:
        raise SystemExit(
            f"benchmarks.run: {len(failures)} of {len(jobs)} runs failed; the same command tries them again"
        )
    print(f"next: python -m benchmarks.report {given.results / given.suite}")


if __name__ == "__main__":
    main()
