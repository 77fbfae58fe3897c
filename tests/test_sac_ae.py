import copy
import io
import zipfile

import numpy as np
import pytest
import torch
from conftest import DotEnv, in_clean_process, step_critic, step_representation
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tqdm.rich import tqdm_rich

from rl_ae import ConvConfig, RAEConfig
from rl_ae.sb3 import SACAE, FrameReplayBuffer, NonFiniteError, SACAEPolicy

SMALL = {
    "autoencoder": RAEConfig(latent_dim=8, conv=ConvConfig(filters=(8, 8), strides=(2, 2), padding=1)),
    "policy_kwargs": {"net_arch": [16, 16]},
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 200,
    "device": "cpu",
    "seed": 0,
}


def make_agent(env=None, **kwargs):
    return SACAE("CnnPolicy", DotEnv() if env is None else env, **{**SMALL, **kwargs})


def parameters(agent):
    tensors = {f"policy.{name}": tensor for name, tensor in agent.policy.state_dict().items()}
    if agent.log_ent_coef is not None:
        tensors["log_ent_coef"] = agent.log_ent_coef.detach()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def count(*modules):
    return sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values())


# ---------------------------------------------------------------------- the paper's numbers


def test_parameter_counts_are_the_papers():
    agent = SACAE("CnnPolicy", DotEnv((9, 84, 84), actions=6), buffer_size=1)
    decoder = agent.policy.autoencoder.decoder
    assert count(agent.critic) == 4_208_504
    assert count(agent.actor) == 3_104_642
    assert count(decoder) == 2_029_545
    assert count(agent.critic, agent.actor, decoder) == 9_312_323


def test_defaults_are_the_papers():
    agent = SACAE("CnnPolicy", DotEnv(), buffer_size=1)
    assert (agent.batch_size, agent.gamma, agent.tau, agent.encoder_tau) == (128, 0.99, 0.01, 0.05)
    assert (agent.actor_update_interval, agent.target_update_interval, agent.decoder_update_interval) == (2, 2, 1)
    assert agent.learning_starts == 1000 and agent.target_entropy == -2.0
    assert agent.log_ent_coef.exp().item() == pytest.approx(0.1)
    group = agent.ent_coef_optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-4, (0.5, 0.999))
    optimizers = [agent.actor.optimizer, agent.critic.optimizer, *list(dict(agent.learner.parts()).values())[1:]]
    assert [o.param_groups[0]["lr"] for o in optimizers] == [1e-3] * 4
    assert [o.param_groups[0]["weight_decay"] for o in optimizers] == [0, 0, 0, 1e-7]
    assert SACAE.__init__.__kwdefaults__["autoencoder"] == "rae"


def test_log_std_is_rescaled_smoothly():
    agent = make_agent()
    agent.actor.log_std.bias.data[:] = torch.tensor([-100.0, 100.0])
    _, log_std, _ = agent.actor.get_action_dist_params(torch.zeros(1, 3, 20, 20, dtype=torch.uint8))
    assert log_std[0].tolist() == pytest.approx([-10.0, 2.0], abs=1e-4)


# ---------------------------------------------------------------------- who trains what


def owners(agent):
    critic, actor, autoencoder = agent.critic, agent.actor, agent.policy.autoencoder
    return {
        "trunk": list(autoencoder.encoder.trunk.parameters()),
        "critic head": list(autoencoder.encoder.head.parameters()),
        "q": [p for q in critic.q_networks for p in q.parameters()],
        "actor": list(actor.features_extractor.encoder.head.parameters())
        + [p for module in (actor.latent_pi, actor.mu, actor.log_std) for p in module.parameters()],
        "decoder": list(autoencoder.decoder.parameters()),
        "target": list(agent.critic_target.parameters()),
        "temperature": [agent.log_ent_coef],
    }


ROUTES = {
    "critic": {"trunk", "critic head", "q"},
    "actor": {"actor"},
    "temperature": {"temperature"},
    "representation": {"trunk", "critic head", "decoder"},
}


