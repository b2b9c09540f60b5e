"""Prediction on test data that has no ground truth: image lists, and images without label maps."""

import glob
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from pvt_mm.apis.config import as_list, leaf_datasets, type_name
from pvt_mm.apis.ranks import on_first_rank
from pvt_mm.datasets.classes import classes_of
from pvt_mm.datasets.coco import read_coco
from pvt_mm.datasets.coco.files import upright_size
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import write_json

IMAGE_LIST = 'images_of_{}'  # in the work directory: an image list, completed


def use_unlabelled(config: Config, out: str | None) -> None:
    """Prepares the test part of a config for data without ground truth, if it has none; all ranks must call it.

    Evaluators then only write predictions, to ``out`` or where they say. An image list without categories, and perhaps
    sizes, is completed in the work directory: with the categories of the training data, if its json is there, else with
    the classes of the config, numbered from 1. Label maps that are absent are not loaded.

    Raises:
        InputError: There is no ground truth, and nothing says where to write the predictions.
    """
    datasets = list(leaf_datasets(config.test_dataloader.dataset)) if config.get('test_dataloader') else []
    missing = [(dataset, what) for dataset in datasets if (what := _missing_truth(dataset))]
    if not missing:
        return
    evaluators = as_list(config.get('test_evaluator'))
    evaluated = [one for one in evaluators if not one.get('format_only') and not type_name(one).startswith('Dump')]
    if evaluated and not out:
        is_coco = str(missing[0][0].get('ann_file', '')).endswith('.json')
        target = 'outfile_prefix=FOLDER/results' if is_coco else 'output_dir=FOLDER'
        short = '--out FILE.pkl' if is_coco else '--out FOLDER'
        raise InputError(
            f'the test data has no ground truth to evaluate with ({missing[0][1]}): to write the predictions, add '
            f'--cfg-options test_evaluator.format_only=True test_evaluator.{target}, or {short}'
        )
    for one in evaluated:
        one.format_only = True
        if type_name(one) == 'CocoMetric':
            one.setdefault('outfile_prefix', os.path.splitext(out)[0])
    for dataset, _ in missing:
        if _is_json(dataset):
            _complete_list(dataset, config)
        else:
            dataset.data_prefix.pop('seg_map_path', None)
            dataset.pipeline = [step for step in dataset.pipeline if 'LoadAnnotations' not in step['type']]


def written_predictions(config: Config) -> list[str]:
    """Returns the files and folders into which the evaluators of the test have written predictions."""
    found = []
    for one in as_list(config.get('test_evaluator')):
        target = _target(one)
        if one.get('outfile_prefix'):
            found += sorted(glob.glob(f'{glob.escape(target)}.*.json'))
        elif target:
            found.append(target)
    return found


def _target(evaluator: dict) -> str | None:
    """Returns where an evaluator writes predictions, None if it does not."""
    return next(
        (evaluator[name] for name in ('outfile_prefix', 'output_dir', 'out_file_path') if evaluator.get(name)), None
    )


def _is_json(dataset: dict) -> bool:
    return str(dataset.get('ann_file') or '').endswith('.json')


def _path(dataset: dict) -> str:
    return os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')


def _missing_truth(dataset: dict) -> str | None:
    """Returns what a data set lacks of the ground truth, None if it has it or does not exist."""
    if _is_json(dataset):
        path = _path(dataset)
        return f'{path} has no annotations' if os.path.isfile(path) and not _has_annotations(path) else None
    prefix = dataset.get('data_prefix')
    if not isinstance(prefix, dict) or 'img_path' not in prefix or 'Seg' not in str(dataset['type']) + _steps(dataset):
        return None
    if not prefix.get('seg_map_path'):
        return 'data_prefix.seg_map_path is not set'
    folder = os.path.join(dataset.get('data_root') or '', prefix['seg_map_path'])
    images = os.path.join(dataset.get('data_root') or '', prefix['img_path'] or '')
    return f'{folder} does not exist' if os.path.isdir(images) and not os.path.isdir(folder) else None


def _steps(dataset: dict) -> str:
    return ' '.join(str(step['type']) for step in dataset.get('pipeline') or ())


def _has_annotations(path: str) -> bool:
    """Returns whether a COCO json has annotations, without reading all of it."""
    if os.path.getsize(path) == 0:
        return False
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return bool(re.search(rb'"annotations"\s*:\s*\[\s*[^\]\s]', text))


def _complete_list(dataset: dict, config: Config) -> None:
    """Gives an image list what MMDetection reads besides the images, in a file that data set and evaluators use."""
    path = _path(dataset)
    completed = on_first_rank(_write_completed, path, dataset, config)
    if completed is None:
        return
    for one in as_list(config.get('test_evaluator')):
        if one.get('ann_file') and os.path.abspath(one['ann_file']) == os.path.abspath(path):
            one.ann_file = completed
    dataset.ann_file = os.path.abspath(completed)


def _write_completed(path: str, dataset: dict, config: Config) -> str | None:
    """Writes an image list with categories and sizes, and returns its path; None if it has both."""
    content = read_coco(path)
    images = content.get('images')
    if not isinstance(images, list) or not all(isinstance(one, dict) and 'file_name' in one for one in images):
        raise InputError(f'{path} has no list of images, each with an id and a file_name')
    if content.get('categories') and all({'id', 'width', 'height'} <= one.keys() for one in images):
        return None
    folder = os.path.join(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img') or '')
    sized = [_with_size(one, number, folder) for number, one in enumerate(images, 1)]
    categories = content.get('categories') or _training_categories(config) or _numbered(classes_of(dataset))
    target = Path(config.work_dir, IMAGE_LIST.format(Path(path).name))
    write_json(target, {**content, 'images': sized, 'categories': categories, 'annotations': []})
    return str(target)


def _with_size(image: dict, number: int, folder: str) -> dict:
    """Returns an image of the list with id, width and height."""
    if not {'width', 'height'} <= image.keys():
        path = os.path.join(folder, image['file_name'])
        size = upright_size(path)
        if size is None:
            raise InputError(f'{path} does not exist or is not an image')
        image = {**image, 'height': size[0], 'width': size[1]}
    return {'id': number, **image}


def _training_categories(config: Config) -> list[dict] | None:
    """Returns the categories of the training data's json, None if it is not there."""
    for dataset in _training_datasets(config):
        if _is_json(dataset) and os.path.isfile(_path(dataset)):
            return read_coco(_path(dataset)).get('categories')
    return None


def _training_datasets(config: Config) -> Iterator[dict]:
    if config.get('train_dataloader'):
        yield from leaf_datasets(config.train_dataloader.dataset)


def _numbered(classes: list[str]) -> list[dict]:
    return [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
