"""The size of a config's images, in all of its pipelines at once."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from pvt_mm.apis.config import SPLITS, innermost_dataset, type_name
from pvt_mm.utils.errors import InputError

LEAST = 32  # pixels, which PVT's stages need; PVTv2's need less
# Settings of transforms, data preprocessors and batch augmentations that are sizes in pixels.
SIZES = ('scale', 'scales', 'crop_size', 'size', 'img_scale', 'pad_size', 'random_size_range', 'border')


def use_size(config: Config, size: int) -> None:
    """Makes the shorter side of test images ``size`` pixels (``--size``), and scales all other sizes in proportion.

    These are the sizes in the pipelines of all splits and of test-time augmentation, in the data preprocessor, and the
    windows of a segmentor that tests by sliding. A classifier's size is that of its central crop.

    Raises:
        InputError: The size is less than 32 pixels, or the test pipeline resizes nothing.
    """
    check_size(size)
    ratio = size / size_of_tests(config)
    model = config.model
    parts = [config[f'{split}_dataloader'].dataset for split in SPLITS if config.get(f'{split}_dataloader')]
    parts += [config.get('tta_pipeline'), model.get('data_preprocessor'), *_later_pipelines(config)]
    scaled: set[int] = set()
    for part in parts:
        _scale(part, ratio, scaled)
    test_cfg = model.get('test_cfg') or {}
    for key in ('crop_size', 'stride'):
        if test_cfg.get(key) and test_cfg.get('mode') == 'slide':
            test_cfg[key] = _scaled(test_cfg[key], ratio)


def check_size(size: int | None) -> None:
    """Raises an InputError if a size is given and is less than 32 pixels."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < LEAST):
        raise InputError(f'--size {size}: it must be a whole number of pixels from {LEAST}')


def size_of_tests(config: Config) -> int:
    """Returns the shorter side in pixels to which the config resizes its test images.

    Raises:
        InputError: The test pipeline has no size.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader') or config.get('train_dataloader')
    steps = list(_steps(innermost_dataset(loader.dataset).get('pipeline'))) if loader else []
    for kinds, key in ((('CenterCrop',), 'crop_size'), (('Resize', 'RandomResize', 'RandomResizedCrop'), 'scale')):
        for step in steps:
            sides = _sides(step.get(key)) if type_name(step) in kinds else []
            if sides:
                return min(sides)
    raise InputError(
        '--size: the test pipeline of the config has no Resize or CenterCrop in pixels: set its sizes there'
    )


def _later_pipelines(config: Config) -> Iterator[Any]:
    """Yields the pipelines that hooks switch to during training."""
    for hook in config.get('custom_hooks') or ():
        yield hook.get('switch_pipeline')


def _steps(config: Any) -> Iterator[dict]:
    if isinstance(config, dict) and 'type' in config:
        yield config
    items = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ()
    for item in items:
        yield from _steps(item)


def _sides(value: Any) -> list[int]:
    """Returns the sizes in a setting, of any nesting."""
    if isinstance(value, (list, tuple)):
        return [side for item in value for side in _sides(item)]
    return [value] if _is_size(value) else []


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1


def _scale(config: Any, ratio: float, done: set[int]) -> None:
    """Scales the sizes in a part of a config, each dict once, as data sets may share a pipeline."""
    if isinstance(config, dict):
        if id(config) in done:
            return
        done.add(id(config))
        for key, value in config.items():
            if key in SIZES and _sides(value):
                config[key] = _scaled(value, ratio)
            else:
                _scale(value, ratio, done)
    elif isinstance(config, (list, tuple)):
        for item in config:
            _scale(item, ratio, done)


def _scaled(value: Any, ratio: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, ratio) for item in value)
    return round(value * ratio) if _is_size(value) else value
