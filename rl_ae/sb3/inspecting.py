"""What ``rl-ae inspect`` does: one page about what an autoencoder has learned, in a file that loads nothing else.

A run's agent plays an episode, or a saved autoencoder is shown frames; the page says what came back of them, what the
latent's dimensions draw, which way the latent went, and what the run's logs say about its training.
"""

import base64
import csv
import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rl_ae.analysis import traverse
from rl_ae.analysis.figures import PRIOR_SPAN, last_frame
from rl_ae.diagnostics import describe_latents, principal_components
from rl_ae.files import write_atomically
from rl_ae.latents import GaussianLatent, HierarchicalLatent, Latent, QuantizedLatent, StochasticLatent
from rl_ae.losses import perplexity, psnr
from rl_ae.sb3.callbacks import read_curve
from rl_ae.sb3.charts import Line, draw_bars, draw_lines, draw_path
from rl_ae.sb3.evaluation import FIRST_START_SEED, reconstruct
from rl_ae.sb3.runs import Run
from rl_ae.sb3.show import TRAVERSED, Footage, FrameSource, Subject, gather_footage, load_subject, spread

PAGE = "inspection.html"
TEMPLATE = Path(__file__).with_name("inspection.html.jinja")
#: Columns of the strip over the episode, and of that of its worst frames.
STRIP, WORST = 12, 6
#: Positions of a slider; odd, so that the prior's mean is one.
POSITIONS = 11
#: Of the error maps: from nothing in black to the largest error in pale yellow.
ERROR_COLOURS = "inferno"


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture of a strip.

    Attributes:
        uri: The picture, a PNG as a data URI.
        text: What it shows, for who cannot see it.
    """

    uri: str
    text: str


@dataclasses.dataclass(frozen=True)
class Column:
    """Pictures below each other.

    Attributes:
        caption: Below them.
        tiles: The pictures.
    """

    caption: str
    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Slider:
    """A picture for every position of a slider.

    Attributes:
        dimension: The latent dimension it moves.
        label: Its name.
        values: What the slider says at each position.
        uris: A PNG for each as a data URI.
        start: The position it has at first.
    """

    dimension: int
    label: str
    values: Sequence[str]
    uris: Sequence[str]
    start: int


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        missing: Why it is not there, if it is not.
        paragraphs: What there is to know.
        facts: Names and values.
        columns: A strip.
        sliders: Below it.
        charts: ``<svg>`` elements.
        details: Names and values that are shown when asked for.
    """

    title: str
    missing: str = ""
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[Column] = ()
    sliders: Sequence[Slider] = ()
    charts: Sequence[str] = ()
    details: Sequence[tuple[str, str]] = ()

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return self.title.casefold().replace(" ", "-")


class Scene(NamedTuple):
    """What the page is made from.

    Attributes:
        subject: The autoencoder and what it came with.
        frame_channels: Channels of one frame.
        footage: What it was shown, T observations.
        latent: Of all of them.
        reconstructions: (T, C, H, W).
        errors: Mean squared error of each, of all channels, (T,).
    """

    subject: Subject
    frame_channels: int
    footage: Footage
    latent: Latent
    reconstructions: Tensor
    errors: Tensor


@torch.no_grad()  # a hierarchical latent computes when it is asked
def inspect_model(folder: Path, source: FrameSource, out: Path | None = None, seed: int = 0) -> Path:
    """Write a page about an autoencoder; see the module.

    Args:
        folder: A run's, or written by ``save_pretrained``.
        source: Where frames come from; a run's own environment if nothing is given.
        out: The page; inspection.html in the folder if omitted.
        seed: Of the episode that is played.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If one is of the wrong kind, or frames are of the wrong shape.
        ImportError: Without the extra ``report``.
    """
    template = _load_template()
    subject = load_subject(folder)
    try:
        frame_channels = subject.frame_channels(source.grayscale)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    scene = _see(subject, frame_channels, gather_footage(subject, source, seed))
    logs = read_logs(Run(folder).logs)
    sections = [
        _reconstructions(scene),
        _worst(scene),
        _traversals(scene),
        _trajectory(scene),
        _dimensions(scene),
        _learning(folder),
        _gradients(logs),
        _probes(logs),
    ]
    page = template.render(
        title=f"Inside {folder.resolve().name}", facts=_facts(scene, source, seed), sections=sections
    )
    path = folder / PAGE if out is None else out
    return write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))


def _load_template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  the extra "report"
    except ImportError as error:
        raise ImportError('rl-ae inspect needs jinja2: pip install "rl-ae[report]"') from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name)


def _see(subject: Subject, frame_channels: int, footage: Footage) -> Scene:
    autoencoder = subject.autoencoder.eval()
    reconstructions = reconstruct(autoencoder, footage.images)
    errors = (reconstructions - footage.images).square().mean(dim=(1, 2, 3))
    return Scene(subject, frame_channels, footage, autoencoder.encode(footage.images), reconstructions, errors)


