"""Modes of an update: what is encoded how often, in which type, and what is compiled."""

import functools
import json
import math
import warnings
import zipfile

import pytest
import torch
from conftest import DotEnv
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from rl_ae import create_learner, precision
from rl_ae.precision import compute_dtype, has_fast_bf16, resolve_precision
from rl_ae.sb3 import SACAE, TD3AE
from rl_ae.sb3.agent import NonFiniteError
from rl_ae.sb3.sac_ae import Noise

CPU = torch.device("cpu")
AGENTS = pytest.mark.parametrize("algorithm", [SACAE, TD3AE])


def make_agent(algorithm=SACAE, **kwargs):
    settings = {
        "policy_kwargs": {"net_arch": [16]},
        "autoencoder": "rae_compact",
        "batch_size": 8,
        "buffer_size": 100,
        "learning_starts": 20,
        "catch_up_updates": 0,
        "seed": 0,
        "device": "cpu",
    }
    return algorithm("CnnPolicy", kwargs.pop("env", None) or DotEnv(), **{**settings, **kwargs})


def sample(agent):
    with agent.generators.active():
        return agent._sample(8)


# ---------------------------------------------------------------------- modes


@AGENTS
def test_unknown_modes_are_refused_with_the_known_ones(algorithm):
    with pytest.raises(ValueError, match=r"update must be one of \['auto', 'paper', 'fused'\], got 'fast'"):
        make_agent(algorithm, update="fast")
    with pytest.raises(ValueError, match=r"precision must be one of \('fp32', 'bf16', 'auto'\), got 'fp8'"):
        make_agent(algorithm, precision="fp8")
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="representation_weight must be ≥ 0 and finite"):
            make_agent(algorithm, representation_weight=weight)


@AGENTS
@pytest.mark.parametrize(
    ("autoencoder", "mode"), [("rae", "fused"), ("ae", "fused"), ("vae", "paper"), ("fsq", "paper")]
)
def test_auto_is_fused_where_tanh_bounds_the_latent(algorithm, autoencoder, mode, tmp_path):
    agent = make_agent(algorithm, autoencoder=autoencoder, update="auto")
    assert (agent.update, agent.resolved_update) == ("auto", mode)
    agent.save(tmp_path / "agent")
    other = {"paper": "fused", "fused": "paper"}[mode]
    loaded = algorithm.load(tmp_path / "agent"), algorithm.load(tmp_path / "agent", update=other)
    assert [agent.resolved_update for agent in loaded] == [mode, other]


@AGENTS
@pytest.mark.parametrize("update", ["paper", "fused"])
def test_nothing_is_encoded_more_often_than_needed(algorithm, update):
    """Online: observations once, and in the paper's order once more after the critic's step; the next ones once."""
    agent = make_agent(algorithm, update=update).learn(24)
    calls = {"online": [], "target": []}
    for name, critic in (("online", agent.critic), ("target", agent.critic_target)):
        trunk = critic.features_extractor.encoder.trunk
        trunk.register_forward_hook(lambda module, inputs, output, name=name: calls[name].append(output.requires_grad))
    agent.diagnostics_interval = 10**9
    for _ in range(2):  # the actor takes part in one of them
        agent.train(1, 8)
    next_observations = [False] if algorithm is SACAE else []  # TD3's next action reads the target's trunk
    assert calls["online"] == 2 * (next_observations + {"paper": [True, True], "fused": [True]}[update])
    assert calls["target"] == 2 * [False]


@AGENTS
def test_updates_do_not_wait_for_the_device(algorithm):
    """No tensor is turned into a number between sampling and the log."""

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                Waits.count += 1
            return function(*args, **(kwargs or {}))

    for update in ("paper", "fused"):
        agent = make_agent(algorithm, update=update, diagnostics_interval=10**9).learn(24)
        batch = sample(agent)
        with Waits():
            agent.train_on(batch)
            agent.train_on(batch)
        assert Waits.count == 0
        with Waits():
            batch.rewards.sum().item()
        assert Waits.count == 1  # it would have been noticed
        Waits.count = 0


