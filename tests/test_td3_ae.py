"""What TD3AE has of its own; what it shares with SACAE is tested there, in test_parity and in test_variants."""

import numpy as np
import pytest
import torch
from conftest import DotEnv, in_clean_process, step_critic, step_representation
from stable_baselines3 import TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from test_sac_ae import SMALL, assert_same

from rl_ae.sb3 import SACAE, TD3AE, TD3AEPolicy
from rl_ae.sb3.checkpoint import CheckpointWriter, load_agent, resume_agent


def make_agent(env=None, **kwargs):
    return TD3AE("CnnPolicy", DotEnv() if env is None else env, **{**SMALL, **kwargs})


def test_defaults():
    agent = TD3AE("CnnPolicy", DotEnv(), buffer_size=1)
    assert (agent.batch_size, agent.gamma, agent.tau, agent.encoder_tau) == (128, 0.99, 0.005, 0.05)
    assert (agent.policy_delay, agent.target_policy_noise, agent.target_noise_clip) == (2, 0.2, 0.5)
    assert agent.learning_starts == 1000 and agent.policy.net_arch == [1024, 1024]
    assert isinstance(agent.action_noise, NormalActionNoise)
    assert agent.action_noise._sigma.tolist() == [0.1, 0.1] and agent.action_noise._mu.tolist() == [0.0, 0.0]
    assert make_agent(action_noise=None).action_noise is None


# ---------------------------------------------------------------------- who trains what


def owners(agent):
    autoencoder, actor = agent.policy.autoencoder, agent.actor
    return {
        "trunk": list(autoencoder.encoder.trunk.parameters()),
        "critic head": list(autoencoder.encoder.head.parameters()),
        "q": [p for q in agent.critic.q_networks for p in q.parameters()],
        "actor": [*actor.features_extractor.encoder.head.parameters(), *actor.mu.parameters()],
        "decoder": list(autoencoder.decoder.parameters()),
        "targets": [*agent.critic_target.parameters(), *agent.actor_target.parameters()],
    }


ROUTES = {
    "critic": {"trunk", "critic head", "q"},
    "actor": {"actor"},
    "representation": {"trunk", "critic head", "decoder"},
}


@pytest.mark.parametrize("loss", ROUTES)
def test_each_loss_reaches_and_moves_its_owners_alone(loss):
    agent = make_agent()
    agent.learn(25)
    with agent.generators.active():
        batch = agent._sample(8)
    before = {owner: [p.detach().clone() for p in owned] for owner, owned in owners(agent).items()}
    for parameter in (p for owned in owners(agent).values() for p in owned):
        parameter.grad = None
    agent.policy.set_training_mode(True)
    {
        "critic": lambda: step_critic(agent, batch),
        "actor": lambda: agent._update_actor(agent._encode(batch.observations)),
        "representation": lambda: step_representation(agent, batch),
    }[loss]()
    touched, moved = set(), set()
    for owner, owned in owners(agent).items():
        if any(p.grad is not None for p in owned):
            touched.add(owner)
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in owned if p.ndim > 1), owner
        if any(not torch.equal(p, old) for p, old in zip(owned, before[owner], strict=True)):
            moved.add(owner)
    assert touched == moved == ROUTES[loss]


def test_one_trunk_online_and_one_for_the_targets():
    agent = make_agent()
    online = [part.features_extractor.encoder for part in (agent.critic, agent.actor)]
    target = [part.features_extractor.encoder for part in (agent.critic_target, agent.actor_target)]
    assert online[0].trunk is online[1].trunk is agent.policy.autoencoder.encoder.trunk
    assert target[0].trunk is target[1].trunk is not online[0].trunk
    assert len({id(encoder.head) for encoder in (*online, *target)}) == 4
    assert not any(p.requires_grad for part in (agent.critic_target, agent.actor_target) for p in part.parameters())
    for own, slow in ((agent.actor, agent.actor_target), (agent.critic, agent.critic_target)):
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), slow.parameters(), strict=True))


def test_targets_move_once_and_at_their_own_rates():
    agent = make_agent(tau=0.25, encoder_tau=0.5)
    with torch.no_grad():
        for parameter in (*agent.critic_target.parameters(), *agent.actor_target.parameters()):
            parameter.zero_()
    agent._update_targets()
    for online, slow in ((agent.critic, agent.critic_target), (agent.actor, agent.actor_target)):
        fast = dict(online.named_parameters())
        for name, parameter in slow.named_parameters():
            rate = 0.5 if "features_extractor" in name else 0.25
            assert torch.allclose(parameter, rate * fast[name]), name


