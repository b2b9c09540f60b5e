"""The rehearsal of the evaluation: what would fail after an epoch fails before training, and nothing is left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS, DefaultScope

from pvt_mm.apis import rehearsal
from pvt_mm.apis.rehearsal import rehearse
from pvt_mm.utils.errors import InputError

CLASSES = ('circle', 'square', 'triangle')
ANNOTATIONS = 'annotations/instances_val2017.json'


def detection(root: Path, hooks: dict | None = None, **evaluator) -> Config:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 80), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    data = dict(
        type='CocoDataset',
        ann_file=str(root / ANNOTATIONS),
        data_prefix=dict(img=str(root / 'val2017')),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    metric = dict(type='CocoMetric', ann_file=str(root / ANNOTATIONS)) | evaluator
    return Config(dict(val_dataloader=dict(dataset=data), val_evaluator=metric, default_hooks=hooks or {}))


def segmentation(root: Path, *, resize_last: bool = False, **evaluator) -> Config:
    steps = [
        dict(type='Resize', scale=(128, 32), keep_ratio=True),
        dict(type='LoadAnnotations', reduce_zero_label=True),
    ]
    data = dict(
        type='BaseSegDataset',
        reduce_zero_label=True,
        metainfo=dict(classes=CLASSES, palette=[[0, 0, 0]] * 3),
        data_prefix=dict(img_path=str(root / 'images/validation'), seg_map_path=str(root / 'annotations/validation')),
        pipeline=[dict(type='LoadImageFromFile'), *(steps[::-1] if resize_last else steps), dict(type='PackSegInputs')],
    )
    return Config(dict(val_dataloader=dict(dataset=data), val_evaluator=dict(type='IoUMetric') | evaluator))


def classification(root: Path, **evaluator) -> Config:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
    data = dict(type='pvt_mm.ImageFolder', data_prefix=str(root / 'classification/val'), pipeline=pipeline)
    metric = dict(type='pvt_mm.Accuracy') | evaluator
    return Config(dict(val_dataloader=dict(dataset=data), val_evaluator=metric))


SCOPES = {detection: 'mmdet', segmentation: 'mmseg', classification: 'mmengine'}


def rehearsed(make: Callable, root: Path, **settings) -> None:
    with DefaultScope.overwrite_default_scope(SCOPES[make]):
        rehearse(make(root, **settings))


@pytest.fixture
def metrics(monkeypatch) -> dict:
    """The metrics of the last rehearsal."""
    found = {}
    compute = rehearsal._compute

    def keep(*args):
        result = compute(*args)
        found.update(result[0])
        return result

    monkeypatch.setattr(rehearsal, '_compute', keep)
    return found


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(rehearsal, 'print_log', lambda text, **_: lines.append(text))
    return lines


def edited(shapes: Path, tmp_path: Path, edit: Callable[[dict], None]) -> Path:
    """Returns a copy of the validation data with other annotations."""
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'val2017').symlink_to(shapes / 'val2017')
    content = json.loads((shapes / ANNOTATIONS).read_text())
    edit(content)
    (tmp_path / ANNOTATIONS).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ('make', 'settings', 'expected'),
    [
        (detection, dict(metric=['bbox', 'segm']), {'coco/bbox_mAP': 1, 'coco/bbox_mAP_75': 1, 'coco/segm_mAP': 1}),
        (detection, dict(ann_file=None), None),
        (detection, dict(classwise=True, prefix='val'), {'val/bbox_mAP': 1, 'val/circle_precision': 1}),
        (segmentation, dict(iou_metrics=['mIoU', 'mDice']), {'mIoU': 100, 'mDice': 100, 'aAcc': 100}),
        (classification, {}, {'accuracy/top1': 100, 'accuracy/error1': 0}),
    ],
)
def test_perfect_predictions_are_perfect_and_nothing_is_printed(make, settings, expected, shapes, metrics, capfd):
    if expected is None:  # the metric asks for `instances`, which this pipeline does not pack
        with pytest.raises(InputError, match='CocoMetric: AssertionError: ground truth is required'):
            rehearsed(make, shapes, **settings)
        return
    rehearsed(make, shapes, **settings)
    assert metrics == pytest.approx({**metrics, **expected}, nan_ok=True)
    assert expected.keys() <= metrics.keys()
    assert capfd.readouterr() == ('', '')
    assert not MMLogger.get_current_instance().disabled


def test_nothing_is_written(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rehearsed(detection, shapes, outfile_prefix='results/out', format_only=True)
    rehearsed(segmentation, shapes, output_dir='maps')
    config = detection(shapes)
    config.val_evaluator = [config.val_evaluator, dict(type='DumpDetResults', out_file_path='all.pkl')]
    with DefaultScope.overwrite_default_scope('mmdet'):
        rehearse(config)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('make', 'settings', 'message'),
    [
        (
            detection,
            dict(type='CocoMetrc'),
            "val_evaluator.type is 'CocoMetrc', which is no metric; did you mean CocoMetric?",
        ),
        (detection, dict(metrc='bbox'), "cannot be built: TypeError: .*unexpected keyword argument 'metrc'"),
        (detection, dict(metric='box'), "cannot be built: KeyError: .*metric should be one of 'bbox'"),
        (detection, dict(format_only=True), 'cannot be built: AssertionError: outfile_prefix must'),
        (
            detection,
            dict(metric_items=['AP']),
            'the evaluation would fail: val_evaluator, CocoMetric: KeyError: .*"AP"',
        ),
        (segmentation, dict(iou_metrics=['IoU']), r"would fail: val_evaluator, IoUMetric: KeyError: .*\['IoU'\]"),
        (segmentation, dict(resize_last=True), r'resizes label maps, from \(64, 64\) to .*: put LoadAnnotations after'),
    ],
)
def test_what_would_fail_after_an_epoch_fails_at_once(make, settings, message, shapes):
    with pytest.raises(InputError, match=message):
        rehearsed(make, shapes, **settings)


def drop(key: str) -> Callable[[dict], None]:
    return lambda content: [ann.pop(key) for ann in content['annotations']]


def shift_image_ids(content: dict) -> None:
    for one, key in (*((ann, 'image_id') for ann in content['annotations']), *((i, 'id') for i in content['images'])):
        one[key] += 1000


def other_boxes(content: dict) -> None:
    for ann in content['annotations']:
        ann['bbox'][0] += 20


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (drop('iscrowd'), 'would fail: .*the annotations have no "iscrowd"; write'),
        (lambda content: content['categories'].pop(), r'its ann_file has 2 of the 3 classes'),
        (shift_image_ids, 'its ann_file has not the images of the data'),
        (other_boxes, 'reach bbox_mAP 0.* instead of 1: its ann_file has other objects than the data'),
    ],
)
def test_an_evaluator_with_other_annotations_than_the_data(edit, message, shapes, tmp_path):
    other = edited(shapes, tmp_path, edit) / ANNOTATIONS
    with pytest.raises(InputError, match=message):
        rehearsed(detection, shapes, ann_file=str(other))


def test_annotation_id_0_and_objects_that_are_not_read(shapes, tmp_path, logged):
    def number_from_0(content: dict) -> None:
        for ann in content['annotations']:
            ann['id'] -= 1

    (tmp_path / 'ids').mkdir()
    data = edited(shapes, tmp_path / 'ids', number_from_0)
    with pytest.raises(InputError, match='the id of an annotation is 0'):
        rehearsed(detection, data)

    def empty_two(content: dict) -> None:
        for ann in content['annotations'][:2]:
            ann['area'] = 0

    rehearsed(detection, edited(shapes, tmp_path, empty_two))
    assert any('2 of ' in line and 'objects of these images are not read' in line for line in logged)


def test_more_objects_than_are_compared(shapes, tmp_path, logged):
    def crowd_the_images(content: dict) -> None:
        first = content['annotations'][0]
        content['annotations'] = [
            {**first, 'id': 300 * image['id'] + i, 'image_id': image['id'], 'bbox': [2 * (i % 20), 2 * (i // 20), 2, 2]}
            for image in content['images']
            for i in range(300)
        ]

    data = edited(shapes, tmp_path, crowd_the_images)
    rehearsed(detection, data)
    assert 'reach bbox_mAP 0.337 instead of 1: COCO compares 100 objects of a class in an image, and' in logged[0]


def test_scores_of_less_than_half_are_an_error_and_others_a_warning():
    with pytest.raises(InputError, match=r'reach mIoU 49.9 instead of 100: its ground truth is not that of the data'):
        rehearsal._remark(object(), [], 'mIoU', 49.9, 'val_evaluator')
    (warning,) = rehearsal._remark(object(), [], 'mIoU', 50.1, 'val_evaluator')
    assert 'its ground truth is not that of the data' in warning


def test_data_without_images_or_objects(shapes, tmp_path, logged):
    def no_objects(content: dict) -> None:
        content['annotations'] = []

    def no_images(content: dict) -> None:
        content['annotations'] = content['images'] = []

    for name in ('objects', 'images'):
        (tmp_path / name).mkdir()
    rehearsed(detection, edited(shapes, tmp_path / 'objects', no_objects))
    with pytest.raises(InputError, match=r'the val data is empty: no image is in .*json; --no-validate trains without'):
        rehearsed(detection, edited(shapes, tmp_path / 'images', no_images))


@pytest.mark.parametrize(
    ('hooks', 'message'),
    [
        (dict(save_best='coco/bbox_mAP'), None),
        (dict(save_best=['coco/bbox_mAP', 'coco/bbox_mAP_50']), None),
        (dict(save_best='auto'), None),
        (dict(save_best='bbox_mAP'), r'default_hooks.one.save_best is .*coco/bbox_mAP_l: did you mean coco/bbox_mAP\?'),
        (dict(save_best=['coco/bbox_mAP', 'coco/bbox_map50']), 'did you mean coco/bbox_mAP_50'),
        (dict(save_best='loss', rule='less'), 'computes .*: choose one of them'),
        (dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP'), None),
        (dict(type='mmengine.EarlyStoppingHook', monitor='mAP'), "default_hooks.one.monitor is 'mAP'"),
    ],
)
def test_hooks_wait_for_metrics_that_are_computed(hooks, message, shapes):
    hooks = dict(one=dict(type='CheckpointHook') | hooks)
    if message is None:
        rehearsed(detection, shapes, hooks=hooks)
    else:
        with pytest.raises(InputError, match=message):
            rehearsed(detection, shapes, hooks=hooks)


def test_other_settings_that_name_a_metric(shapes, logged):
    config = segmentation(shapes)
    with DefaultScope.overwrite_default_scope('mmseg'):
        config.param_scheduler = [dict(type='LinearLR'), dict(type='ReduceOnPlateauLR', monitor='mIou')]
        with pytest.raises(InputError, match=r"param_scheduler.1.monitor is 'mIou', .*: did you mean mIoU\?"):
            rehearse(config)
        config.param_scheduler = dict(a=[dict(type='ReduceOnPlateauMomentum')])
        with pytest.raises(InputError, match=r"param_scheduler.a.0.monitor is 'loss'"):
            rehearse(config)
        config.param_scheduler = None
        config.custom_hooks = [
            dict(type='pvt_mm.CheckpointHook', save_best='auto', greater_keys=['mIoU'], less_keys=['x'])
        ]
        with pytest.raises(InputError, match=r"custom_hooks.0.save_best is 'auto', the first metric, aAcc; set .*rule"):
            rehearse(config)
        config.custom_hooks = [dict(type='CheckpointHook', save_best='mIoU')]
        config.val_evaluator = dict(type='IoUMetric', format_only=True, output_dir='maps')
        with pytest.raises(InputError, match='the evaluation computes no metric: is format_only set'):
            rehearse(config)
        config.val_cfg = dict(type='TeacherStudentValLoop')  # which names metrics otherwise
        rehearse(config)


def test_two_metrics_of_one_name(shapes):
    config = segmentation(shapes)
    config.val_evaluator = [dict(type='IoUMetric')] * 2
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(InputError, match='two metrics of val_evaluator'):
        rehearse(config)


@METRICS.register_module()
class MetricOfAnotherLibrary(BaseMetric):
    default_prefix = 'other'

    def process(self, data_batch, data_samples):
        raise AssertionError('it is not known what to feed')

    compute_metrics = process


def test_what_is_not_known_is_left_out(shapes, logged):
    config = segmentation(shapes)
    config.val_evaluator = [dict(type='IoUMetric'), dict(type='MetricOfAnotherLibrary')]
    config.custom_hooks = [dict(type='CheckpointHook', save_best='other/score', rule='greater')]
    data = config.val_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmseg'):
        rehearse(config)
        assert logged == [
            'val_evaluator: MetricOfAnotherLibrary cannot be rehearsed',
            'whether custom_hooks.0.save_best, other/score, is computed is not known',
        ]
        config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[data, data])
        rehearse(config)
        config.val_dataloader.dataset = data
        config.val_evaluator = dict(
            type='MultiDatasetsEvaluator', metrics=[dict(type='IoUMetric')], dataset_prefixes=['a']
        )
        rehearse(config)
        assert len(logged) == 4
        assert all('not rehearsed: its evaluator or data set is a wrapper' in line for line in logged[2:])
        config.val_evaluator = None
        rehearse(config)


def test_an_unreadable_image_is_named(shapes, tmp_path):
    shutil.copytree(shapes / 'val2017', tmp_path / 'val2017')
    shutil.copytree(shapes / 'annotations', tmp_path / 'annotations')
    image = min((tmp_path / 'val2017').iterdir())
    image.write_text('no image')
    with pytest.raises(InputError, match=f'an image cannot be read: {image} is truncated or not an image'):
        rehearsed(detection, tmp_path)
