"""Stock agents with the auxiliary loss: who trains what, when, from which frames, and what is saved."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DotEnv, in_clean_process
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rl_ae import BTCVAEConfig, ConvConfig, FactorConfig, RAEConfig, VAEConfig, VQVAEConfig, create_autoencoder
from rl_ae.generators import capture
from rl_ae.losses import RAELoss
from rl_ae.sb3 import SACAE, AutoencoderExtractor, AuxiliaryLossCallback, NonFiniteError
from rl_ae.sb3.auxiliary import own_extractors

SHAPE = (3, 16, 16)
CONV = ConvConfig(filters=(4, 4), strides=(2, 2), padding=1)
CONFIG = RAEConfig(latent_dim=4, conv=CONV, target_bits=None)
OFF_POLICY = {"buffer_size": 100, "learning_starts": 10, "batch_size": 8}
ON_POLICY = {"n_steps": 16}
#: Algorithm → class, policy, arguments.
ALGORITHMS = {
    "SAC": (SAC, "CnnPolicy", OFF_POLICY),
    "TD3": (TD3, "CnnPolicy", {**OFF_POLICY, "policy_delay": 2}),
    "TQC": (TQC, "CnnPolicy", OFF_POLICY),
    "CrossQ": (CrossQ, "MlpPolicy", OFF_POLICY),
    "DQN": (DQN, "CnnPolicy", {**OFF_POLICY, "train_freq": 1, "target_update_interval": 5}),
    "QRDQN": (QRDQN, "CnnPolicy", {**OFF_POLICY, "train_freq": 1, "target_update_interval": 5}),
    "PPO": (PPO, "CnnPolicy", {**ON_POLICY, "batch_size": 8, "n_epochs": 2}),
    "A2C": (A2C, "CnnPolicy", ON_POLICY),
    "RecurrentPPO": (RecurrentPPO, "CnnLstmPolicy", {**ON_POLICY, "batch_size": 8, "n_epochs": 2}),
}
DISCRETE, ACTOR_CRITICS = ("DQN", "QRDQN"), ("SAC", "TD3", "TQC", "CrossQ")
GRADIENTS_OF_ROLLOUTS = ("PPO", "A2C", "RecurrentPPO")


class Pushes(DotEnv):
    """The dot with three actions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.action_space = spaces.Discrete(3)

    def step(self, action):
        return super().step(np.array([action - 1.0, 0.5 - action / 2.0]))


def make_env(name, **kwargs):
    return (Pushes if name in DISCRETE else DotEnv)(shape=SHAPE, **kwargs)


def make_agent(name, autoencoder=CONFIG, env=None, seed=0, arguments=(), **policy_kwargs):
    algorithm, policy, defaults = ALGORITHMS[name]
    policy_kwargs = {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": autoencoder},
        "net_arch": [16],
        **policy_kwargs,
    }
    env = make_env(name) if env is None else env
    return algorithm(
        policy, env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **{**defaults, **dict(arguments)}
    )


def snapshot(modules):
    return {name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()}


def moved(before, modules):
    """Names of the modules of which a parameter is another than before."""
    return {
        name
        for name, module in modules.items()
        if not all(torch.equal(p, old) for p, old in zip(module.parameters(), before[name], strict=True))
    }


