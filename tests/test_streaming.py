"""Batches of episodes: what is read, in which order, and from where it goes on."""

from itertools import chain, pairwise

import numpy as np
import pytest

from rl_ae.streaming import ArrayFrames, Batches, describe, hold_out, spread

SHAPE = (1, 8, 8)


def numbered(lengths, first=0):
    """Episodes whose observations are told apart by the number that is in all of their pixels."""
    numbers = iter(range(first, first + sum(lengths)))
    return ArrayFrames([np.stack([np.full(SHAPE, next(numbers), np.uint8) for _ in range(n)]) for n in lengths])


class Watched(ArrayFrames):
    """Counts what is read."""

    def __init__(self, episodes):
        super().__init__(episodes)
        self.read_runs = []

    def read(self, episode, start, stop):
        self.read_runs.append((episode, start, stop))
        return super().read(episode, start, stop)


def batches(source, episodes=None, batch_size=8, frames=32, **kwargs):
    episodes = range(len(source.episode_lengths)) if episodes is None else episodes
    return Batches(source, list(episodes), batch_size, buffer_bytes=frames * 64, run_length=4, **kwargs)


def numbers(frames):
    return frames[:, 0, 0, 0].tolist()


def take(reader, count):
    return [numbers(reader.next()) for _ in range(count)]


def test_a_pass_shows_each_observation_at_most_once_and_nearly_all():
    reader = batches(numbered([40, 57, 30, 73]))
    assert reader.n_data == 200 and reader.windows == 7
    seen = []
    while reader.position.epoch == 0:
        seen.append(numbers(reader.next()))
    first_pass = [number for batch in seen[:-1] for number in batch]  # the last one is of the next pass
    assert len(set(first_pass)) == len(first_pass) > 200 - 7 * 8
    reader.close()


def test_observations_are_mixed_across_episodes_and_within():
    source = numbered([50, 50, 50, 50])
    reader = batches(source, frames=64)
    first = take(reader, 4)
    assert all(len({number // 50 for number in batch}) > 1 and batch != sorted(batch) for batch in first)
    assert {number // 50 for batch in first for number in batch} == {0, 1, 2, 3}
    neighbours = sum(number + 1 == following for batch in first for number, following in pairwise(batch))
    assert neighbours <= 2  # of 28 pairs
    other = batches(source, frames=64, seed=1)
    assert take(other, 4) != first
    reader.close(), other.close()


@pytest.mark.parametrize("made", [0, 1, 5, 13, 40])
@pytest.mark.parametrize(("frames", "shards"), [(32, 1), (32, 2), (1000, 1)])
def test_it_goes_on_where_it_was(made, frames, shards):
    source = numbered([40, 57, 30, 73])
    straight, interrupted = (batches(source, frames=frames, shards=shards) for _ in range(2))
    expected = take(straight, made + 20)[made:]
    take(interrupted, made)
    resumed = batches(source, frames=frames, shards=shards)
    resumed.load_state_dict(interrupted.state_dict())
    assert take(resumed, 20) == expected
    for reader in (straight, interrupted, resumed):
        reader.close()


def test_processes_read_their_own_shards_of_the_same_batches():
    episodes = [np.stack([np.full(SHAPE, 60 * e + t, np.uint8) for t in range(60)]) for e in range(4)]
    whole = batches(ArrayFrames(episodes), shards=4, batch_size=12)
    sources = [Watched(episodes) for _ in range(2)]
    parts = [batches(source, shards=4, batch_size=12, own=range(2 * r, 2 * r + 2)) for r, source in enumerate(sources)]
    for _ in range(30):
        batch = numbers(whole.next())
        assert batch == numbers(parts[0].next()) + numbers(parts[1].next()) and len(set(batch)) == 12
    for reader in (whole, *parts):
        reader.close()
    first_pass = [source.read_runs[:20] for source in sources]
    assert not set(first_pass[0]) & set(first_pass[1])


def test_memory_is_bounded_by_the_buffer():
    source = numbered([100] * 2)
    reader = batches(source, frames=40)
    largest = 0
    for _ in range(60):
        reader.next()
        largest = max(largest, sum(len(frames) for frames in reader._current.frames))
    assert 20 < largest <= 40
    reader.close()


def test_what_fits_is_read_once():
    source = Watched(numbered([40, 24])._episodes)
    reader = batches(source, frames=64)
    passes = take(reader, 24)
    assert reader.position.epoch == 2 and len(source.read_runs) == 16
    assert passes[:8] != passes[8:16]
    assert sorted(chain(*passes[:8])) == sorted(chain(*passes[8:16])) == list(range(64))
    reader.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 100}, "a batch of 100 needs as many observations to train on, the episodes have 60"),
        ({"frames": 11}, r"a buffer of 704 bytes holds 11 observations \(1, 8, 8\), expected at least 12"),
        ({"shards": 3}, "shards a divisor of batch_size, got 8, 3 and 4"),
        ({"shards": 8, "batch_size": 56}, "15 runs of observations cannot be divided among 8 shards"),
    ],
)
def test_too_little_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered([40, 20]), **kwargs)


