"""Repeated augmentation: how often, on which rank and in which order images are drawn."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
from mmengine.hooks import DistSamplerSeedHook
from torch.utils.data import DataLoader

from pvt_mm.datasets import RepeatAugSampler, repeat_aug_sampler


@pytest.fixture
def samplers_of_ranks(monkeypatch):
    """Returns a function that builds the sampler of each rank."""

    def build(size: int, world: int, **options) -> list[RepeatAugSampler]:
        samplers = []
        for rank in range(world):
            monkeypatch.setattr(repeat_aug_sampler, 'get_dist_info', lambda rank=rank: (rank, world))
            samplers.append(RepeatAugSampler(range(size), **{'seed': 0, **options}))
        return samplers

    return build


@pytest.mark.parametrize('world', [1, 2, 3, 4, 8])
def test_each_image_is_drawn_three_times_on_as_many_ranks_as_possible(world, samplers_of_ranks):
    ranks = defaultdict(list)
    for rank, sampler in enumerate(samplers_of_ranks(240, world, selected_round=0)):
        for index in sampler:
            ranks[index].append(rank)
    assert len(ranks) == 80
    for drawn_by in ranks.values():
        assert len(drawn_by) == 3
        assert len(set(drawn_by)) == min(3, world)


@pytest.mark.parametrize(('size', 'world'), [(10, 1), (10, 4), (11, 4), (1, 4), (700, 8), (512, 3)])
@pytest.mark.parametrize('repeats', [1, 2, 3])
def test_draws_are_distributed_in_turn(size, world, repeats, samplers_of_ranks):
    draws = [index for index in range(size) for _ in range(repeats)]
    while len(draws) % world:
        draws.append(draws[len(draws) - size * repeats])  # from the start again
    for rank, sampler in enumerate(samplers_of_ranks(size, world, shuffle=False, num_repeats=repeats)):
        assert list(sampler) == draws[rank::world][: len(sampler)]


@pytest.mark.parametrize(
    ('size', 'world', 'selected_round', 'expected'),
    [
        (1_281_167, 8, 256, 160_128),  # 5004 * 256 / 8
        (1_281_167, 1, 0, 1_281_167),
        (300, 1, 256, 256),
        (300, 3, 256, 85),
        (256, 4, 256, 64),
        (255, 4, 256, 64),  # too few to round: up
        (300, 4, 0, 75),
        (301, 4, 0, 76),
    ],
)
def test_an_epoch_is_as_long_as_without_repeats(size, world, selected_round, expected, samplers_of_ranks):
    for sampler in samplers_of_ranks(size, world, selected_round=selected_round):
        assert len(sampler) == len(list(sampler)) == expected


def test_without_repeats_it_is_a_shuffle(samplers_of_ranks):
    drawn = [index for sampler in samplers_of_ranks(512, 4, num_repeats=1) for index in sampler]
    assert sorted(drawn) == list(range(512))
    assert drawn != sorted(drawn)
    assert sorted(samplers_of_ranks(100, 1, num_repeats=1)[0]) == list(range(100))


def test_epochs_and_seeds_have_different_orders(samplers_of_ranks, monkeypatch):
    (sampler,) = samplers_of_ranks(300, 1)
    first = list(sampler)
    assert list(sampler) == first
    runner = SimpleNamespace(epoch=1, train_loop=SimpleNamespace(dataloader=DataLoader(range(300), sampler=sampler)))
    DistSamplerSeedHook().before_train_epoch(runner)
    second = list(sampler)
    assert set(second) != set(first)  # a third of the images each
    (sampler,) = samplers_of_ranks(300, 1, seed=7)
    assert list(sampler) not in (first, second)
    monkeypatch.setattr(repeat_aug_sampler, 'sync_random_seed', lambda: 7)
    assert list(samplers_of_ranks(300, 1, seed=None)[0]) == list(sampler)