def _facts(scene: Scene, source: FrameSource, seed: int) -> list[tuple[str, str]]:
    """What the page is about."""
    autoencoder, config, agent = scene.subject.autoencoder, scene.subject.config, scene.subject.agent
    images, steps = scene.footage.images, scene.footage.steps
    facts = [
        ("autoencoder", type(autoencoder).__name__),
        ("parameters", f"{sum(parameter.numel() for parameter in autoencoder.parameters()):,}"),
        ("observations", " × ".join(map(str, autoencoder.observation_shape))),
        ("latent", f"{autoencoder.latent_dim} numbers"),
    ]
    if config is not None and agent is not None:
        step: int = agent.num_timesteps  # type: ignore[attr-defined]  # of Stable-Baselines3
        facts += [("agent", f"{config.algo} on {config.env}, seed {config.seed}, step {step:,} of {config.steps:,}")]
    if source.frames:
        facts += [("frames", ", ".join(path.name for path in source.frames))]
    else:
        player = "played by the agent" if source.env is None else f"of {source.env}, played at random"
        facts += [("episode", f"{player}, start seed {FIRST_START_SEED + seed:,}")]
    facts += [("shown", f"{len(images)} observations, steps {steps[0]:,} to {steps[-1]:,}")]
    if scene.footage.episode_return is not None:
        facts += [("return", f"{scene.footage.episode_return:.1f}")]
    variance = images.var(dim=0, correction=0).mean()
    facts += [("PSNR of the reconstructions", _decibels(scene.errors.mean()))]
    return [*facts, ("PSNR of the mean frame, a blind baseline", _decibels(variance))]


# ---------------------------------------------------------------------- frames


def _reconstructions(scene: Scene) -> Section:
    steps = scene.footage.steps
    return Section(
        "Reconstructions",
        paragraphs=[
            "From top to bottom: what the agent saw (the newest frame of a stack), what its latent's mode decodes to, "
            f"and where the two differ, from black, no error, to pale yellow, {_largest_error(scene):.2f} of the range "
            "of a pixel, the largest error of the episode. PSNR is that of all channels of an observation."
        ],
        columns=_strip(scene, spread(len(steps), STRIP)),
        charts=[draw_lines("PSNR over the episode", {"PSNR": (steps, psnr(_perceptible(scene.errors)))}, "step", "dB")],
    )


def _worst(scene: Scene) -> Section:
    worst = scene.errors.argsort(descending=True, stable=True)[:WORST]
    return Section(
        "Worst reconstructed frames",
        paragraphs=["The observations of the episode that come back least faithfully, the worst first."],
        columns=_strip(scene, worst.numpy()),
    )


def _strip(scene: Scene, chosen: NDArray[np.int64]) -> list[Column]:
    frames = last_frame(scene.footage.images[chosen], scene.frame_channels)
    reconstructions = last_frame(scene.reconstructions[chosen], scene.frame_channels)
    maps = _colour(_error_maps(scene)[chosen] / _largest_error(scene))
    columns = []
    for number, *pictures in zip(chosen, frames, reconstructions, maps, strict=True):
        step, decibels = scene.footage.steps[number], _decibels(scene.errors[number])
        texts = (f"frame at step {step}", f"its reconstruction, {decibels}", f"where the two differ at step {step}")
        tiles = [Tile(_data_uri(picture), text) for picture, text in zip(pictures, texts, strict=True)]
        columns.append(Column(f"step {step}, {decibels}", tiles))
    return columns


def _error_maps(scene: Scene) -> Tensor:
    """Absolute errors of the newest frames, means over their channels, (T, H, W)."""
    errors = scene.reconstructions.clamp(0.0, 1.0) - scene.footage.images
    return errors[:, -scene.frame_channels :].abs().mean(dim=1)


def _largest_error(scene: Scene) -> float:
    return max(_error_maps(scene).max().item(), 1.0 / 255.0)  # and no division by none


def _colour(maps: Tensor) -> NDArray[np.uint8]:
    """Maps (T, H, W) in [0, 1] as RGB, (T, H, W, 3)."""
    coloured: NDArray[np.uint8] = matplotlib.colormaps[ERROR_COLOURS](maps.numpy(), bytes=True)
    return coloured[..., :3]


