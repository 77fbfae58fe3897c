"""SAC-AE and TD3-AE's updates, from the papers' equations (arXiv 1910.01741, 1802.09477) with torch alone.

An independent witness, for the parity test and as what speed is compared with: it builds its own modules, takes each
loss's gradient with respect to the parameters which that loss may train, and steps Adam on them. Frames are sampled,
converted and encoded as often as the authors' code does it. Nothing of rl_ae is imported.
"""

import math
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Batch = namedtuple("Batch", "observations actions next_observations rewards dones discounts targets")


def sample(frames, next_frames, actions, rewards, dones, batch_size, discount=0.99):
    """A minibatch of transitions in NumPy arrays: uint8 frames to floats in [0, 1], and a target of five bits."""
    rows = np.random.randint(0, len(frames), size=batch_size)
    pixels, next_pixels = (torch.as_tensor(stored[rows]).float() for stored in (frames, next_frames))
    rest = (torch.as_tensor(stored[rows]) for stored in (actions, rewards, dones))
    target = (torch.floor(pixels / 8) + torch.rand_like(pixels)) / 32
    actions, rewards, dones = rest
    return Batch(pixels / 255, actions, next_pixels / 255, rewards, dones, discount, target)


def encoder(channels, filters, features, latent_dim):
    convs = nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=2),
        nn.ReLU(),
        *(layer for _ in range(3) for layer in (nn.Conv2d(filters, filters, 3), nn.ReLU())),
        nn.Flatten(),
    )
    return SimpleNamespace(convs=convs, head=head(features, latent_dim))


def head(features, latent_dim):
    return nn.Sequential(nn.Linear(features, latent_dim), nn.LayerNorm(latent_dim), nn.Tanh())


def mlp(inputs, hidden, outputs):
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def decoder(channels, filters, side, latent_dim):
    return nn.Sequential(
        nn.Linear(latent_dim, filters * side * side),
        nn.ReLU(),
        nn.Unflatten(1, (filters, side, side)),
        *(layer for _ in range(3) for layer in (nn.ConvTranspose2d(filters, filters, 3), nn.ReLU())),
        nn.ConvTranspose2d(filters, channels, 3, stride=2, output_padding=1),
    )


class PaperSACAE:
    """All networks and optimizers; :meth:`update` is one update in the order of the paper's code."""

    def __init__(self, channels, size, actions, filters, latent_dim, hidden):
        side = (size - 3) // 2 + 1 - 6
        features = filters * side * side
        self.online, self.target = (encoder(channels, filters, features, latent_dim) for _ in range(2))
        self.q = [mlp(latent_dim + actions, hidden, 1) for _ in range(2)]
        self.target_q = [mlp(latent_dim + actions, hidden, 1) for _ in range(2)]
        self.actor_head = head(features, latent_dim)
        self.actor_hidden = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.actor_mean, self.actor_log_std = nn.Linear(hidden, actions), nn.Linear(hidden, actions)
        self.decoder = decoder(channels, filters, side, latent_dim)
        self.log_alpha = torch.tensor([math.log(0.1)], requires_grad=True)
        self.target_entropy = -actions

    def modules(self):
        return {
            "trunk": self.online.convs,
            "critic_head": self.online.head,
            "target_trunk": self.target.convs,
            "target_head": self.target.head,
            "q0": self.q[0],
            "q1": self.q[1],
            "target_q0": self.target_q[0],
            "target_q1": self.target_q[1],
            "actor_head": self.actor_head,
            "actor_hidden": self.actor_hidden,
            "actor_mean": self.actor_mean,
            "actor_log_std": self.actor_log_std,
            "decoder": self.decoder,
        }

    def make_optimizers(self):
        group = {name: list(module.parameters()) for name, module in self.modules().items()}
        self.groups = {
            "encoder": group["trunk"] + group["critic_head"],
            "critic": group["trunk"] + group["critic_head"] + group["q0"] + group["q1"],
            "actor": group["actor_head"] + group["actor_hidden"] + group["actor_mean"] + group["actor_log_std"],
            "decoder": group["decoder"],
            "alpha": [self.log_alpha],
        }
        adam = torch.optim.Adam
        self.optimizers = {
            "encoder": adam(self.groups["encoder"], lr=1e-3),
            "critic": adam(self.groups["critic"], lr=1e-3),
            "actor": adam(self.groups["actor"], lr=1e-3),
            "decoder": adam(self.groups["decoder"], lr=1e-3, weight_decay=1e-7),
            "alpha": adam(self.groups["alpha"], lr=1e-4, betas=(0.5, 0.999)),
        }

    def policy(self, features, noise):
        hidden = self.actor_hidden(self.actor_head(features))
        mean = self.actor_mean(hidden)
        log_std = -10 + 0.5 * 12 * (torch.tanh(self.actor_log_std(hidden)) + 1)
        pre = mean + log_std.exp() * noise
        action = torch.tanh(pre)
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - torch.log(1 - action**2 + 1e-6)
        return action, log_prob.sum(dim=1, keepdim=True)

    @staticmethod
    def values(networks, latent, action):
        return [network(torch.cat([latent, action], dim=1)) for network in networks]

    def step(self, loss, *names):
        """Step the named optimizers on the gradient of one loss."""
        parameters = [parameter for name in names for parameter in self.groups[name]]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        for name in names:
            self.optimizers[name].step()

    def update(self, index, batch, noise, actor_every, target_every, decoder_every, tau=0.01, encoder_tau=0.05):
        observations, actions, next_observations, rewards, dones, discounts, targets = batch
        next_noise, noise = noise
        losses = {}
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            next_action, next_log_prob = self.policy(self.online.convs(next_observations), next_noise)
            next_latent = self.target.head(self.target.convs(next_observations))
            value = torch.minimum(*self.values(self.target_q, next_latent, next_action)) - alpha * next_log_prob
            target = rewards + (1 - dones) * discounts * value
        latent = self.online.head(self.online.convs(observations))
        losses["critic_loss"] = sum(F.mse_loss(q, target) for q in self.values(self.q, latent, actions))
        self.step(losses["critic_loss"], "critic")

        if index % actor_every == 0:
            action, log_prob = self.policy(self.online.convs(observations).detach(), noise)
            latent = self.online.head(self.online.convs(observations).detach())
            q = torch.minimum(*self.values(self.q, latent, action))
            losses["actor_loss"] = (alpha * log_prob - q).mean()
            self.step(losses["actor_loss"], "actor")
            losses["ent_coef_loss"] = (self.log_alpha.exp() * (-log_prob - self.target_entropy).detach()).mean()
            self.step(losses["ent_coef_loss"], "alpha")

        if index % target_every == 0:
            pairs = [(self.q[0], self.target_q[0], tau), (self.q[1], self.target_q[1], tau)]
            pairs += [
                (self.online.convs, self.target.convs, encoder_tau),
                (self.online.head, self.target.head, encoder_tau),
            ]
            with torch.no_grad():
                for online, slow, rate in pairs:
                    for parameter, slow_parameter in zip(online.parameters(), slow.parameters(), strict=True):
                        slow_parameter.copy_(rate * parameter + (1 - rate) * slow_parameter)

        if index % decoder_every == 0:
            latent = self.online.head(self.online.convs(observations))
            reconstruction_loss = F.mse_loss(self.decoder(latent), targets - 0.5)
            losses["ae_loss"] = reconstruction_loss + 1e-6 * (0.5 * latent.pow(2).sum(dim=1)).mean()
            self.step(losses["ae_loss"], "encoder", "decoder")
        return losses


