import json

import pytest
import torch

from rl_ae.sb3.storage import read_state, write_state


def adam_state(steps=2):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(steps):
        layer(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    return optimizer.state_dict()


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other and type(one) is type(other)


def test_a_nested_state_comes_back(tmp_path):
    shared = torch.randn(3, 4)
    state = {
        "adam": adam_state(),
        "numbers": [1, 0.1, -1e-300, True, None, "1"],
        "lists": [[torch.arange(3, dtype=torch.uint8)], []],
        "views": {"whole": shared, "rows": shared[1:], "columns": shared.T},
        "empty": {},
        "digits": {"0": torch.zeros(()), "1": 1},
    }
    write_state(tmp_path / "new", "things", {"format": 1}, state)
    facts, restored = read_state(tmp_path / "new", "things")
    assert facts == {"format": 1}
    assert_same(restored, state)
    assert set(restored["adam"]["state"]) == {0, 1}
    assert not any("pickle" in path.name or path.suffix in (".pt", ".pkl") for path in (tmp_path / "new").iterdir())


def test_what_was_there_is_replaced_and_nothing_else(tmp_path):
    (tmp_path / "other.safetensors").write_text("mine")
    for number in range(3):
        write_state(tmp_path, "things", {}, {"number": torch.tensor(number)})
        write_state(tmp_path, "others", {}, {"number": torch.tensor(-number)})
    assert len(list(tmp_path.iterdir())) == 2 + 2 + 1
    assert read_state(tmp_path, "things")[1]["number"].item() == 2
    assert read_state(tmp_path, "others")[1]["number"].item() == -2


@pytest.mark.parametrize("fails", ["rl_ae.sb3.storage.save_file", "rl_ae.sb3.storage.json.dumps"])
def test_a_failure_leaves_the_previous_state_whole(tmp_path, monkeypatch, fails):
    write_state(tmp_path, "things", {"format": 1}, {"number": torch.tensor(1)})

    def fail(*arguments, **kwargs):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fails, fail)
        with pytest.raises(OSError, match="full"):
            write_state(tmp_path, "things", {"format": 2}, {"number": torch.tensor(2)})
    facts, state = read_state(tmp_path, "things")
    assert (facts["format"], state["number"].item()) == (1, 1)
    write_state(tmp_path, "things", {"format": 3}, {"number": torch.tensor(3)})
    assert len(list(tmp_path.iterdir())) == 2  # and what the failure left behind is gone


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected things.json and its tensors in .*, which has no such file"):
        read_state(tmp_path, "things")
    write_state(tmp_path, "things", {}, {"number": torch.zeros(100)})
    path, text = tmp_path / "things.json", (tmp_path / "things.json").read_text()
    for damaged in ("{", "[]", text.replace("things/number", "things/other"), text.replace(".safetensors", ".gone")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"things.json or its tensors are damaged"):
            read_state(tmp_path, "things")
    path.write_text(text)
    tensors = tmp_path / json.loads(text)["tensors"]
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        read_state(tmp_path, "things")