@pytest.mark.parametrize(("update", "step"), [("paper", "_step_representation"), ("fused", "_step_jointly")])
def test_the_delay_counts_updates_across_calls(update, step):
    agent = make_agent(policy_delay=3, update=update)
    agent.learn(20)
    counts = dict.fromkeys(("_update_actor", "_update_targets", step), 0)

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    for name in counts:
        setattr(agent, name, counted(name, getattr(agent, name)))
    for _ in range(12):
        agent.train(gradient_steps=1, batch_size=8)
    assert counts == {"_update_actor": 4, "_update_targets": 4, step: 12}


def test_the_actor_may_read_the_critics_latent():
    agent = make_agent(policy_kwargs={"net_arch": [16], "actor_input": "latent"})
    assert agent.actor.features_extractor is agent.critic.features_extractor
    assert agent.actor_target.features_extractor is agent.critic_target.features_extractor
    agent.learn(25)
    with agent.generators.active():
        batch = agent._sample(8)
    encoder = [p.detach().clone() for p in agent.critic.features_extractor.parameters()]
    mlp = [p.detach().clone() for p in agent.actor.mu.parameters()]
    agent._update_actor(agent._encode(batch.observations))
    assert all(torch.equal(a, b) for a, b in zip(encoder, agent.critic.features_extractor.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mlp, agent.actor.mu.parameters(), strict=True))
    target = [p.detach().clone() for p in agent.critic_target.features_extractor.parameters()]
    agent._update_targets()  # once, though actor and critic have one extractor
    for old, slow, fast in zip(target, agent.critic_target.features_extractor.parameters(), encoder, strict=True):
        assert torch.allclose(slow, 0.95 * old + 0.05 * fast, atol=1e-7)


# ---------------------------------------------------------------------- TD3's arguments


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_steps": 3},
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2))},
        {"action_noise": 0.3},
        {"target_policy_noise": 0.0},
        {"train_freq": 4, "gradient_steps": -1},
        {"train_freq": (1, "episode"), "gradient_steps": 2},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        {"precision": "bf16"},
        {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [12, 12]}, "n_critics": 3}},
    ],
    ids=",".join,
)
def test_td3_arguments_work(kwargs, tmp_path):
    agent = make_agent(**kwargs)
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(40)
    after = agent.policy.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("weight"))
    agent.save(tmp_path / "agent")
    observation = DotEnv().reset(seed=1)[0]
    loaded = TD3AE.load(tmp_path / "agent")
    assert np.array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])


def test_exploration_and_several_environments():
    env = make_vec_env(DotEnv, 3)
    agent = make_agent(env).learn(60)
    assert agent.num_timesteps == 60 and agent.predict(env.reset())[0].shape == (3, 2)
    observation = np.repeat(DotEnv().reset(seed=0)[0][None], 3, axis=0)
    agent._last_obs = observation
    actions = np.stack([agent._sample_action(0, agent.action_noise, 3)[1] for _ in range(200)])
    assert np.allclose(actions.std(axis=0), 0.1, atol=0.03)


def test_the_noise_fits_other_environments_and_other_numbers(tmp_path):
    make_agent(make_vec_env(DotEnv, 2)).learn(40).save(tmp_path / "two")
    for n_envs in (1, 3):
        loaded = TD3AE.load(tmp_path / "two", env=make_vec_env(DotEnv, n_envs))
        assert loaded.learn(40).action_noise is not None
    assert TD3AE.load(tmp_path / "two", env=DotEnv(), action_noise=0.3).action_noise._sigma.tolist() == [0.3, 0.3]
    assert make_agent(action_noise=np.float32(0.5)).action_noise._sigma.tolist() == [0.5, 0.5]
    assert make_agent(action_noise=None).learn(30).action_noise is None
    with pytest.raises(ValueError, match=r"action_noise must be ≥ 0, got -0\.1"):
        make_agent(action_noise=-0.1)


