"""Every variant learns: by itself and inside SACAE and TD3AE."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch
from conftest import DotEnv, step_critic, step_representation
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from rl_ae import CONFIGS, RAEConfig, create_autoencoder, create_learner
from rl_ae.autoencoders import SQVAE, VQVAE
from rl_ae.envs import PixelConfig, make_pixel_env
from rl_ae.latents import GaussianLatent
from rl_ae.losses import VAELoss, active_units
from rl_ae.networks import TanhProjection
from rl_ae.pixels import to_unit
from rl_ae.sb3 import SACAE, TD3AE, AutoencoderExtractor, SACAEPolicy

#: Pendulum, as the demo sees it but smaller, its rewards of down to -16 unscaled.
PIXELS = PixelConfig(size=(32, 32), grayscale=True, action_repeat=2, crop=(110, 110, 390, 390))
SHAPE = (1, 16, 16)
NAMES = list(CONFIGS)
#: The most maps of a convolution.
FILTERS = 16


def squares(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, *SHAPE)
    for image, (row, column) in zip(images, torch.randint(0, 12, (count, 2), generator=generator), strict=True):
        image[0, row : row + 4, column : column + 4] = 1.0
    return images


def small(name):
    """The variant with less to compute; what rises from 0, a capacity or the KL's weight, does so in 60 updates."""
    smaller = {
        "sqvae": {"codes": 64},
        "vqvae": {"codes": 64},
        "factor": {"discriminator_hidden": 64},
        "beta_b": {"capacity_steps": 60},
        "hierarchical": {"base_channels": 8, "groups": (1, 1), "warmup_steps": 60},
        "flow": {"couplings": 2, "condition_maps": 4, "density_filters": 8},
        "diffusion": {"condition_maps": 4, "density_filters": 8},
        "pyramid": {"base_channels": 4, "num_mixtures": 2},
    }
    config = dataclasses.replace(CONFIGS[name], **smaller.get(name, {}))
    if hasattr(config, "conv"):
        filters = tuple(min(count, FILTERS) for count in config.conv.filters)
        config = dataclasses.replace(config, conv=dataclasses.replace(config.conv, filters=filters))
    return config


# ---------------------------------------------------------------------- alone


@pytest.mark.parametrize("name", CONFIGS)
def test_training_resumes_bit_for_bit(name):
    """Schedules, discriminator, codebook and optimizers included."""
    config = small(name)
    if hasattr(config, "warmup_steps"):
        config = dataclasses.replace(config, warmup_steps=8)
    if hasattr(config, "capacity_steps"):
        config = dataclasses.replace(config, capacity_steps=8)

    def train(learner, updates):
        for _ in range(updates):
            metrics = learner.update(squares(6, learner.step), n_data=100)
        return metrics

    torch.manual_seed(0)
    straight = create_learner(config, SHAPE)
    expected = train(straight, 10)

    torch.manual_seed(0)
    interrupted = create_learner(config, SHAPE)
    train(interrupted, 5)
    file = io.BytesIO()
    torch.save({"learner": interrupted.state_dict(), "torch": torch.get_rng_state()}, file)
    torch.manual_seed(123)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = create_learner(config, SHAPE)
    resumed.load_state_dict(saved["learner"])
    torch.set_rng_state(saved["torch"])
    metrics = train(resumed, 5)

    assert metrics == expected
    assert resumed.step == straight.step == 10
    one, other = straight.autoencoder.state_dict(), resumed.autoencoder.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_discriminators_step_does_not_touch_the_encoder():
    """The encoder's gradient is the same with and without it, and each optimizer moves its own side."""
    gradients = []
    for keep in (True, False):
        torch.manual_seed(0)
        learner = create_learner(small("factor"), SHAPE)
        before = [parameter.clone() for parameter in learner.adversary.discriminator.parameters()]
        if not keep:
            learner.adversary = None
        learner.update(squares(8, 0))
        gradients.append([parameter.grad.clone() for parameter in learner.autoencoder.parameters()])
        moved = [
            not torch.equal(old, new) for old, new in zip(before, learner.loss.discriminator.parameters(), strict=True)
        ]
        assert all(moved) if keep else not any(moved)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_codebook_follows_once_a_batch():
    torch.manual_seed(0)
    learner = create_learner(small("vqvae"), SHAPE)
    assert isinstance(learner.autoencoder, VQVAE)
    quantizer = learner.autoencoder.encoder.head.quantizer
    images = squares(8, 0)
    latent = learner.autoencoder.encode(images)
    uses = torch.bincount(latent.indices.flatten(), minlength=64).float()
    learner.evaluate(images)
    assert torch.equal(quantizer._codebook.cluster_size[0], torch.ones(64))
    learner.update(images)
    assert torch.allclose(quantizer._codebook.cluster_size[0], 0.99 * torch.ones(64) + 0.01 * uses)