def run_loss(agent, loss):
    agent.learn(25)
    with agent.generators.active():
        batch = agent._sample(8)
    before = {owner: [p.detach().clone() for p in owned] for owner, owned in owners(agent).items()}
    for owned in owners(agent).values():
        for parameter in owned:
            parameter.grad = None
    agent.policy.set_training_mode(True)
    if loss == "critic":
        step_critic(agent, batch)
    elif loss == "representation":
        step_representation(agent, batch)
    elif loss == "temperature":
        with agent._autocast():
            latent = agent.policy.actor_latent(agent._encode(batch.observations).features)
            log_prob = agent.actor.sample(latent)[1]
        agent._update_temperature(log_prob.detach())
    else:
        agent._update_temperature = lambda log_prob: {}
        agent._update_actor_and_temperature(agent._encode(batch.observations), None)
    return before


@pytest.mark.parametrize("loss", ROUTES)
def test_gradients_reach_their_owners_alone(loss):
    agent = make_agent()
    run_loss(agent, loss)
    touched = {o for o, owned in owners(agent).items() if any(p.grad is not None for p in owned)}
    assert touched == ROUTES[loss]
    for owner in touched:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in owners(agent)[owner] if p.ndim > 1), owner


@pytest.mark.parametrize("loss", ROUTES)
def test_each_step_moves_its_owners_alone(loss):
    agent = make_agent()
    before = run_loss(agent, loss)
    moved = {
        owner
        for owner, owned in owners(agent).items()
        if any(not torch.equal(p, old) for p, old in zip(owned, before[owner], strict=True))
    }
    assert moved == ROUTES[loss]


def test_the_trunk_is_one_object_and_the_target_another():
    agent = make_agent()
    trunks = [m.features_extractor.encoder.trunk for m in (agent.critic, agent.actor, agent.critic_target)]
    assert trunks[0] is trunks[1] is agent.policy.autoencoder.encoder.trunk is not trunks[2]
    assert agent.actor.features_extractor.encoder.head is not agent.critic.features_extractor.encoder.head
    assert all(not p.requires_grad for p in agent.critic_target.parameters())


def test_targets_move_at_their_own_rates():
    agent = make_agent(tau=0.25, encoder_tau=0.5)
    online = [p.detach().clone() for p in agent.critic.parameters()]
    with torch.no_grad():
        for parameter in agent.critic_target.parameters():
            parameter.zero_()
    agent._update_targets()
    for (name, slow), fast in zip(agent.critic_target.named_parameters(), online, strict=True):
        assert torch.allclose(slow, (0.5 if "features_extractor" in name else 0.25) * fast), name


@pytest.mark.parametrize("update", ["paper", "fused"])
def test_intervals_count_updates_across_calls(update):
    agent = make_agent(update=update, actor_update_interval=3, target_update_interval=2, decoder_update_interval=4)
    agent.learn(20)
    counts = dict.fromkeys(("actor", "targets", "representation"), 0)

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    agent._update_actor_and_temperature = counted("actor", agent._update_actor_and_temperature)
    agent._update_targets = counted("targets", agent._update_targets)
    step = {"paper": "_step_representation", "fused": "_step_jointly"}[update]
    setattr(agent, step, counted("representation", getattr(agent, step)))
    for _ in range(12):
        agent.train(gradient_steps=1, batch_size=8)
    assert counts == {"actor": 4, "targets": 6, "representation": 3}
    assert agent._n_updates == 12


# ---------------------------------------------------------------------- SAC's arguments


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_steps": 3},
        {"use_sde": True},
        {"use_sde": True, "sde_sample_freq": 4, "use_sde_at_warmup": True},
        {"action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))},
        {"target_entropy": -0.5},
        {"ent_coef": 0.2},
        {"train_freq": 4, "gradient_steps": -1},
        {"train_freq": (1, "episode"), "gradient_steps": 2},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 2, "gamma": 0.99}},
        {"precision": "bf16"},
        {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [12, 12]}, "n_critics": 3}},
    ],
    ids=",".join,
)
def test_sac_arguments_work(kwargs, tmp_path):
    agent = make_agent(**kwargs)
    before = parameters(agent)
    agent.learn(40)
    after = parameters(agent)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    weights = [name for name in after if name.endswith("weight")]
    assert weights and all(not torch.equal(before[name], after[name]) for name in weights)
    assert agent._n_updates >= 20
    agent.save(tmp_path / "agent")
    observation = DotEnv().reset(seed=1)[0]
    loaded = SACAE.load(tmp_path / "agent")
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], agent.predict(observation, deterministic=True)[0]
    )


