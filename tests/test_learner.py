import io

import pytest
import torch

from rl_ae import ConvConfig, RAEConfig, create_learner
from rl_ae.pixels import to_unit

SHAPE = (1, 16, 16)
CONFIG = RAEConfig(latent_dim=8, conv=ConvConfig(filters=(8, 8), strides=(2, 2), padding=1))


def squares(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.zeros(count, *SHAPE, dtype=torch.uint8)
    for frame, (row, column) in zip(frames, torch.randint(0, 12, (count, 2), generator=generator), strict=True):
        frame[0, row : row + 4, column : column + 4] = 255
    return to_unit(frames)


def make_learner(config=CONFIG):
    torch.manual_seed(0)
    return create_learner(config, SHAPE)


def train(learner, updates):
    for _ in range(updates):
        metrics = learner.update(squares(32, seed=learner.step))
    return metrics


def test_it_learns_to_see():
    conv = ConvConfig(filters=(16, 16), kernel_size=4, strides=(2, 2), padding=1)
    learner = make_learner(RAEConfig(latent_dim=16, conv=conv, encoder_learning_rate=3e-3, decoder_learning_rate=3e-3))
    test = squares(64, seed=999)
    error = [(learner.autoencoder(test).reconstruction - test).square().mean().item()]
    train(learner, 300)
    error.append((learner.autoencoder(test).reconstruction - test).square().mean().item())
    blind = (test - test.mean(dim=0)).square().mean().item()
    assert error[1] < 0.3 * blind < error[0]


def test_training_resumes_bit_for_bit():
    straight = make_learner()
    train(straight, 10)

    interrupted = make_learner()
    train(interrupted, 5)
    file = io.BytesIO()
    torch.save({"learner": interrupted.state_dict(), "torch": torch.get_rng_state()}, file)
    torch.manual_seed(123)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = create_learner(CONFIG, SHAPE)
    resumed.load_state_dict(saved["learner"])
    torch.set_rng_state(saved["torch"])
    train(resumed, 5)

    assert resumed.step == straight.step == 10
    for one, other in zip(straight.autoencoder.parameters(), resumed.autoencoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_metrics_are_the_terms_and_their_total():
    learner = make_learner()
    images = squares(8)
    metrics = learner.update(images, target=images)
    assert metrics.keys() == {"reconstruction", "latent_l2", "total"}
    total = metrics["reconstruction"] / 256 + 1e-6 * metrics["latent_l2"]
    assert metrics["total"].item() == pytest.approx(total.item(), rel=1e-6)


def test_the_target_has_fewer_bits():
    learner = make_learner()
    levels = learner.target(squares(4)) * 32
    assert set(levels.floor().unique().tolist()) == {0.0, 31.0}
    whole = make_learner(RAEConfig(target_bits=None))
    assert torch.equal(whole.target(squares(4)), squares(4))


def test_weight_decay_pulls_on_the_decoder_alone():
    strong = RAEConfig(latent_dim=8, conv=CONFIG.conv, decoder_weight_decay=10.0, encoder_learning_rate=0.0)
    learner = make_learner(strong)
    before = [parameter.clone() for parameter in learner.autoencoder.parameters()]
    norm = sum(p.square().sum() for p in learner.autoencoder.decoder.parameters())
    train(learner, 5)
    assert sum(p.square().sum() for p in learner.autoencoder.decoder.parameters()) < norm
    encoder = list(learner.autoencoder.encoder.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, encoder, strict=False))


@pytest.mark.usefixtures("bf16")
def test_bf16_is_close_to_fp32():
    learners = [create_learner(CONFIG, SHAPE, precision=precision) for precision in ("fp32", "bf16")]
    learners[1].autoencoder.load_state_dict(learners[0].autoencoder.state_dict())
    images = squares(16)
    losses = [learner.update(images, images)["reconstruction"].item() for learner in learners]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert all(p.dtype == torch.float32 for p in learners[1].autoencoder.parameters())


# ---------------------------------------------------------------------- fit


def test_fit_goes_through_data_in_memory_once_an_epoch(monkeypatch):
    learner = make_learner()
    seen, update = [], learner.update
    monkeypatch.setattr(learner, "update", lambda images, n_data: seen.append((images, n_data)) or update(images))
    frames = (squares(10) * 255).byte()
    history = learner.fit(frames, epochs=2, batch_size=4, log_every=2, progress_bar=False)
    assert [len(images) for images, _ in seen] == [4, 4, 2, 4, 4, 2]
    assert {n_data for _, n_data in seen} == {10}
    for passed in (seen[:3], seen[3:]):
        images = torch.cat([images for images, _ in passed])
        assert torch.equal(images.flatten(1).sort(dim=0).values, to_unit(frames).flatten(1).sort(dim=0).values)
    assert not torch.equal(seen[0][0], to_unit(frames)[:4])
    assert [entry["step"] for entry in history] == [2.0, 4.0, 6.0]
    assert history[0].keys() == {"step", "reconstruction", "latent_l2", "total"}


def test_fit_takes_arrays_iterables_and_a_number_of_steps():
    learner = make_learner()
    assert learner.fit(squares(10).numpy(), steps=7, batch_size=4, progress_bar=False)[-1]["step"] == 7.0
    batches = [squares(3, seed) for seed in range(4)]
    assert learner.fit(batches, epochs=2, progress_bar=False)[-1]["step"] == 15.0
    assert learner.fit(batches, steps=5, progress_bar=False)[-1]["step"] == 20.0
    assert learner.fit(iter(batches), steps=50, progress_bar=False)[-1]["step"] == 24.0  # once is all there is


def test_fit_learns_and_repeats_with_its_generator():
    results = []
    for _ in range(2):
        learner = make_learner()
        history = learner.fit(
            squares(256), epochs=5, batch_size=32, progress_bar=False, generator=torch.Generator().manual_seed(3)
        )
        results.append(history[-1]["reconstruction"])
    assert results[0] == results[1]
    assert results[0] < 0.8 * make_learner().evaluate(squares(256))["reconstruction"].item()


def test_fit_shows_a_bar_if_it_may(capsys):
    make_learner().fit(squares(8), progress_bar=True, batch_size=4, log_every=1)
    assert "2/2" in (shown := capsys.readouterr().err) and "total=" in shown
    make_learner().fit(squares(8), progress_bar=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epochs": 0}, "epochs must be ≥ 1, got 0"),
        ({"steps": 0}, "steps must be ≥ 1, got 0"),
        ({"batch_size": 0}, "batch_size must be ≥ 1, got 0"),
        ({"log_every": 0}, "log_every must be ≥ 1, got 0"),
    ],
)
def test_fit_refuses_nothing_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_learner().fit(squares(4), progress_bar=False, **kwargs)


