"""Pretraining: an autoencoder from episodes of observations, without an agent.

On Lightning Fabric, which starts the processes and averages their gradients; one process by default. What is computed
does not depend on how a batch is divided among processes, or among parts that are computed one after the other: each
observation has its own noise (:mod:`rl_ae.noise`), each process its own observations (:mod:`rl_ae.streaming`), and a
loss that cannot be divided is refused by name.

Everything random is a function of the seed and the step, so that a checkpoint holds the learner, its step and the
position in the data, and a run that was killed goes on as if it had not been.

=====================  ======================================================================================
``config.json``        the configuration, as given and as resolved, the data, and every session's versions
``checkpoint.pt``      what a killed run goes on from
``metrics.csv``        losses and their terms in training and validation
``autoencoder/``       the best so far, for ``Autoencoder.from_pretrained``
``reconstructions.png``, ``traversals.png``   of the held-out episodes, at the end; ``interpolation.png`` of codes
``logs/``              TensorBoard events
``.lock``              held by the process that trains
=====================  ======================================================================================
"""

import contextlib
import copy
import csv
import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rl_ae import generators
from rl_ae.analysis import plot_interpolation, plot_reconstructions, plot_traversals
from rl_ae.autoencoders import Autoencoder
from rl_ae.configs import AutoencoderConfig
from rl_ae.factory import create_autoencoder, create_learner, is_pretrained, resolve_config
from rl_ae.files import write_atomically
from rl_ae.latents import QuantizedLatent, StochasticLatent
from rl_ae.learner import Evaluated, RepresentationLearner
from rl_ae.locking import LOCK_FILE, locked
from rl_ae.losses import psnr
from rl_ae.noise import PartOfNoise
from rl_ae.pixels import count_frame_channels, to_unit
from rl_ae.precision import PRECISIONS
from rl_ae.provenance import describe_machine, git_commit
from rl_ae.stopping import StopSignals
from rl_ae.streaming import ArrayFrames, Batches, FrameSource, describe, hold_out, random, spread

__all__ = ["ArrayFrames", "FrameSource", "PretrainConfig", "Pretraining", "pretrain"]

