"""A batch is a function of its number: whatever loads it, and whatever was loaded before."""

import random

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.loading import exact_loader, load_batch, reseed
from pvt_mm.errors import InputError


class Noisy(Dataset):
    """Ten samples with three random numbers each, from the three sources there are."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def loader(workers: int = 0, sampler=DefaultSampler, seed: int = 3) -> DataLoader:
    dataset = Noisy()
    plain = DataLoader(dataset, batch_size=3, sampler=sampler(dataset, seed=seed), num_workers=workers)
    return exact_loader(plain, seed)


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
    assert torch.equal(load_batch(loader(0, sampler), 1, 2), whole[2])
    if sampler is DefaultSampler:
        assert not torch.equal(torch.cat(epoch(loader(), 2)), torch.cat(whole))
        with pytest.raises(IndexError, match='epoch 1 has no batch 4: it has 4'):
            load_batch(loader(), 1, 4)


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_the_seed_of_the_run_that_goes_on_is_taken_over(sampler):
    other = loader(0, sampler, seed=4)
    assert not torch.equal(torch.cat(epoch(other, 1)), torch.cat(epoch(loader(0, sampler), 1)))
    reseed(other, 3)
    assert torch.equal(torch.cat(epoch(other, 1)), torch.cat(epoch(loader(0, sampler), 1)))


class Shapes(Noisy):
    """Of two aspect ratios."""

    def get_data_info(self, index):
        return dict(width=1, height=2 if index < 4 else 0.5)


def test_batches_of_one_aspect_ratio_are_those_of_a_fresh_pass_in_every_epoch():
    def by_shape() -> DataLoader:
        dataset = Shapes()
        batches = AspectRatioBatchSampler(DefaultSampler(dataset, seed=3), batch_size=2)
        return exact_loader(DataLoader(dataset, batch_sampler=batches), 3)

    kept = by_shape()
    for number in range(3):
        epoch(kept, number, batches=2)  # broken off
        batches = epoch(kept, number, batches=9)
        assert torch.equal(torch.cat(batches), torch.cat(epoch(by_shape(), number, batches=9)))
        assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(10))
        assert all(len(set((batch[:, 0] < 4).tolist())) == 1 for batch in batches)


def pictures(root, max_broken: int) -> tuple[DataLoader, list]:
    from mmdet.datasets import CocoDataset
    from mmengine.registry import DefaultScope

    make_shapes(root, image_size=64, train=4, val=1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CocoDataset(
            data_root=str(root),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017'),
            metainfo=dict(classes=('circle', 'square', 'triangle')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_path',))],
        )
    plain = DataLoader(dataset, batch_size=4, sampler=DefaultSampler(dataset, seed=0), collate_fn=list)
    return exact_loader(plain, 0, max_broken), sorted((root / 'train2017').iterdir())


@pytest.mark.parametrize('fault', ['cut off', 'no image', 'gone'])
def test_a_broken_image_is_replaced_and_told(fault, tmp_path):
    dataloader, paths = pictures(tmp_path, max_broken=1)
    content = paths[1].read_bytes()
    paths[1].unlink()
    if fault != 'gone':
        paths[1].write_bytes(content[: len(content) // 2] if fault == 'cut off' else b'no picture')
    loaded = [sample['data_samples'].img_path for sample in next(iter(dataloader))]
    assert len(loaded) == 4
    assert str(paths[1]) not in loaded
    told = dataloader.dataset.__getitems__.broken()
    assert len(set(told)) == 1
    assert str(paths[1]) in told[0]
    assert ('does not exist' if fault == 'gone' else 'is damaged') in told[0]
    assert dataloader.dataset.__getitems__.broken() == []


def test_more_broken_images_than_allowed_stop_the_loading(tmp_path):
    dataloader, paths = pictures(tmp_path, max_broken=0)
    paths[1].write_bytes(b'no picture')
    with pytest.raises(InputError, match=f'an image cannot be read: {paths[1]} is damaged'):
        next(iter(dataloader))


def test_a_folder_that_is_gone_is_told_at_once_and_not_by_every_image(tmp_path):
    dataloader, paths = pictures(tmp_path, max_broken=2)
    for path in paths:
        path.unlink()
    with pytest.raises(InputError, match=r'more than 2 images cannot be read, the last: .* does not exist'):
        next(iter(dataloader))
    assert len(dataloader.dataset.__getitems__.broken()) == 2