class PaperTD3AE(PaperSACAE):
    """The same networks with a deterministic actor, a target actor on the target's convolutions, and TD3's update."""

    def __init__(self, channels, size, actions, filters, latent_dim, hidden):
        super().__init__(channels, size, actions, filters, latent_dim, hidden)
        features = self.actor_head[0].in_features
        self.actor_mlp, self.target_actor_mlp = (mlp(latent_dim, hidden, actions) for _ in range(2))
        self.target_actor_head = head(features, latent_dim)

    def modules(self):
        shared = {name: module for name, module in super().modules().items() if not name.startswith("actor")}
        return shared | {
            "actor_head": self.actor_head,
            "actor_mlp": self.actor_mlp,
            "target_actor_head": self.target_actor_head,
            "target_actor_mlp": self.target_actor_mlp,
        }

    def make_optimizers(self):
        group = {name: list(module.parameters()) for name, module in self.modules().items()}
        self.groups = {
            "encoder": group["trunk"] + group["critic_head"],
            "critic": group["trunk"] + group["critic_head"] + group["q0"] + group["q1"],
            "actor": group["actor_head"] + group["actor_mlp"],
            "decoder": group["decoder"],
        }
        decay = {"encoder": 0.0, "critic": 0.0, "actor": 0.0, "decoder": 1e-7}
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=1e-3, weight_decay=decay[name])
            for name, parameters in self.groups.items()
        }

    def update(self, index, batch, noise, policy_delay, decoder_every, tau=0.005, encoder_tau=0.05):
        observations, actions, next_observations, rewards, dones, discounts, targets = batch
        losses = {}

        with torch.no_grad():
            features = self.target.convs(next_observations)
            smoothing = torch.clip(0.2 * noise, -0.5, 0.5)
            next_action = torch.tanh(self.target_actor_mlp(self.target_actor_head(features))) + smoothing
            next_action = torch.clip(next_action, -1, 1)
            value = torch.minimum(*self.values(self.target_q, self.target.head(features), next_action))
            target = rewards + (1 - dones) * discounts * value
        latent = self.online.head(self.online.convs(observations))
        losses["critic_loss"] = sum(F.mse_loss(q, target) for q in self.values(self.q, latent, actions))
        self.step(losses["critic_loss"], "critic")

        if index % policy_delay == 0:
            action = torch.tanh(self.actor_mlp(self.actor_head(self.online.convs(observations).detach())))
            latent = self.online.head(self.online.convs(observations).detach())
            losses["actor_loss"] = -self.values(self.q[:1], latent, action)[0].mean()
            self.step(losses["actor_loss"], "actor")
            with torch.no_grad():
                for online, slow, rate in (
                    (self.q[0], self.target_q[0], tau),
                    (self.q[1], self.target_q[1], tau),
                    (self.actor_mlp, self.target_actor_mlp, tau),
                    (self.online.convs, self.target.convs, encoder_tau),
                    (self.online.head, self.target.head, encoder_tau),
                    (self.actor_head, self.target_actor_head, encoder_tau),
                ):
                    for parameter, slow_parameter in zip(online.parameters(), slow.parameters(), strict=True):
                        slow_parameter.copy_(rate * parameter + (1 - rate) * slow_parameter)

        if index % decoder_every == 0:
            latent = self.online.head(self.online.convs(observations))
            reconstruction_loss = F.mse_loss(self.decoder(latent), targets - 0.5)
            losses["ae_loss"] = reconstruction_loss + 1e-6 * (0.5 * latent.pow(2).sum(dim=1)).mean()
            self.step(losses["ae_loss"], "encoder", "decoder")
        return losses
