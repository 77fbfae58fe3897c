"""Execution: one run of a grid in a process, here or on a Ray cluster."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.records import in_new_process
from rl_ae.sb3.memory import keep_freed_memory
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.runs import Run, evaluate_run, train_run

#: Seconds that a retried run waits for the process it takes the place of to end.
PATIENCE = 60.0


class Job(NamedTuple):
    """A run of a grid.

    Attributes:
        suite: Its suite.
        task: Its task.
        label: Who learns.
        config: The run.
        folder: Where it goes.
        command: What makes this run alone.
    """

    suite: str
    task: str
    label: str
    config: RunConfig
    folder: Path
    command: str

    @property
    def name(self) -> str:
        """``suite/task/label/seed_<n>``, also its path below a folder of results."""
        return run_name(self.suite, self.task, self.label, self.config.seed)

    @property
    def is_done(self) -> bool:
        """Whether it is trained to its last step and evaluated there."""
        evaluation = Run(self.folder).evaluation
        with contextlib.suppress(OSError, ValueError, KeyError):
            return bool(json.loads(evaluation.read_text())["step"] >= self.config.steps)
        return False


def run_name(suite: str, task: str, label: str, seed: int) -> str:
    """A run's name, and its path below a folder of runs or results."""
    return f"{suite}/{task.replace(':', '-')}/{label}/seed_{seed}"


class Resources(NamedTuple):
    """What a run takes.

    Attributes:
        cores: Threads, and CPUs it is counted with.
        gpus: GPUs, or the fraction of one, it is counted with.
    """

    cores: int
    gpus: float


def execute(config: dict[str, Any], folder: str, cores: int) -> float:
    """Train and evaluate a run, from its last checkpoint if there is one; its output goes to ``output.log``.

    Args:
        config: :meth:`RunConfig.to_dict <rl_ae.sb3.run_config.RunConfig.to_dict>`.
        folder: Of the run.
        cores: Threads.

    Returns:
        The mean return of the evaluation.
    """
    torch.set_num_threads(cores)
    keep_freed_memory()
    run = Run(Path(folder))
    run.folder.mkdir(parents=True, exist_ok=True)
    with _logged(run.output):
        train_run(RunConfig.from_dict(config), run.folder, resume=True, patience=PATIENCE)
        record = evaluate_run(run.folder)
    return float(record["mean_return"])


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append what this process prints to a file, the libraries below Python too."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


# ---------------------------------------------------------------------- where

#: What the process of a run finds imported; the second by every optimizer, for seconds.
_IMPORTED = (__name__, "torch._dynamo")
#: Starts a job; its future raises what the run raised.
Submit = Callable[[Job], "Future[float]"]


@contextlib.contextmanager
def one_after_another(resources: Resources) -> Iterator[Submit]:
    """Jobs in processes of their own on this machine, one at a time: all that two cores can do at once."""
    os.environ.setdefault("OMP_NUM_THREADS", str(resources.cores))  # of the processes to come
    pool = ThreadPoolExecutor(1)

    def submit(job: Job) -> "Future[float]":
        # a process each: one that is killed takes no other with it
        arguments = (job.config.to_dict(), str(job.folder), resources.cores)
        return pool.submit(in_new_process, execute, *arguments, imported=_IMPORTED)

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def on_ray(resources: Resources, address: str | None, retries: int) -> Iterator[Submit]:
    """Jobs on a Ray of this machine's or a cluster's, as many at once as their resources allow.

    A job whose process or node dies, or that fails for a reason that may pass, starts again from its checkpoint, on
    another node if need be; folders must be the same ones on every node.

    Args:
        resources: Of a job.
        address: ``host:port`` of a cluster; a Ray of this machine's own if ``None``.
        retries: Of each job.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If nothing answers at the address.
    """
    try:
        import ray  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ImportError('--ray needs Ray: pip install "rl-ae[distributed]"') from error
    if address is not None:
        _check_reachable(address)
    ray.init(address=address, logging_level="WARNING", log_to_driver=False, ignore_reinit_error=True)
    try:
        available = ray.cluster_resources()
        for name, needed in (("CPU", resources.cores), ("GPU", resources.gpus)):
            if needed > available.get(name, 0.0):
                raise ValueError(f"a run needs {needed} {name}, but this Ray has {available.get(name, 0.0):g} in all")
        remote = ray.remote(
            num_cpus=resources.cores,
            num_gpus=resources.gpus,
            max_retries=retries,
            retry_exceptions=[RuntimeError, OSError],
            max_calls=1,  # a process each: torch and MuJoCo leave things behind
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(resources.cores)}},
        )(execute)

        def submit(job: Job) -> "Future[float]":
            future: Future[float] = remote.remote(
                job.config.to_dict(), str(job.folder.absolute()), resources.cores
            ).future()
            return future

        yield submit
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ask before Ray does, which tries for minutes.

    Raises:
        ConnectionError: If nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray answers at {address!r} ({error}): expected host:port as `ray start --head` prints it"
        ) from error