def test_the_temperature_comes_from_the_learners_step(monkeypatch):
    seen = []
    monkeypatch.setattr(SQVAE, "temperature", lambda self, step: seen.append(step) or 1.0)
    learner = create_learner(small("sqvae"), SHAPE)
    for _ in range(3):
        learner.update(squares(4, 0))
    assert seen == [0, 1, 2]


def test_a_learned_sigma_is_trained():
    learner = create_learner(dataclasses.replace(CONFIGS["vae"], likelihood="learned_gaussian"), SHAPE)
    learner.update(squares(8, 0))
    assert learner.autoencoder.output.log_scale.item() != 0.0
    assert "output.log_scale" in learner.autoencoder.state_dict()


@pytest.mark.usefixtures("bf16")
def test_bf16_stays_finite_for_every_variant():
    for name in NAMES:
        learner = create_learner(small(name), SHAPE, precision="bf16")
        for step in range(3):
            metrics = learner.update(squares(8, step), n_data=100)
        assert all(torch.isfinite(value) for value in metrics.values()), name


def test_a_vector_vae_learns_and_does_not_collapse():
    """Eight features of which two are free: the squared error falls, and two dimensions stay active."""
    torch.manual_seed(0)
    mixing = torch.randn(2, 8)
    learner = create_learner(dataclasses.replace(CONFIGS["vae"], latent_dim=6), (8,))
    data = 2.0 * torch.randn(512, 2) @ mixing
    first = learner.evaluate(data)["reconstruction"]
    history = learner.fit(data, steps=300, batch_size=64, progress_bar=False)
    assert history[-1]["reconstruction"] < 0.1 * first
    assert active_units(learner.autoencoder.encode(data).mu, threshold=0.1) >= 2


# ---------------------------------------------------------------------- in an agent


@pytest.fixture(scope="module")
def frames():
    """64 fixed frames, of episodes that no agent here sees."""
    env = make_pixel_env("Pendulum-v1", PIXELS)
    env.action_space.seed(7)
    seen, (observation, _) = [], env.reset(seed=7)
    while len(seen) < 64:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation)
        if terminated or truncated:
            observation, _ = env.reset()
    return to_unit(torch.as_tensor(np.stack(seen)))


#: A variant of each kind of latent, for the algorithm that trains it by the same methods.
KINDS = ("rae", "vae", "sqvae", "vqvae", "hierarchical")


@pytest.mark.parametrize(
    ("algorithm", "name"), [*((SACAE, name) for name in NAMES), *((TD3AE, name) for name in KINDS)]
)
def test_every_variant_learns_inside_an_agent(algorithm, name, frames, tmp_path):
    """In 120 updates the loss on fixed frames falls by 30 %, and two dimensions or codes are active."""
    torch.manual_seed(0)
    config = dataclasses.replace(small(name), input_centre=1.0)  # the background is white
    model = algorithm(
        "CnnPolicy",
        make_pixel_env("Pendulum-v1", PIXELS),
        autoencoder=config,
        buffer_size=400,
        batch_size=16,
        learning_starts=150,
        catch_up_updates=0,
        train_freq=50,
        gradient_steps=120,
        policy_kwargs={"net_arch": [32]},
        seed=0,
    )

    def loss():
        torch.manual_seed(1)
        return model.learner.evaluate(frames, frames, n_data=400)["total"].item()

    before = loss()
    model.learn(200)
    assert model._n_updates == model.learner.step == 120
    assert before - loss() >= 0.3 * abs(before)

    model.policy.set_training_mode(False)
    latent = model.policy.autoencoder.encode(frames)
    if hasattr(latent, "indices"):
        assert len(latent.indices.unique()) >= 2
    else:
        assert active_units(latent.mode) >= 2
    model.save(tmp_path / "agent")
    agents = (model, model, algorithm.load(tmp_path / "agent"))
    actions = [agent.predict(frames[:2].mul(255).byte().numpy(), deterministic=True)[0] for agent in agents]
    assert np.array_equal(actions[0], actions[1]) and np.array_equal(actions[0], actions[2])
    if isinstance(latent, GaussianLatent):
        assert torch.equal(model.critic.features_extractor(frames), latent.mu)


