"""The arrows of the design: who may import whom, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

import rl_ae

ROOT = Path(rl_ae.__file__).parent
#: May import Stable-Baselines3, Gymnasium and what else they need; the rest is the torch half.
SB3_HALF = ("rl_ae.sb3", "rl_ae.envs", "rl_ae.cli")
#: All that the torch half may import.
ALLOWED_BELOW = ("rl_ae", "torch", "numpy", *sys.stdlib_module_names)
#: module → what it may import beside that. Not pyplot, which opens windows and keeps every figure.
ALSO_ALLOWED = {
    "rl_ae.analysis": ("matplotlib.figure",),
    "rl_ae.autoencoders.base": ("huggingface_hub", "safetensors"),
    "rl_ae.factory": ("huggingface_hub.errors",),
    "rl_ae.learner": ("tqdm",),
    "rl_ae.pretraining": ("tqdm",),
    "rl_ae.stopping": ("tqdm",),
}
#: module → what it may not import, beside the halves.
FORBIDDEN = {
    "rl_ae.pixels": ("rl_ae",),
    "rl_ae.configs": ("rl_ae.networks", "rl_ae.autoencoders", "rl_ae.losses", "rl_ae.learner", "rl_ae.factory"),
    "rl_ae.losses": ("rl_ae.autoencoders", "rl_ae.networks", "rl_ae.learner", "rl_ae.factory", "rl_ae.configs"),
    "rl_ae.adversary": ("rl_ae.autoencoders", "rl_ae.learner", "rl_ae.factory"),
    # of the losses, pure terms and schedules alone
    "rl_ae.autoencoders": (
        *("rl_ae.learner", "rl_ae.factory", "rl_ae.adversary", "rl_ae.losses.base", "rl_ae.losses.deterministic"),
        *("rl_ae.losses.gaussian", "rl_ae.losses.disentangling", "rl_ae.losses.quantized"),
        "rl_ae.losses.hierarchical",
    ),
    "rl_ae.likelihoods": ("rl_ae",),
    "rl_ae.logistic_mixture": ("rl_ae",),
    "rl_ae.networks": ("rl_ae.autoencoders", "rl_ae.losses", "rl_ae.learner", "rl_ae.factory"),
    "rl_ae.latents": ("rl_ae",),
    "rl_ae.learner": ("rl_ae.factory",),
    "rl_ae.envs": ("rl_ae.sb3", "rl_ae.cli"),
    "rl_ae.sb3": ("rl_ae.cli",),
}
#: Optional extras: imported inside the functions that need them, in either half.
EXTRAS = {
    *("diffusers", "h5py", "imageio", "jinja2", "lightning", "minari", "onnxruntime", "sklearn"),
    "vector_quantize_pytorch",
}


def sources(root=ROOT):
    """{module name: syntax tree} of every file of the package."""
    trees = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def imported(tree, module, trees):
    """Absolute names of what a tree imports, modules where they can be told from objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in trees else node.module)
    return names


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def wrong_arrows(trees):
    wrong = []
    for module, tree in trees.items():
        below = not within(module, SB3_HALF)
        forbidden = [name for package, names in FORBIDDEN.items() if within(module, [package]) for name in names]
        extra = [name for package, names in ALSO_ALLOWED.items() if within(module, [package]) for name in names]
        at_the_top = imported(ast.Module([node for node in tree.body if is_import(node)], []), module, trees)
        for name in sorted(imported(tree, module, trees)):
            allowed = within(name, [*ALLOWED_BELOW, *extra]) or (within(name, EXTRAS) and name not in at_the_top)
            crosses = below and (within(name, SB3_HALF) or not allowed)
            if crosses or within(name, forbidden):
                wrong.append(f"{module} imports {name}")
    return wrong


def cycles(trees):
    """Modules that are reached from themselves."""
    arrows = {
        module: {name for name in imported(tree, module, trees) if name in trees and name != module}
        for module, tree in trees.items()
    }

    def reached(start):
        seen, waiting = set(), list(arrows[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += arrows[module]
        return seen

    return [module for module in arrows if module in reached(module)]


def hidden_imports(trees):
    """Imports inside functions, but for optional extras."""
    return [
        f"{module}:{node.lineno}"
        for module, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if is_import(node) and {name.split(".")[0] for name in imported(ast.Module([node], []), module, trees)} - EXTRAS
    ]


def test_arrows_point_one_way():
    assert wrong_arrows(sources()) == []


def test_there_are_no_cycles():
    assert cycles(sources()) == []


def test_imports_stand_at_the_top():
    assert hidden_imports(sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("rl_ae", "from rl_ae.sb3 import SACAE"),
        ("rl_ae.learner", "import stable_baselines3"),
        ("rl_ae.configs", "import matplotlib.pyplot"),
        ("rl_ae.networks", "from rl_ae.sb3 import SACAE"),
        ("rl_ae.pixels", "from gymnasium import spaces"),
        ("rl_ae.losses.gaussian", "from rl_ae.autoencoders import Autoencoder"),
        ("rl_ae.autoencoders.base", "from rl_ae import learner"),
        ("rl_ae.sb3.policies", "import rl_ae.cli"),
        ("rl_ae.envs", "from rl_ae.sb3.runs import Run"),
        ("rl_ae.analysis.disentanglement", "import sklearn.svm"),
        ("rl_ae.analysis.figures", "import matplotlib.pyplot"),
        ("rl_ae.learner", "from matplotlib.figure import Figure"),
    ],
)
def test_a_planted_import_is_noticed(module, line):
    trees = sources()
    trees[module].body += ast.parse(line).body
    assert len(wrong_arrows(trees)) == 1


def test_a_planted_cycle_and_a_hidden_import_are_noticed():
    trees = sources()
    trees["rl_ae.latents"].body += ast.parse("import rl_ae.networks").body
    assert {"rl_ae.latents", "rl_ae.networks"} <= set(cycles(trees))
    trees["rl_ae.pixels"].body += ast.parse("def late():\n    import numpy").body
    assert len(hidden_imports(trees)) == 1
