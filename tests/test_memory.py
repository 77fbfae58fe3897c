import platform
import re
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from rl_ae.sb3.memory import Memory, available_memory, bytes_per_step, check_replay_memory

FRAMES = spaces.Box(0, 255, (9, 84, 84), np.uint8)
ACTIONS = spaces.Box(-1, 1, (6,))
PLENTY = Memory(free=200 * 10**9, limit=200 * 10**9)


@pytest.mark.parametrize("optimized", [False, True])
def test_bytes_are_those_of_sb3s_buffer(optimized):
    space = spaces.Box(0, 255, (3, 16, 20), np.uint8)
    buffer = ReplayBuffer(50, space, ACTIONS, optimize_memory_usage=optimized, handle_timeout_termination=not optimized)
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 50 * bytes_per_step(space, ACTIONS, optimized)


def test_the_arithmetic_is_in_the_message():
    message = check_replay_memory(1_000_000, FRAMES, ACTIONS, memory=PLENTY)
    assert message.startswith("replay buffer needs 127.0 GB (1_000_000 transitions of 127_044 bytes), 200.0 GB free")


def test_it_warns_above_what_is_free_and_refuses_above_the_limit():
    with pytest.warns(UserWarning, match=r"needs 127.0 GB .* 23.4 GB free of 130.0 GB: buffer_size=165_769 fits"):
        check_replay_memory(1_000_000, FRAMES, ACTIONS, memory=Memory(234 * 10**8, 130 * 10**9))
    with pytest.raises(MemoryError, match=r"needs 127.0 GB .* 23.4 GB free of 25.0 GB: buffer_size=") as error:
        check_replay_memory(1_000_000, FRAMES, ACTIONS, memory=Memory(234 * 10**8, 25 * 10**9))
    fits = int(re.search(r"buffer_size=([\d_]+)", str(error.value)).group(1))
    assert check_replay_memory(fits, FRAMES, ACTIONS, memory=Memory(234 * 10**8, 25 * 10**9))


def test_the_control_groups_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr("rl_ae.sb3.memory._CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr("rl_ae.sb3.memory._OWN_CGROUPS", tmp_path / "own")
    plenty = available_memory().limit
    assert plenty > 10**9
    limits = {
        "0::/job/step": "cgroup/job/step/memory.max",
        "0::/slice/unit": "cgroup/slice/memory.max",  # a limit on a group above one's own
        "7:cpu,memory:/job": "cgroup/memory/job/memory.limit_in_bytes",
        "": "cgroup/memory.max",
    }
    for number, (line, file) in enumerate(limits.items(), start=1):
        (tmp_path / "own").write_text(f"3:cpu:/x\n{line}\n" if line else "")
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("max\n")
        assert available_memory().limit == plenty
        (tmp_path / file).write_text(f"{number}000000\n")
        assert available_memory() == Memory(free=0, limit=number * 1_000_000), line
        (tmp_path / file).unlink()


_PAGE_FAULTS = """
import resource, torch
from rl_ae.sb3.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):  # two blocks of 64 MiB at once, and both are freed
        first, second = torch.ones(2**24), torch.ones(2**24)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
took_effect = keep_freed_memory()
faults()
print(given_back, took_effect, faults())
"""


def test_memory_that_is_kept_is_not_mapped_again():
    # in a process of its own, because it cannot be taken back
    done = subprocess.run([sys.executable, "-c", _PAGE_FAULTS], capture_output=True, text=True, check=True)
    given_back, took_effect, kept = done.stdout.split()
    assert took_effect == str(platform.libc_ver()[0] == "glibc")
    if took_effect == "True":
        assert int(kept) < 20 < int(given_back)
