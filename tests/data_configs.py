"""Configs of the shapes for the checks of data: label maps, and folders of classes."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from pvt_mm.datasets.shapes import CLASSES

MAP_CLASSES = ('background', *CLASSES)


def config_of(scope: str, model: dict, data, root: Path) -> Config:
    """Returns a config whose data sets are ``data(root, split)``, and makes its scope the default."""
    init_default_scope(scope)
    loaders = {
        f'{split}_dataloader': dict(batch_size=2, dataset=data(root, split)) for split in ('train', 'val', 'test')
    }
    evaluators = {f'{split}_evaluator': dict(type='IoUMetric') for split in ('val', 'test')}
    return Config(dict(default_scope=scope, model=model, **loaders, **evaluators))


def map_data(root: Path, split: str) -> dict:
    """Returns the label maps, in which 0 is the background."""
    folder = 'training' if split == 'train' else 'validation'
    return dict(
        type='BaseSegDataset',
        data_root=f'{root}/',
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        metainfo=dict(classes=MAP_CLASSES),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
    )


def folder_data(root: Path, split: str) -> dict:
    """Returns the folders of ``root``, which are those of the classes in train and val."""
    return dict(
        type='pvt_mm.ImageFolder',
        data_root=f'{root}/',
        data_prefix='train' if split == 'train' else 'val',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='pvt_mm.RandomResizedCrop', scale=32)],
    )


def map_config(root: Path) -> Config:
    return config_of('mmseg', dict(decode_head=dict(num_classes=4)), map_data, root)


def folder_config(root: Path) -> Config:
    return config_of('mmengine', dict(head=dict(num_classes=3)), folder_data, root / 'classification')
