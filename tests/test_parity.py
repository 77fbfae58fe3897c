"""Updates of SACAE and TD3AE against an independent transcription of the papers, and faults that must be noticed."""

from unittest.mock import patch

import pytest
import torch
from conftest import DotEnv
from torch.nn import functional as F

from benchmarks.paper_transcription import PaperSACAE, PaperTD3AE
from rl_ae import ConvConfig, RAEConfig
from rl_ae.sb3 import SACAE, TD3AE
from rl_ae.sb3.agent import Batch, Encoding
from rl_ae.sb3.sac_ae import Noise

CHANNELS, SIZE, ACTIONS, FILTERS, LATENT, HIDDEN, BATCH = 3, 20, 2, 4, 6, 16, 8
#: Arguments of the agent by those of the transcription's update.
INTERVALS = {
    PaperSACAE: {
        "actor_every": ("actor_update_interval", 1),
        "target_every": ("target_update_interval", 1),
        "decoder_every": ("decoder_update_interval", 2),
    },
    PaperTD3AE: {"policy_delay": ("policy_delay", 2), "decoder_every": ("decoder_update_interval", 3)},
}


def paper_of(cls):
    return PaperTD3AE if issubclass(cls, TD3AE) else PaperSACAE


def make_agent(cls=SACAE, update="paper", **kwargs):
    torch.manual_seed(0)
    agent = cls(
        "CnnPolicy",
        DotEnv((CHANNELS, SIZE, SIZE), ACTIONS),
        autoencoder=RAEConfig(latent_dim=LATENT, conv=ConvConfig(filters=(FILTERS,) * 4)),
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        buffer_size=10,
        device="cpu",
        update=update,
        precision="fp32",
        **dict(INTERVALS[paper_of(cls)].values()),
        **kwargs,
    )
    agent.policy.double()
    if isinstance(agent, SACAE):
        agent.log_ent_coef.data = agent.log_ent_coef.data.double()
    with torch.no_grad():  # leave the initialisation's zeros, behind which faults could hide
        for parameter in agent.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    agent.policy.set_training_mode(True)
    return agent


def agent_modules(agent):
    critic, target, actor = agent.critic, agent.critic_target, agent.actor
    modules = {
        "trunk": critic.features_extractor.encoder.trunk,
        "critic_head": critic.features_extractor.encoder.head,
        "target_trunk": target.features_extractor.encoder.trunk,
        "target_head": target.features_extractor.encoder.head,
        "q0": critic.qf0,
        "q1": critic.qf1,
        "target_q0": target.qf0,
        "target_q1": target.qf1,
        "actor_head": actor.features_extractor.encoder.head,
        "decoder": agent.policy.autoencoder.decoder,
    }
    if isinstance(agent, SACAE):
        return modules | {"actor_hidden": actor.latent_pi, "actor_mean": actor.mu, "actor_log_std": actor.log_std}
    slow_actor = agent.actor_target
    return modules | {
        "actor_mlp": actor.mu,
        "target_actor_head": slow_actor.features_extractor.encoder.head,
        "target_actor_mlp": slow_actor.mu,
    }


def make_paper(agent, paper_cls):
    torch.set_default_dtype(torch.float64)
    try:
        paper = paper_cls(CHANNELS, SIZE, ACTIONS, FILTERS, LATENT, HIDDEN)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, module in agent_modules(agent).items():
            own = list(paper.modules()[name].parameters())
            for parameter, source in zip(own, module.parameters(), strict=True):
                assert parameter.shape == source.shape
                parameter.copy_(source)
    if isinstance(agent, SACAE):
        paper.log_alpha = agent.log_ent_coef.detach().clone().requires_grad_(True)
    paper.make_optimizers()
    return paper


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    images = (CHANNELS, SIZE, SIZE)
    batch = Batch(
        observations=rand(BATCH, *images),
        actions=2 * rand(BATCH, ACTIONS) - 1,
        next_observations=rand(BATCH, *images),
        rewards=rand(BATCH, 1),
        dones=(rand(BATCH, 1) > 0.7).double(),
        discounts=0.9 + 0.1 * rand(BATCH, 1),
        targets=rand(BATCH, *images),
    )
    noise = Noise(*(torch.randn(BATCH, ACTIONS, generator=generator, dtype=torch.float64) for _ in range(2)))
    return batch, noise