def _data_uri(picture: NDArray[np.uint8]) -> str:
    """A picture (H, W, 3) as the address of itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _decibels(error: Tensor) -> str:
    return f"{psnr(_perceptible(error)).item():.1f} dB"


def _perceptible(error: Tensor) -> Tensor:
    """Errors of at least rounding, so that no PSNR is infinite."""
    return error.clamp_min(torch.finfo(error.dtype).eps ** 2)


# ---------------------------------------------------------------------- the latent


def _traversals(scene: Scene) -> Section:
    title = "Latent traversals"
    if isinstance(scene.latent, QuantizedLatent | StochasticLatent):
        return Section(title, missing="the latent is a grid of codes, in which no dimension can be moved alone")
    images = scene.footage.images
    middle = len(images) // 2
    # the dimensions that vary most in the episode, each over what it takes there or, with a prior, over 99 % of that
    traversals = traverse(scene.subject.autoencoder, images[middle], TRAVERSED, None, POSITIONS, reference=images)
    gaussian = isinstance(scene.latent, GaussianLatent)
    unit = " σ" if gaussian else ""
    sliders = [
        Slider(
            traversal.dimension,
            traversal.label,
            [f"{value:z.2f}{unit}" for value in traversal.values],
            [_data_uri(picture) for picture in last_frame(traversal.images, scene.frame_channels)],
            int(np.abs(np.subtract(traversal.values, traversal.start)).argmin()),
        )
        for traversal in traversals
    ]
    low, high = PRIOR_SPAN
    span = f"from {low} to {high} σ of the prior" if gaussian else "between its extremes in the episode"
    return Section(
        title,
        paragraphs=[
            f"Each slider moves one number of the latent of step {scene.footage.steps[middle]} {span} while the others "
            "keep theirs; the most active numbers first. A slider starts at the position nearest to the frame's own "
            "value, where the picture is about the reconstruction. Drag it, or use the arrow keys."
        ],
        columns=_strip(scene, np.array([middle])),
        sliders=sliders,
    )


def _trajectory(scene: Scene) -> Section:
    latents, title = scene.latent.mode, "Latent trajectory"
    if len(latents) < 2:
        return Section(title, missing="there is one observation, which is no way to go")
    points, shares = principal_components(latents)
    together = f"{100.0 * shares.sum():.1f} % of the latent's variance"
    return Section(
        title,
        paragraphs=[f"The latent's modes along their first two principal components, which hold {together}."],
        charts=[
            draw_path(
                "Latent over the episode",
                points.numpy(),
                scene.footage.steps.tolist(),
                *(f"component {number}, {100.0 * share:.1f} %" for number, share in enumerate(shares, start=1)),
            )
        ],
    )


def _dimensions(scene: Scene) -> Section:
    section = _describe(scene.latent, scene)
    numbers = describe_latents(scene.latent.mode)
    facts = [
        ("active units, variance above 0.01", f"{numbers['active_units'].item():.0f} of {scene.latent.mode.shape[1]}"),
        ("effective rank", f"{numbers['effective_rank'].item():.1f}"),
        ("mean length", f"{numbers['latent_norm'].item():.2f}"),
    ]
    return dataclasses.replace(section, facts=[*section.facts, *facts])


@functools.singledispatch
def _describe(latent: Latent, scene: Scene) -> Section:
    """What the latent's kind has numbers for; of a point, how far each dimension spreads."""
    spreads = latent.mode.std(dim=0, correction=0)
    return Section(
        "Latent dimensions",
        paragraphs=["The latent is a point, without a prior: it has no KL. How far each number spreads:"],
        charts=[draw_bars("Standard deviation in the episode", spreads, "dimension", "standard deviation")],
        details=[(f"z{number}", f"{value:.3f}") for number, value in enumerate(spreads.tolist())],
    )


@_describe.register
def _(latent: GaussianLatent, scene: Scene) -> Section:
    kl = latent.kl().mean(dim=0)
    return Section(
        "KL per dimension",
        paragraphs=["How much each number says about the frame: its KL to the prior, a mean over the episode."],
        facts=[("KL", f"{kl.sum().item():.2f} nats")],
        charts=[draw_bars("KL per dimension", kl, "dimension", "nats")],
        details=[(f"z{number}", f"{nats:.3f} nats") for number, nats in enumerate(kl.tolist())],
    )


@_describe.register
def _(latent: HierarchicalLatent, scene: Scene) -> Section:
    kl = latent.kl().mean(dim=0)
    grids = [f"group {number}, {d}×{h}×{w}" for number, (d, h, w) in enumerate(latent.top_down.shapes)]
    return Section(
        "KL per group",
        paragraphs=[
            "How much each group says about the frame: its KL to the prior that the groups above it leave, on the way "
            "to the mode, a mean over the episode; the coarsest first."
        ],
        facts=[("KL", f"{kl.sum().item():.2f} nats")],
        charts=[draw_bars("KL per group", kl, "group", "nats")],
        details=[(name, f"{nats:.3f} nats") for name, nats in zip(grids, kl.tolist(), strict=True)],
    )


