"""The page about an autoencoder: parsed, its numbers against those computed directly, and moved in a real browser."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from chromium import find_chromium, start_chromium
from PIL import Image

from rl_ae import (
    ConvConfig,
    FSQConfig,
    HierarchicalConfig,
    RAEConfig,
    SQVAEConfig,
    VAEConfig,
    cli,
    create_autoencoder,
)
from rl_ae.analysis import traverse
from rl_ae.analysis.figures import last_frame
from rl_ae.diagnostics import effective_rank, principal_components
from rl_ae.envs import PixelConfig
from rl_ae.losses import active_units, perplexity
from rl_ae.pixels import to_unit
from rl_ae.sb3 import charts
from rl_ae.sb3.checkpoint import load_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, play_episode, reconstruction_quality
from rl_ae.sb3.inspecting import POSITIONS, STRIP, WORST, inspect_model, read_logs
from rl_ae.sb3.run_config import AgentConfig, RunConfig
from rl_ae.sb3.runs import Run, train_run
from rl_ae.sb3.show import FrameSource

RUN = RunConfig(
    env="Pendulum-v1",
    steps=60,
    seed=3,
    log_every=20,
    checkpoint_every=30,
    eval_every=50,
    eval_episodes=1,
    pixels=PixelConfig(size=(16, 20), grayscale=True, frame_stack=2, action_repeat=4),
    agent=AgentConfig(
        autoencoder="vae",
        latent_dim=12,
        net_arch=(8,),
        learning_starts=20,
        batch_size=4,
        buffer_size=300,
        update="paper",
    ),
)
SECTIONS = [
    *("reconstructions", "worst-reconstructed-frames", "latent-traversals", "latent-trajectory"),
    *("kl-per-dimension", "learning-curve", "gradients-and-diagnostics"),
]
SMALL = {"conv": ConvConfig(filters=(4,), strides=(4,), kernel_size=4)}


class Page(HTMLParser):
    """What a page is made of.

    Attributes:
        sections: By anchor, their elements as (tag, attributes) and all their text.
        tags: Every element.
    """

    def __init__(self, path):
        super().__init__()
        self.sections, self.tags, self.terms, self.ids = {}, [], {}, []
        self._section, self._element, self._term = "", "", ""
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "section":
            self._section = attributes["id"]
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.sections.setdefault(self._section, []).append((tag, attributes))
        self._element = tag

    def handle_data(self, data):
        if self._element == "dt":
            self._term = data.strip() or self._term
        if self._element == "dd" and data.strip():
            self.terms[self._term] = data.strip()

    def all(self, tag, section=None):
        elements = self.tags if section is None else self.sections[section]
        return [attributes for name, attributes in elements if name == tag]

    def sliders(self):
        return [
            (json.loads(attributes["data-values"]), json.loads(attributes["data-images"]))
            for attributes in self.all("div", "latent-traversals")
            if attributes.get("class") == "slider"
        ]

    def charts(self, section):
        return [attributes["aria-label"] for attributes in self.all("svg", section)]


def decoded(uri):
    """The picture of a data URI, (H, W, 3)."""
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


def number(text):
    return float(re.search(r"-?[\d.]+", text.replace(",", "")).group())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a VAE inside SACAE, with its page."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train_run(RUN, folder)
    inspect_model(folder, FrameSource())
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Page(run / "inspection.html")


@pytest.fixture(scope="module")
def seen(run):
    """The agent's autoencoder, its episode's observations, and the episode's return."""
    agent = load_agent(run / "checkpoint", device="cpu", buffer_size=1)
    episode = play_episode(agent, Run(run).read_config().make_env(training=False), FIRST_START_SEED)
    return agent.policy.autoencoder.eval(), episode


# ---------------------------------------------------------------------- the page of a run


def test_every_section_is_there_and_what_is_not_says_why(page):
    assert [attributes["id"] for attributes in page.all("section")] == [*SECTIONS, "left-out"]
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{name}" for name in SECTIONS]
    assert "no probe looked at its encoder" in page.terms["Probes"]
    assert page.charts("reconstructions") == ["PSNR over the episode"]
    assert page.charts("latent-trajectory") == ["Latent over the episode"]
    assert page.charts("kl-per-dimension") == ["KL per dimension"]
    assert page.charts("learning-curve") == ["Return", "Reconstruction loss"]
    assert page.charts("gradients-and-diagnostics") == [
        *("Gradients at the trunk", "Do the two losses agree?", "PSNR of training batches"),
        *("KL of training batches", "Directions of the latent"),
    ]