#: What random numbers are for; each purpose has streams of its own.
_SPLIT, _ORDER, _NETWORKS, _NOISE, _VALIDATION = range(5)
#: A step at which every schedule has ended: losses of one validation can be compared with those of another.
_SCHEDULES_ENDED = 10**12
#: Observations in a picture, and latent dimensions that are traversed.
_SHOWN, _TRAVERSED = 8, 10
#: Fields in which two sessions of a run may differ: they do not change what has been learned.
_FREE_FIELDS = frozenset(
    {
        *("steps", "patience", "log_every", "checkpoint_every", "frame_channels"),
        *("accelerator", "devices", "nodes", "shards"),  # their resolved number may not differ
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How an autoencoder is pretrained.

    Attributes:
        autoencoder: Name of the autoencoder, or the folder of a saved one to start from.
        latent_dim: Width of its latent.
        beta: Weight of the KL in its loss.
        free_nats: KL of an observation that costs nothing: at a β ≫ 1, the rate.
        input_centre: Brightness subtracted from its input; 1 for a white background.
        output_centre: Brightness added to its output, where that ends without a sigmoid.
        learning_rate: Of encoder and decoder.
        steps: Optimizer steps.
        batch_size: Observations of a step, over all processes.
        accumulate: Parts that a process computes its share of a batch in, one after the other, to need less memory.
        seed: Of weights, held-out episodes, order and noise.
        held_out: Share of the episodes to validate with if below 1, else their number; 0 for none.
        validation_frames: Most observations of them that are looked at, evenly spread.
        validate_every: Steps between two validations.
        patience: Validations without a lower loss after which training ends; None for never.
        log_every: Steps between two rows of metrics.csv.
        checkpoint_every: Steps between two checkpoints.
        buffer_mb: Megabytes of observations that are shuffled together; a process holds two such buffers a shard.
        shards: Parts of a batch that are read on their own, a multiple of the processes; one each if None.
        frame_channels: Channels of a frame of a stack, 1 or 3, for pictures; 3 if they divide the channels if None.
        accelerator: Where to train; auto takes GPUs if there are any.
        devices: GPUs of each machine, or processes on its CPU.
        nodes: Machines.
        precision: fp32, bf16, or auto: bf16 where the device has instructions for it. Losses stay in fp32.

    Raises:
        ValueError: If a number is out of range.
    """

    autoencoder: str = "wm_vae"
    latent_dim: int | None = None
    beta: float | None = None
    free_nats: float | None = None
    input_centre: float | None = None
    output_centre: float | None = None
    learning_rate: float | None = None
    steps: int = 50_000
    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0
    held_out: float = 0.1
    validation_frames: int = 2_048
    validate_every: int = 1_000
    patience: int | None = None
    log_every: int = 100
    checkpoint_every: int = 1_000
    buffer_mb: float = 256.0
    shards: int | None = None
    frame_channels: Literal[1, 3] | None = None
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "fp32"

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "validation_frames", "validate_every", "log_every")
        for name in (*counts, "checkpoint_every", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
        if not self.held_out >= 0.0 or not self.buffer_mb > 0.0:
            raise ValueError(f"held_out must be ≥ 0 and buffer_mb > 0, got {self.held_out} and {self.buffer_mb}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.patience is not None and (self.patience < 1 or self.held_out == 0.0):
            raise ValueError(
                f"patience counts validations, ≥ 1, of held-out episodes: got patience={self.patience} and "
                f"held_out={self.held_out:g}"
            )
        processes, shards = self.devices * self.nodes, self.resolved_shards
        if shards < 1 or shards % processes:
            raise ValueError(f"shards must be a multiple of the {processes} processes, got {shards}")
        if self.batch_size % (math.lcm(shards, processes * self.accumulate)):
            raise ValueError(
                f"batch_size must be divisible by shards and by devices × nodes × accumulate, got {self.batch_size}, "
                f"{shards} and {self.devices} × {self.nodes} × {self.accumulate}"
            )

    @property
    def resolved_shards(self) -> int:
        """Shards of a batch, ≥ 1."""
        return self.devices * self.nodes if self.shards is None else self.shards

    @property
    def parts(self) -> int:
        """Parts that a batch is computed in."""
        return self.devices * self.nodes * self.accumulate

    def resolve(
        self, observation_shape: tuple[int, int, int], autoencoder: AutoencoderConfig | None = None
    ) -> AutoencoderConfig:
        """The autoencoder's config with the numbers that are given here.

        Args:
            observation_shape: (C, H, W).
            autoencoder: A config in place of the one that is named here.

        Raises:
            ValueError: If it has no such number, or is a saved one, which keeps its own.
        """
        changes = {
            "latent_dim": self.latent_dim,
            "beta": self.beta,
            "free_nats": self.free_nats,
            "input_centre": self.input_centre,
            "output_centre": self.output_centre,
            "encoder_learning_rate": self.learning_rate,
            "decoder_learning_rate": self.learning_rate,
        }
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        like = self.autoencoder if autoencoder is None else autoencoder
        config = resolve_config(like, observation_shape)
        known = set() if is_pretrained(like) else {field.name for field in dataclasses.fields(config)}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"the autoencoder {self.autoencoder!r} has no {', '.join(unknown)} to set")
        return dataclasses.replace(config, **given)


class Pretraining(NamedTuple):
    """The files of a pretraining.

    Attributes:
        folder: Its folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.folder / "config.json"

    @property
    def checkpoint(self) -> Path:
        """What a killed run goes on from."""
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """Losses and their terms, a row every ``log_every`` and ``validate_every`` steps."""
        return self.folder / "metrics.csv"

    @property
    def autoencoder(self) -> Path:
        """The folder of the best autoencoder so far; of the last without validation."""
        return self.folder / "autoencoder"

    @property
    def logs(self) -> Path:
        """TensorBoard's folder."""
        return self.folder / "logs"

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of :attr:`metrics`, each with what was measured at its step: ``validation_total``, say."""
        with self.metrics.open(newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def pretrain(
    source: FrameSource,
    config: PretrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    autoencoder: AutoencoderConfig | None = None,
    progress_bar: bool = True,
) -> Pretraining:
    """Train an autoencoder on episodes of observations, in a folder of its own.

    With more than one process, Fabric starts this program again for each further device of a machine, as often as
    needed; on more than one machine it is started on each, by ``torchrun`` say. All write to the same folder.

    Args:
        source: The episodes.
        config: How.
        folder: Where its files go.
        resume: Continue what is in the folder, if there is anything.
        autoencoder: A config to train in place of the one that ``config`` names.
        progress_bar: Show one.

    Returns:
        The finished run's files; :attr:`Pretraining.autoencoder` is the folder to go on with.

    Raises:
        ImportError: If Lightning is not installed.
        ValueError: If the folder exists and ``resume`` is false, or it holds another run or one of other data; if
            another process trains in it; if the data are too few, or no stacks of such frames; if the loss depends on
            the whole batch, which is to be divided.
        FloatingPointError: If a term of the loss is not finite; names it. The checkpoint is of the step before.
        ChildProcessError: If another process of several died.
        KeyboardInterrupt: If one of the processes got SIGINT or SIGTERM: after the step, with everything stored.
    """
    count_frame_channels(source.observation_shape[0], config.frame_channels)  # not when all is done
    resolved = config.resolve(source.observation_shape, autoencoder)
    if autoencoder is not None:
        config = dataclasses.replace(config, autoencoder=type(autoencoder).__name__)
    files = Pretraining(Path(folder))
    fabric = _fabric(config)
    fabric.launch()
    outside = generators.capture()
    try:
        with _held(files.folder, fabric):
            run = _Run(source, config, resolved, files, fabric, resume)
            with contextlib.ExitStack() as stack:
                writer = None
                if fabric.is_global_zero:  # what was logged of the checkpoint's step itself stays
                    writer = stack.enter_context(SummaryWriter(files.logs, purge_step=run.learner.step + 1))
                run.train(writer, progress_bar and fabric.is_global_zero)
            if fabric.is_global_zero:
                run.draw()
            fabric.barrier()
    finally:
        generators.restore(outside)
    return files


def _fabric(config: PretrainConfig) -> Any:
    try:
        from lightning.fabric import Fabric  # noqa: PLC0415
    except ImportError as error:
        raise ImportError('pretraining needs Lightning Fabric: pip install "rl-ae[distributed]"') from error
    # fp32 for Fabric: the learner knows what of a loss may be rounded, and does it itself
    several = config.devices * config.nodes > 1
    return Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="ddp" if several else "auto",
        precision="32-true",
    )


@contextlib.contextmanager
def _held(folder: Path, fabric: Any) -> Iterator[None]:
    """The folder's lock, which one process holds for all; where it cannot, all refuse."""
    with contextlib.ExitStack() as stack:
        refusal = ""
        if fabric.is_global_zero:
            try:
                stack.enter_context(locked(folder, "trains"))
            except ValueError as error:
                refusal = str(error)
        if refusal := fabric.broadcast(refusal):
            raise ValueError(refusal)
        yield


class _Losses(nn.Module):
    """A learner's losses as a module's forward, for Fabric to wrap.

    Args:
        learner: Whose.
        n_data: Size of the data set.
    """

    def __init__(self, learner: RepresentationLearner, n_data: int) -> None:
        super().__init__()
        self.autoencoder, self.loss = learner.autoencoder, learner.loss
        self._losses = functools.partial(learner.losses, n_data=n_data)

    def forward(self, observations: Tensor) -> Evaluated:
        return self._losses(observations)


class _Run:
    """One process's side of a pretraining; arguments and errors as :func:`pretrain`.

    Attributes:
        learner: Of the autoencoder that is trained.
        rows: Of ``metrics.csv``, by step.
        best: Lowest loss of a validation so far.
        stale: Validations since.
    """

    def __init__(
        self,
        source: FrameSource,
        config: PretrainConfig,
        resolved: AutoencoderConfig,
        files: Pretraining,
        fabric: Any,
        resume: bool,
    ) -> None:
        self.config, self.files, self.fabric = config, files, fabric
        training, held_out = hold_out(len(source.episode_lengths), config.held_out, self._seed(_SPLIT))
        self.shown = spread(source, held_out or training, config.validation_frames)
        self.validates = bool(held_out)
        own = config.resolved_shards // fabric.world_size
        self.batches = Batches(
            source,
            training,
            config.batch_size,
            buffer_bytes=int(config.buffer_mb * 1e6),
            seed=self._seed(_ORDER),
            shards=config.resolved_shards,
            own=range(fabric.global_rank * own, (fabric.global_rank + 1) * own),
        )
        description = {
            "config": dataclasses.asdict(config),
            "autoencoder": resolved.to_dict(),
            "shards": config.resolved_shards,
            "data": describe(source),
        }
        sessions = _earlier_sessions(files, description, resume)

        torch.manual_seed(self._seed(_NETWORKS))
        like = config.autoencoder if is_pretrained(config.autoencoder) else resolved
        module = create_autoencoder(like, source.observation_shape).to(fabric.device)
        self.learner = create_learner(module, precision=config.precision)
        if config.parts > 1 and self.learner.whole_batch:
            raise ValueError(
                f"{config.autoencoder} cannot be trained in {config.parts} parts of a batch, because "
                f"{' and '.join(self.learner.whole_batch)}: use devices=1, nodes=1 and accumulate=1"
            )
        self.rows: dict[int, dict[str, float]] = {}
        self.best, self.stale = math.inf, 0
        self._pending: list[dict[str, float]] = []
        self._elapsed, self._started = 0.0, time.monotonic()
        if sessions:
            self._load()
        losses = _Losses(self.learner, self.batches.n_data)
        self._losses, *self._optimizers = fabric.setup(losses, *self.learner.optimizers)
        fabric.barrier()  # until every process has looked at the folder
        if fabric.is_global_zero:
            machine = describe_machine()
            session = {"step": self.learner.step, "commit": git_commit(), "machine": machine}
            text = json.dumps({**description, "sessions": [*sessions, session]}, indent=2)
            write_atomically(files.config, lambda path: path.write_text(text + "\n"))

    def _seed(self, *path: int) -> int:
        return int(random(self.config.seed, *path).integers(2**31))

    # ------------------------------------------------------------------ training

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or the patience is at its end."""
        patience = self.config.patience
        return self.learner.step >= self.config.steps or (patience is not None and self.stale >= patience)

    def train(self, writer: SummaryWriter | None, progress_bar: bool) -> None:
        """Train to the last step, or until a signal comes."""
        config, learner = self.config, self.learner
        learner.autoencoder.train()
        stopped = False
        try:
            with (
                StopSignals() as signals,
                tqdm(total=config.steps, initial=learner.step, disable=not progress_bar, unit="update") as bar,
            ):
                while not self.finished and not stopped:
                    self._pending.append(self._update())
                    if self._due(config.log_every):
                        self._add_row("train", _means(self._pending), writer)
                        bar.set_postfix(total=f"{self.rows[learner.step]['train_total']:.4g}", best=f"{self.best:.4g}")
                        self._pending = []
                    if self.validates and self._due(config.validate_every):
                        self._compare(self._validate(writer))
                    bar.update()
                    if self._due(config.checkpoint_every):
                        self._save()
                    stopped = self._any(signals.received)
        except FloatingPointError:  # in all processes, whose values are the same
            self._save()
            self.fabric.barrier()  # a process that ends takes those along that are not done
            raise
        except RuntimeError as error:
            if not _is_of_another_process(error):
                raise
            raise ChildProcessError(
                f"another process of this training has died ({error}): --resume continues from {self.files.checkpoint}"
            ) from error
        finally:
            self.batches.close()
        self._save()
        if stopped:
            self.fabric.barrier()
            raise KeyboardInterrupt(f"stopped at step {learner.step:_} of {config.steps:_}, where --resume continues")
        if not self.validates:
            self._keep()

    def _due(self, every: int) -> bool:
        return self.learner.step % every == 0 or self.learner.step == self.config.steps

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        answers = torch.tensor(float(here), device=self.fabric.device)
        return bool(self.fabric.all_reduce(answers, reduce_op="sum") > 0.0)

    def _update(self) -> dict[str, float]:
        """Take one optimizer step; raises before it, and with the data at the same position, if a term is not finite.

        Returns:
            Every metric, averaged over the batch.
        """
        position = self.batches.state_dict()
        frames = torch.from_numpy(self.batches.next()).to(self.fabric.device)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        parts = frames.split(len(frames) // self.config.accumulate)
        evaluated = [self._backward(part, number, len(parts)) for number, part in enumerate(parts)]
        values = self._mean([part.metrics for part in evaluated])
        try:
            self._check(values)
        except FloatingPointError:
            self.batches.load_state_dict(position)
            raise
        for optimizer in self._optimizers:
            optimizer.step()
        followed = self.learner.follow(evaluated[-1])
        values |= {name: value.item() for name, value in followed.items() if name not in values}
        self._check(values)
        return values

    def _backward(self, frames: Tensor, number: int, parts: int) -> Evaluated:
        """Add the gradient of one of the parts of this process's share of a batch."""
        share = len(frames) * parts
        start = self.fabric.global_rank * share + number * len(frames)
        torch.manual_seed(self._seed(_NOISE, self.learner.step))  # the same for all parts of the batch
        with (
            self.fabric.no_backward_sync(self._losses, enabled=number + 1 < parts),
            PartOfNoise(start, len(frames), self.config.batch_size),
        ):
            evaluated: Evaluated = self._losses(to_unit(frames))
            self.fabric.backward(evaluated.total / parts)
        return evaluated

    def _mean(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Means over parts and processes."""
        stacked = torch.stack([torch.stack([part[name].float() for part in parts]).mean() for name in parts[0]])
        return dict(zip(parts[0], self.fabric.all_reduce(stacked, reduce_op="mean").tolist(), strict=True))

    def _check(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} after {self.learner.step} steps; {self.files.checkpoint} is of the last good "
                    "one: lower the learning rate, check the data"
                )

    # ------------------------------------------------------------------ validation

    def _validate(self, writer: SummaryWriter | None) -> float:
        """The loss on the held-out episodes when all schedules have ended; the same noise each time."""
        # one process looks and all believe it: two could round differently, and one stop alone
        measured = self._measure() if self.fabric.is_global_zero else {}
        values: dict[str, float] = self.fabric.broadcast(measured)
        self._check({f"validation {name}": value for name, value in values.items()})
        self._add_row("validation", values, writer)
        return values["total"]

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        judge = copy.copy(self.learner)
        judge.step = _SCHEDULES_ENDED
        judge.autoencoder.eval()
        batches = torch.from_numpy(self.shown).split(self.config.batch_size)
        if len(batches) > 1 and len(batches[-1]) < self.config.batch_size:
            batches = batches[:-1]  # some losses depend on the size
        measured = []
        for number, batch in enumerate(batches):
            observations = to_unit(batch.to(self.fabric.device))
            torch.manual_seed(self._seed(_VALIDATION, number))
            values = judge.evaluate(observations, n_data=self.batches.n_data)
            errors = (judge.autoencoder.reconstruct(observations).float() - observations).square().mean()
            measured.append({**{name: value.item() for name, value in values.items()}, "mse": errors.item()})
        judge.autoencoder.train()
        means = _means(measured)
        decibels = psnr(torch.tensor(means.pop("mse"))).item()
        return {**means, "psnr": decibels}

    def _compare(self, loss: float) -> None:
        """Keep the autoencoder if it is the best so far."""
        self.stale += 1
        if loss < self.best:
            self.best, self.stale = loss, 0
            self._keep()

    # ------------------------------------------------------------------ files

    def _add_row(self, kind: str, values: Mapping[str, float], writer: SummaryWriter | None) -> None:
        step = self.learner.step
        row = self.rows.setdefault(
            step, {"step": step, "epoch": self.batches.position.epoch, "seconds": round(self._seconds(), 1)}
        )
        row |= {f"{kind}_{name}": value for name, value in values.items()}
        if writer is not None:
            for name, value in values.items():
                writer.add_scalar(f"{kind}/{name}", value, step)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._started

    def _keep(self) -> None:
        if self.fabric.is_global_zero:
            self.learner.autoencoder.save_pretrained(self.files.autoencoder)

    def _save(self) -> None:
        """Write checkpoint and metrics, unless a weight is not finite: then the earlier ones stay."""
        if not self.fabric.is_global_zero or not _is_finite(self.learner):
            return
        state = {
            "learner": self.learner.state_dict(),
            "position": self.batches.state_dict(),
            "best": self.best,
            "stale": self.stale,
            "rows": list(self.rows.values()),
            "pending": self._pending,
            "seconds": self._seconds(),
        }
        write_atomically(self.files.checkpoint, lambda path: torch.save(state, path))
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                rows = csv.DictWriter(file, columns)
                rows.writeheader()
                rows.writerows(self.rows.values())

        write_atomically(self.files.metrics, write)

    def _load(self) -> None:
        path = self.files.checkpoint
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        self.learner.load_state_dict(state["learner"])
        self.batches.load_state_dict(state["position"])
        self.best, self.stale, self._pending = state["best"], state["stale"], state["pending"]
        self.rows = {int(row["step"]): row for row in state["rows"]}
        self._elapsed = state["seconds"]

    def draw(self) -> None:
        """Write pictures of the autoencoder that was kept."""
        autoencoder = Autoencoder.from_pretrained(self.files.autoencoder)
        images = to_unit(torch.from_numpy(self.shown))
        shown = images[:: max(len(images) // _SHOWN, 1)][:_SHOWN]
        channels = self.config.frame_channels
        figures = {"reconstructions.png": plot_reconstructions(autoencoder, shown, frame_channels=channels)}
        if isinstance(autoencoder.encode(shown), QuantizedLatent | StochasticLatent):  # which have no dimensions
            figures["interpolation.png"] = plot_interpolation(autoencoder, shown[0], shown[-1], frame_channels=channels)
        else:
            figures["traversals.png"] = plot_traversals(
                autoencoder, shown[0], min(_TRAVERSED, autoencoder.latent_dim), reference=shown, frame_channels=channels
            )
        for name, figure in figures.items():
            write_atomically(self.files.folder / name, figure.savefig)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _is_of_another_process(error: RuntimeError) -> bool:
    """Whether it says that another process does not answer; gloo's are of no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _is_finite(learner: RepresentationLearner) -> bool:
    modules = (part for _, part in learner.parts() if isinstance(part, nn.Module))
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _earlier_sessions(files: Pretraining, description: Mapping[str, Any], resume: bool) -> list[dict[str, Any]]:
    """What ``config.json`` says of earlier sessions, none for a new run; refuses what may not be continued."""
    if not files.folder.exists() or {path.name for path in files.folder.iterdir()} <= {LOCK_FILE}:
        return []
    if not files.config.exists():
        raise ValueError(f"{files.folder} exists and is not a pretraining (no config.json): choose another folder")
    if not resume:
        raise ValueError(f"{files.folder} exists: continue it with resume, or choose another folder")
    try:
        found = json.loads(files.config.read_text())
        sessions: list[dict[str, Any]] = found.pop("sessions")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{files.config} is not a pretraining's configuration: {error!r}") from error
    old, new = _flat(found), _flat(json.loads(json.dumps(description)))
    free = {f"config.{name}" for name in _FREE_FIELDS}
    changed = [name for name in {**old, **new} if name not in free and old.get(name) != new.get(name)]
    if changed:
        listing = "; ".join(f"{name}: expected {old.get(name)}, got {new.get(name)}" for name in changed)
        raise ValueError(f"{files.folder} holds a pretraining of another kind ({listing}); choose another folder")
    return sessions if files.checkpoint.exists() else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