def compare(actual, expected, name):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12, msg=lambda text: f"{name}: {text}")


def assert_parity(cls, updates=5, paper_cls=None, **kwargs):
    """Losses, parameters and the gradients left behind agree after every update."""
    agent = make_agent(cls, **kwargs)
    paper = make_paper(agent, paper_cls or paper_of(cls))
    intervals = {argument: interval for argument, (_, interval) in INTERVALS[paper_of(cls)].items()}
    for index in range(updates):
        batch, noise = make_batch(index)
        noise = noise if isinstance(agent, SACAE) else 4.0 * noise.next_action  # far enough to be clipped
        metrics = agent.train_on(batch, noise)
        losses = paper.update(index, batch, noise, **intervals)
        assert losses.keys() <= metrics.keys()
        for name, loss in losses.items():
            compare(metrics[name], loss.detach(), name)
        if isinstance(agent, SACAE):
            compare(agent.log_ent_coef, paper.log_alpha, "temperature")
            compare(agent.log_ent_coef.grad, paper.log_alpha.grad, "temperature")
        for name, module in agent_modules(agent).items():
            expected = list(paper.modules()[name].parameters())
            for parameter, other in zip(module.parameters(), expected, strict=True):
                compare(parameter.data, other.data, name)
                if other.grad is None:
                    assert parameter.grad is None
                else:
                    compare(parameter.grad, other.grad, name)


@pytest.mark.parametrize("cls", [SACAE, TD3AE])
def test_updates_equal_the_transcription(cls):
    assert_parity(cls)


# ---------------------------------------------------------------------- the fused update


def fused_loss(paper, batch, target):
    """The sum of both losses after one forward, and the trunk's features of it."""
    features = paper.online.convs(batch.observations)
    latent = paper.online.head(features)
    critic_loss = sum(F.mse_loss(q, target) for q in paper.values(paper.q, latent, batch.actions))
    reconstruction = F.mse_loss(paper.decoder(latent), batch.targets - 0.5)
    ae_loss = reconstruction + 1e-6 * (0.5 * latent.pow(2).sum(dim=1)).mean()
    return {"critic_loss": critic_loss, "ae_loss": ae_loss}, features.detach(), latent.detach()


def follow(pairs, rate):
    with torch.no_grad():
        for online, slow in pairs:
            for parameter, slow_parameter in zip(online.parameters(), slow.parameters(), strict=True):
                slow_parameter.copy_(rate * parameter + (1 - rate) * slow_parameter)


class FusedSACAE(PaperSACAE):
    weight = 3.0

    def update(self, index, batch, noise, actor_every, target_every, decoder_every):
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = self.policy(self.online.convs(batch.next_observations), noise.next_action)
            next_latent = self.target.head(self.target.convs(batch.next_observations))
            value = torch.minimum(*self.values(self.target_q, next_latent, next_action)) - alpha * next_log_prob
            target = batch.rewards + (1 - batch.dones) * batch.discounts * value
        losses, features, latent = fused_loss(self, batch, target)
        if index % decoder_every == 0:
            self.step(losses["critic_loss"] + self.weight * losses["ae_loss"], "critic", "decoder")
        else:
            self.step(losses.pop("critic_loss"), "critic")
            del losses["ae_loss"]
        if index % actor_every == 0:
            action, log_prob = self.policy(features, noise.action)
            losses["actor_loss"] = (alpha * log_prob - torch.minimum(*self.values(self.q, latent, action))).mean()
            self.step(losses["actor_loss"], "actor")
            losses["ent_coef_loss"] = (self.log_alpha.exp() * (-log_prob - self.target_entropy).detach()).mean()
            self.step(losses["ent_coef_loss"], "alpha")
        if index % target_every == 0:
            follow(zip(self.q, self.target_q, strict=True), 0.01)
            follow([(self.online.convs, self.target.convs), (self.online.head, self.target.head)], 0.05)
        return losses


