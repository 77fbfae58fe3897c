"""One process at a time works in a folder."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path, work: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when the process ends, however it does.

    Args:
        folder: Made when needed, and removed again if nothing came of it.
        work: What a process does there: "trains".
        patience: Seconds to wait for another process, one that is about to end say.

    Raises:
        ValueError: If another process holds the lock.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, deadline = folder / LOCK_FILE, time.monotonic() + patience
    try:
        with path.open("a") as lock:
            while not _acquired(lock):
                if time.monotonic() >= deadline:
                    raise ValueError(f"another process {work} in {folder}: wait for it, or end it")
                time.sleep(0.5)
            yield
    finally:
        if folder in missing and list(folder.iterdir()) == [path]:  # nothing came of it
            path.unlink()
            for made in missing:
                made.rmdir()


def _acquired(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