def test_discounts_of_n_step_returns_are_used():
    agent = make_agent(n_steps=3, gamma=0.5)
    agent.learn(20)
    with agent.generators.active():
        batch = agent._sample(64)
    assert set(np.round(batch.discounts.flatten().tolist(), 4)) <= {0.5, 0.25, 0.125}
    assert 0.125 in batch.discounts.flatten().tolist()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_vectorised_environments(n_envs):
    env = make_vec_env(DotEnv, n_envs)
    agent = make_agent(env)
    agent.learn(60)
    assert agent.num_timesteps == 60
    assert agent.replay_buffer.observations.shape[1:] == (n_envs, 3, 20, 20)
    assert agent.predict(env.reset())[0].shape == (n_envs, 2)


def test_channels_last_frames_and_frame_stacks():
    env = VecFrameStack(DummyVecEnv([lambda: DotEnv((20, 24, 3))]), 3)
    agent = make_agent(env)
    agent.learn(30)
    assert agent.policy.autoencoder.observation_shape == (9, 20, 24)


def test_float_images_and_normalised_rewards():
    agent = make_agent(DotEnv(dtype=np.float32, high=1.0))
    agent.learn(30)
    assert agent.replay_buffer.observations.dtype == np.float32
    normalised = VecNormalize(DummyVecEnv([DotEnv]), norm_obs=False)
    agent = make_agent(normalised)
    agent.learn(30)
    with agent.generators.active():
        rewards = agent._sample(32).rewards
    assert torch.isfinite(rewards).all() and agent._n_updates == 30
    with pytest.raises(ValueError, match="norm_obs=False"):
        make_agent(VecNormalize(DummyVecEnv([DotEnv])))


def test_learning_rates_have_schedules_of_their_own():
    agent = make_agent(
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        ent_coef_learning_rate=LinearSchedule(2e-4, 0.0, 1.0),
        autoencoder_learning_rate=LinearSchedule(4e-3, 0.0, 1.0),
    )
    agent.learn(40)
    progress = agent._current_progress_remaining
    rates = [
        optimizer.param_groups[0]["lr"]
        for optimizer in (
            agent.actor.optimizer,
            agent.critic.optimizer,
            agent.ent_coef_optimizer,
            agent.learner.encoder_optimizer,
            agent.learner.decoder_optimizer,
        )
    ]
    assert progress == 0.0 and rates == [0.0] * 5
    agent._current_progress_remaining = 0.5
    agent.train(1, 8)
    assert agent.critic.optimizer.param_groups[0]["lr"] == 5e-4
    assert agent.ent_coef_optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.learner.encoder_optimizer.param_groups[0]["lr"] == 2e-3


def test_learning_rates_of_the_autoencoder_survive_sb3s_overwriting():
    config = RAEConfig(
        latent_dim=8, conv=SMALL["autoencoder"].conv, encoder_learning_rate=3e-4, decoder_learning_rate=2e-4
    )
    agent = make_agent(autoencoder=config)
    agent.learn(25)
    assert agent.learner.encoder_optimizer.param_groups[0]["lr"] == 3e-4
    assert agent.learner.decoder_optimizer.param_groups[0]["lr"] == 2e-4


def test_catch_up_updates_follow_the_random_steps():
    assert make_agent().learn(21)._n_updates == 20 + 1
    assert make_agent(catch_up_updates=3).learn(25)._n_updates == 3 + 5
    assert make_agent(gradient_steps=0).learn(25)._n_updates == 0
    agent = make_agent().learn(25)
    updates = agent._n_updates
    agent.learn(5, reset_num_timesteps=False)
    assert agent._n_updates == updates + 5


