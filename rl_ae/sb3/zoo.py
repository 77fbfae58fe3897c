"""rl-baselines3-zoo: our algorithms under the names they have in it, with settings to start from.

Importing this module adds them to ``rl_zoo3.ALGOS``. The zoo has no place for such an import, and reads that table when
its commands start, so they start here::

    python -m rl_ae.sb3.zoo train --algo sac_ae --env Pendulum-v1 -f logs
    python -m rl_ae.sb3.zoo enjoy --algo sac_ae --env Pendulum-v1 -f logs --no-render

All flags are the zoo's. Settings come from ``rl_ae/sb3/hyperparameters/<algorithm>.py`` unless ``--conf-file`` names
another file.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import rl_zoo3
    from rl_zoo3.enjoy import enjoy
    from rl_zoo3.train import train
except ImportError as error:
    raise ImportError(f'the zoo needs {error.name}: pip install "rl-ae[zoo]"') from error

from rl_ae.sb3.algorithms import AUTOENCODER_AGENTS
from rl_ae.sb3.run_config import RunConfig

rl_zoo3.ALGOS.update(AUTOENCODER_AGENTS)

#: Arguments of environments that are to be seen.
_RENDERED = {"render_mode": "rgb_array"}
_COMMANDS = {"train": train, "enjoy": enjoy}
#: Classes as expressions that the zoo evaluates: its ``enjoy`` looks for a name in the text, and fails on a class.
_EXPRESSION = "importlib.import_module({module!r}).{name}"


def zoo_settings(config: RunConfig) -> dict[str, Any]:
    """A run's configuration as the zoo has it: one entry of a hyperparameter file.

    The zoo has no name for the rest of a run, as how often it is evaluated: those are flags of its commands.
    """
    return {
        "policy": "CnnPolicy",
        "n_timesteps": config.steps,
        "n_envs": config.n_envs,
        "env_kwargs": {**_RENDERED, **json.loads(config.env_kwargs)},
        "env_wrapper": [{"rl_ae.envs.wrap_pixels": dataclasses.asdict(config.pixels)}],
        **config.agent.arguments(),
        **{name: _as_expression(value) for name, value in config.replay_arguments().items()},
    }


def _as_expression(value: Any) -> Any:
    return _EXPRESSION.format(module=value.__module__, name=value.__name__) if isinstance(value, type) else value


def settings_file(algorithm: str) -> Path:
    """The shipped hyperparameter file of an algorithm, for the zoo's ``--conf-file``."""
    return Path(__file__).with_name("hyperparameters") / f"{algorithm}.py"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of the zoo that knows our algorithms.

    Args:
        arguments: ``train`` or ``enjoy`` and its flags; those of the process if omitted.

    Raises:
        SystemExit: If the command is neither, or as the zoo's.
    """
    command, *flags = sys.argv[1:] if arguments is None else arguments or [""]
    if command not in _COMMANDS:
        sys.exit(f"usage: python -m rl_ae.sb3.zoo {{{','.join(_COMMANDS)}}} …, got {command!r}")
    # the zoo reads its flags there
    sys.argv = [f"rl_ae.sb3.zoo {command}", *flags, *(_settings_flags(flags) if command == "train" else ())]
    _COMMANDS[command]()


def _settings_flags(flags: Sequence[str]) -> list[str]:
    """What points the zoo to the shipped file, if the algorithm is ours and no file is named."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("-conf", "--conf-file")
    for name in ("--env-kwargs", "--eval-env-kwargs"):
        parser.add_argument(name, nargs="+")
    known, _ = parser.parse_known_args(flags)
    if known.algo not in AUTOENCODER_AGENTS or known.conf_file is not None:
        return []
    ours = ["--conf-file", str(settings_file(known.algo))]
    if known.env_kwargs or known.eval_env_kwargs:
        return ours
    # the zoo makes environments for evaluation without the file's env_kwargs
    return [*ours, "--eval-env-kwargs", *(f"{name}:{value!r}" for name, value in _RENDERED.items())]


if __name__ == "__main__":
    main()