def test_the_page_loads_nothing(page):
    addresses = [attributes.get("src") or attributes.get("href") for _, attributes in page.tags]
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses if address)
    assert not page.all("link") and "src" not in page.all("script")[0]
    [policy] = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_everything_has_a_name_of_its_own_and_words(page):
    assert sorted(set(page.ids)) == sorted(page.ids)
    assert all(picture["alt"] for picture in page.all("img"))
    labelled = [label["for"] for label in page.all("label")]
    assert labelled == [slider["id"] for slider in page.all("input")] and len(labelled) == 10
    assert all(slider["aria-valuetext"].endswith(" σ") for slider in page.all("input"))


def test_pictures_are_the_frames_their_reconstructions_and_errors(page, seen):
    autoencoder, episode = seen
    images = to_unit(torch.as_tensor(episode.observations))
    with torch.no_grad():
        reconstructions = autoencoder.reconstruct(images)
    chosen = np.linspace(0, 49, STRIP).astype(int)
    pictures = [decoded(picture["src"]) for picture in page.all("img", "reconstructions")]
    frames, returned, errors = pictures[0::3], pictures[1::3], pictures[2::3]
    assert {picture.shape for picture in pictures} == {(16, 20, 3)}
    assert np.array_equal(frames, last_frame(images[chosen], 1))
    assert np.array_equal(returned, last_frame(reconstructions[chosen], 1))
    maps = (reconstructions.clamp(0, 1) - images)[:, -1].abs()
    assert np.array_equal(
        errors, matplotlib.colormaps["inferno"]((maps / maps.max())[chosen].numpy(), bytes=True)[..., :3]
    )
    order = (reconstructions - images).square().mean(dim=(1, 2, 3)).argsort(descending=True)[:WORST]
    worst = [decoded(picture["src"]) for picture in page.all("img", "worst-reconstructed-frames")]
    assert np.array_equal(worst[0::3], last_frame(images[order], 1))
    step = int(page.all("img", "worst-reconstructed-frames")[0]["alt"].removeprefix("frame at step "))
    assert torch.equal(images[step], images[order[0]])  # equal frames are equally bad


def test_numbers_are_those_computed_directly(page, seen):
    autoencoder, episode = seen
    images = to_unit(torch.as_tensor(episode.observations))
    with torch.no_grad():
        latent = autoencoder.encode(images)
    quality = reconstruction_quality(autoencoder, [episode.observations])
    assert number(page.terms["PSNR of the reconstructions"]) == pytest.approx(quality.psnr, abs=0.051)
    assert number(page.terms["PSNR of the mean frame, a blind baseline"]) == pytest.approx(
        quality.mean_frame_psnr, abs=0.051
    )
    assert number(page.terms["return"]) == pytest.approx(episode.episode_return, abs=0.051)
    kl = latent.kl().mean(dim=0)
    assert number(page.terms["KL"]) == pytest.approx(kl.sum().item(), abs=0.0051)
    for dimension in range(12):
        assert number(page.terms[f"z{dimension}"]) == pytest.approx(kl[dimension].item(), abs=0.00051)
    assert page.terms["active units, variance above 0.01"] == f"{active_units(latent.mode)} of 12"
    assert number(page.terms["effective rank"]) == pytest.approx(effective_rank(latent.mode).item(), abs=0.051)
    assert page.terms["agent"] == "sac_ae on Pendulum-v1, seed 3, step 60 of 60"
    assert page.terms["shown"] == "50 observations, steps 0 to 49"


def test_sliders_hold_the_traversals(page, seen):
    autoencoder, episode = seen
    images = to_unit(torch.as_tensor(episode.observations))
    expected = traverse(autoencoder, images[25], 10, None, POSITIONS, reference=images)
    sliders = page.sliders()
    assert len(sliders) == len(expected) == 10
    starts = [int(slider["value"]) for slider in page.all("input")]
    shown = page.all("img", "latent-traversals")[3:]
    for (values, uris), start, picture, traversal in zip(sliders, starts, shown, expected, strict=True):
        assert [number(value) for value in values] == pytest.approx(traversal.values, abs=0.0051)
        assert values[5] == "0.00 σ" and values[0] == "-2.50 σ"
        assert np.array_equal([decoded(uri) for uri in uris], last_frame(traversal.images, 1))
        assert picture["src"] == uris[start]
        distances = [abs(value - traversal.start) for value in traversal.values]
        assert distances[start] == min(distances)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with start_chromium(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


def test_a_slider_moves_by_key_and_mouse(run, page, tab):
    dimension = page.all("input")[0]["id"]
    values, uris = page.sliders()[0]
    start = int(page.all("input")[0]["value"])
    tab.open(run / "inspection.html")

    def state():
        return tab.evaluate(
            f"(() => {{ const input = document.getElementById('{dimension}');"
            f"const image = document.getElementById('{dimension}-image');"
            "return [+input.value, image.src, image.alt, input.parentNode.querySelector('output').textContent,"
            "input.getAttribute('aria-valuetext')]; })()"
        )

    def expected(position):
        value = values[position]
        return [position, uris[position], f"decoded with {dimension} = {value}", value, value]

    assert state() == expected(start)
    tab.evaluate(f"document.getElementById('{dimension}').focus()")
    tab.press("Home")
    assert state() == expected(0)
    for position in range(1, POSITIONS):
        tab.press("ArrowRight")
        assert state() == expected(position)
    assert len(set(uris)) > 2  # and the picture did change
    box = tab.evaluate(
        f"(() => {{ const input = document.getElementById('{dimension}'); input.scrollIntoView();"
        "const box = input.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })()"
    )
    tab.click(box[0] + box[2] / 2, box[1] + box[3] / 2)
    assert state() == expected(POSITIONS // 2)


@pytest.mark.parametrize(
    ("size", "scheme"), [((400, 800), "dark"), ((1400, 900), "light")], ids=["narrow-dark", "wide-light"]
)
def test_the_page_fits_its_window(run, tab, size, scheme):
    """Nothing is wider than the window, every picture is drawn, and text stands out from the page."""
    tab.open(run / "inspection.html", size, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    widths = tab.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight, image.width])")
    assert {(width, height) for width, height, _ in widths} == {(20, 16)} and min(w for *_, w in widths) >= 60
    page, text, chart = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        "getComputedStyle(document.querySelector('svg text')).fill]"
    )
    assert chart == text
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (page, text)]
    assert (brightness[0] < brightness[1]) == (scheme == "dark") and abs(brightness[0] - brightness[1]) > 0.6


