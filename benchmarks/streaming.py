"""Streaming: how much memory, and how much time, does pretraining need on data that are larger than memory?

    python -m benchmarks.streaming                     # generates 20 GB of frames, and deletes them again
    python -m benchmarks.streaming --data FOLDER       # a data set of Minari

Throughput is measured in pairs, each in a process of its own: a window from disk, until the next one has been read
as well, then as many updates on frames in memory. What has been read of the generated frames is taken out of the
system's cache, so that it is read from the disk each time. Memory is the most that a process of its own ever held that
makes some updates and then reads batches until every frame has been in one. The record is written after every
measurement.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.records import in_new_process, quartiles, write_json
from rl_ae import create_learner
from rl_ae.configs import named_config
from rl_ae.pixels import to_unit
from rl_ae.pretraining import PretrainConfig, pretrain
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.sb3.datasets import MinariFrames
from rl_ae.streaming import ArrayFrames, Batches, Frames, FrameSource

EPISODE_LENGTH = 1_000
SHAPE = (3, 64, 64)


class FileFrames:
    """Episodes in one file of raw frames, of which nothing stays in the system's cache.

    Args:
        path: The file, of whole episodes.
    """

    def __init__(self, path: Path) -> None:
        self.observation_shape = SHAPE
        self._frame_bytes = int(np.prod(SHAPE))
        self.episode_lengths = [EPISODE_LENGTH] * (path.stat().st_size // self._frame_bytes // EPISODE_LENGTH)
        self._file = os.open(path, os.O_RDONLY)

    def read(self, episode: int, start: int, stop: int) -> Frames:
        offset = (episode * EPISODE_LENGTH + start) * self._frame_bytes
        count = (stop - start) * self._frame_bytes
        frames = np.frombuffer(os.pread(self._file, count, offset), np.uint8).reshape(-1, *SHAPE)
        os.posix_fadvise(self._file, offset, count, os.POSIX_FADV_DONTNEED)
        return frames


def generate(path: Path, gigabytes: float) -> None:
    """Write a file of random frames, of whole episodes."""
    episode_bytes = EPISODE_LENGTH * int(np.prod(SHAPE))
    noise = np.random.default_rng(0).integers(256, size=episode_bytes, dtype=np.uint8).tobytes()
    with path.open("wb", buffering=0) as file:
        for number in tqdm(range(int(gigabytes * 1e9 // episode_bytes)), "generating", unit="episode", leave=False):
            start = number * 4_099 % episode_bytes  # no two episodes are the same
            file.write(noise[start:] + noise[:start])
        os.fsync(file.fileno())


def open_source(data: Path) -> FrameSource:
    """A data set of Minari, or a file of :func:`generate`."""
    return FileFrames(data) if data.is_file() else MinariFrames(data)


def peak_memory(data: Path, config: PretrainConfig) -> dict[str, float]:
    """Gigabytes: of the data, of what was read of them, and the most that this process held before and after."""
    source = open_source(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        pretrain(source, config, folder)
    episodes = range(len(source.episode_lengths))
    batches = Batches(source, episodes, config.batch_size, buffer_bytes=int(config.buffer_mb * 1e6), seed=config.seed)
    read = sum(batches.next().nbytes for _ in range(batches.n_data // config.batch_size))
    batches.close()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(source.episode_lengths) * int(np.prod(source.observation_shape))
    return {
        "data_gb": size / 1e9,
        "read_gb": read / 1e9,
        "before_gb": before * 1024 / 1e9,
        "peak_gb": after * 1024 / 1e9,
    }


def measure_pair(data: Path, config: PretrainConfig, number: int) -> dict[str, float]:
    """Seconds of the same number of updates, from disk and from memory.

    Args:
        data: See :func:`open_source`.
        config: Autoencoder, batch and buffer.
        number: Of the pair; each reads the data in another order.
    """
    source = open_source(data)
    learner = create_learner(named_config(config.autoencoder).for_shape(source.observation_shape))
    buffer_bytes = int(config.buffer_mb * 1e6)
    episodes = range(len(source.episode_lengths))
    disk = Batches(source, episodes, config.batch_size, buffer_bytes=buffer_bytes, seed=number)
    held = [np.array(source.read(0, 0, source.episode_lengths[0])) for _ in range(4)]
    memory = Batches(ArrayFrames(held), range(len(held)), config.batch_size, buffer_bytes=2**62)

    def train(reader: Batches, updates: int) -> float:
        started = time.perf_counter()
        for _ in range(updates):
            learner.update(to_unit(torch.from_numpy(reader.next())))
        reader.wait()
        return time.perf_counter() - started

    train(memory, 2), train(disk, 1)
    disk.skip_window()  # so that one is read while the one before it is trained on
    updates = disk.batches_left()
    measured = {"updates": updates, "disk": train(disk, updates), "memory": train(memory, updates)}
    disk.close(), memory.close()
    return measured


@contextlib.contextmanager
def cleaned_up() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, temporary folders and processes included."""

    def end(number: int, frame: object) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(
    data: Path | None = None,
    gigabytes: float = 20.0,
    autoencoder: str = "wm_vae",
    batch_size: int = 64,
    buffer_mb: float = 64.0,
    steps: int = 200,
    pairs: int = 5,
    scratch: Path = Path(),
    out: Path = Path("benchmarks/results/streaming/summary.json"),
) -> None:
    """Measure memory and throughput.

    Args:
        data: A data set of Minari; generated frames if omitted.
        gigabytes: Of generated frames.
        autoencoder: Its name.
        batch_size: Observations an update.
        buffer_mb: Of the buffer.
        steps: Updates of the process whose memory is measured.
        pairs: Measurements of the throughput, ≥ 1.
        scratch: Folder on a disk, where frames are generated and deleted again; the current one if omitted.
        out: Where the record is written.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be ≥ 1, got {pairs}")
    config = PretrainConfig(
        autoencoder=autoencoder,
        batch_size=batch_size,
        buffer_mb=buffer_mb,
        steps=steps,
        accelerator="cpu",
        checkpoint_every=steps,
        validate_every=steps,
        validation_frames=batch_size,
    )
    record: dict[str, Any] = {
        "config": {"autoencoder": autoencoder, "batch_size": batch_size, "buffer_mb": buffer_mb, "steps": steps},
        "commit": git_commit(),
        "machine": describe_machine(),
    }
    with cleaned_up(), tempfile.TemporaryDirectory(dir=scratch) as folder:
        if data is None:
            data = Path(folder) / "frames"
            generate(data, gigabytes)
        record["memory"] = in_new_process(peak_memory, data, config)
        write_json(out, record)
        measured = []
        for number in tqdm(range(pairs), "pairs", leave=False):
            measured.append(in_new_process(measure_pair, data, config, number))
            ratios = [pair["memory"] / pair["disk"] for pair in measured]
            record["throughput"] = {"pairs": measured, "ratios": ratios, "ratio_quartiles": quartiles(ratios)}
            write_json(out, record)
    low, median, high = record["throughput"]["ratio_quartiles"]
    memory = record["memory"]
    print(f"memory: {memory['peak_gb']:.2f} GB for {memory['data_gb']:.1f} GB of frames")
    print(f"throughput from disk: {median:.2f} of that from memory ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    tyro.cli(main)
