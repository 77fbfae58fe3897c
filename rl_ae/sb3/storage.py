"""Storage: nested states as a JSON file and a safetensors file, without pickle.

The JSON file holds facts, the structure and the numbers, and names the file of the tensors. That one gets a new name
each time and the JSON file is replaced last, so that a process killed at any moment leaves the previous state whole.
"""

import functools
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl_ae.files import write_atomically

#: Marks of what JSON has no word for: a tensor, which stands elsewhere, and a mapping whose keys are numbers.
_TENSOR, _NUMBERED = "$tensor", "$numbered"


def write_state(folder: Path, name: str, facts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write ``<name>.json`` and its tensors into a folder, instead of those that are there.

    Args:
        folder: Made when needed.
        name: Of the files.
        facts: JSON-ready; what :func:`read_state` is to return beside the state.
        state: Mappings, sequences, tensors, numbers, strings, booleans and ``None``.
    """
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, name, tensors)
    file = f"{name}-{uuid.uuid4().hex[:8]}.safetensors"
    write_atomically(folder / file, functools.partial(save_file, tensors))
    text = json.dumps({"facts": facts, "tensors": file, "state": packed}, indent=2)
    write_atomically(folder / f"{name}.json", lambda path: path.write_text(text + "\n"))
    for path in folder.glob(f"{name}-*.safetensors"):
        if path.name != file:
            path.unlink()


def read_state(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and state as :func:`write_state` was given them; tensors on the CPU, sequences as lists.

    Raises:
        ValueError: If a file is missing or damaged; says which.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"expected {path.name} and its tensors in {folder}, which has no such file")
    try:
        content = json.loads(path.read_text())
        tensors = load_file(folder / content["tensors"])
        return content["facts"], _unpack(content["state"], tensors)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} or its tensors are damaged: {error!r}") from error


def _pack(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a node; moves its tensors, copied, into ``tensors``."""
    if isinstance(node, Tensor):
        tensors[path] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: path}
    if isinstance(node, Mapping):
        packed = {str(key): _pack(value, f"{path}/{key}", tensors) for key, value in node.items()}
        return {_NUMBERED: packed} if node and all(isinstance(key, int) for key in node) else packed
    if isinstance(node, list | tuple):
        return [_pack(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]
    return node


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {_TENSOR}:
        return tensors[node[_TENSOR]]
    if node.keys() == {_NUMBERED}:
        return {int(key): _unpack(value, tensors) for key, value in node[_NUMBERED].items()}
    return {key: _unpack(value, tensors) for key, value in node.items()}
