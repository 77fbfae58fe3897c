"""Where does the time of an update go, and what is the least it could take?

    python -m benchmarks.roofline

Counts floating-point operations and bytes of each part of an update at 84×84×9 and batches of 128, measures what this
machine's convolutions, matrix products and memory reach at best, and compares the floor these set with the measured
time. Table and summary go to ``benchmarks/results/roofline/``.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.records import write_json
from benchmarks.throughput import BATCH_SIZE, EDGE, N_STACK, TRANSITIONS, Images, fill, make_unfused, measurable
from rl_ae.files import write_atomically
from rl_ae.provenance import describe_machine
from rl_ae.sb3 import SACAE, FrameReplayBuffer

RESULTS = Path(__file__).parent / "results" / "roofline"
#: Mode → arguments of SACAE.
MODES = {
    "paper fp32": {"update": "paper", "precision": "fp32"},
    "paper bf16": {"update": "paper", "precision": "bf16"},
    "fused fp32": {"update": "fused", "precision": "fp32"},
    "fused bf16": {"update": "fused", "precision": "bf16"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass
class Arguments:
    """What to measure.

    Attributes:
        rounds: Times each part is run; the median counts.
        threads: Of torch; as many as there are cores if omitted.
        results: Folder of the results.
    """

    rounds: int = 9
    threads: int | None = None
    results: Path = RESULTS


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if no cache kept any: an upper bound."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            # an expanded tensor has fewer bytes than elements
            self.bytes += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors)
        return result


def median_seconds(function: Callable[[], Any], rounds: int) -> float:
    """The median time of a call, after two that do not count."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))


# ---------------------------------------------------------------------- ceilings


def measure_ceilings(rounds: int) -> dict[str, dict[str, float]]:
    """The best rates of this machine: GFLOP/s of convolutions and products, GB/s of memory."""
    numbers = torch.zeros(100_000_000)
    copy = torch.empty_like(numbers)
    memory = 2 * numbers.nbytes / median_seconds(lambda: copy.copy_(numbers), rounds)
    ceilings = {}
    for name, dtype in measurable(DTYPES).items():
        best = 0.0
        for edge in (41, 39, 37):  # the trunk's own sizes
            images = torch.randn(BATCH_SIZE, 32, edge, edge).to(dtype, memory_format=torch.channels_last)
            kernel = torch.randn(32, 32, 3, 3).to(dtype, memory_format=torch.channels_last)
            operations = 2 * BATCH_SIZE * 32 * (edge - 2) ** 2 * 32 * 9
            seconds = median_seconds(lambda x=images, k=kernel: F.conv2d(x, k), rounds)  # type: ignore[misc]
            best = max(best, operations / seconds)
        left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
        product = 2 * 1024**3 / median_seconds(lambda a=left, b=right: a @ b, rounds)  # type: ignore[misc]
        ceilings[name] = {"convolution": best / 1e9, "product": product / 1e9, "memory": memory / 1e9}
    return ceilings


# ---------------------------------------------------------------------- parts of an update


def make_parts(**mode: Any) -> dict[str, tuple[Callable[[], Any], float]]:
    """Part of an update → what runs it, and how often an update does."""
    agent = SACAE(
        "CnnPolicy",
        Images(EDGE),
        seed=0,
        buffer_size=TRANSITIONS,
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs={"n_stack": N_STACK},
        diagnostics_interval=sys.maxsize,
        **mode,
    )
    agent._setup_learn(0)
    fill(agent, EDGE)
    agent.train(2, BATCH_SIZE)
    batch = agent._sample(BATCH_SIZE)
    targets, encoding = agent._target_q_values(batch, None), agent._encode(batch.observations)
    half = 1.0 / agent.actor_update_interval
    parts: dict[str, tuple[Callable[[], Any], float]] = {
        "sampling, uint8 to float, target of the decoder": (lambda: agent._sample(BATCH_SIZE), 1.0),
        "values of the next observations": (lambda: agent._target_q_values(batch, None), 1.0),
    }
    if mode["update"] == "fused":
        parts["critic and representation"] = (lambda: agent._step_jointly(batch, targets), 1.0)
    else:
        parts["critic"] = (lambda: agent._step_critic(batch, targets), 1.0)
        parts["representation"] = (
            lambda: agent._step_representation(batch, agent._encode(batch.observations)),
            1.0,
        )
    parts["actor and temperature"] = (lambda: agent._update_actor_and_temperature(encoding, None), half)
    parts["targets"] = (agent._update_targets, 1.0 / agent.target_update_interval)
    return parts