def test_a_missing_browser_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"need a browser, .* apt-get install chromium"):
        find_chromium()


# ---------------------------------------------------------------------- saved autoencoders of every kind of latent


def save(folder, config, shape=(3, 16, 20)):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(config, shape)
    autoencoder.save_pretrained(folder)
    frames = np.random.default_rng(0).integers(256, size=(7, *shape), dtype=np.uint8)
    np.save(folder / "frames.npy", frames)
    return autoencoder.eval(), to_unit(torch.as_tensor(frames))


@torch.no_grad()
def inspected(folder, config, capsys):
    autoencoder, images = save(folder, config)
    out = folder / "page.html"
    cli.main(["inspect", str(folder), "--frames", str(folder / "frames.npy"), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    return Page(out), autoencoder.encode(images), autoencoder


def test_a_point_has_no_kl(tmp_path, capsys):
    page, latent, _ = inspected(tmp_path, RAEConfig(latent_dim=5, **SMALL), capsys)
    sections = [*SECTIONS[:4], "latent-dimensions", "left-out"]
    assert [attributes["id"] for attributes in page.all("section")] == sections
    spreads = latent.mode.std(dim=0, correction=0)
    assert [number(page.terms[f"z{d}"]) for d in range(5)] == pytest.approx(spreads.tolist(), abs=0.00051)
    assert "is it a run?" in page.terms["Learning curve"] and "is it a run" in page.terms["Gradients and diagnostics"]
    low, high = (latent.mode.amin(dim=0), latent.mode.amax(dim=0))
    values, _ = page.sliders()[0]
    widest = (high - low).argmax()
    assert [number(values[0]), number(values[-1])] == pytest.approx(
        [low[widest].item(), high[widest].item()], abs=0.0051
    )
    assert page.terms["frames"] == "frames.npy" and "return" not in page.terms


@pytest.mark.parametrize(
    ("config", "codes"),
    [(SQVAEConfig(codes=7, code_dim=3, **SMALL), 7), (FSQConfig(levels=(3, 4), **SMALL), 12)],
    ids=["sqvae", "fsq"],
)
def test_codes_are_counted_and_not_moved(tmp_path, capsys, config, codes):
    page, latent, _ = inspected(tmp_path, config, capsys)
    assert "codebook" in [attributes["id"] for attributes in page.all("section")]
    assert page.terms["codes used"] == f"{len(latent.indices.unique())} of {codes}"
    assert number(page.terms["perplexity"]) == pytest.approx(perplexity(latent.indices, codes).item(), abs=0.051)
    assert "grid of codes" in page.terms["Latent traversals"]
    assert not page.all("input")


def test_groups_of_a_hierarchy_have_a_kl_each(tmp_path, capsys):
    config = HierarchicalConfig(base_channels=8, halvings=1, groups=(1, 2), latent_channels=2)
    page, latent, _ = inspected(tmp_path, config, capsys)
    kl = latent.kl().mean(dim=0)
    terms = [f"group {index}, {d}×{h}×{w}" for index, (d, h, w) in enumerate(latent.top_down.shapes)]
    assert len(terms) == 3
    assert [number(page.terms[term]) for term in terms] == pytest.approx(kl.tolist(), abs=0.00051)
    assert len(page.sliders()) == 10


def test_an_environment_is_played_at_random(tmp_path):
    save(tmp_path, VAEConfig(latent_dim=3, **SMALL))
    arguments = ["--env", "Pendulum-v1", "--action-repeat", "40", "--seed", "2"]
    cli.main(["inspect", str(tmp_path), *arguments])
    page = Page(tmp_path / "inspection.html")
    assert page.terms["episode"] == "of Pendulum-v1, played at random, start seed 1,000,000,002"
    assert page.terms["shown"] == "5 observations, steps 0 to 4"


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    save(tmp_path, VAEConfig(latent_dim=3, **SMALL))
    torch.manual_seed(0)
    create_autoencoder(VAEConfig(latent_dim=3), (6,)).save_pretrained(tmp_path / "vectors")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ([str(tmp_path)], "a saved autoencoder has no environment: give it an env or frames"),
        ([str(tmp_path / "vectors")], r"vectors: figures need an autoencoder of images, .* vectors \(6,\)"),
        ([str(tmp_path / "none")], "there is no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["inspect", *arguments])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(SystemExit, match=r'needs jinja2: pip install "rl-ae\[report\]"'):
            cli.main(["inspect", str(tmp_path), "--frames", str(tmp_path / "frames.npy")])
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------- logs and charts


def test_logs_of_all_sessions_are_one(tmp_path):
    (tmp_path / "progress_1.csv").write_text(
        "time/total_timesteps,train/psnr,train/ae_gradient_norm\n10,1.5,\n20,,3.0\n30,2.5,4.0\n40,9.0,9.0\n"
    )
    (tmp_path / "progress_2.csv").write_text(
        "train/psnr,time/total_timesteps,probe/ridge/position\n3.5,31,0.5\n4.5,41,"
    )
    (tmp_path / "progress_10.csv").write_text("time/total_timesteps,train/psnr\n51,5.5\n61,1.0e-\n,7.0\n")
    logs = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in read_logs(tmp_path).items()}
    assert logs == {
        "train/psnr": ([10, 30, 31, 41, 51], [1.5, 2.5, 3.5, 4.5, 5.5]),
        "train/ae_gradient_norm": ([20, 30], [3.0, 4.0]),
        "probe/ridge/position": ([31], [0.5]),
    }
    assert read_logs(tmp_path / "none") == {}


def test_probes_that_were_logged_are_drawn(run, tmp_path):
    log = Run(run).logs / "progress_1.csv"
    before = log.read_text()
    header, *rows = before.splitlines()
    try:
        log.write_text("\n".join([f"{header},probe/ridge/angle,probe/mlp/angle", *(f"{row},0.5,0.25" for row in rows)]))
        page = Page(inspect_model(run, FrameSource(), tmp_path / "page.html"))
    finally:
        log.write_text(before)
    assert page.charts("probes") == ["probe/mlp", "probe/ridge"]
    assert "Probes" not in page.terms


def test_charts_are_drawn_to_scale():
    """Bars as high as their numbers, whatever the scale of the chart."""
    svg = charts.draw_bars("Bars & more", [1.0, 0.0, 4.0], "dimension", "nats")
    assert svg.startswith('<svg role="img" aria-label="Bars &amp; more"') and "#010203" not in svg
    [outline] = re.findall(r'<path d="([^"]*)"[^>]*style="fill: #3b82c4', svg)
    heights = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", outline)]
    base = max(heights)
    tops = sorted({round(base - height, 3) for height in heights} - {0.0})
    assert len(tops) == 2 and tops[1] == pytest.approx(4 * tops[0], rel=1e-3)
    assert svg == charts.draw_bars("Bars & more", [1.0, 0.0, 4.0], "dimension", "nats")


@pytest.mark.parametrize("scale", [1.0, -1.0], ids=["as-is", "mirrored"])
def test_principal_components_find_the_widest_directions(scale):
    angles = torch.arange(0.0, 6.0, 0.1)
    plane = torch.stack([3.0 * angles.cos(), angles.sin()], dim=1)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).Q[:2]
    points, shares = principal_components(scale * plane @ basis + 7.0)
    centred = plane - plane.mean(dim=0)
    gram = centred @ centred.T  # distances are kept, axes are uncorrelated, the widest is first
    torch.testing.assert_close(points @ points.T, gram, atol=1e-4, rtol=1e-4)
    covariance = points.T @ points
    assert covariance[0, 1].abs() < 1e-3 * covariance[0, 0] and covariance[0, 0] > covariance[1, 1]
    torch.testing.assert_close(shares, covariance.diagonal() / covariance.trace(), atol=1e-5, rtol=1e-5)
    assert (points.gather(0, points.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_principal_components_of_few_latents():
    points, shares = principal_components(torch.tensor([[2.0, 5.0, 1.0]]), 3)
    assert points.shape == (1, 3) and not points.any() and not shares.any()