@_describe.register(QuantizedLatent)
@_describe.register(StochasticLatent)
def _(latent: QuantizedLatent | StochasticLatent, scene: Scene) -> Section:
    config = scene.subject.autoencoder.config
    codes = config.codes if hasattr(config, "codes") else math.prod(config.levels)
    _, counts = latent.indices.unique(return_counts=True)
    shares = counts.sort(descending=True).values / counts.sum()
    _, height, width = latent.indices.shape
    return Section(
        "Codebook",
        paragraphs=[
            f"The latent is a grid of {height}×{width} codes; how often each is chosen, the most frequent first."
        ],
        facts=[
            ("codes used", f"{len(counts)} of {codes}"),
            ("perplexity", f"{perplexity(latent.indices, codes).item():.1f}"),
        ],
        charts=[draw_bars("Usage of the codes", 100.0 * shares, "rank of the code", "% of positions")],
    )


# ---------------------------------------------------------------------- the run's logs


class Panel(NamedTuple):
    """A chart of the logs.

    Attributes:
        title: Its heading.
        names: How the columns end that it shows.
        unit: Of the ordinate.
        log: Whether that is logarithmic.
    """

    title: str
    names: tuple[str, ...]
    unit: str
    log: bool = False


_GRADIENTS = (
    Panel("Gradients at the trunk", ("td_gradient_norm", "agent_gradient_norm", "ae_gradient_norm"), "norm", log=True),
    Panel("Do the two losses agree?", ("gradient_cosine",), "cosine of their gradients"),
    Panel("PSNR of training batches", ("psnr",), "dB"),
    Panel("KL of training batches", ("latent_kl",), "nats"),
    Panel("Directions of the latent", ("active_units", "effective_rank"), "number"),
)
#: What logs are counted in.
_STEP = "time/total_timesteps"


def read_logs(folder: Path) -> dict[str, Line]:
    """What a run has logged, by name: agent steps and values, over all sessions.

    Where a session went on from a checkpoint, what the session before had logged beyond it is left out.

    Args:
        folder: With ``progress_<session>.csv`` as Stable-Baselines3 writes them; may not exist.
    """
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob("progress_*.csv"), key=lambda path: int(path.stem.rpartition("_")[2])):
        with path.open(newline="") as file:
            session = [row for row in csv.DictReader(file) if np.isfinite(_number(row.get(_STEP)))]
        resumed = min((_number(row[_STEP]) for row in session), default=math.inf)
        rows = [row for row in rows if _number(row[_STEP]) < resumed] + session
    logs: dict[str, Line] = {}
    for name in sorted(set(itertools.chain.from_iterable(rows)) - {_STEP}):
        pairs = np.array([(_number(row[_STEP]), _number(row.get(name))) for row in rows])
        finite = pairs[np.isfinite(pairs[:, 1])]
        if len(finite):
            logs[name] = (finite[:, 0], finite[:, 1])
    return logs


def _number(text: str | None) -> float:
    """A cell's number, NaN without one: a process that was killed may have left half a row."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _learning(folder: Path) -> Section:
    title, rows = "Learning curve", read_curve(Run(folder).curve)
    columns = {"return": "episodes", "evaluation": "evaluation, deterministic", "reconstruction": "reconstruction loss"}
    lines = {
        name: np.array([(row["step"], row[column]) for row in rows if np.isfinite(row[column])]).reshape(-1, 2).T
        for column, name in columns.items()
    }
    loss = {name: (steps, values) for name, (steps, values) in lines.items() if len(steps)}
    returns = {name: loss.pop(name) for name in list(columns.values())[:2] if name in loss}
    if not loss and not returns:
        return Section(title, missing="there is no curve.csv with a finished episode or an update: is it a run?")
    charts = [draw_lines("Return", returns, "agent steps", "return", step=1)] if returns else []
    charts += [draw_lines("Reconstruction loss", loss, "agent steps", "per observation", log=True)] if loss else []
    return Section(title, charts=charts)


def _gradients(logs: Mapping[str, Line]) -> Section:
    charts = []
    for panel in _GRADIENTS:
        lines = {
            name.removeprefix("train/"): line
            for name, line in logs.items()
            if name.startswith("train/") and name.endswith(panel.names)
        }
        if lines:
            charts.append(draw_lines(panel.title, lines, "agent steps", panel.unit, log=panel.log))
    return Section(
        "Gradients and diagnostics",
        missing="" if charts else "there are no logs of them: is it a run that has made an update?",
        charts=charts,
    )


def _probes(logs: Mapping[str, Line]) -> Section:
    groups: dict[str, dict[str, Line]] = {}
    for name, line in logs.items():
        group, _, last = name.rpartition("/")
        if name.startswith("probe/"):
            groups.setdefault(group, {})[last] = line
    return Section(
        "Probes",
        missing="" if groups else "the run's logs have none: no probe looked at its encoder while it was trained",
        charts=[draw_lines(group, lines, "agent steps", "score") for group, lines in groups.items()],
    )