def measure_part(function: Callable[[], Any], share: float, ceiling: dict[str, float], rounds: int) -> dict[str, float]:
    """Operations, bytes, floor and time of a part, as much of it as an update has."""
    with FlopCounterMode(display=False) as operations:
        function()
    with Traffic() as traffic:
        function()
    by_kind = operations.get_flop_counts().get("Global", {})
    convolutions = sum(count for kind, count in by_kind.items() if "convolution" in str(kind))
    products = sum(by_kind.values()) - convolutions
    arithmetic = convolutions / ceiling["convolution"] + products / ceiling["product"]
    return {
        "gflop": share * (convolutions + products) / 1e9,
        "gigabytes": share * traffic.bytes / 1e9,
        "floor": share * arithmetic / 1e9,
        "memory_seconds": share * traffic.bytes / ceiling["memory"] / 1e9,
        "seconds": share * median_seconds(function, rounds),
    }


# ---------------------------------------------------------------------- the report


def ceiling_table(ceilings: dict[str, dict[str, float]]) -> str:
    lines = ["| best of this machine | convolution 3×3, 32 → 32 | product of 1024² | copy |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {c['convolution']:.0f} GFLOP/s | {c['product']:.0f} GFLOP/s | {c['memory']:.0f} GB/s |"
        for name, c in ceilings.items()
    ]
    return "\n".join(lines)


def part_table(modes: dict[str, dict[str, dict[str, float]]], unfused: float) -> str:
    lines = [
        "| mode | part | GFLOP | arithmetic at the ceiling | GB through memory, without caches | measured "
        "| of the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, parts in modes.items():
        names = ("gflop", "floor", "gigabytes", "seconds")
        total = {name: sum(part[name] for part in parts.values()) for name in names}
        for part, numbers in (*parts.items(), ("**all**", total)):
            of_ceiling = numbers["floor"] / numbers["seconds"]
            lines.append(
                f"| {mode} | {part} | {numbers['gflop']:.1f} | {1e3 * numbers['floor']:.0f} ms "
                f"| {numbers['gigabytes']:.2f} | {1e3 * numbers['seconds']:.0f} ms | {of_ceiling:.0%} |"
            )
    lines.append(f"| paper's update, unfused | **all** | | | | {1e3 * unfused:.0f} ms | |")
    return "\n".join(lines)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    ceilings = measure_ceilings(arguments.rounds)
    modes = {
        name: {
            part: measure_part(function, share, ceilings[mode["precision"]], arguments.rounds)
            for part, (function, share) in make_parts(**mode).items()
        }
        for name, mode in measurable(MODES).items()
    }
    update = make_unfused(EDGE, BATCH_SIZE)
    # two calls: the actor takes part in every second one
    unfused = median_seconds(lambda: [update() for _ in range(2)], max(arguments.rounds // 2, 1)) / 2
    text = f"{ceiling_table(ceilings)}\n\n{part_table(modes, unfused)}"
    summary = {
        "command": f"python -m benchmarks.roofline {' '.join(sys.argv[1:])}".strip(),
        **describe_machine(),
        "ceilings": ceilings,
        "modes": modes,
        "unfused_seconds": unfused,
    }
    write_json(arguments.results / "summary.json", summary)
    write_atomically(arguments.results / "table.md", lambda path: path.write_text(text + "\n"))
    print(text)


if __name__ == "__main__":
    main()
