"""A batch depends on its number alone: not on the workers that load it, nor on what was loaded before."""

import os
import random
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader, Dataset

from pvt_mm.datasets import ImageFolder
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine import loading, loops
from pvt_mm.engine.loading import exact_loader, reseed
from pvt_mm.utils.errors import InputError


class Noisy(Dataset):
    """Ten samples with three random numbers each, from the three sources there are."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def plain_loader(workers: int = 0, sampler=DefaultSampler, seed: int = 3) -> DataLoader:
    dataset = Noisy()
    return DataLoader(dataset, batch_size=3, sampler=sampler(dataset, seed=seed), num_workers=workers)


def loader(workers: int = 0, sampler=DefaultSampler, seed: int = 3) -> DataLoader:
    return exact_loader(plain_loader(workers, sampler, seed), seed)


def epoch(dataloader: DataLoader, number: int, start: int = 0, batches: int = 4) -> list[torch.Tensor]:
    dataloader.batch_sampler.epoch, dataloader.batch_sampler.start = number, start
    return [batch for batch, _ in zip(dataloader, range(batches), strict=False)]


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_batches_are_the_same_from_any_workers_and_from_any_start(sampler):
    torch.manual_seed(0)
    whole = epoch(loader(0, sampler), 1)
    assert [len(batch) for batch in whole] == ([3, 3, 3, 1] if sampler is DefaultSampler else [3, 3, 3, 3])
    assert torch.cat(whole)[:, 1:].unique().numel() == 3 * sum(map(len, whole))  # no random number twice
    torch.manual_seed(9)
    for workers in (0, 2):
        later = loader(workers, sampler)
        assert torch.equal(torch.cat(epoch(later, 1, start=2, batches=2)), torch.cat(whole[2:]))
        assert torch.equal(torch.cat(epoch(later, 1)), torch.cat(whole))  # and once more from the beginning
    if sampler is DefaultSampler:
        assert not torch.equal(torch.cat(epoch(loader(), 2)), torch.cat(whole))


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_a_resumed_run_takes_over_the_seed(sampler, monkeypatch):
    other = loader(0, sampler, seed=4)
    assert not torch.equal(torch.cat(epoch(other, 1)), torch.cat(epoch(loader(0, sampler), 1)))
    reseed(other, 3)
    assert torch.equal(torch.cat(epoch(other, 1)), torch.cat(epoch(loader(0, sampler), 1)))
    # with diff_rank_seed, the order of the images is that of rank 0
    monkeypatch.setattr(loading, 'broadcast_object_list', lambda seeds: seeds.__setitem__(0, 3))
    reseed(other, 5)
    ours, rank0s = (torch.cat(epoch(one, 1)) for one in (other, loader(0, sampler)))
    assert torch.equal(ours[:, 0], rank0s[:, 0])
    assert not torch.equal(ours, rank0s)


def test_ranks_draw_different_random_numbers(monkeypatch):
    samples, steps = [], []
    for rank in range(2):
        for module in (loading, loops):
            monkeypatch.setattr(module, 'get_rank', lambda rank=rank: rank)
        samples.append(torch.cat(epoch(loader(), 0)))
        loop = loops.EpochBasedTrainLoop(Mock(seed=3), plain_loader(), max_epochs=1)
        loop.runner.model.train_step = lambda *_, **__: steps.append(torch.rand(4))
        loop.run_iter(0, None)
    assert torch.equal(samples[0][:, 0], samples[1][:, 0])
    assert (samples[0] != samples[1])[:, 1:].all()
    assert not torch.equal(*steps)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_evaluations_start_at_val_begin(by_epoch):
    settings, evaluated = dict(val_begin=4, val_interval=2), []
    if by_epoch:
        loop = loops.EpochBasedTrainLoop(Mock(seed=3), plain_loader(), max_epochs=5, **settings)
    else:
        loop = loops.IterBasedTrainLoop(Mock(seed=3), plain_loader(), max_iters=5, **settings)
    loop.runner.val_loop.run = lambda: evaluated.append(loop.epoch if by_epoch else loop.iter)
    loop.train()
    assert evaluated == [4, 5]


class TwoRatios(Noisy):
    """Of two aspect ratios."""

    def get_data_info(self, index):
        return dict(width=1, height=2 if index < 4 else 0.5)


def test_batches_by_aspect_ratio_do_not_depend_on_an_interrupted_pass():
    def by_ratio() -> DataLoader:
        dataset = TwoRatios()
        batches = AspectRatioBatchSampler(DefaultSampler(dataset, seed=3), batch_size=2)
        return exact_loader(DataLoader(dataset, batch_sampler=batches), 3)

    kept = by_ratio()
    for number in range(3):
        epoch(kept, number, batches=2)  # interrupted
        batches = epoch(kept, number, batches=9)
        assert torch.equal(torch.cat(batches), torch.cat(epoch(by_ratio(), number, batches=9)))
        assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(10))
        assert all(len(set((batch[:, 0] < 4).tolist())) == 1 for batch in batches)


def coco(root) -> Dataset:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return CocoDataset(
            data_root=str(root),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017'),
            metainfo=dict(classes=('circle', 'square', 'triangle')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_path',))],
        )


def folder(root) -> Dataset:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
    return ImageFolder(data_root=str(root / 'classification'), data_prefix='train', pipeline=pipeline)


@pytest.fixture(params=[coco, folder])
def dataset(request, tmp_path) -> Dataset:
    """Four images, of which the tests make some unreadable."""
    make_shapes(tmp_path, image_size=64, train=4, val=1)
    return request.param(tmp_path)


def paths_of(dataset) -> list:
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def load(dataset, max_unreadable: int) -> list[str]:
    """Loads all images in one batch, logs the unreadable ones, and returns the paths of those loaded."""
    plain = DataLoader(dataset, batch_size=len(dataset), sampler=DefaultSampler(dataset, seed=0), collate_fn=list)
    loaded = [sample['data_samples'].img_path for sample in next(iter(exact_loader(plain, 0, max_unreadable)))]
    dataset.__getitems__.report_unreadable()
    return loaded


@pytest.mark.parametrize('fault', ['truncated', 'not an image', 'missing'])
def test_an_unreadable_image_is_replaced_and_logged_once(fault, dataset, monkeypatch):
    logged = []
    monkeypatch.setattr(loading, 'print_log', lambda message, *_: logged.append(message))
    bad = paths_of(dataset)[1]
    with open(bad, 'rb+') as file:
        file.truncate(len(file.read()) // 2)
        if fault == 'not an image':
            file.seek(0)
            file.write(b'text')
    if fault == 'missing':
        os.unlink(bad)
    loaded = load(dataset, max_unreadable=1)
    assert len(loaded) == len(dataset)
    assert bad not in loaded
    (message,) = logged
    reason = 'does not exist' if fault == 'missing' else 'is truncated or not an image'
    assert message.startswith(f'skipped an unreadable image, 1 of at most 1: {bad} {reason}')
    with pytest.raises(InputError, match=f'^an image cannot be read: {bad} {reason}'):
        load(dataset, max_unreadable=0)


def test_one_unreadable_image_more_than_allowed_raises(dataset):
    for path in paths_of(dataset):
        os.unlink(path)
    with pytest.raises(InputError, match=r'^more than 2 images cannot be read, the last: .* does not exist'):
        load(dataset, max_unreadable=2)
    with pytest.raises(InputError, match=r'^an image cannot be read: .* does not exist'):
        load(dataset, max_unreadable=10)  # rather than searching for ever