@pytest.mark.filterwarnings("ignore:rich is experimental")  # SB3 uses it all the same
def test_catch_up_shows_progress(capfd, monkeypatch):
    make_agent().learn(21)
    assert "catch-up" not in capfd.readouterr().err
    make_agent(verbose=1).learn(21)
    assert "catch-up updates" in capfd.readouterr().err
    shown = []  # what rich is told: it draws ten times a second, which a quick catch-up outruns
    display = tqdm_rich.display
    monkeypatch.setattr(tqdm_rich, "display", lambda bar, *args: (shown.append(bar.desc), display(bar, *args)))
    make_agent(catch_up_updates=3).learn(21, progress_bar=True)
    assert [text for text in shown if text] == ["catch-up updates 1/3: ", "catch-up updates 2/3: "]
    assert shown[-1] == ""


def test_logged_keys_are_sb3s(tmp_path):
    agent = make_agent()
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(40, log_interval=1)
    agent.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {
        "train/critic_loss",
        "train/actor_loss",
        "train/ent_coef",
        "train/ent_coef_loss",
        "train/reconstruction",
        "train/latent_l2",
        "train/ae_loss",
        "train/td_gradient_norm",
        "train/ae_gradient_norm",
        "train/gradient_cosine",
        "train/psnr",
        "train/active_units",
        "train/effective_rank",
        "train/latent_norm",
        "train/learning_rate",
        "train/n_updates",
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "time/total_timesteps",
    } <= set(header)


def test_derived_replay_arguments_follow_a_load(tmp_path):
    """What SB3 and the agent chose for the buffer is not taken for the user's choice."""
    frames = {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": {"n_stack": 1}}
    make_agent(**frames).save(tmp_path / "frames")
    loaded = SACAE.load(tmp_path / "frames", env=DotEnv(), n_steps=3, gamma=0.5)
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma) == (3, 0.5)
    assert loaded.replay_buffer_kwargs == {"n_stack": 1}
    make_agent(n_steps=3).save(tmp_path / "three")
    assert type(SACAE.load(tmp_path / "three", env=DotEnv()).replay_buffer) is NStepReplayBuffer
    assert type(SACAE.load(tmp_path / "three", env=DotEnv(), n_steps=1).replay_buffer) is ReplayBuffer


@pytest.mark.parametrize("autoencoder", ["rae", "vae", "vqvae"])
@pytest.mark.parametrize("use_sde", [False, True])
def test_the_actor_may_read_the_latent_and_the_critic_a_sample(autoencoder, use_sde, tmp_path):
    kwargs = {"net_arch": [16], "actor_input": "latent", "critic_latent": "sample"}
    agent = make_agent(autoencoder=autoencoder, policy_kwargs=kwargs, use_sde=use_sde).learn(25)
    assert agent.actor.features_extractor is agent.critic.features_extractor
    with agent.generators.active():
        batch = agent._sample(8)
    encoder = [p.detach().clone() for p in agent.critic.features_extractor.parameters()]
    mlp = [p.detach().clone() for p in agent.actor.latent_pi.parameters()]
    if use_sde:
        agent.actor.reset_noise()
    agent._update_actor_and_temperature(agent._encode(batch.observations), None)
    assert all(torch.equal(a, b) for a, b in zip(encoder, agent.critic.features_extractor.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mlp, agent.actor.latent_pi.parameters(), strict=True))

    def losses():  # of one batch, under two noises
        saved = copy.deepcopy(agent.get_parameters())
        found = []
        for seed in (0, 1):
            agent.set_parameters(saved)
            torch.manual_seed(seed)
            found.append(agent._step_critic(batch, torch.ones(8, 1))[1]["critic_loss"].item())
        return found

    drawn = losses()
    assert (drawn[0] != drawn[1]) == (autoencoder == "vae")  # the others' samples are their modes
    agent.policy.critic_latent = "mode"
    assert len(set(losses())) == 1

    agent.save(tmp_path / "agent")
    observation = DotEnv().reset(seed=1)[0]
    actions = [a.predict(observation, deterministic=True)[0] for a in (agent, SACAE.load(tmp_path / "agent"))]
    assert np.array_equal(*actions)


