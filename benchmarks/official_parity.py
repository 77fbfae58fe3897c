"""Does SACAE compute what the authors' code computes? Both side by side, in float64.

    python -m benchmarks.official_parity --reference CHECKOUT

``CHECKOUT`` is a copy of the authors' repository (github.com/denisyarats/pytorch_sac_ae), which is imported, never
installed. Both agents have its defaults at 84×84×9 with six actions, the same weights, batches and noise. Prints and
writes the largest differences after each update, losses and parameters, to ``results/official_parity.json``.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from torch import Tensor, nn

from rl_ae.files import write_atomically
from rl_ae.pixels import dequantize
from rl_ae.sb3 import SACAE
from rl_ae.sb3.agent import Batch
from rl_ae.sb3.sac_ae import Noise

SHAPE, ACTIONS, BATCH, UPDATES = (9, 84, 84), 6, 8, 4
RESULTS = Path(__file__).parent / "results" / "official_parity.json"
#: Our metric → its name in the authors' log.
LOSSES = {
    "critic_loss": "train_critic/loss",
    "actor_loss": "train_actor/loss",
    "ent_coef_loss": "train_alpha/loss",
    "ae_loss": "train_ae/ae_loss",
}


@dataclasses.dataclass
class Arguments:
    """What to compare with.

    Attributes:
        reference: Checkout of the authors' repository.
    """

    reference: Path


class Images(gym.Env[Any, Any]):
    """Spaces for an agent that never acts."""

    observation_space = spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,))


class Log:
    """Keeps what the authors' code logs."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, key: str, value: Tensor, step: int) -> None:
        self.values[key] = float(torch.as_tensor(value).detach())

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def import_official(reference: Path, module: str) -> Any:
    """A module of the authors' repository."""
    sys.modules["gym"] = types.ModuleType("gym")  # imported for environments, which are not used here
    sys.modules["gym"].Wrapper = object  # type: ignore[attr-defined]
    sys.path.insert(0, str(reference))
    return __import__(module)


def make_official(reference: Path, shape: tuple[int, int, int] = SHAPE) -> Any:
    """The authors' agent with the defaults of their training script."""
    return import_official(reference, "sac_ae").SacAeAgent(
        shape,
        (ACTIONS,),
        torch.device("cpu"),
        hidden_dim=1024,
        init_temperature=0.1,
        alpha_lr=1e-4,
        alpha_beta=0.5,
        critic_tau=0.01,
        encoder_tau=0.05,
        decoder_latent_lambda=1e-6,
        decoder_weight_lambda=1e-7,
        num_layers=4,
        num_filters=32,
    )


def perturb(agent: Any) -> Any:
    """The authors' agent in float64, and no weight zero."""
    for module in (agent.actor, agent.critic, agent.critic_target, agent.decoder):
        module.double()
    with torch.no_grad():
        for module in (agent.critic, agent.critic_target, agent.actor.trunk, agent.actor.encoder.fc, agent.decoder):
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return agent


def pairs(official: Any, ours: SACAE) -> list[tuple[str, Tensor, Tensor]]:
    """(network, the authors' parameter, ours); the authors' actor has mean and log σ in one layer, ours in two."""
    matched: list[tuple[str, Tensor, Tensor]] = []

    def match(name: str, *modules: nn.Module, to: nn.Module) -> None:
        theirs = [parameter for module in modules for parameter in module.parameters()]
        matched.extend((name, *pair) for pair in zip(theirs, to.parameters(), strict=True))

    for prefix, critic, our_critic in (
        ("", official.critic, ours.critic),
        ("target ", official.critic_target, ours.critic_target),
    ):
        encoder = our_critic.features_extractor.encoder
        match(f"{prefix}trunk", *critic.encoder.convs, to=encoder.trunk)
        match(f"{prefix}head", critic.encoder.fc, critic.encoder.ln, to=encoder.head)
        match(f"{prefix}Q", critic.Q1, to=our_critic.qf0)
        match(f"{prefix}Q", critic.Q2, to=our_critic.qf1)
    actor, our_actor = official.actor, ours.actor
    match("actor", actor.encoder.fc, actor.encoder.ln, to=our_actor.features_extractor.encoder.head)
    match("actor", actor.trunk[:4], to=our_actor.latent_pi)
    for layer, rows in ((our_actor.mu, slice(0, ACTIONS)), (our_actor.log_std, slice(ACTIONS, None))):
        matched += [
            ("actor", actor.trunk[4].weight[rows], layer.weight),
            ("actor", actor.trunk[4].bias[rows], layer.bias),
        ]
    match("decoder", official.decoder.fc, *official.decoder.deconvs, to=ours.policy.autoencoder.decoder)
    return [*matched, ("log α", official.log_alpha.reshape(1), ours.log_ent_coef)]


def make_ours(official: Any) -> SACAE:
    """SACAE with its own defaults and the authors' weights."""
    agent = SACAE("CnnPolicy", Images(), buffer_size=1, device="cpu", update="paper", precision="fp32")
    agent.policy.double().set_training_mode(True)
    agent.log_ent_coef.data = agent.log_ent_coef.data.double()
    with torch.no_grad():
        for _, theirs, our in pairs(official, agent):
            our.copy_(theirs)
    return agent


def update_both(official: Any, ours: SACAE, index: int) -> dict[str, tuple[float, float]]:
    """One update of each on the same batch and noise; (theirs, ours) of every loss."""
    generator = torch.Generator().manual_seed(index)

    def frames() -> Tensor:
        return torch.randint(0, 256, (BATCH, *SHAPE), generator=generator).double()

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    observations, next_observations = frames(), frames()
    actions, rewards, dones = 2 * uniform(BATCH, ACTIONS) - 1, uniform(BATCH, 1), (uniform(BATCH, 1) > 0.7).double()
    normals = [torch.randn(BATCH, ACTIONS, generator=generator, dtype=torch.float64) for _ in range(2)]
    targets = dequantize(observations / 255, 5, uniform(BATCH, *SHAPE))

    log, queue = Log(), list(normals)
    replay = types.SimpleNamespace(sample=lambda: (observations, actions, rewards, next_observations, 1 - dones))
    with (
        patch.object(torch, "randn_like", lambda like: queue.pop(0)),
        patch.object(sys.modules["utils"], "preprocess_obs", lambda frames: targets - 0.5),  # asserts float32 itself
    ):
        official.update(replay, log, step=index)
    batch = Batch(observations / 255, actions, next_observations / 255, rewards, dones, ours.gamma, targets)
    metrics = ours.train_on(batch, Noise(*normals))
    return {ours: (log.values[theirs], metrics[ours].item()) for ours, theirs in LOSSES.items() if ours in metrics}


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.manual_seed(0)
    official = perturb(make_official(arguments.reference))
    ours = make_ours(official)
    record: list[dict[str, Any]] = []
    for index in range(UPDATES):
        losses = update_both(official, ours, index)
        parameters: dict[str, float] = {}
        with torch.no_grad():
            for name, theirs, our in pairs(official, ours):
                parameters[name] = max(parameters.get(name, 0.0), (theirs - our).abs().max().item())
        relative = {name: abs(theirs - our) / abs(theirs) for name, (theirs, our) in losses.items()}
        record.append({"update": index, "losses": losses, "relative": relative, "parameters_absolute": parameters})
        print(
            f"update {index}: losses differ by ≤ {max(relative.values()):.1e} (relative: {', '.join(relative)}), "
            f"parameters by ≤ {max(parameters.values()):.1e} (absolute)"
        )
    write_atomically(RESULTS, lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))


if __name__ == "__main__":
    main()
