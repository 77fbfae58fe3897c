"""Runs in folders ``<results>/<suite>/<task>/<label>/seed_<n>/``, finished or not, and what is wrong with them."""

import csv
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_ae.sb3.runs import Run

Row = dict[str, float]
Key = tuple[str, str, str]

_COLUMNS = ("step", "frames", "seconds", "episodes", "return", "reconstruction", "evaluation")
#: Columns that every row has a number in.
_REQUIRED = ("step", "frames")
#: Strips of frames above their reconstructions; the first that is there is shown.
_STRIPS = ("evaluation.png", "reconstructions.png")
_SEED = re.compile(r"seed_(\d+)")
_PNG = b"\x89PNG\r\n\x1a\n"
#: What the runs of a cell may differ in.
_FREE_FIELDS = frozenset({"seed", "device", "log_every", "checkpoint_every", "eval_every", "eval_episodes"})


class BrokenFileError(Exception):
    """A file of a run cannot be read."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        suite: Name of the suite, such as ``dmc100k``.
        task: Name of the task.
        label: What was run.
        seed: Training seed.
        config: Contents of ``config.json``.
        rows: Of the learning curve; NaN where a row has no number.
        evaluation: Contents of ``evaluation.json``; ``None`` for an unfinished run.
        strip: PNG of frames above reconstructions.
    """

    suite: str
    task: str
    label: str
    seed: int
    config: dict[str, Any]
    rows: list[Row]
    evaluation: dict[str, Any] | None
    strip: bytes | None

    @property
    def cell(self) -> Key:
        """Suite, task and label: what the seeds of a cell share."""
        return self.suite, self.task, self.label

    @property
    def name(self) -> str:
        """The folder's name below the results."""
        return f"{'/'.join(self.cell)}/seed_{self.seed}"

    @property
    def planned_steps(self) -> int | None:
        """Agent steps of the whole run, if its configuration says so."""
        steps = lookup(self.config, "config", "steps")
        return int(steps) if is_number(steps) else None

    @property
    def step(self) -> int:
        """Agent steps so far."""
        return int(self.evaluation["step"] if self.evaluation else self.rows[-1]["step"] if self.rows else 0)

    @property
    def frames(self) -> float:
        """Environment frames so far."""
        return self.step * self.frames_per_step

    @property
    def frames_per_step(self) -> float:
        """Action repeat: of the curve, or else of the configuration; NaN if neither says."""
        if self.rows and self.rows[-1]["step"]:
            return self.rows[-1]["frames"] / self.rows[-1]["step"]
        repeat = lookup(self.config, "config", "pixels", "action_repeat")
        return float(repeat) if is_number(repeat) else float("nan")

    @property
    def seconds(self) -> float:
        """Seconds of training, over all sessions."""
        return self.rows[-1]["seconds"] if self.rows else float("nan")

    @property
    def steps_per_second(self) -> float:
        """Of training; NaN if the curve has no seconds."""
        return self.rows[-1]["step"] / self.seconds if self.rows and self.seconds else float("nan")

    @property
    def score(self) -> float:
        """Mean return of the deterministic episodes after training; NaN for an unfinished run."""
        return self.evaluated("mean_return")

    def evaluated(self, name: str) -> float:
        """A number of ``evaluation.json``; NaN where it has none, and for an unfinished run."""
        value = lookup(self.evaluation, name)
        return float(value) if is_number(value) else float("nan")

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """One a start of the training, with versions, commit and machine where they are known."""
        sessions = lookup(self.config, "sessions")
        return [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []


class Collection(NamedTuple):
    """What was found.

    Attributes:
        records: Runs, by suite, task, label and seed.
        warnings: Files and runs that are not as they should be.
    """

    records: list[Record]
    warnings: list[str]


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def lookup(content: Any, *names: str) -> Any:
    """A value in nested dictionaries; ``None`` if it is missing."""
    return functools.reduce(lambda inner, name: inner.get(name) if isinstance(inner, dict) else None, names, content)


def collect(folders: Sequence[Path]) -> Collection:
    """Read all runs in folders, searched recursively.

    Args:
        folders: To search.

    Returns:
        The runs that can be read, and warnings of everything that cannot, by its name below a folder.

    Raises:
        SystemExit: If a folder is missing, or no run is in any of them.
    """
    for folder in folders:
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not a folder")
    records: dict[tuple[Key, int], Record] = {}
    warnings: list[str] = []
    for folder, shown in _run_folders(folders):
        try:
            record, remarks = _read_run(folder, shown)
        except BrokenFileError as error:
            warnings.append(f"{error}: the run is left out")
            continue
        warnings += remarks
        if records.setdefault((record.cell, record.seed), record) is not record:
            warnings.append(f"{shown} is there twice: the first is used")
    if not records:
        listing = ", ".join(map(str, folders)) or "no folder"
        raise SystemExit("\n".join([f"no run (config.json and curve.csv) in {listing}", *warnings]))
    found = [records[key] for key in sorted(records)]
    return Collection(found, warnings + _differences(found))


def _run_folders(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """Folders that are runs or should be, each once, with their names below the searched folder."""
    found: dict[Path, str] = {}
    for folder in map(Path.resolve, folders):
        runs = {file.parent for file in folder.rglob("config.json") if (file.parent / "curve.csv").exists()}
        seeds = {path for path in [folder, *folder.rglob("seed_*")] if path.is_dir() and _SEED.fullmatch(path.name)}
        for run in sorted(runs | seeds):
            # never more of the path: what is above the results is this machine's own
            name = "/".join(run.parts[-4:] if run in seeds else run.relative_to(folder.parent).parts)
            found.setdefault(run, name)
    return list(found.items())


def _read_run(folder: Path, shown: str) -> tuple[Record, list[str]]:
    run = Run(folder)
    seed = _SEED.fullmatch(folder.name)
    if seed is None or len(folder.parts) < 5:
        raise BrokenFileError(f"{shown} is not at <suite>/<task>/<label>/seed_<n>")
    config = _read_json(run.config, shown)
    rows, remarks = _read_rows(run.curve, shown)
    evaluation, strip = None, None
    try:
        evaluation = _read_evaluation(run.evaluation, shown, lookup(config, "config", "steps"))
    except BrokenFileError as error:
        remarks.append(f"{error}: the run counts as unfinished")
    try:
        strip = _read_strip(folder, shown)
    except BrokenFileError as error:
        remarks.append(str(error))
    suite, task, label = folder.parts[-4:-1]
    record = Record(suite, task, label, int(seed[1]), config, rows, evaluation, strip)
    stated = lookup(config, "config", "seed")
    if is_number(stated) and stated != record.seed:
        remarks.append(f"{shown}/config.json says seed {stated}")
    return record, remarks


def _read_json(path: Path, shown: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise BrokenFileError(f"{shown}/{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise BrokenFileError(f"{shown}/{path.name} is not a JSON object")
    return content


def _read_evaluation(path: Path, shown: str, planned: Any) -> dict[str, Any] | None:
    """The contents of ``evaluation.json``; ``None`` if the run has none yet."""
    if not path.exists():
        return None
    evaluation = _read_json(path, shown)
    if missing := [name for name in ("step", "mean_return") if not is_number(evaluation.get(name))]:
        raise BrokenFileError(f"{shown}/{path.name} has no {' and no '.join(missing)}")
    if is_number(planned) and evaluation["step"] < planned:
        raise BrokenFileError(f"{shown}/{path.name} is of step {evaluation['step']:,} of {planned:,}")
    return evaluation


def _read_strip(folder: Path, shown: str) -> bytes | None:
    """A PNG of frames above reconstructions; ``None`` if the run has none."""
    path = next((folder / name for name in _STRIPS if (folder / name).exists()), None)
    if path is None:
        return None
    image = path.read_bytes()
    if not image.startswith(_PNG):
        raise BrokenFileError(f"{shown}/{path.name} is not a PNG")
    return image


def _read_rows(path: Path, shown: str) -> tuple[list[Row], list[str]]:
    """The rows that are whole, and a warning if there are others."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or []
    except (ValueError, OSError, csv.Error) as error:
        raise BrokenFileError(f"{shown}/{path.name} cannot be read ({type(error).__name__})") from error
    if missing := [name for name in _REQUIRED if name not in columns]:
        raise BrokenFileError(f"{shown}/{path.name} has no column {', '.join(missing)}")
    rows = [row for line in lines if (row := _parse_row(line)) is not None]
    broken = len(lines) - len(rows)
    return rows, [f"{shown}/{path.name}: {broken} of {len(lines)} rows cannot be read"] if broken else []


def _parse_row(line: dict[str, Any]) -> Row | None:
    try:
        row = {name: float(line[name]) if name in line else float("nan") for name in _COLUMNS}
    except (TypeError, ValueError):
        return None
    return row if all(np.isfinite(row[name]) for name in _REQUIRED) else None


def _differences(records: Iterable[Record]) -> list[str]:
    """Warnings of cells whose runs differ in more than their seeds."""
    warnings = []
    for _, cell in itertools.groupby(records, key=lambda record: record.cell):
        first, *rest = cell
        for record in rest:
            old, new = (_flat(lookup(run.config, "config")) for run in (first, record))
            fields = [name for name in old if name in new and name not in _FREE_FIELDS and old[name] != new[name]]
            if fields:
                warnings.append(f"{record.name} is not configured as seed {first.seed}: {', '.join(fields)}")
    return warnings


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values} if prefix else {}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}