def test_what_trains_the_encoder_is_logged():
    """Every third step of the representation loss, the gradients of both losses as they stand at the trunk."""
    agent = make_agent(diagnostics_interval=3, catch_up_updates=0, autoencoder="vae")
    agent.learn(21)
    with agent.generators.active():
        batches = [agent._sample(8) for _ in range(6)]
    logged = []
    for batch in batches:
        due = agent.learner.step % 3 == 0
        step_critic(agent, batch)
        td = torch.cat([p.grad.flatten() for p in agent.critic.features_extractor.trunk_parameters()])
        metrics = step_representation(agent, batch)
        ae = torch.cat([p.grad.flatten() for p in agent.critic.features_extractor.trunk_parameters()])
        assert ("gradient_cosine" in metrics) == due
        if due:
            logged.append(metrics)
            assert metrics["td_gradient_norm"].item() == pytest.approx(td.norm().item(), rel=1e-4)
            assert metrics["ae_gradient_norm"].item() == pytest.approx(ae.norm().item(), rel=1e-4)
            cosine = torch.nn.functional.cosine_similarity(td, ae, dim=0).item()
            assert metrics["gradient_cosine"].item() == pytest.approx(cosine, rel=1e-3, abs=1e-5)
            latent = agent.policy.autoencoder.encode(batch.observations.float()).mu
            assert metrics["latent_norm"].item() == pytest.approx(latent.norm(dim=1).mean().item(), rel=1e-4)
            assert {"psnr", "active_units", "effective_rank", "latent_kl"} <= metrics.keys()
    assert len(logged) == 2


def test_same_seed_same_agent():
    first, second, third = (make_agent(seed=seed).learn(40) for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(parameters(first).values(), parameters(second).values(), strict=True)]
    assert all(same)
    assert any(
        not torch.equal(a, b) for a, b in zip(parameters(first).values(), parameters(third).values(), strict=True)
    )


def test_training_and_evaluation_modes():
    agent = make_agent().learn(25)
    agent.policy.set_training_mode(True)
    assert agent.critic.training and agent.policy.autoencoder.training and not agent.critic_target.training
    observation = DotEnv().reset(seed=0)[0]
    actions = [agent.predict(observation, deterministic=True)[0] for _ in range(3)]
    assert np.array_equal(actions[0], actions[1]) and np.array_equal(actions[1], actions[2])
    assert not agent.policy.training


# ---------------------------------------------------------------------- saving


def continue_updates(path, buffer, out):
    agent = SACAE.load(path)
    agent.load_replay_buffer(buffer)
    agent.train(gradient_steps=5, batch_size=8)
    state = agent.get_parameters() | {"log_ent_coef": agent.log_ent_coef.detach(), "n_updates": agent._n_updates}
    torch.save(state, out)


@pytest.mark.parametrize("kwargs", [{}, {"use_sde": True}, {"n_steps": 3, "precision": "auto"}], ids=str)
def test_updates_continue_bit_for_bit_in_a_new_process(tmp_path, kwargs):
    agent = make_agent(actor_update_interval=3, **kwargs)
    agent.learn(30)
    agent.save(tmp_path / "start")
    agent.save_replay_buffer(tmp_path / "buffer")

    straight = SACAE.load(tmp_path / "start")
    straight.load_replay_buffer(tmp_path / "buffer")
    straight.train(gradient_steps=10, batch_size=8)

    agent.train(gradient_steps=5, batch_size=8)
    agent.save(tmp_path / "half")
    in_clean_process(continue_updates, tmp_path / "half", tmp_path / "buffer", tmp_path / "out.pt")
    resumed = torch.load(tmp_path / "out.pt", weights_only=True)

    expected = straight.get_parameters()
    assert resumed.keys() == {*expected, "log_ent_coef", "n_updates"}
    assert {"policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer", "learner", "generators"} == set(
        expected
    )
    expected |= {"log_ent_coef": straight.log_ent_coef.detach(), "n_updates": straight._n_updates}
    assert_same(resumed, expected)