def dot_agent(**kwargs):
    settings = {
        "policy_kwargs": {"net_arch": [16]},
        "batch_size": 8,
        "buffer_size": 100,
        "learning_starts": 20,
        "seed": 0,
    }
    return SACAE("CnnPolicy", **{"env": DotEnv(), **settings, **kwargs})


def test_n_data_is_live():
    """β-TCVAE is told how many frames the buffer holds now, and never less than the batch."""
    agent = dot_agent(autoencoder="btcvae", catch_up_updates=0)
    seen = spy_n_data(agent.learner)
    agent.learn(24)
    assert seen == [21, 22, 23, 24]
    agent.train(1, batch_size=40)
    assert seen[-1] == 40
    agent.learn(100, reset_num_timesteps=False)
    assert seen[-1] == 100

    two = dot_agent(autoencoder="btcvae", catch_up_updates=0, env=DummyVecEnv([DotEnv, DotEnv]))
    seen = spy_n_data(two.learner)
    two.learn(26)
    assert seen[-1] == 26


def spy_n_data(learner):
    """The sizes of the data set that a learner is told from now on."""
    seen, update = [], learner.update

    def spy(images, targets, n_data, latent):
        seen.append(n_data)
        return update(images, targets, n_data, latent)

    learner.update = spy
    return seen


def test_the_actors_own_head_is_sac_aes_whatever_the_autoencoder():
    for name in ("vae", "sqvae"):
        agent = dot_agent(autoencoder=name)
        actor, critic = agent.actor.features_extractor, agent.critic.features_extractor
        assert isinstance(actor.encoder.head, TanhProjection) and actor.features_dim == 50
        assert actor.encoder.trunk is critic.encoder.trunk
        assert critic.features_dim == agent.policy.autoencoder.latent_dim
    agent = dot_agent(autoencoder=RAEConfig(latent_dim=7))
    assert agent.actor.features_extractor.features_dim == 7


def test_the_critic_normalises_a_latent_that_nothing_bounds():
    agent = dot_agent(autoencoder="vae")
    latent, actions = 50.0 * torch.randn(4, 32), torch.zeros(4, 2)
    values = agent.critic.q_values(latent, actions)
    assert torch.allclose(values, agent.critic.q_values(0.01 * latent, actions), atol=1e-4)
    assert torch.allclose(values, agent.critic.frozen_q_values(latent, actions))
    frames = torch.as_tensor(DotEnv().reset(seed=0)[0][None])
    first, second = agent.critic(frames, actions[:1])
    expected = agent.critic.q_values(agent.critic.features_extractor(to_unit(frames)), actions[:1])
    assert torch.allclose(torch.cat([first, second], dim=1), expected)
    assert torch.equal(agent.critic.q1_forward(frames, actions[:1]), first)
    bounded = 50.0 * torch.randn(4, 50)
    assert dot_agent(autoencoder="rae").critic.normalize(bounded) is bounded


@pytest.mark.parametrize("name", ["vae", "sqvae", "vqvae"])
def test_losses_reach_their_owners_alone(name):
    """The module's table, for latents that are not a point: the actor's loss stays out of encoder and decoder."""
    agent = dot_agent(autoencoder=name, catch_up_updates=0)
    agent.learn(21)
    autoencoder = agent.policy.autoencoder
    encoder, decoder = list(autoencoder.encoder.parameters()), list(autoencoder.decoder.parameters())
    with agent.generators.active():
        batch = agent._sample(8)
        steps = {
            "actor": lambda: agent._update_actor_and_temperature(agent._encode(batch.observations), None),
            "critic": lambda: step_critic(agent, batch),
            "representation": lambda: step_representation(agent, batch),
        }
        moved = {}
        for loss, step in steps.items():
            before = [p.clone() for p in (*encoder, *decoder)]
            step()
            changed = [not torch.equal(old, new) for old, new in zip(before, (*encoder, *decoder), strict=True)]
            moved[loss] = (any(changed[: len(encoder)]), any(changed[len(encoder) :]))
    assert moved == {"actor": (False, False), "critic": (True, False), "representation": (True, True)}


