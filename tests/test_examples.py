"""The example scripts, whole and small."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from stable_baselines3 import SAC

from rl_ae import Autoencoder, ConvConfig, RAEConfig, create_autoencoder
from rl_ae.sb3 import SACAE

# Stable-Baselines3 ignores it where its progress bar is imported; pytest's own filters come after that
pytestmark = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")

FOLDER = Path(__file__).parent.parent / "examples"
SMALL = "--env moving_dot:MovingDot-v0 --grayscale --steps 20 --episodes 1"


@pytest.fixture
def eyes(tmp_path):
    torch.manual_seed(0)
    config = RAEConfig(conv=ConvConfig(filters=(4,), strides=(4,), kernel_size=4), latent_dim=5)
    create_autoencoder(config, (2, 16, 16)).save_pretrained(tmp_path / "eyes")
    return tmp_path / "eyes"


def run_example(name, eyes, *arguments):
    main = runpy.run_path(str(FOLDER / name))["main"]
    out = eyes.parent / "agent.zip"
    return tyro.cli(main, args=[str(eyes), *SMALL.split(), "--out", str(out), *arguments])


def moved(encoder, eyes):
    """Whether an encoder differs from the saved one, on the same device."""
    saved = Autoencoder.from_pretrained(eyes).encoder.state_dict()
    return any(not torch.equal(tensor.cpu(), saved[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("how", "encoder_moves", "decoder_moves"),
    [("frozen", False, False), ("fine-tuned", True, False), ("joint", True, True)],
)
def test_in_sac_ae(eyes, capsys, how, encoder_moves, decoder_moves):
    agent = run_example("reuse_in_sac_ae.py", eyes, "--how", how, "--learning-starts", "10")
    autoencoder = SACAE.load(eyes.parent / "agent.zip").policy.autoencoder
    assert moved(autoencoder.encoder, eyes) == moved(agent.policy.autoencoder.encoder, eyes) == encoder_moves
    decoders = [each.decoder.state_dict() for each in (autoencoder, Autoencoder.from_pretrained(eyes))]
    assert any(not torch.equal(decoders[0][name], decoders[1][name]) for name in decoders[1]) == decoder_moves
    assert f"{how} encoder, 20 steps: return -" in capsys.readouterr().out
    assert agent.num_timesteps == 20 and agent._n_updates > 0


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_in_stock_agents(eyes, capsys, algo, freeze):
    flags = ["--freeze"] if freeze else []
    sizes = ["--n-steps", "10", "--batch-size", "10", "--learning-starts", "10"]
    agent = run_example("reuse_in_stock_agents.py", eyes, "--algo", algo, *sizes, *flags)
    owner = agent.policy if algo == "ppo" else agent.policy.critic
    assert moved(owner.features_extractor.encoder, eyes) != freeze
    assert f"{algo}, {'frozen' if freeze else 'fine-tuned'} encoder, 20 steps: return -" in capsys.readouterr().out


def test_as_latents(eyes, capsys):
    agent = run_example("reuse_as_latents.py", eyes, "--learning-starts", "10")
    seen = agent.replay_buffer.observations[:20, 0]
    assert seen.shape == (20, 15) and seen.std() > 0
    assert np.array_equal(seen[3, 5:], seen[4, :10])  # what was new is older now
    assert "SAC on 15 numbers instead of 1536: return -" in capsys.readouterr().out
    assert SAC.load(eyes.parent / "agent.zip").observation_space.shape == (15,)
