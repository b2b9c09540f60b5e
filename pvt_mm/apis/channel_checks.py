"""Whether the parts of a config agree on the number of channels, of an image and of the backbone's maps."""

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from torch import nn

from pvt_mm.apis.config import leaf_datasets, type_name
from pvt_mm.utils.errors import InputError, config_errors

# The preprocessors that take 1 or 3 channels, and ours that take any number.
OURS = {'DetDataPreprocessor': 'pvt_mm.DetDataPreprocessor', 'SegDataPreProcessor': 'pvt_mm.SegDataPreProcessor'}
# Transforms that change colours: they fail on other numbers of channels than 3.
COLOR_ONLY = ('PhotoMetricDistortion', 'YOLOXHSVRandomAug', 'ColorTransform', 'Color', 'Grayscale', 'RandomGrayscale')
HEADS = ('decode_head', 'auxiliary_head', 'panoptic_head', 'head')


def channels_of(config: Config) -> int:
    """Returns the number of channels of a model's images: ``in_channels`` of the backbone, or else of the means."""
    model = config.get('model') or {}
    means = len((model.get('data_preprocessor') or {}).get('mean') or ())
    return (model.get('backbone') or {}).get('in_channels', max(means, 3) if means != 1 else 3)


def check_channels(config: Config, *splits: str) -> None:
    """Raises an InputError where a model, and the pipelines of ``splits``, disagree on the number of channels."""
    normalize = (config.get('model') or {}).get('data_preprocessor') or {}
    means, channels = len(normalize.get('mean') or ()), channels_of(config)
    if means not in (0, 1, channels):
        raise InputError(
            f'model.data_preprocessor.mean has {means} values, and model.backbone.in_channels is {channels}: give mean '
            f'and std {channels} values, or set in_channels={means}'
        )
    kind = normalize.get('type', '')
    if channels not in (1, 3) and isinstance(kind, str) and kind.removeprefix('mmdet.').removeprefix('mmseg.') in OURS:
        ours = OURS[kind.split('.')[-1]]
        raise InputError(f'{kind} takes 1 or 3 channels, not {channels}: set model.data_preprocessor.type={ours}')
    if channels == 3:
        return
    for split, pipeline in _pipelines(config, splits):
        for i, step in enumerate(pipeline):
            where = f'{split}_dataloader.dataset.pipeline.{i}'
            if type_name(step) == 'LoadImageFromFile' and step.get('imdecode_backend') != 'tifffile':
                wanted = ('unchanged', 'grayscale') if channels == 1 else ('unchanged',)
                if step.get('color_type', 'color').removesuffix('_ignore_orientation') not in wanted:
                    raise InputError(
                        f'the model takes {channels} channels, and LoadImageFromFile loads 3: set {where}.color_type='
                        f'{wanted[-1]}'
                    )
            if type_name(step) in COLOR_ONLY:
                raise InputError(
                    f'{type_name(step)} ({where}) takes 3 channels, and the model {channels}: remove it, or put it '
                    "into the pipeline as dict(type='pvt_mm.OnRGB', transforms=[...])"
                )


def check_widths(config: dict, model: nn.Module) -> None:
    """Raises an InputError where ``in_channels`` of a model's neck, or without one of a head, are not the backbone's.

    A list has an entry for each map that the backbone returns, or for those in ``in_index``. Backbones without our
    ``arch`` are not checked.

    Args:
        config: The config of the model.
        model: What is built from it.
    """
    backbone = getattr(model, 'backbone', None)
    widths = getattr(getattr(backbone, 'arch', None), 'embed_dims', None)
    if widths is None:
        return
    maps = [widths[i] for i in backbone.out_indices]
    for name in ['neck'] if config.get('neck') else HEADS:
        part = config.get(name)
        given = part.get('in_channels') if isinstance(part, dict) else None
        several = isinstance(given, (list, tuple))
        if given is None or (name == 'neck' and not several):
            continue
        index = part.get('in_index', range(len(maps)) if several else -1)
        with config_errors(f'model.{name}.in_index={index}'):
            wanted = [maps[i] for i in index] if several else maps[index]
        if (len(given) == len(wanted) and [*given] != wanted) if several else given != wanted:
            *others, last = map(str, widths)
            raise InputError(
                f"model.{name}.in_channels is {given}, and the backbone's stages have {', '.join(others)} and {last} "
                f'channels: set model.{name}.in_channels={wanted}'
            )


def _pipelines(config: Config, splits: Sequence[str]) -> Iterator[tuple[str, list[dict]]]:
    for split in splits:
        loader = config.get(f'{split}_dataloader') or {}
        for leaf in leaf_datasets(loader.get('dataset') or {}):
            yield split, leaf.get('pipeline') or []