def assert_same(one, other, path=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def test_everything_is_saved(tmp_path):
    agent = make_agent().learn(30)
    agent.save(tmp_path / "agent.zip")
    loaded = SACAE.load(tmp_path / "agent.zip", env=DotEnv())
    assert all(torch.equal(a, b) for a, b in zip(parameters(agent).values(), parameters(loaded).values(), strict=True))
    assert loaded.policy.autoencoder.encoder.trunk is loaded.actor.features_extractor.encoder.trunk
    assert loaded.learner.autoencoder is loaded.policy.autoencoder
    assert_same(agent.get_parameters(), loaded.get_parameters())
    assert loaded.learner.step == agent.learner.step == 30
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40


def test_get_and_set_parameters():
    agent, other = make_agent().learn(25), make_agent(seed=9)
    other.set_parameters(agent.get_parameters())
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, other.policy.state_dict()[name]), name


def test_foreign_and_damaged_files_are_refused(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=1).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"not a saved SACAE agent: .*learner.pth"):
        SACAE.load(tmp_path / "sac")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match="not a saved agent"):
        SACAE.load(tmp_path / "text")
    make_agent().save(tmp_path / "agent.zip")
    content = bytearray((tmp_path / "agent.zip").read_bytes())
    middle = content.index(b"archive/data/") + 2000
    content[middle : middle + 50] = bytes(50)
    (tmp_path / "agent.zip").write_bytes(content)
    with pytest.raises(ValueError, match="fails its checksum"):
        SACAE.load(tmp_path / "agent.zip")
    with pytest.raises(FileNotFoundError):
        SACAE.load(tmp_path / "absent")


def test_an_agent_of_another_autoencoder_is_refused(tmp_path):
    make_agent().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"agent does not fit autoencoder='vae': (.|\n)*trunk"):
        SACAE.load(tmp_path / "agent", autoencoder="vae")
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        SACAE.load(tmp_path / "agent", policy_kwargs={"net_arch": [8]})


def test_a_checkpoint_marked_cuda_loads_on_a_cpu(tmp_path, monkeypatch):
    """What a GPU writes differs from what a CPU writes in the storages' location alone."""
    agent = make_agent().learn(25)
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        agent.save(tmp_path / "agent")
    if not torch.cuda.is_available():
        with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
            weights = io.BytesIO(archive.read("policy.pth"))
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(weights, weights_only=True)
    loaded = SACAE.load(tmp_path / "agent", device="cpu", env=DotEnv())
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name
    loaded.learn(5, reset_num_timesteps=False)
    assert loaded._n_updates == agent._n_updates + 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_checkpoint_from_a_gpu_loads_on_a_cpu(tmp_path):
    agent = make_agent(device="cuda").learn(30)
    agent.save(tmp_path / "agent")
    loaded = SACAE.load(tmp_path / "agent", device="cpu", env=DotEnv())
    assert {p.device.type for p in loaded.policy.parameters()} == {"cpu"}
    loaded.learn(5, reset_num_timesteps=False)
    assert loaded._n_updates == agent._n_updates + 5


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Pendulum-v1", r"expected images: .*; got Box\(.*float32\)"),
        (DotEnv((3, 7, 20)), r"at least 8×8 pixels; got shape \(3, 7, 20\)"),
        (DotEnv(dtype=np.float32, high=np.inf), r"finite bounds; got bounds \[0.0, inf\]"),
        (DotEnv((20, 24, 9), dtype=np.float32, high=1.0), r"channels first: expected \(C, H, W\), got \(20, 24, 9\)"),
    ],
    ids=["vector", "small", "unbounded", "float last"],
)
def test_observations_that_are_not_images_are_refused(env, message):
    with pytest.raises(ValueError, match=message):
        make_agent(env)


