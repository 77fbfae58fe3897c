"""Export: an agent's policy as ONNX and a run's autoencoder, for programs that have neither agent nor this package."""

import contextlib
import inspect
import logging
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.distributions import Distribution

from rl_ae import __version__
from rl_ae.files import write_atomically
from rl_ae.sb3.checkpoint import load_autoencoder_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, Observations
from rl_ae.sb3.runs import Run

#: How far an exported policy's actions may differ from those of ``predict``.
TOLERANCE = 1e-5
#: Name of the input where observations are no ``Dict``.
INPUT = "observation"
#: The policy's file in the folder of an exported run.
POLICY_FILE = "policy.onnx"
#: Observations on which an exported policy is compared with the agent.
_COMPARED = 16
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class DeterministicPolicy(nn.Module):
    """What ``predict(deterministic=True)`` does, as one module.

    Args:
        policy: Of any Stable-Baselines3 agent without a recurrent state.

    Raises:
        ValueError: If the policy is recurrent.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        if "lstm_states" in inspect.signature(policy._predict).parameters:
            raise ValueError(f"{type(policy).__name__} is recurrent: expected a policy without a state between steps")
        self.policy = policy
        self.shape = policy.action_space.shape or ()
        if isinstance(policy.action_space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(policy.action_space.low))
            self.register_buffer("high", torch.as_tensor(policy.action_space.high))

    def forward(self, observation: Any) -> Tensor:
        """Observations (B, C, H, W), ``uint8`` or floats in [0, 1], or a dictionary of such, to actions (B, A)."""
        actions = self.policy._predict(observation, deterministic=True).reshape(-1, *self.shape)
        if not isinstance(self.policy.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return torch.clip(actions, self.low, self.high)


class OnnxPolicy:
    """An exported policy under onnxruntime, with the ``predict`` of Stable-Baselines3.

    Uses as many threads as torch does.

    Args:
        path: Written by :func:`export_onnx`.

    Raises:
        ImportError: If onnxruntime is missing.
    """

    def __init__(self, path: str | Path) -> None:
        _require("onnxruntime")
        import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(
        self, observation: Observations | Mapping[str, Observations], *, deterministic: bool = True
    ) -> tuple[Any, None]:
        """One observation (C, H, W) to its action (A,), or a batch to a batch; a dictionary where the space is one."""
        inputs = _by_name(observation)
        first = self.session.get_inputs()[0]
        single = np.ndim(inputs[first.name]) < len(first.shape)
        [actions] = self.session.run(None, {name: np.asarray(x)[None] if single else x for name, x in inputs.items()})
        return actions[0] if single else actions, None


def export_onnx(model: BaseAlgorithm, path: str | Path, observations: Any = None, tolerance: float = TOLERANCE) -> Path:
    """Write encoder and actor as ONNX: raw observations in, the actions of ``predict(deterministic=True)`` out.

    Input ``observation`` is (B, C, H, W) of the space's own type, ``uint8`` frames say, for any B ≥ 1; a ``Dict`` space
    has an input a key. Output ``action`` is (B, A), in the action space's bounds. Before the file is put in place,
    onnxruntime acts with it beside the agent.

    Args:
        model: :class:`~rl_ae.sb3.SACAE`, or any Stable-Baselines3 agent without a recurrent policy.
        path: The file.
        observations: (T, C, H, W) of the environment, T ≥ 2, or a dictionary of such, to compare the actions on;
            random ones if omitted.
        tolerance: How far they may differ; a tenth of it times half an action's range, where that is more.

    Returns:
        The path.

    Raises:
        ImportError: If the extra ``export`` is not installed.
        ValueError: If the policy cannot be translated, or the actions differ by more than ``tolerance``; the file
            that was there before stays.
    """
    _require(*_PACKAGES)
    batch = _random_observations(model.observation_space) if observations is None else observations
    model.policy.set_training_mode(False)  # as predict leaves it
    program = _translate(DeterministicPolicy(model.policy).to(model.device), batch)

    def write(temporary: Path) -> None:
        program.save(temporary, external_data=False)
        _compare(model, OnnxPolicy(temporary), batch, tolerance)

    return write_atomically(Path(path), write)


def median_latency(predict: Callable[[], Any], calls: int = 100) -> float:
    """Seconds a call takes, the median of so many after one to warm up."""
    predict()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        predict()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Latency(NamedTuple):
    """Seconds from one observation to its action, medians on as many threads.

    Attributes:
        onnx: Under onnxruntime.
        predict: With the agent's ``predict``.
    """

    onnx: float
    predict: float


def export_run(run: Path, folder: Path, onnx: bool = True, tolerance: float = TOLERANCE) -> Latency | None:
    """Save a run's autoencoder with ``save_pretrained`` and its policy as ONNX, all at once or not at all.

    Args:
        run: The run's folder.
        folder: Where to; must be empty if it exists.
        onnx: Write the policy, too.
        tolerance: See :func:`export_onnx`.

    Returns:
        How fast the exported policy is, if there is one.

    Raises:
        ValueError: If the run is none or has no checkpoint, the folder holds something, or as :func:`export_onnx`.
        ImportError: If the extra ``export`` is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: choose another folder")
    config = Run(run).read_config()
    model = load_autoencoder_agent(Run(run).checkpoint, device="cpu", buffer_size=1)
    folder = folder.resolve()  # "." has no name to be beside of
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    latency = None
    try:
        model.policy.autoencoder.save_pretrained(temporary)
        if onnx:
            with contextlib.closing(config.make_env(training=False)) as env:
                observations = _first_observations(env, _COMPARED)
            policy = OnnxPolicy(export_onnx(model, temporary / POLICY_FILE, observations, tolerance))
            latency = Latency(
                median_latency(lambda: policy.predict(observations[0])),
                median_latency(lambda: model.predict(observations[0], deterministic=True)),
            )
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return latency