def test_fit_refuses_no_data():
    with pytest.raises(ValueError, match="the data are empty"):
        make_learner().fit(squares(0), progress_bar=False)
    with pytest.raises(ValueError, match="needs n_data"):
        create_learner("btcvae", SHAPE).fit([squares(4)], progress_bar=False)


def test_evaluating_changes_nothing():
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.autoencoder.state_dict().items()}
    assert learner.evaluate(squares(4)).keys() == {"reconstruction", "latent_l2", "total"}
    assert learner.step == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.autoencoder.state_dict().items())


def test_a_single_observation_left_over_joins_the_batch_before(monkeypatch):
    learner = create_learner("btcvae", SHAPE)
    sizes, update = [], learner.update
    monkeypatch.setattr(
        learner, "update", lambda images, n_data: sizes.append(len(images)) or update(images, n_data=n_data)
    )
    learner.fit(squares(9), epochs=2, batch_size=4, progress_bar=False)
    assert sizes == [4, 5, 4, 5]
    learner.fit(squares(2), batch_size=4, progress_bar=False)
    assert sizes[-1] == 2


def test_fit_stops_at_what_is_not_finite():
    images = squares(4)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"reconstruction is nan after 1 updates"):
        make_learner().fit(images, progress_bar=False)


@pytest.mark.parametrize("name", ["vae", "sqvae"])
def test_the_decoder_reads_a_draw_in_training(name, monkeypatch):
    learner = create_learner(name, SHAPE)
    read, likelihood = [], learner.autoencoder.likelihood
    monkeypatch.setattr(learner.autoencoder, "likelihood", lambda z: read.append(z) or likelihood(z))
    torch.manual_seed(3)
    learner.evaluate(squares(4))
    latent = learner.autoencoder.encode(squares(4))
    torch.manual_seed(3)
    assert torch.allclose(read[0], learner.autoencoder.draw(latent, step=0), atol=1e-4)
    assert not torch.allclose(read[0], latent.mode)


def test_another_encoder_learns_through_the_same_decoder():
    learner = make_learner()
    train(learner, 3)
    encoder = create_learner(CONFIG, SHAPE).autoencoder.encoder
    other = learner.for_encoder(encoder)
    assert other.autoencoder.encoder is encoder and other.autoencoder.decoder is learner.autoencoder.decoder
    assert other.autoencoder.output is learner.autoencoder.output and other.loss is learner.loss
    assert (learner.step, other.step) == (3, 0)
    assert other.encoder_optimizer.param_groups[0]["lr"] == learner.encoder_optimizer.param_groups[0]["lr"]

    modules = (learner.autoencoder.encoder, encoder, learner.autoencoder.decoder)
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    train(other, 1)
    moved = [
        any(not torch.equal(p, old) for p, old in zip(module.parameters(), olds, strict=True))
        for module, olds in zip(modules, before, strict=True)
    ]
    assert moved == [False, True, True]
    assert learner.decoder_optimizer.state_dict()["state"][0]["step"].item() == 4
    assert (learner.step, other.step) == (3, 1)