def test_a_source_that_breaks_its_promise_is_named():
    class Shrinking(ArrayFrames):
        def read(self, episode, start, stop):
            return super().read(episode, start, stop)[..., 1:]

    reader = batches(Shrinking(numbered([40])._episodes))
    with pytest.raises(ValueError, match=r"of episode 0: expected uint8 \(4, 1, 8, 8\), got uint8 \(4, 1, 8, 7\)"):
        reader.next()
    reader.close()


def test_arrays_are_checked():
    frames = np.zeros((3, *SHAPE), np.uint8)
    with pytest.raises(ValueError, match="there are no episodes"):
        ArrayFrames([])
    with pytest.raises(TypeError, match="episode 1: expected uint8, got float32"):
        ArrayFrames([frames, frames.astype(np.float32)])
    with pytest.raises(ValueError, match=r"episode 1: expected an array \(T, 1, 8, 8\), got \(3, 1, 8, 7\)"):
        ArrayFrames([frames, frames[..., 1:]])
    with pytest.raises(ValueError, match=r"episode 0: expected an array \(T, C, H, W\), got \(3, 8, 8\)"):
        ArrayFrames([frames[:, 0]])
    with pytest.raises(ValueError, match="episode 1: expected at least one observation, got none"):
        ArrayFrames([frames, frames[:0]])


def test_whole_episodes_are_held_out():
    for held_out, count in ((0.0, 0), (0.25, 5), (0.001, 1), (3.0, 3)):
        training, validation = hold_out(20, held_out, seed=1)
        assert sorted(training + validation) == list(range(20)) and len(validation) == count
    assert hold_out(20, 0.25, seed=1) == hold_out(20, 0.25, seed=1) != hold_out(20, 0.25, seed=2)
    with pytest.raises(ValueError, match=r"held_out=0\.1 would hold out 1 of 1 episodes"):
        hold_out(1, 0.1, seed=0)


def test_observations_to_look_at_are_spread_over_episodes():
    source = numbered([10, 20, 30])
    assert numbers(spread(source, [0, 2], 5)) == [0, 10 + 20, 20 + 20, 29 + 20, 39 + 20]
    assert numbers(spread(source, [1], 100)) == list(range(10, 30))


def test_data_sets_are_told_apart():
    one = describe(numbered([10, 20]))
    assert one == describe(numbered([10, 20]))
    assert one["observations"] == 30 and one["observation_shape"] == [1, 8, 8]
    for other, differs in (
        (numbered([20, 10]), {"lengths", "first_observations"}),
        (numbered([10, 20], first=3), {"first_observations"}),
        (numbered([10]), {"episodes", "observations", "lengths", "first_observations"}),
    ):
        assert {name for name, value in describe(other).items() if value != one[name]} == differs