# ---------------------------------------------------------------------- steps


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "rl-ae[export]"')


def _random_observations(space: spaces.Space[Any]) -> Any:
    """Observations drawn from a space, the same every time."""
    batched = batch_space(space, _COMPARED)
    batched.seed(0)
    return batched.sample()


def _first_observations(env: gym.Env[Any, Any], count: int) -> Observations:
    """Observations (count, C, H, W) of an environment played at random."""
    env.action_space.seed(0)
    observations = [env.reset(seed=FIRST_START_SEED)[0]]
    while len(observations) < count:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(env.reset()[0] if terminated or truncated else observation)
    return np.stack(observations)


def _by_name(batch: Any) -> dict[str, Any]:
    """An observation's inputs: one, or one a key of a ``Dict``."""
    return dict(batch) if isinstance(batch, Mapping) else {INPUT: batch}


def _translate(module: DeterministicPolicy, batch: Any) -> torch.onnx.ONNXProgram:
    """The module as an ONNX program for batches of any size."""
    # two, because the exporter would take a single one for a size that is always 1
    example = {
        name: torch.as_tensor(values[:2], device=module.policy.device) for name, values in _by_name(batch).items()
    }
    dynamic = {name: {0: torch.export.Dim("batch")} for name in example}
    is_dict = isinstance(batch, dict)
    with _quiet_and_traceable(module):
        observation = example if is_dict else example[INPUT]
        module(observation)  # what is done once, as a check of ranges, is done here
        try:
            program = torch.onnx.export(
                module,
                kwargs={"observation": observation},
                input_names=list(example),
                output_names=["action"],
                dynamic_shapes={"observation": dynamic if is_dict else dynamic[INPUT]},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ValueError(f"{type(module.policy).__name__} cannot be translated to ONNX: {cause}") from error
    assert program is not None
    program.model.metadata_props["rl_ae_version"] = __version__
    return program


@contextlib.contextmanager
def _quiet_and_traceable(module: nn.Module) -> Iterator[None]:
    """No branches on the values of tensors while a module is traced, nor warnings that are the exporter's own."""
    codebooks: list[Any] = [part for part in module.modules() if hasattr(part, "init_embed_")]
    validate, logger = Distribution._validate_args, logging.getLogger("torch.onnx")
    level = logger.level
    try:
        for codebook in codebooks:  # vector-quantize-pytorch asks a buffer whether it is initialised, which it is
            codebook.init_embed_ = lambda *_, **__: None
        Distribution.set_default_validate_args(False)
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for codebook in codebooks:
            del codebook.init_embed_
        Distribution.set_default_validate_args(validate)
        logger.setLevel(level)


def _compare(model: BaseAlgorithm, exported: OnnxPolicy, batch: Any, tolerance: float) -> None:
    """Refuse actions that are not those of the agent, in batches and alone."""
    expected = model.predict(batch, deterministic=True)[0]
    one = {name: values[0] for name, values in batch.items()} if isinstance(batch, dict) else batch[0]
    differences = [
        np.abs(exported.predict(batch)[0] - expected),
        np.abs(exported.predict(one)[0] - expected[0]),
    ]
    unit: Any = 1.0
    if isinstance(model.action_space, spaces.Box):
        half_range = 0.5 * (model.action_space.high - model.action_space.low)
        unit = (0.1 * np.where(np.isfinite(half_range), half_range, 0.0)).clip(min=1.0)  # float32 has 7 digits
    worst = max(float((difference / unit).max()) for difference in differences)
    if not worst <= tolerance:
        raise ValueError(
            f"the exported policy's actions differ from predict's by {worst:.2g}, expected at most {tolerance:g}; a "
            "policy that is steep multiplies what float32 rounds: allow more with tolerance, if that is it"
        )
