import numpy as np
import torch

from rl_ae import generators
from rl_ae.generators import PrivateGenerators


def draw():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [np.random.normal()]


def test_captured_state_repeats_draws():
    np.random.normal()  # leaves a second Gaussian in NumPy's cache
    state = generators.capture()
    first = draw()
    generators.restore(state)
    assert draw() == first


def test_private_streams_are_apart_from_the_global_ones():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = draw() + draw()
    torch.manual_seed(0)
    np.random.seed(0)
    private = PrivateGenerators(seed=5)
    outside = draw()
    with private.active():
        inside = draw()
    outside += draw()
    assert outside == expected
    assert inside not in (expected[:7], expected[7:])

    again = PrivateGenerators(seed=5)
    draw()
    with again.active():
        assert draw() == inside


def test_private_streams_continue_from_their_state():
    private = PrivateGenerators(seed=1)
    with private.active():
        draw()
    saved = private.state_dict()
    with private.active():
        expected = draw()
    other = PrivateGenerators(seed=2)
    other.load_state_dict(saved)
    with other.active():
        assert draw() == expected


def test_without_a_seed_the_global_one_decides():
    streams = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        with PrivateGenerators().active():
            streams.append(draw())
    assert streams[0] == streams[1] != streams[2]