def same_tensors(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


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


# ---------------------------------------------------------------------- who trains what: the README's table


def readme_table():
    """(algorithm, sharing) → encoder of → (losses alone, losses with the callback)."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or cells[0].split(", ")[0] not in ALGORITHMS:
            continue
        sharing = {"`True`": True, "`False`": False, "–": None}[cells[1].removesuffix(", SB3's default")]
        for algorithm in cells[0].split(", "):
            rows = table.setdefault((algorithm, sharing), {})
            rows[cells[2]] = tuple(set(cell.split(", ")) for cell in cells[3:])
    return table


TABLE = readme_table()
#: What the README calls an encoder → its owner in the policy, where there are two.
OWNERS = {"critic": "critic", "actor": "actor", "policy": "policy", "value function": "vf"}


def test_the_table_has_every_algorithm():
    expected = {(name, sharing) for name in (*ACTOR_CRITICS, *GRADIENTS_OF_ROLLOUTS) for sharing in (False, True)}
    assert TABLE.keys() == expected | {(name, None) for name in DISCRETE}


def agents_losses(name, sharing, callback=None):
    """{owner of an encoder: the agent's losses that move it}, loss by loss."""
    if name not in GRADIENTS_OF_ROLLOUTS:
        return moved_by_optimizers(name, sharing, callback)
    found = {}
    for loss in ("policy", "value"):
        make = None if callback is None else type(callback)
        for owner, losses in moved_by_optimizers(name, sharing, make and make(), only=loss).items():
            found.setdefault(owner, set()).update(losses)
    return found


def moved_by_optimizers(name, sharing, callback, only=None):
    arguments = {} if only is None else {"ent_coef": 0.0, "vf_coef": float(only == "value")}
    agent = make_agent(name, arguments=arguments, **({} if sharing is None else {"share_features_extractor": sharing}))
    if only == "value":
        without_advantages(agent.rollout_buffer)
    encoders = {owner: extractor.encoder for owner, extractor in own_extractors(agent).items()}
    found = {owner: set() for owner in encoders}
    if name in ACTOR_CRITICS:
        optimizers = {"TD error": agent.critic.optimizer, "actor": agent.actor.optimizer}
    else:
        optimizers = {only or "TD error": agent.policy.optimizer}
    for loss, optimizer in optimizers.items():
        watch(optimizer, loss, encoders, found)
    if callback is not None:
        callback.init_callback(agent)
        for learner in callback._all_learners():
            watch(learner.encoder_optimizer, "representation", encoders, found)
    agent.learn(48, callback=callback)
    return found


def watch(optimizer, loss, encoders, found):
    step = optimizer.step

    def watched(*arguments, **kwargs):
        before = snapshot(encoders)
        step(*arguments, **kwargs)
        for owner in moved(before, encoders):
            found[owner].add(loss)

    optimizer.step = watched


def without_advantages(buffer):
    compute = buffer.compute_returns_and_advantage

    def computed(**kwargs):
        compute(**kwargs)
        buffer.advantages[:] = 0.0

    buffer.compute_returns_and_advantage = computed


@pytest.mark.parametrize("with_callback", [False, True])
@pytest.mark.parametrize(("name", "sharing"), sorted(TABLE, key=str))
def test_losses_train_the_encoders_that_the_table_says(name, sharing, with_callback):
    rows = TABLE[name, sharing]
    found = agents_losses(name, sharing, AuxiliaryLossCallback() if with_callback else None)
    assert len(rows) == len(found)
    for encoder, losses in rows.items():
        (owner,) = found if len(found) == 1 else (OWNERS[encoder],)
        assert found[owner] == losses[with_callback], encoder


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_auxiliary_loss_moves_encoders_and_decoder_alone(name):
    agent, callback = make_agent(name), AuxiliaryLossCallback()
    agent.learn(32, callback=callback)
    encoders = {owner: extractor.encoder for owner, extractor in own_extractors(agent).items()}
    mine = {id(p) for encoder in encoders.values() for p in encoder.parameters()}
    decoder = next(callback._all_learners()).autoencoder.decoder
    others = {name: p for name, p in agent.policy.named_parameters() if id(p) not in mine}
    assert any("target" in name for name in others) == (name not in (*GRADIENTS_OF_ROLLOUTS, "CrossQ"))

    modules = {**encoders, "decoder": decoder}
    before, others_before = snapshot(modules), {name: p.detach().clone() for name, p in others.items()}
    if name in GRADIENTS_OF_ROLLOUTS:
        callback._rollout = {"observation": torch.randint(256, (16, *SHAPE), dtype=torch.uint8)}
    else:
        agent._n_updates += 1
    callback.on_rollout_start()
    assert moved(before, modules) == modules.keys()
    assert same_tensors(others, others_before)
    assert not mine & {id(p) for p in decoder.parameters()}
    # what clips gradients, copies targets and saves the policy does not see the decoder
    assert not {id(p) for p in agent.policy.parameters()} & {id(p) for p in decoder.parameters()}


def test_two_encoders_have_one_decoder_and_one_optimizer_of_it():
    agent, callback = make_agent("SAC"), AuxiliaryLossCallback()
    callback.init_callback(agent)
    actor, critic = callback.learners["observation"]["actor"], callback.learners["observation"]["critic"]
    assert actor.autoencoder.encoder is agent.actor.features_extractor.encoder
    assert critic.autoencoder.encoder is agent.critic.features_extractor.encoder
    assert actor.autoencoder.decoder is critic.autoencoder.decoder
    assert actor.decoder_optimizer is critic.decoder_optimizer and actor.loss is critic.loss
    agent.learn(30, callback=callback)
    assert actor.step == critic.step == agent._n_updates == 20
    state = actor.decoder_optimizer.state_dict()["state"]
    assert state[0]["step"].item() == 40


def test_a_codebook_of_moving_averages_reaches_the_target():
    config = VQVAEConfig(conv=CONV, codes=8, code_dim=4)
    agent = make_agent("DQN", config)
    before = {name: b.clone() for name, b in agent.q_net_target.named_buffers()}
    agent.learn(30, callback=AuxiliaryLossCallback())
    after = dict(agent.q_net_target.named_buffers())
    assert same_tensors(after, dict(agent.q_net.named_buffers()))
    assert not same_tensors(before, after)


def test_it_learns_to_see():
    agent = make_agent(
        "DQN", RAEConfig(latent_dim=8, conv=CONV, encoder_learning_rate=3e-3, decoder_learning_rate=3e-3)
    )
    frames, callback = [], AuxiliaryLossCallback(updates_per_agent_update=5)
    env = make_env("DQN")
    for seed in range(64):
        frames.append(torch.from_numpy(env.reset(seed=seed)[0]) / 255.0)
    frames = torch.stack(frames)
    callback.init_callback(agent)
    learner = next(callback._all_learners())
    before = learner.evaluate(frames)["reconstruction"]
    agent.learn(60, callback=callback)
    assert learner.step == 250
    assert learner.evaluate(frames)["reconstruction"] < 0.7 * before


# ---------------------------------------------------------------------- when


class UpdatesTooEarly(AuxiliaryLossCallback):
    """The fault: train on the frames as soon as they are there."""

    def _on_rollout_end(self):
        super()._on_rollout_end()
        self._follow_agent()


def first_ratios(callback, name="PPO"):
    """How far the probability ratios are from 1 when the agent begins to train on a rollout, a number a rollout."""
    agent = make_agent(name)
    deviations = []
    train = agent.train

    def watched():
        buffer = agent.rollout_buffer
        observations = torch.as_tensor(buffer.observations).flatten(end_dim=1)
        actions = torch.as_tensor(buffer.actions).flatten(end_dim=1)
        with torch.no_grad():
            log_prob = agent.policy.evaluate_actions(observations, actions)[1]
        ratios = torch.exp(log_prob - torch.as_tensor(buffer.log_probs).flatten())
        deviations.append((ratios - 1.0).abs().max().item())
        train()

    agent.train = watched
    agent.learn(4 * agent.n_steps, callback=callback)
    assert len(deviations) == 4
    return deviations


@pytest.mark.parametrize("name", ["PPO", "A2C"])
def test_stored_log_probabilities_stay_true(name):
    callback = AuxiliaryLossCallback(learning_rate=1e-2)
    assert max(first_ratios(callback, name)) < 1e-6
    assert callback.step >= 4
    # the fault is noticed
    assert min(first_ratios(UpdatesTooEarly(learning_rate=1e-2), name)) > 1e-4


@pytest.mark.parametrize("name", GRADIENTS_OF_ROLLOUTS)
def test_every_frame_of_every_rollout_is_seen_once_an_epoch(name, monkeypatch):
    env = make_vec_env(lambda: make_env(name), n_envs=2, seed=0)
    agent, callback = make_agent(name, env=env), AuxiliaryLossCallback(epochs=2, batch_size=10)
    rollouts, seen = [], []

    def keep():
        rollouts.append(agent.rollout_buffer.observations.copy().reshape(-1, *SHAPE))
        original()

    original = callback._on_rollout_end
    monkeypatch.setattr(callback, "_on_rollout_end", keep)
    callback.init_callback(agent)
    learner = next(callback._all_learners())
    update = learner.update
    monkeypatch.setattr(
        learner, "update", lambda images, *rest: (seen.append((images, *rest)), update(images, *rest))[1]
    )
    agent.learn(3 * 32, callback=callback)

    assert len(rollouts) == 3  # the last one's frames were not forgotten
    assert [len(images) for images, *_ in seen] == 3 * 2 * [10, 10, 10, 2]
    assert {n_data for *_, n_data in seen} == {32}
    for rollout, start in zip(rollouts, (0, 8, 16), strict=True):
        for epoch in (seen[start : start + 4], seen[start + 4 : start + 8]):
            images = torch.cat([images for images, *_ in epoch])
            assert images.dtype == torch.float32 and images.max() == 1.0
            frames = torch.from_numpy(rollout) / 255.0
            assert sorted(f.sum((0, 1)).tolist() for f in frames) == sorted(f.sum((0, 1)).tolist() for f in images)


def test_off_policy_updates_follow_the_agents():
    for ratio, updates in ((1.0, 20), (0.25, 5), (3, 60), (0, 0)):
        callback = AuxiliaryLossCallback(updates_per_agent_update=ratio)
        agent = make_agent("DQN").learn(30, callback=callback)
        assert (agent._n_updates, callback.step) == (20, updates)
    callback = AuxiliaryLossCallback()
    agent = make_agent("DQN", arguments={"train_freq": 4, "gradient_steps": 2}).learn(30, callback=callback)
    assert agent._n_updates == callback.step > 0
    agent.learn(10, callback=callback, reset_num_timesteps=False)
    assert agent._n_updates == callback.step


def test_a_replay_buffers_size_reaches_the_loss():
    sizes = []

    class Spy(RAELoss):
        def forward(self, *arguments, n_data=None, **kwargs):
            sizes.append(n_data)
            return super().forward(*arguments, n_data=n_data, **kwargs)

    make_agent("DQN").learn(13, callback=AuxiliaryLossCallback(Spy(0.0)))
    assert sizes == [11, 12, 13]
    btcvae = BTCVAEConfig(latent_dim=4, conv=CONV, hidden=())
    callback = AuxiliaryLossCallback()
    make_agent("PPO", btcvae).learn(16, callback=callback)
    assert callback.step == 2


def test_n_step_returns_change_nothing():
    callback = AuxiliaryLossCallback()
    make_agent("SAC", arguments={"n_steps": 3}).learn(30, callback=callback)
    assert callback.step == 20


# ---------------------------------------------------------------------- several parts


class TwoCameras(DotEnv):
    """The dot seen twice, and where it is, far from 0."""

    def __init__(self):
        super().__init__(shape=SHAPE)
        self.observation_space = spaces.Dict(
            front=spaces.Box(0, 255, SHAPE, np.uint8),
            position=spaces.Box(-np.inf, np.inf, (3,)),
            speed=spaces.Box(-1.0, 1.0, (2,)),
            wrist=spaces.Box(0, 255, (1, 8, 8), np.uint8),
        )

    def _observe(self):
        row, column = ((self.position + 1) * 6).round().astype(int)
        front, wrist = np.zeros(SHAPE, np.uint8), np.zeros((1, 8, 8), np.uint8)
        front[:, row : row + 4, column : column + 4] = 255
        wrist[0, row // 2, column // 2] = 255
        position = np.float32([*(100 + 50 * self.position), 7.0])
        return {"front": front, "position": position, "speed": np.float32(self.position), "wrist": wrist}


CHOICE = {"front": CONFIG, "wrist": CONFIG, "position": RAEConfig(latent_dim=2, target_bits=None)}


def make_robot(algorithm=SAC, env=None, autoencoder=CHOICE, **kwargs):
    policy_kwargs = {
        "features_extractor_class": AutoencoderExtractor,
        "features_extractor_kwargs": {"autoencoder": autoencoder},
        "net_arch": [16],
    }
    env, settings = TwoCameras() if env is None else env, ALGORITHMS[algorithm.__name__][2]
    return algorithm("MultiInputPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **settings, **kwargs)


def test_batches_are_normalised_as_the_agents():
    env = VecNormalize(DummyVecEnv([TwoCameras]), norm_obs_keys=["position"])
    agent, callback = make_robot(env=env), AuxiliaryLossCallback()
    callback.init_callback(agent)
    learner, read = callback.learners["position"]["critic"], []
    update = learner.update
    learner.update = lambda observations, *rest: (read.append(observations), update(observations, *rest))[1]
    agent.learn(20, callback=callback)
    assert len(read) == 10 and max(observations.abs().max().item() for observations in read) <= env.clip_obs

    np.random.seed(3)
    agents = agent.replay_buffer.sample(8, env=agent._vec_normalize_env).observations
    np.random.seed(3)
    assert same_tensors(next(callback._sampled(1)), agents)
    assert agents["front"].max() == 255.0 and agents["position"].abs().max() <= env.clip_obs


def test_a_loss_is_copied_for_each_part():
    class Weighted(RAELoss):
        def __init__(self):
            super().__init__(0.0)
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, *arguments, **kwargs):
            losses = super().forward(*arguments, **kwargs)
            return losses._replace(total=self.weight.square() * losses.total)

    loss = Weighted()
    agent, callback = make_robot(), AuxiliaryLossCallback(loss)
    agent.learn(15, callback=callback)
    losses = {id(learner.loss): learner.loss for learner in callback._all_learners()}
    assert len(losses) == 3 and len({id(own.weight) for own in losses.values()}) == 3
    assert id(loss) not in losses and loss.weight.item() == 1.0
    assert len({own.weight.item() for own in losses.values()} - {1.0}) >= 1
    for key, same in callback.learners.items():
        assert same["actor"].loss is same["critic"].loss, key
        # one step of the weight for each owner and update, and none for another part
        [steps] = [
            state["step"].item()
            for parameter, state in same["critic"].decoder_optimizer.state.items()
            if parameter is same["critic"].loss.weight
        ]
        assert steps == 2 * callback.step == 10


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_parts_that_are_named_are_reconstructed(algorithm, tmp_path):
    agent, callback = make_robot(algorithm), AuxiliaryLossCallback(reconstruct=["position", "front"])
    callback.init_callback(agent)
    assert list(callback.learners) == ["position", "front"]
    extractors = own_extractors(agent)
    modules = {f"{owner} {key}": e.encoders[key] for owner, e in extractors.items() for key in e.encoders}
    agent.learn(16, callback=callback)
    before = snapshot(modules)
    if algorithm is SAC:
        agent._n_updates += 1
    else:
        rollout = {key: space.sample()[None] for key, space in agent.observation_space.items()}
        callback._rollout = {key: torch.as_tensor(array) for key, array in rollout.items()}
    callback.on_rollout_start()
    assert moved(before, modules) == {f"{owner} {key}" for owner in extractors for key in ("front", "position")}

    agent.learn(16, callback=callback, reset_num_timesteps=False)  # it knows its agent again
    agent.save(tmp_path / "agent")
    callback.save(tmp_path / "callback")
    again = AuxiliaryLossCallback(reconstruct=["position", "front"]).load(tmp_path / "callback")
    again.init_callback(algorithm.load(tmp_path / "agent", device="cpu"))
    assert_same(again.state_dict(), callback.state_dict())
    with pytest.raises(ValueError, match=r"another autoencoder: .*autoencoders.wrist"):
        AuxiliaryLossCallback().load(tmp_path / "callback").init_callback(agent)


@pytest.mark.parametrize("names", [["front", "speed"], ["rear"], []])
def test_names_that_are_not_encoded_are_refused(names):
    message = rf"must name some of \['front', 'position', 'wrist'\], which are encoded; got {re.escape(str(names))}"
    with pytest.raises(ValueError, match=message):
        AuxiliaryLossCallback(reconstruct=names).init_callback(make_robot())


# ---------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("name", ["SAC", "DQN", "PPO"])
def test_without_a_learning_rate_the_agent_learns_as_without_the_callback(name):
    results = []
    for callback in (None, AuxiliaryLossCallback(learning_rate=0.0)):
        agent = make_agent(name).learn(48, callback=callback)
        results.append((agent.policy.state_dict(), capture()))
    assert same_tensors(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])


def test_an_agent_without_a_seed_draws_what_it_would():
    agent = make_agent("PPO", seed=None)
    before = capture()
    callbacks = [AuxiliaryLossCallback() for _ in range(2)]
    for callback in callbacks:
        callback.init_callback(agent)
    assert_same(capture(), before)
    first, second = (c.generators.state_dict()["torch"] for c in callbacks)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mode", [False, True])
def test_stale_gradients_count_nothing_and_none_are_left(mode):
    results = []
    for stale in (None, 1e6):  # what a critic's encoder finds there after the actor's loss
        agent, callback = make_agent("SAC"), AuxiliaryLossCallback()
        agent.learn(20, callback=callback)
        encoders = [extractor.encoder for extractor in own_extractors(agent).values()]
        parameters = [parameter for encoder in encoders for parameter in encoder.parameters()]
        for parameter in parameters:
            parameter.grad = None if stale is None else torch.full_like(parameter, stale)
        agent.policy.set_training_mode(mode)
        agent._n_updates += 1
        callback.on_rollout_start()
        assert all(parameter.grad is None for parameter in parameters)
        assert {module.training for encoder in encoders for module in encoder.modules()} == {mode}
        results.append(agent.policy.state_dict())
    assert same_tensors(*results)


def rates(callback):
    learners = list(callback._all_learners())
    return {
        o.param_groups[0]["lr"] for learner in learners for o in (learner.encoder_optimizer, learner.decoder_optimizer)
    }


def test_learning_rates_survive_sb3s_overwriting():
    config = RAEConfig(latent_dim=4, conv=CONV, encoder_learning_rate=3e-4, decoder_learning_rate=2e-4)
    for name in ("SAC", "PPO"):
        callback = AuxiliaryLossCallback()
        make_agent(name, config, arguments={"learning_rate": 5e-3}).learn(32, callback=callback)
        assert rates(callback) == {3e-4, 2e-4}


def test_a_learning_rate_may_follow_a_schedule():
    callback = AuxiliaryLossCallback(learning_rate=LinearSchedule(4e-3, 0.0, 1.0))
    agent = make_agent("SAC").learn(40, callback=callback)
    assert rates(callback) == {0.0}
    agent._current_progress_remaining = 0.5
    agent._n_updates += 1
    callback.on_rollout_start()
    assert rates(callback) == {2e-3}


def test_clipping_the_agents_gradients_does_not_reach_the_decoder():
    decoders = []
    for max_grad_norm in (10.0, 1e-8):
        callback = AuxiliaryLossCallback()
        agent = make_agent("DQN", arguments={"max_grad_norm": max_grad_norm, "learning_rate": 0.0})
        agent.learn(20, callback=callback)
        decoders.append(next(callback._all_learners()).autoencoder.state_dict())
    assert same_tensors(*decoders)


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("name", GRADIENTS_OF_ROLLOUTS)
def test_ortho_init_leaves_saved_weights_alone(name, sharing, tmp_path):
    saved = create_autoencoder(CONFIG, SHAPE)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1)
    saved.save_pretrained(tmp_path / "eyes")
    agent = make_agent(name, tmp_path / "eyes", share_features_extractor=sharing, ortho_init=True)
    extractors = own_extractors(agent)
    assert len(extractors) == 2 - sharing
    for extractor in extractors.values():
        assert same_tensors(extractor.encoder.state_dict(), saved.encoder.state_dict())
    # the heads are SB3's as ever
    assert torch.allclose(agent.policy.value_net.weight.norm(), torch.ones(()))
    # and its own decoder comes along
    callback = AuxiliaryLossCallback()
    callback.init_callback(agent)
    assert same_tensors(next(callback._all_learners()).autoencoder.decoder.state_dict(), saved.decoder.state_dict())


def test_other_functions_are_applied_to_the_extractor():
    agent, seen = make_agent("PPO"), []
    extractor = agent.policy.features_extractor
    assert extractor.apply(seen.append) is extractor
    assert set(extractor.modules()) == set(seen)
    agent.policy.apply(agent.policy.init_weights)  # without a gain, too
    assert "weight" in dict(agent.policy.value_net.named_parameters())


# ---------------------------------------------------------------------- what it logs


def logged(name, callback, steps, **kwargs):
    agent = make_agent(name, **kwargs)
    agent.set_logger(configure(None, []))
    recorded = {}
    record = agent.logger.record

    def watched(key, value, exclude=None):
        recorded.setdefault(key, []).append(value)
        record(key, value, exclude)

    agent.logger.record = watched
    agent.learn(steps, callback=callback, log_interval=10**6)
    return recorded


EVERY_TIME = {"ae_gradient_norm", "agent_gradient_norm", "gradient_cosine"}
NOW_AND_THEN = {"psnr", "active_units", "latent_norm", "effective_rank"}


def test_diagnostics_are_logged():
    recorded = logged("DQN", AuxiliaryLossCallback(diagnostics_every=10), 30)
    assert {len(recorded[f"train/{name}"]) for name in (*EVERY_TIME, "ae_loss", "reconstruction", "latent_l2")} == {20}
    assert {len(recorded[f"train/{name}"]) for name in NOW_AND_THEN} == {2}
    assert recorded["train/ae_updates"] == list(range(1, 21))
    assert all(0.0 < value < 100.0 for value in recorded["train/psnr"])
    assert all(-1.0 <= value <= 1.0 for value in recorded["train/gradient_cosine"])
    # per element, as the paper of SAC-AE states it: 1e-6 is the weight of the penalty
    for total, squares, penalty in zip(
        *(recorded[f"train/{name}"] for name in ("ae_loss", "reconstruction", "latent_l2")), strict=True
    ):
        assert total == pytest.approx(squares / np.prod(SHAPE) + 1e-6 * penalty, rel=1e-5)


def test_encoders_are_described_by_the_names_of_their_owners():
    config = VAEConfig(latent_dim=4, conv=CONV, hidden=())
    recorded = logged("TD3", AuxiliaryLossCallback(), 30, autoencoder=config)
    assert len(recorded["train/kl"]) == len(recorded["train/ae_loss"]) == 20
    for owner in ("actor", "critic"):
        assert {f"train/{owner}_{name}" for name in (*EVERY_TIME, *NOW_AND_THEN, "latent_kl")} <= recorded.keys()
        assert len(recorded[f"train/{owner}_ae_gradient_norm"]) == 20
    # the actor's loss comes every second time
    assert len(recorded["train/critic_agent_gradient_norm"]) == 20
    assert len(recorded["train/actor_agent_gradient_norm"]) == 10
    assert "train/psnr" not in recorded


def test_a_policys_and_a_value_functions_encoder_are_described_by_these_names():
    recorded = logged("PPO", AuxiliaryLossCallback(), 16, share_features_extractor=False)
    for owner in ("policy", "vf"):
        assert {f"train/{owner}_{name}" for name in (*EVERY_TIME, *NOW_AND_THEN)} <= recorded.keys()
    assert "train/psnr" not in recorded


def test_an_encoders_own_rate_is_the_auxiliary_losss_alone():
    config = RAEConfig(latent_dim=4, conv=CONV, encoder_learning_rate=0.5)
    agent = make_agent("SAC", config, arguments={"learning_rate": 2e-4})
    agent.critic.optimizer.param_groups[0]["lr"] = 0.5
    agent.learn(11, callback=AuxiliaryLossCallback(learning_rate=0.0))
    assert {group["lr"] for group in agent.critic.optimizer.param_groups} == {2e-4}


def test_the_agents_gradient_is_the_one_of_its_last_update():
    agent, callback = make_agent("DQN"), AuxiliaryLossCallback()
    agent.learn(20, callback=callback)
    agent.train(gradient_steps=1, batch_size=8)
    trunk = agent.q_net.features_extractor.encoder.trunk
    expected = torch.cat([p.grad.flatten() for p in trunk.parameters()]).norm().item()
    callback.on_rollout_start()
    assert agent.logger.name_to_value["train/agent_gradient_norm"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run():
    agent, callback = make_agent("PPO"), AuxiliaryLossCallback()
    callback.init_callback(agent)
    with torch.no_grad():
        next(callback._all_learners()).autoencoder.decoder.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="reconstruction is nan at update 2 of the autoencoder, step 16"):
        agent.learn(16, callback=callback)


# ---------------------------------------------------------------------- saving

FACTOR = FactorConfig(
    latent_dim=4, conv=CONV, hidden=(), discriminator_hidden=8, discriminator_layers=2, warmup_steps=9
)
#: Two encoders, and an adversary.
SAVED = {"SAC": CONFIG, "DQN": FACTOR}


def replayed(agent, callback, updates):
    """Updates on a replay buffer that stays as it is; everything that they change."""
    torch.manual_seed(5)
    np.random.seed(5)
    callback.on_training_start({}, {})
    for _ in range(updates):
        agent.train(gradient_steps=1, batch_size=8)
        callback.on_rollout_start()
    return {"policy": agent.policy.state_dict(), "callback": callback.state_dict()}


def save_continued(folder):
    torch.save({name: continued(folder, name) for name in SAVED}, folder / "result.pt")


def continued(folder, name):
    agent = ALGORITHMS[name][0].load(f"{folder}/{name}", device="cpu")
    agent.load_replay_buffer(f"{folder}/{name}_buffer")
    agent.set_logger(configure(None, []))
    callback = AuxiliaryLossCallback(updates_per_agent_update=1.5).load(f"{folder}/{name}_auxiliary")
    callback.init_callback(agent)
    return replayed(agent, callback, 5)


def test_training_continues_bit_for_bit_in_a_new_process(tmp_path):
    straight = {}
    for name, config in SAVED.items():
        agent, callback = make_agent(name, config), AuxiliaryLossCallback(updates_per_agent_update=1.5)
        agent.learn(31, callback=callback)
        assert callback.step == 31 and callback._updates_due == 0.5
        agent.save_replay_buffer(tmp_path / f"{name}_buffer")
        agent.save(tmp_path / name)
        callback.save(tmp_path / f"{name}_auxiliary")
        straight[name] = replayed(agent, callback, 5)  # without a stop
        assert callback.step == 39

    in_clean_process(save_continued, tmp_path)
    assert_same(torch.load(tmp_path / "result.pt", weights_only=True), straight)


def test_on_rollouts_it_continues_bit_for_bit(tmp_path):
    agent, callback = make_agent("PPO"), AuxiliaryLossCallback()
    agent.learn(32, callback=callback)
    agent.save(tmp_path / "agent")
    callback.save(tmp_path / "auxiliary")
    assert {path.name.split("-")[0] for path in (tmp_path / "auxiliary").iterdir()} == {"auxiliary", "auxiliary.json"}
    results = []
    loaded = PPO.load(tmp_path / "agent", device="cpu")
    loaded.set_logger(configure(None, []))
    other = AuxiliaryLossCallback()
    other.init_callback(loaded)
    assert other.load(tmp_path / "auxiliary") is other
    for model, mine in ((agent, callback), (loaded, other)):
        mine._rollout = {"observation": torch.arange(8 * 768).reshape(8, *SHAPE).to(torch.uint8)}
        mine.on_rollout_start()
        results.append((model.policy.state_dict(), mine.state_dict()))
    assert callback.step == other.step == 5
    assert same_tensors(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_the_agents_file_holds_nothing_of_it(name, tmp_path):
    with_callback, without = make_agent(name), make_agent(name)
    with_callback.learn(32, callback=AuxiliaryLossCallback())
    without.learn(32)
    contents = []
    for agent in (with_callback, without):
        agent.save(tmp_path / "agent")
        with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
            contents.append((archive.namelist(), json.loads(archive.read("data")).keys(), weights.keys()))
    assert contents[0] == contents[1]
    assert not any("decoder" in key for key in contents[0][2])
    ALGORITHMS[name][0].load(tmp_path / "agent", env=make_env(name)).learn(32)


def test_the_state_of_another_autoencoder_is_refused(tmp_path):
    callback = AuxiliaryLossCallback()
    make_agent("PPO").learn(16, callback=callback)
    callback.save(tmp_path)
    expected = r"latent_dim': 6.*\}, got .*latent_dim': 4"

    other = AuxiliaryLossCallback()
    agent = make_agent("PPO", RAEConfig(latent_dim=6, conv=CONV, target_bits=None))
    agent.learn(16, callback=other)
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"another autoencoder: .*{expected}"):
        other.load(tmp_path)
    assert_same(other.state_dict(), before)

    late = AuxiliaryLossCallback().load(tmp_path)
    weights = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    with pytest.raises(ValueError, match=f"another autoencoder: .*{expected}"):
        agent.learn(16, callback=late)
    assert same_tensors(agent.policy.state_dict(), weights) and late.learners == {}

    two = AuxiliaryLossCallback()
    two.init_callback(make_agent("SAC"))
    with pytest.raises(ValueError, match=r"'encoders.observation': \['actor', 'critic'\].*got .*\['policy'\]"):
        two.load(tmp_path)


def test_a_damaged_state_changes_nothing(tmp_path):
    callback = AuxiliaryLossCallback()
    make_agent("PPO").learn(16, callback=callback)
    callback.save(tmp_path)
    before = callback.state_dict()
    content = json.loads((tmp_path / "auxiliary.json").read_text())
    del content["state"]["learners"]["observation"]["encoders"]["policy"]["step"]  # what is restored last but one
    content["state"]["learners"]["observation"]["decoder_optimizer"]["param_groups"][0]["lr"] = 9.0
    (tmp_path / "auxiliary.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="damaged: KeyError"):
        callback.load(tmp_path)
    assert_same(callback.state_dict(), before)
    with pytest.raises(ValueError, match=r"expected auxiliary.json .* in .*absent"):
        callback.load(tmp_path / "absent")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be ≥ 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be ≥ 1, got 0"),
        ({"diagnostics_every": 0}, ValueError, "diagnostics_every must be ≥ 1, got 0"),
        ({"updates_per_agent_update": -1}, ValueError, "must be ≥ 0 and finite, got -1"),
        ({"reconstruct": "front"}, TypeError, r"a list of names, got 'front': pass \['front'\]"),
        ({"loss": "mse"}, TypeError, "a module with the signature of Loss.forward, got str"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        AuxiliaryLossCallback(**arguments)


def test_live_modules_are_refused():
    module = create_autoencoder(CONFIG, SHAPE)
    with pytest.raises(TypeError, match="got a ConvAutoencoder: the autoencoder is named in the agent's"):
        AuxiliaryLossCallback(module)
    with pytest.raises(TypeError, match="got a Encoder"):
        AuxiliaryLossCallback(module.encoder)
    with pytest.raises(TypeError, match="the folder of a saved one, got ConvAutoencoder"):
        make_agent("PPO", module)


def test_agents_without_an_encoder_of_ours_are_refused():
    with pytest.raises(ValueError, match=re.escape("is FlattenExtractor: make the agent with policy_kwargs={")):
        PPO("MlpPolicy", DotEnv(shape=SHAPE)).learn(1, callback=AuxiliaryLossCallback())
    with pytest.raises(ValueError, match="replay or rollout buffer, got ARS"):
        AuxiliaryLossCallback().init_callback(ARS("MlpPolicy", "Pendulum-v1"))
    with pytest.raises(ValueError, match="SACAE trains its autoencoder itself"):
        AuxiliaryLossCallback().init_callback(
            SACAE("CnnPolicy", DotEnv(shape=SHAPE), autoencoder=CONFIG, buffer_size=9)
        )


def test_a_callback_is_of_one_agent():
    callback = AuxiliaryLossCallback()
    agent = make_agent("PPO").learn(16, callback=callback)
    other = make_agent("PPO")
    with pytest.raises(ValueError, match="another agent, which this policy does not own"):
        other.learn(16, callback=callback)
    assert callback.learners["observation"]["policy"].autoencoder.encoder is agent.policy.features_extractor.encoder
    agent.learn(16, callback=callback, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="nothing to save before"):
        AuxiliaryLossCallback().save("nowhere")


def test_crossq_and_dictionaries_do_not_go_together():
    class Dictionary(DotEnv):
        def __init__(self):
            super().__init__(shape=SHAPE)
            self.observation_space = spaces.Dict({"camera": self.observation_space})

    with pytest.raises(ValueError, match="Policy MultiInputPolicy unknown"):
        CrossQ("MultiInputPolicy", Dictionary())
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        make_agent("CrossQ", env=Dictionary())