def test_the_targets_codebook_is_a_copy():
    agent = dot_agent(autoencoder="vqvae", target_update_interval=1)
    agent.learn(30)
    online, target = (part.features_extractor.encoder for part in (agent.critic, agent.critic_target))
    agent._update_targets()
    assert online.head.quantizer.codebook is not target.head.quantizer.codebook
    assert torch.equal(online.head.quantizer.codebook, target.head.quantizer.codebook)
    moved = online.trunk.layers[0].weight - target.trunk.layers[0].weight
    assert moved.abs().sum() > 0


def test_an_agent_saves_and_loads_every_kind_of_state(tmp_path):
    for name in ("factor", "vqvae", "sqvae"):
        agent = dot_agent(autoencoder=small(name))
        agent.learn(24)
        agent.save(tmp_path / name)
        loaded = SACAE.load(tmp_path / name, env=DotEnv())
        assert loaded.learner.step == agent.learner.step > 0
        assert loaded.autoencoder == small(name)
        one, other = agent.learner.state_dict(), loaded.learner.state_dict()
        assert one.keys() == other.keys()
        for part in ("autoencoder", *(["discriminator"] if name == "factor" else [])):
            assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
        frames = DotEnv().reset(seed=3)[0][None]
        assert np.array_equal(
            agent.predict(frames, deterministic=True)[0], loaded.predict(frames, deterministic=True)[0]
        )


@pytest.fixture
def saved(tmp_path):
    """A saved autoencoder, and its folder."""
    torch.manual_seed(5)
    autoencoder = create_autoencoder("beta_h", DotEnv().observation_space.shape)
    autoencoder.save_pretrained(tmp_path / "saved")
    return autoencoder, tmp_path / "saved"


def equal_states(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_saved_autoencoder_is_the_start_and_is_fine_tuned(saved, tmp_path):
    autoencoder, folder = saved
    agent = dot_agent(autoencoder=folder)
    assert equal_states(agent.policy.autoencoder, autoencoder)
    for critic in (agent.critic, agent.critic_target):
        assert equal_states(critic.features_extractor.encoder, autoencoder.encoder)
    assert agent.learner.loss.beta == 4.0
    agent.learn(24)
    assert not equal_states(agent.policy.autoencoder.encoder, autoencoder.encoder)
    assert not equal_states(agent.policy.autoencoder.decoder, autoencoder.decoder)

    agent.save(tmp_path / "agent")
    agent.policy.save(tmp_path / "policy")
    shutil.rmtree(folder)
    assert equal_states(SACAEPolicy.load(tmp_path / "policy"), agent.policy)
    loaded = SACAE.load(tmp_path / "agent", env=DotEnv())
    assert equal_states(loaded.policy, agent.policy)
    loaded.learn(24)


def test_a_frozen_encoder_stays_and_the_agent_learns(saved, tmp_path):
    autoencoder, folder = saved
    agent = dot_agent(autoencoder=str(folder), freeze_encoder=True)
    before = [p.clone() for p in (*agent.actor.latent_pi.parameters(), *agent.critic.q_networks[0].parameters())]
    agent.learn(24)
    assert agent.learner.step == 0
    assert equal_states(agent.policy.autoencoder, autoencoder)
    assert equal_states(agent.critic_target.features_extractor.encoder, autoencoder.encoder)
    now = (*agent.actor.latent_pi.parameters(), *agent.critic.q_networks[0].parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, now, strict=True))
    agent.save(tmp_path / "agent")
    loaded = SACAE.load(tmp_path / "agent", env=DotEnv())
    loaded.learn(24)
    assert equal_states(loaded.policy.autoencoder, autoencoder)


def test_a_stock_agent_starts_from_a_saved_autoencoder(saved):
    autoencoder, folder = saved
    kwargs = {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": str(folder)},
        "net_arch": [16],
    }
    agent = SAC("CnnPolicy", DotEnv(), buffer_size=100, policy_kwargs=kwargs)
    for part in (agent.actor, agent.critic, agent.critic_target):
        assert equal_states(part.features_extractor.encoder, autoencoder.encoder)


def test_a_loss_of_ones_own_trains_an_agents_encoder():
    agent = dot_agent(autoencoder="vae", representation_loss=VAELoss(beta=0.125))
    agent.learn(24)
    assert agent.learner.loss.beta == 0.125
    assert agent.learner.step == agent._n_updates


def test_a_saved_autoencoder_for_other_frames_is_refused(tmp_path):
    create_autoencoder("vae", (3, 40, 40)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the config is for shape \(3, 40, 40\), observations are"):
        dot_agent(autoencoder=tmp_path)