def test_same_seed_same_agent():
    first, second, third = (make_agent(seed=seed).learn(40).policy.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_training_and_evaluation_modes():
    agent = make_agent().learn(25)
    agent.policy.set_training_mode(True)
    assert agent.actor.training and agent.critic.training and agent.policy.autoencoder.training
    assert not agent.actor_target.training and not agent.critic_target.training
    observation = DotEnv().reset(seed=0)[0]
    assert np.array_equal(agent.predict(observation, deterministic=True)[0], agent.predict(observation)[0])
    assert not agent.policy.training


def test_stacks_with_their_channels_last_and_set_parameters():
    env = VecFrameStack(DummyVecEnv([lambda: DotEnv((20, 24, 3))]), 3)
    agent = make_agent(env).learn(30)
    assert agent.policy.autoencoder.observation_shape == (9, 20, 24)
    other = make_agent(env, seed=9)
    other.set_parameters(agent.get_parameters())
    assert_same(other.get_parameters(), agent.get_parameters())


def test_the_encoder_has_a_learning_rate_of_its_own(tmp_path):
    agent = make_agent(learning_rate=1e-3, encoder_learning_rate=LinearSchedule(2e-4, 0.0, 1.0))
    agent.learn(25)
    agent._current_progress_remaining = 0.5
    agent.train(1, 8)
    encoder, rest = agent.critic.optimizer.param_groups
    assert (encoder["lr"], rest["lr"]) == (1e-4, 1e-3)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in agent.critic.features_extractor.parameters()}
    agent.save(tmp_path / "agent")
    loaded = TD3AE.load(tmp_path / "agent", env=DotEnv())
    loaded._current_progress_remaining = 0.25
    loaded._set_learning_rates()
    assert [group["lr"] for group in loaded.critic.optimizer.param_groups] == pytest.approx([5e-5, 1e-3])
    still = make_agent(encoder_learning_rate=0.0, autoencoder_learning_rate=0.0)
    before = [p.detach().clone() for p in still.critic.features_extractor.parameters()]
    still.learn(25)
    assert all(torch.equal(a, b) for a, b in zip(before, still.critic.features_extractor.parameters(), strict=True))


# ---------------------------------------------------------------------- saving


def continue_updates(path, buffer, out):
    agent = TD3AE.load(path)
    agent.load_replay_buffer(buffer)
    agent.train(gradient_steps=5, batch_size=8)
    torch.save(agent.get_parameters() | {"n_updates": agent._n_updates}, out)


def test_updates_continue_bit_for_bit_in_a_new_process(tmp_path):
    agent = make_agent(policy_delay=3, autoencoder="vae", n_steps=2)
    agent.learn(30)
    agent.save(tmp_path / "start")
    agent.save_replay_buffer(tmp_path / "buffer")
    straight = TD3AE.load(tmp_path / "start")
    straight.load_replay_buffer(tmp_path / "buffer")
    straight.train(gradient_steps=10, batch_size=8)

    agent.train(gradient_steps=5, batch_size=8)
    agent.save(tmp_path / "half")
    in_clean_process(continue_updates, tmp_path / "half", tmp_path / "buffer", tmp_path / "out.pt")
    resumed = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(resumed) == {"policy", "actor.optimizer", "critic.optimizer", "learner", "generators", "n_updates"}
    assert_same(resumed, straight.get_parameters() | {"n_updates": straight._n_updates})


def test_a_checkpoint_knows_its_algorithm(tmp_path):
    agent = make_agent().learn(30)
    CheckpointWriter(tmp_path).save(agent, {})
    observation = DotEnv().reset(seed=1)[0]
    for loaded in (load_agent(tmp_path), resume_agent(tmp_path, agent.env)):
        assert type(loaded) is TD3AE
        assert np.array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])


def test_the_other_algorithms_files_are_refused(tmp_path):
    make_agent().save(tmp_path / "td3_ae")
    SACAE("CnnPolicy", DotEnv(), **SMALL).save(tmp_path / "sac_ae")
    TD3("MlpPolicy", "Pendulum-v1", buffer_size=1).save(tmp_path / "td3")
    with pytest.raises(ValueError, match="not a saved TD3AE agent: it has no policy_delay"):
        TD3AE.load(tmp_path / "sac_ae")
    with pytest.raises(ValueError, match="not a saved SACAE agent: it has no ent_coef"):
        SACAE.load(tmp_path / "td3_ae")
    with pytest.raises(ValueError, match=r"not a saved TD3AE agent: .*learner.pth"):
        TD3AE.load(tmp_path / "td3")


def test_the_policy_alone_is_saved_with_what_made_it(tmp_path):
    agent = make_agent(policy_kwargs={"net_arch": [16], "actor_input": "latent", "critic_latent": "sample"})
    agent.policy.save(tmp_path / "policy")
    loaded = TD3AEPolicy.load(tmp_path / "policy")
    assert (loaded.actor_input, loaded.critic_latent) == ("latent", "sample")
    assert_same(dict(agent.policy.state_dict()), dict(loaded.state_dict()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy_delay": 0}, "policy_delay must be ≥ 1, got 0"),
        ({"target_noise_clip": -0.5}, "target_noise_clip must be ≥ 0, got -0.5"),
        ({"diagnostics_interval": 0}, "diagnostics_interval must be ≥ 1, got 0"),
        (
            {"policy_kwargs": {"actor_input": "pixels"}},
            r"must be one of \['trunk', 'latent'\], got 'pixels'",
        ),
        (
            {"policy_kwargs": {"critic_latent": "mean"}},
            r"must be one of \['mode', 'sample'\], got 'mean'",
        ),
        (
            {"policy_kwargs": {"reconstruct": ["left"]}},
            r"must name some of \['observation'\], got \['left'\]",
        ),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**kwargs)