def test_discrete_actions_are_refused():
    class Discrete(DotEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(3)

    with pytest.raises(ValueError, match=r"bounded Box of actions, got Discrete\(3\)"):
        make_agent(Discrete())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"autoencoder": "nae"}, ValueError, "expected one of .*'rae'"),
        ({"autoencoder": torch.nn.Linear(1, 1)}, TypeError, "got Linear"),
        ({"batch_size": 0}, ValueError, "batch_size must be ≥ 1, got 0"),
        ({"train_freq": 0}, ValueError, "train_freq must be ≥ 1, got 0"),
        ({"n_steps": 0}, ValueError, "n_steps must be ≥ 1, got 0"),
        ({"tau": 2.0}, ValueError, r"tau must be in \[0, 1\], got 2.0"),
        ({"actor_update_interval": 0}, ValueError, "actor_update_interval must be ≥ 1, got 0"),
        ({"precision": "fp8"}, ValueError, "got 'fp8'"),
        ({"policy_kwargs": {"share_features_extractor": True}}, ValueError, "share_features_extractor"),
        ({"policy_kwargs": {"features_extractor_class": torch.nn.Flatten}}, ValueError, "got Flatten"),
        ({"policy_kwargs": {"normalize_images": False}}, ValueError, "normalize_images=False"),
        ({"policy_kwargs": {"features_extractor_kwargs": {"autoencoder": "ae"}}}, ValueError, "autoencoder=…"),
        ({"catch_up_updates": -1}, ValueError, "catch_up_updates must be ≥ 0, got -1"),
        ({"buffer_size": 10**12}, MemoryError, "needs .* GB .* fits"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        make_agent(**kwargs)


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match=r"must be one of \['CnnPolicy', 'MultiInputPolicy'\], got 'MlpPolicy'"):
        SACAE("MlpPolicy", DotEnv())


def test_the_callers_dictionaries_are_left_alone(tmp_path):
    mine, buffer = {"net_arch": [16, 16]}, {"handle_timeout_termination": True}
    agent = make_agent(policy_kwargs=mine, replay_buffer_kwargs=buffer, n_steps=2)
    assert mine == {"net_arch": [16, 16]} and buffer == {"handle_timeout_termination": True}
    agent.save(tmp_path / "agent")
    loaded = SACAE.load(tmp_path / "agent", policy_kwargs=mine)  # SB3's own agents refuse what they were made with
    assert loaded.policy.net_arch == [16, 16]


def test_unbounded_actions_are_refused():
    class Unbounded(DotEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-np.inf, np.inf, (2,))

    with pytest.raises(ValueError, match="needs a bounded Box"):
        make_agent(Unbounded())


def test_a_custom_buffer_is_not_measured_and_a_loaded_agent_not_refused(tmp_path):
    class Tiny(ReplayBuffer):
        def __init__(self, buffer_size, *args, **kwargs):
            super().__init__(10, *args, **kwargs)

    agent = make_agent(buffer_size=10**12, replay_buffer_class=Tiny)
    agent.buffer_size, agent.replay_buffer_class = 10**9, None
    agent.save(tmp_path / "agent")
    with pytest.raises(MemoryError):
        SACAE.load(tmp_path / "agent", env=DotEnv())


def test_the_policy_stands_alone(tmp_path):
    env = DotEnv()
    policy = SACAEPolicy(env.observation_space, env.action_space, lambda progress: 1e-3)
    assert policy.autoencoder.encoder.latent_dim == 50
    observation = env.reset(seed=0)[0]
    agent = make_agent()
    for original in (policy, agent.policy):
        original.save(tmp_path / "policy")
        loaded = SACAEPolicy.load(tmp_path / "policy", device="cpu")
        assert loaded.actor.features_extractor.encoder.trunk is loaded.critic.features_extractor.encoder.trunk
        assert np.array_equal(*(p.predict(observation, deterministic=True)[0] for p in (original, loaded)))


def test_a_nan_reward_stops_the_run():
    class Broken(DotEnv):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, np.nan if self.steps == 7 else reward, *rest

    agent = make_agent(Broken())
    with pytest.raises(NonFiniteError, match=r"reward \[nan\] at step 7"):
        agent.learn(50)
    assert np.isfinite(agent.replay_buffer.rewards).all()


def test_a_non_finite_loss_is_named():
    agent = make_agent().learn(25)
    with torch.no_grad():
        agent.policy.autoencoder.decoder.layers[-1].bias.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"^reconstruction is (inf|nan) at update 26, step 25"):
        agent.train(3, 8)  # the next updates fail in the critic