def test_metrics_can_be_looked_at_now_and_then(tmp_path):
    """As on a GPU, where each look waits for all updates; and none is lost."""
    agent = make_agent().learn(20)
    assert agent._unlogged_updates == 1
    agent._unlogged_updates = 3
    fill = [{"critic_loss": torch.tensor(value)} for value in (1.0, 2.0, 6.0, 5.0, math.nan)]
    logged = agent.logger.name_to_value
    agent._n_updates = 3
    agent._log(fill[:2])
    assert "train/critic_loss" not in logged
    agent._log(fill[2:3])
    assert logged["train/critic_loss"] == 3.0
    agent._log(fill[3:4])
    agent.dump_logs()
    agent._log(fill[4:])
    with pytest.raises(NonFiniteError, match="critic_loss is nan at update 3"):
        agent.save(tmp_path / "agent")
    assert not list(tmp_path.iterdir())


def test_both_gradients_of_a_fused_update_are_logged():
    weight = 5.0
    agent = make_agent(update="fused", representation_weight=weight, diagnostics_interval=2, precision="fp32").learn(24)
    agent.learner.step = 0
    batch = sample(agent)
    target = agent._target_q_values(batch, None)
    encoding = agent._encode(batch.observations)
    trunk = list(agent.critic.features_extractor.trunk_parameters())
    td_loss = agent._critic_loss(encoding, batch.actions, target)[0]
    ae_loss = weight * agent.learner.losses(*agent._representation_arguments(batch, encoding)).total
    td, ae = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, trunk, retain_graph=True)])
        for loss in (td_loss, ae_loss)
    )
    metrics = agent._step_jointly(batch, target)[1]
    assert metrics["td_gradient_norm"].item() == pytest.approx(td.norm().item(), rel=1e-3)
    assert metrics["ae_gradient_norm"].item() == pytest.approx(ae.norm().item(), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(td, ae, dim=0).item()
    assert metrics["gradient_cosine"].item() == pytest.approx(cosine, abs=1e-3)
    assert {"psnr", "effective_rank", "ae_loss", "reconstruction", "critic_loss"} <= metrics.keys()
    assert "gradient_cosine" not in agent._step_jointly(batch, target)[1]


def test_the_logged_gradient_of_a_weightless_loss_is_zero():
    """With a sampled latent too: both losses are looked at under the same noise, which the update draws again."""
    agent = make_agent(
        update="fused",
        autoencoder="vae",
        representation_weight=0.0,
        precision="fp32",
        policy_kwargs={"net_arch": [16], "critic_latent": "sample"},
    ).learn(21)
    agent.learner.step = 0
    batch = sample(agent)
    target = agent._target_q_values(batch, None)
    torch.manual_seed(1)
    metrics = agent._step_jointly(batch, target)[1]
    after = torch.get_rng_state()
    assert metrics["td_gradient_norm"] > 0.0
    assert metrics["ae_gradient_norm"] < 1e-5 * metrics["td_gradient_norm"]
    torch.manual_seed(1)
    agent._step_jointly(batch, target)  # without a look
    assert torch.equal(torch.get_rng_state(), after)


@AGENTS
def test_an_actor_of_the_latent_reads_the_one_that_was_encoded(algorithm):
    agent = make_agent(algorithm, policy_kwargs={"net_arch": [16], "actor_input": "latent"}, precision="fp32").learn(21)
    encoding = agent._encode(sample(agent).observations)
    with torch.no_grad():  # as a step does
        for parameter in agent.critic.features_extractor.encoder.head.parameters():
            parameter.add_(1.0)
    latent = agent._actor_latent(encoding)
    assert torch.equal(latent, encoding.latents["observation"].mode) and not latent.requires_grad


def test_frames_of_zeros_and_ones_are_seen_alike_when_acting_and_updating():
    agent = make_agent(env=DotEnv(high=1)).learn(21)
    batch = sample(agent)
    assert batch.observations.max() == 1.0 and batch.targets.max() > 31 / 32
    seen = []
    agent.critic.features_extractor.encoder.trunk.register_forward_hook(
        lambda m, inputs, o: seen.append(inputs[0].max())
    )
    agent.predict(DotEnv(high=1).reset(seed=0)[0])
    assert seen == [1.0]


def test_agents_saved_before_there_were_modes_go_on_as_in_the_paper(tmp_path):
    agent = make_agent(precision="fp32")
    assert agent.resolved_update == "fused"
    agent.save(tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "data":
                data = json.loads(content)
                del data["update"]
                content = json.dumps(data)
            old.writestr(name, content)
    assert SACAE.load(tmp_path / "new").resolved_update == "fused"
    assert SACAE.load(tmp_path / "old").resolved_update == "paper"
    assert SACAE.load(tmp_path / "old", update="fused").resolved_update == "fused"


def test_another_form_of_adam_can_be_chosen():
    agent = make_agent(policy_kwargs={"net_arch": [16], "optimizer_kwargs": {"foreach": True}}).learn(22)
    assert agent.critic.optimizer.defaults["foreach"] and not agent.critic.optimizer.defaults["fused"]
    assert make_agent().critic.optimizer.defaults["fused"]


@pytest.mark.parametrize("update", ["paper", "fused"])
def test_a_frozen_encoder_encodes_once_and_learns_nothing(update):
    agent = make_agent(update=update, freeze_encoder=True)
    calls = []
    agent.critic.features_extractor.encoder.trunk.register_forward_hook(lambda *args: calls.append(1))
    before = [parameter.clone() for parameter in agent.policy.autoencoders.parameters()]
    agent.learn(30)
    after = list(agent.policy.autoencoders.parameters())
    assert agent._n_updates == 10 and agent.learner.step == 0
    assert len(calls) == 10 + 2 * 10  # acting; observations and next ones
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


# ---------------------------------------------------------------------- precision


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_frames_are_converted_once_and_targets_lose_nothing(name, dtype, monkeypatch):
    agent = make_agent(precision=name).learn(24)
    assert agent._compute_dtype == compute_dtype(name) == dtype
    batch = sample(agent)
    assert batch.observations.dtype == batch.next_observations.dtype == dtype
    assert batch.observations.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.dtype == torch.float32
    assert torch.equal(torch.floor(32 * batch.targets).unique(), torch.tensor([0.0, 31.0]))  # black and white


def test_without_instructions_for_bf16_fp32_takes_its_place(monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="no bfloat16 instructions.*computing in 'fp32'") as caught:
        agent = make_agent(precision="bf16")
    assert len(caught) == 1
    assert (agent.precision, agent.resolved_precision, agent.learner.precision) == ("bf16", "fp32", "fp32")
    assert sample(agent.learn(22)).observations.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("auto", CPU) == "fp32"
        assert resolve_precision("fp32", CPU) == "fp32"
    with pytest.warns(UserWarning, match="bfloat16"):
        assert create_learner("rae", (3, 16, 16), precision="bf16").precision == "fp32"


@pytest.mark.parametrize(
    ("capabilities", "fast"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_what_a_cpu_can_do_is_asked_of_it(capabilities, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_fast_bf16(CPU) == fast
    assert resolve_precision("auto", CPU) == ("bf16" if fast else "fp32")


@pytest.mark.usefixtures("bf16")
def test_bf16_updates_stay_near_fp32():
    losses = {}
    for name in ("fp32", "bf16"):
        agent = make_agent(precision=name).learn(21)
        losses[name] = {key: value.item() for key, value in agent.train_on(sample(agent)).items()}
    for key in ("critic_loss", "ae_loss", "reconstruction"):
        assert losses["bf16"][key] == pytest.approx(losses["fp32"][key], rel=0.05)
        assert losses["bf16"][key] != losses["fp32"][key]


# ---------------------------------------------------------------------- compilation


@pytest.mark.filterwarnings("default")  # torch warns itself, while it traces
def test_compiled_networks_learn_the_same(tmp_path):
    agents = [make_agent(compile=compiled, precision="fp32", autoencoder="rae_compact") for compiled in (False, True)]
    trunks = [agent.critic.features_extractor.encoder.trunk for agent in agents]
    assert [trunk._compiled_call_impl is not None for trunk in trunks] == [False, True]
    batch = sample(agents[0].learn(20))
    noise = Noise(torch.zeros(8, 2), torch.zeros(8, 2))
    metrics = [agent.learn(20).train_on(batch, noise) for agent in agents]
    for name in ("critic_loss", "ae_loss", "td_gradient_norm", "ae_gradient_norm"):
        torch.testing.assert_close(metrics[1][name], metrics[0][name], rtol=1e-4, atol=1e-6)
    agents[1].learn(3, reset_num_timesteps=False)
    assert agents[1]._n_updates == 4
    agents[1].save(tmp_path / "agent")
    assert (
        SACAE.load(tmp_path / "agent", compile=False).policy.state_dict().keys() == agents[0].policy.state_dict().keys()
    )


@pytest.mark.filterwarnings("default")
def test_every_network_is_compiled(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    agent = make_agent(compile=True)
    del graphs[:]  # the trial's
    with torch.no_grad():
        batch = sample(agent.learn(20))
        for network in agent._networks():
            done = len(graphs)
            width = next(network.parameters()).shape
            inputs = batch.observations.float() if len(width) == 4 and width[1] == 3 else None
            if inputs is None:
                wide = agent.critic.features_extractor.encoder.trunk.out_features
                inputs = torch.zeros(8, agent.policy.autoencoder.latent_dim if hasattr(network, "project") else wide)
            network(inputs)
            assert len(graphs) > done, network


def test_without_a_compiler_networks_run_as_they_are(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match="compile=True needs a compiler .* because RuntimeError: no C\\+\\+ compiler$"):
        agent = make_agent(compile=True)
    assert agent.learn(22)._n_updates == 2


def test_a_dict_with_an_unbounded_vector_is_updated_as_in_the_paper():
    env = DotEnv()
    space = env.observation_space
    env.observation_space = spaces.Dict({"image": space, "speed": spaces.Box(-1, 1, (3,))})
    bounded = SACAE("MultiInputPolicy", env, autoencoder={"image": "rae", "speed": None}, buffer_size=10)
    both = SACAE("MultiInputPolicy", env, autoencoder={"image": "rae", "speed": "ae"}, buffer_size=10)
    assert (bounded.resolved_update, both.resolved_update) == ("fused", "paper")


# ---------------------------------------------------------------------- the actor's gradient


@AGENTS
@pytest.mark.parametrize("update", ["paper", "fused"])
def test_the_actor_may_train_the_trunk(algorithm, update):
    """It moves the trunk through the actor's optimizer, which nothing else does when all other rates are zero."""
    rates = {"learning_rate": 1e-3, "encoder_learning_rate": 0.0, "autoencoder_learning_rate": 0.0}
    moved = {}
    for trains in (False, True):
        agent = make_agent(algorithm, update=update, actor_trains_trunk=trains, **rates)
        agent.learn(20)
        before = [parameter.detach().clone() for parameter in agent._trunk_parameters()]
        head = [p.detach().clone() for p in agent.critic.features_extractor.encoder.head.parameters()]
        agent._set_learning_rates()
        metrics = agent.train_on(sample(agent))
        trunk = agent._trunk_parameters()
        moved[trains] = [not torch.equal(*pair) for pair in zip(before, trunk, strict=True)]
        assert all(
            torch.equal(*pair)
            for pair in zip(head, agent.critic.features_extractor.encoder.head.parameters(), strict=True)
        )
        assert {"actor_loss", "ae_loss", "td_gradient_norm"} <= metrics.keys()
        assert metrics["td_gradient_norm"] > 0.0
    assert not any(moved[False]) and all(moved[True])


def test_an_agent_whose_actor_trains_the_trunk_is_saved(tmp_path):
    agent = make_agent(actor_trains_trunk=True).learn(24)
    agent.save(tmp_path / "agent")
    loaded = SACAE.load(tmp_path / "agent", env=DotEnv())
    assert loaded.actor_trains_trunk and len(loaded.actor.optimizer.param_groups) == 2
    state, again = (one.actor.optimizer.state_dict()["state"] for one in (agent, loaded))
    own, trunk = len(make_agent().actor.optimizer.param_groups[0]["params"]), len(list(agent._trunk_parameters()))
    assert state.keys() == again.keys() and len(state) == own + trunk


@pytest.mark.parametrize("other", [{"freeze_encoder": True}, {"policy_kwargs": {"actor_input": "latent"}}])
def test_an_actor_that_cannot_train_the_trunk_is_refused(other):
    with pytest.raises(ValueError, match="actor_trains_trunk=True needs actor_input='trunk' and an encoder that"):
        make_agent(actor_trains_trunk=True, **other)
