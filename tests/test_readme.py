"""Every code block of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]


def shortened(code):
    """THE ONE RULE: step counts shrink.

    `learn(N`, `-n N` and `--steps N` to 24 (26 on resuming), `learning_starts` to 20; what is collected to
    2 episodes of 40 steps.
    """
    code = re.sub(r"(?<= -n )\d+", "24", code)
    code = re.sub(r"(?<=--max-steps )\d+", "40", code)
    if code.startswith("rl-ae collect"):
        code = re.sub(r"(?<=--episodes )\d+", "2", code)
    code = re.sub(r"(?<=learn\()[\d_]+", "24", code)
    code = re.sub(r"(?<=learning_starts=)[\d_]+", "20", code)
    code = re.sub(r"(?<=--learning-starts )\d+", "20", code)
    return re.sub(r"(?<=--steps )\d+", "26" if "--resume" in code else "24", code)


def test_every_language_is_covered():
    assert {language for language, _ in BLOCKS} == {"python", "sh", "text"}
    assert len(PYTHON) >= 4 and len(SHELL) >= 6


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("\n")[0])
def test_python(code, tmp_path):
    script = "import torch; torch.set_num_threads(1)\n" + shortened(code)
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_shell(tmp_path):
    for line in SHELL:
        program, *arguments = shlex.split(shortened(line))
        if program == "make":  # .ci/run makes these targets for real; here, that they exist
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "python":
            subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
        else:
            assert program == "rl-ae"
            subprocess.run([sys.executable, "-m", "rl_ae.cli", *arguments], cwd=tmp_path, check=True)
    targets = {line.split()[1] for line in SHELL if line.startswith("make")}
    made = set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert targets <= made | {"demo"}  # which test_demo.py makes
    assert {path.name for path in (tmp_path / "runs/pendulum").iterdir()} >= {
        "checkpoint",
        "config.json",
        "curve.csv",
        "curve.png",
        "evaluation.json",
        "evaluation.mp4",
        "logs",
        "reconstructions.png",
    }