class FusedTD3AE(PaperTD3AE):
    weight = 3.0

    def update(self, index, batch, noise, policy_delay, decoder_every):
        with torch.no_grad():
            features = self.target.convs(batch.next_observations)
            next_action = torch.tanh(self.target_actor_mlp(self.target_actor_head(features)))
            next_action = torch.clip(next_action + torch.clip(0.2 * noise, -0.5, 0.5), -1, 1)
            value = torch.minimum(*self.values(self.target_q, self.target.head(features), next_action))
            target = batch.rewards + (1 - batch.dones) * batch.discounts * value
        losses, features, latent = fused_loss(self, batch, target)
        if index % decoder_every == 0:
            self.step(losses["critic_loss"] + self.weight * losses["ae_loss"], "critic", "decoder")
        else:
            self.step(losses.pop("critic_loss"), "critic")
            del losses["ae_loss"]
        if index % policy_delay == 0:
            action = torch.tanh(self.actor_mlp(self.actor_head(features)))
            losses["actor_loss"] = -self.values(self.q[:1], latent, action)[0].mean()
            self.step(losses["actor_loss"], "actor")
            follow([*zip(self.q, self.target_q, strict=True), (self.actor_mlp, self.target_actor_mlp)], 0.005)
            encoders = [(self.online.convs, self.target.convs), (self.online.head, self.target.head)]
            follow([*encoders, (self.actor_head, self.target_actor_head)], 0.05)
        return losses


@pytest.mark.parametrize(("cls", "paper_cls"), [(SACAE, FusedSACAE), (TD3AE, FusedTD3AE)])
def test_fused_updates_equal_their_definition(cls, paper_cls):
    """One forward, one backward, the critic's optimizer alone over the encoder; the actor reads what was encoded."""
    assert_parity(cls, paper_cls=paper_cls, update="fused", representation_weight=FusedSACAE.weight)


# ---------------------------------------------------------------------- planted faults


class HalvedMSE(SACAE):
    def _critic_loss(self, *args):
        loss, metrics = super()._critic_loss(*args)
        return 0.5 * loss, metrics


class HalvedReconstruction(SACAE):
    def _setup_model(self):
        super()._setup_model()
        self.learner.loss.weights["reconstruction"] *= 0.5


class SwappedTaus(SACAE):
    def _update_targets(self):
        self.tau, self.encoder_tau = self.encoder_tau, self.tau
        super()._update_targets()
        self.tau, self.encoder_tau = self.encoder_tau, self.tau


class ActorBeforeCritic(SACAE):
    def _step_critic(self, batch, target_q_values):
        self.early = super()._update_actor_and_temperature(self._encode(batch.observations), self.noise.action)
        return super()._step_critic(batch, target_q_values)

    def _update_actor_and_temperature(self, encoding, noise):
        return self.early

    def train_on(self, batch, noise=None):
        self.noise = noise
        return super().train_on(batch, noise)


class RepresentationBeforeTargets(SACAE):
    def _update_targets(self):
        if self._reconstructs_now:
            self.early = super()._step_representation(self.batch, self._encode(self.batch.observations))
        super()._update_targets()

    def _step_representation(self, batch, encoding):
        return self.early

    def train_on(self, batch, noise=None):
        self.batch = batch
        return super().train_on(batch, noise)


class EncodingBeforeTheCriticsStep(SACAE):
    """Actor and decoder read what the encoder returned before the critic moved it."""

    def _step_critic(self, batch, target_q_values):
        self.early = self._encode(batch.observations)
        return super()._step_critic(batch, target_q_values)

    def _update_actor_and_temperature(self, encoding, noise):
        return super()._update_actor_and_temperature(self.early, noise)


class TargetKeepsGradient(SACAE):
    """The critic's target is not detached: its gradient reaches the trunk through the next action."""

    def _target_q_values(self, batch, noise):
        return super()._target_q_values.__wrapped__(self, batch, noise)


class AttachedFeatures(Encoding):
    def detach_features(self):
        return self.features


class TrunkNotDetached(SACAE):
    """The actor's loss leaves a gradient on the trunk, though no optimizer steps on it."""

    def _update_actor_and_temperature(self, encoding, noise):
        return super()._update_actor_and_temperature(AttachedFeatures(*self._encode(self.batch.observations)), noise)

    def train_on(self, batch, noise=None):
        self.batch = batch
        return super().train_on(batch, noise)


class ActorTrainsTrunk(TrunkNotDetached):
    """… and one does."""

    def _setup_model(self):
        super()._setup_model()
        trunk = self.critic.features_extractor.encoder.trunk
        self.actor.optimizer.add_param_group({"params": list(trunk.parameters())})


class UnclippedNoise(TD3AE):
    def train_on(self, batch, noise=None):
        self.target_noise_clip = 10.0
        return super().train_on(batch, noise)


class NoSmoothing(TD3AE):
    def _smoothed_actions(self, features, noise):
        return super()._smoothed_actions(features, torch.zeros_like(noise))


class UndelayedTargets(TD3AE):
    def _step_representation(self, batch, encoding):
        self._update_targets()
        return super()._step_representation(batch, encoding)


class TargetTrunkMovesTwice(TD3AE):
    def _update_targets(self):
        super()._update_targets()
        online, target = (part.features_extractor.encoder.trunk for part in (self.actor, self.actor_target))
        self._update_target_encoder(online, target)


class TargetActorAtTheEncodersRate(TD3AE):
    def _update_targets(self):
        self.tau, tau = self.encoder_tau, self.tau
        super()._update_targets()
        self.tau = tau


class OnlineTrunkForTheTarget(TD3AE):
    def _smoothed_actions(self, features, noise):
        return super()._smoothed_actions(self.critic.features_extractor.trunk(self.batch.next_observations), noise)

    def train_on(self, batch, noise=None):
        self.batch = batch
        return super().train_on(batch, noise)


class BothCriticsInTheActorsLoss(TD3AE):
    def _update_actor(self, encoding):
        frozen = self.critic.frozen_q_values
        with patch.object(self.critic, "frozen_q_values", lambda latent, actions, critics: frozen(latent, actions)):
            return super()._update_actor(encoding)


class DeterministicActorTrainsTrunk(TD3AE):
    def _update_actor(self, encoding):
        return super()._update_actor(AttachedFeatures(*self._encode(self.batch.observations)))

    def train_on(self, batch, noise=None):
        self.batch = batch
        return super().train_on(batch, noise)


@pytest.mark.parametrize(
    ("fault", "first_difference"),
    [
        (HalvedMSE, "^actor_loss"),
        (HalvedReconstruction, "^ae_loss"),
        (SwappedTaus, "^target_trunk"),
        (ActorBeforeCritic, "^actor_loss"),
        (RepresentationBeforeTargets, "^target_trunk|^target_head"),
        (EncodingBeforeTheCriticsStep, "^actor_loss"),
        (TargetKeepsGradient, "^actor_loss"),
        (TrunkNotDetached, "^trunk"),
        (ActorTrainsTrunk, "^ae_loss|^trunk"),
        (UnclippedNoise, "^critic_loss"),
        (NoSmoothing, "^critic_loss"),
        (UndelayedTargets, "^target_trunk|^ae_loss|^critic_loss"),
        (TargetTrunkMovesTwice, "^target_trunk"),
        (TargetActorAtTheEncodersRate, "^target_"),
        (OnlineTrunkForTheTarget, "^critic_loss"),
        (BothCriticsInTheActorsLoss, "^actor_loss"),
        (DeterministicActorTrainsTrunk, "^trunk"),
    ],
)
def test_planted_faults_are_noticed(fault, first_difference):
    with pytest.raises(AssertionError, match=first_difference):
        assert_parity(fault)
