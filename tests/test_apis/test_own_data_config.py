"""A config on the user's own data: classes, heads, data sets, evaluators and hooks of every kind of config."""

import copy
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from pvt_mm.apis import own_data
from pvt_mm.apis.own_data import class_settings, find_own_data, task_of, use_data
from pvt_mm.datasets.own_data import OwnData
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

COCO = OwnData(
    kind='coco',
    classes=('cat', 'dog'),
    splits={
        'train': dict(ann_file='/run/data/train.json', data_prefix=dict(img='/images/')),
        'val': dict(ann_file='/run/data/val.json', data_prefix=dict(img='/images/')),
    },
    counts=dict(train=8, val=2),
    has_masks=True,
)
MAPS = OwnData(
    kind='label_maps',
    classes=('sky', 'road', 'car'),
    palette=[(0, 0, 0), (1, 2, 3), (9, 9, 9)],
    splits={
        split: dict(
            data_prefix=dict(img_path=f'/{split}/images', seg_map_path=f'/{split}/maps'),
            img_suffix='.png',
            seg_map_suffix='.png',
            reduce_zero_label=False,
        )
        for split in ('train', 'val', 'test')
    },
    counts=dict(train=8, val=2, test=2),
)
FOLDERS = OwnData(
    kind='folders',
    classes=('ant', 'bee'),
    splits={
        split: dict(data_root='/f', data_prefix='', ann_file=f'/run/data/{split}.txt') for split in ('train', 'val')
    },
    counts=dict(train=8, val=2),
)


def read(name: str) -> Config:
    return Config.fromfile(ROOT / f'configs/{name}.py')


def numbers(config: Config) -> dict[str, int]:
    return {place: part.get(key) for place, part, key in class_settings(config.model)}


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        ('retinanet/pvt_s_1x', ['model.bbox_head']),
        ('mask_rcnn/pvt_s_1x', ['model.roi_head.bbox_head', 'model.roi_head.mask_head']),
        ('detr/pvt_s_50e', ['model.bbox_head']),
        ('heads/pvt_s_cascade_rcnn_1x', [f'model.roi_head.bbox_head.{i}' for i in range(3)]),
    ],
)
def test_a_detector_has_the_heads_data_and_evaluators_of_the_data(name, heads):
    config = read(name)
    before = copy.deepcopy(config)
    use_data(config, COCO)
    assert numbers(config) == {f'{head}.num_classes': 2 for head in heads}
    for split, file in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset, old = (c[f'{split}_dataloader'].dataset for c in (config, before))
        assert dataset.type == 'CocoDataset'
        assert dataset.metainfo == dict(classes=('cat', 'dog'))
        assert (dataset.ann_file, dataset.data_prefix.img) == (f'/run/data/{file}.json', '/images/')
        assert dataset.pipeline == old.pipeline
        assert dataset.get('filter_cfg') == old.get('filter_cfg')
        assert 'data_root' not in dataset
    assert config.train_dataloader.dataset.filter_cfg.filter_empty_gt
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert evaluator.type == 'CocoMetric'
        assert evaluator.ann_file == '/run/data/val.json'
        assert evaluator.metric == (['bbox', 'segm'] if 'mask' in name else 'bbox')
    assert 'data_root' not in config


def test_wrapped_data_of_another_kind_is_replaced():
    """VOC's data sets are joined and repeated, its metric is not COCO's, and hooks wait for that metric."""
    config = get_config('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py')
    config.default_hooks.checkpoint.save_best = 'pascal_voc/mAP'
    config.custom_hooks = [dict(type='EarlyStoppingHook', monitor='pascal_voc/mAP')]
    use_data(config, COCO)
    repeat = config.train_dataloader.dataset
    assert (repeat.type, repeat.times) == ('RepeatDataset', 3)
    assert repeat.dataset.type == 'CocoDataset'
    assert repeat.dataset.ann_file == '/run/data/train.json'
    assert [step.type for step in repeat.dataset.pipeline][:2] == ['LoadImageFromFile', 'LoadAnnotations']
    assert config.val_evaluator == dict(
        type='CocoMetric', ann_file='/run/data/val.json', metric='bbox', format_only=False
    )
    assert config.default_hooks.checkpoint.save_best == config.custom_hooks[0].monitor == 'coco/bbox_mAP'


def test_numbers_of_classes_that_are_defaults_or_weights_of_losses_are_set():
    config = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    init_default_scope('mmdet')
    del config.model.roi_head.mask_head['num_classes']  # 80 by default
    use_data(config, COCO)
    assert numbers(config)['model.roi_head.mask_head.num_classes'] == 2
    mask2former = get_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    use_data(mask2former, COCO)
    assert mask2former.model.panoptic_head.num_things_classes == 2
    assert mask2former.model.panoptic_fusion_head.num_things_classes == 2
    assert mask2former.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 0.1]


@pytest.mark.parametrize('name', ['semantic_fpn/pvt_s_80k', 'trans2seg/pvt_s_40k', 'deeplabv3plus/r50_d8_40k'])
def test_a_segmentor_is_no_longer_ade20ks(name):
    config = read(name)
    config.model.decode_head.loss_decode = [dict(type='CrossEntropyLoss', class_weight=[1.0] * 150)]
    config.model.auxiliary_head = [dict(type='FCNHead', num_classes=150)]
    config.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
    use_data(config, MAPS)
    assert numbers(config) == {'model.decode_head.num_classes': 3, 'model.auxiliary_head.0.num_classes': 3}
    assert 'class_weight' not in config.model.decode_head.loss_decode[0]
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.type == 'BaseSegDataset'
        assert dataset.metainfo == dict(classes=MAPS.classes, palette=MAPS.palette)
        assert dataset.data_prefix.seg_map_path == f'/{split}/maps'
        assert dataset.reduce_zero_label is False
        assert all('reduce_zero_label' not in step for step in dataset.pipeline)
    assert config.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'], format_only=False)


def test_a_classifier_has_the_classes_of_the_folders():
    config = read('classification/pvt_s_300e')
    use_data(config, FOLDERS)
    assert numbers(config) == {'model.head.num_classes': 2}
    dataset = config.train_dataloader.dataset
    assert (dataset.type, dataset.ann_file) == ('pvt_mm.ImageFolder', '/run/data/train.txt')
    assert config.test_dataloader.dataset.ann_file == '/run/data/val.txt'
    assert config.test_dataloader.dataset.test_mode
    assert config.val_evaluator.type == 'pvt_mm.Accuracy'
    assert config.default_hooks.checkpoint.save_best == 'accuracy/top1'


@pytest.mark.parametrize(
    ('name', 'data', 'message'),
    [
        ('retinanet/pvt_s_1x', MAPS, 'is a detector, and --data has label maps: .*/semantic_segmentation_pvt_v2.py'),
        ('semantic_fpn/pvt_s_80k', COCO, 'is a segmentor, and --data has boxes .*/own_data/detection_pvt_v2.py'),
        ('retinanet/pvt_s_1x', FOLDERS, 'is a detector, and --data has folders of classes: .*/classification_pvt_v2'),
        (
            'mask_rcnn/pvt_s_1x',
            OwnData(**{**vars(COCO), 'has_masks': False}),
            'predicts masks, and not all objects of --data have one: .* configs/own_data/detection_pvt_v2.py',
        ),
    ],
)
def test_data_of_another_task_is_refused_with_what_to_use_instead(name, data, message):
    config = read(name)
    before = copy.deepcopy(config.to_dict())
    with pytest.raises(InputError, match=message) as error:
        use_data(config, data, f'{name}.py')
    assert config.to_dict() == before
    recipe = str(error.value).rsplit(' ', 1)[-1]
    assert (ROOT / recipe).is_file()


def test_models_that_need_more_than_boxes_are_refused():
    htc = Config(dict(default_scope='mmdet', model=dict(type='HybridTaskCascade')))
    htc.train_dataloader = dict(
        dataset=dict(type='CocoDataset', pipeline=[dict(type='LoadAnnotations', with_seg=True)])
    )
    with pytest.raises(InputError, match=r'htc.py is panoptic, or trains on maps of stuff besides objects'):
        task_of(htc, 'htc.py')
    with pytest.raises(InputError, match=r'gan.py is none of them'):
        task_of(Config(dict(model=dict(type='GAN'))), 'gan.py')
    rpn = get_config('mmdet::rpn/rpn_r50_fpn_1x_coco.py')
    with pytest.raises(InputError, match=r'no head of rpn.py has num_classes'):
        use_data(rpn, COCO, 'rpn.py')


def test_a_resumed_run_keeps_its_split_and_says_what_changed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'mine'
    folder.mkdir()
    (folder / 'a.jpg').write_bytes(b'1')
    found = []

    def find(paths, out, kind, **settings):
        found.append((list(paths), str(out), kind))
        Path(out).mkdir(parents=True, exist_ok=True)
        return FOLDERS

    monkeypatch.setattr(own_data, 'find_data', find)
    config = read('classification/pvt_s_300e')
    config.work_dir = str(tmp_path / 'run')
    first = find_own_data(config, 'c.py', [str(folder)], resume=False)
    assert first == FOLDERS
    assert found == [([str(folder)], str(tmp_path / 'run/data'), 'folders')]
    assert find_own_data(config, 'c.py', [str(folder)], resume=True) == FOLDERS
    assert len(found) == 1
    (folder / '.cache').write_bytes(b'2')
    assert find_own_data(config, 'c.py', [str(folder)], resume=True) == FOLDERS
    assert 'have changed' not in capsys.readouterr().out
    (folder / 'b.jpg').write_bytes(b'2')
    assert find_own_data(config, 'c.py', [str(folder)], resume=True) == FOLDERS
    assert len(found) == 1
    assert f'the files of {folder} have changed since this run began' in capsys.readouterr().out
    with pytest.raises(InputError, match=rf'this run trains on {folder}, and --data is {tmp_path}: give the same'):
        find_own_data(config, 'c.py', [str(tmp_path)], resume=True)
    config.work_dir = str(tmp_path / 'other')
    find_own_data(config, 'c.py', [str(folder)], resume=True)  # there is nothing to resume
    assert len(found) == 2
    record = json.loads((tmp_path / 'run/data/own_data.json').read_text())
    assert record['data']['classes'] == ['ant', 'bee']


def test_the_work_directory_may_be_in_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own_data, 'find_data', lambda *args, **settings: FOLDERS)
    config = read('classification/pvt_s_300e')
    (tmp_path / 'a.jpg').write_bytes(b'1')
    config.work_dir = str(tmp_path / 'run')
    find_own_data(config, 'c.py', [str(tmp_path)], resume=False)
    (tmp_path / 'run/epoch_1.pth').write_bytes(b'1')
    find_own_data(config, 'c.py', [str(tmp_path)], resume=True)
    assert 'have changed' not in capsys.readouterr().out


@pytest.mark.parametrize('other', [True, False])
def test_a_failed_run_leaves_what_others_wrote(other, tmp_path, monkeypatch):
    """Another run may begin in the same folder of runs while the data of this one is read."""

    def find(*args, **settings):
        (tmp_path / 'runs/mine/data/maps').mkdir(parents=True)
        (tmp_path / 'runs/mine/data/maps/0.png').write_bytes(b'1')
        if other:
            (tmp_path / 'runs/other').mkdir()
            (tmp_path / 'runs/other/epoch_1.pth').write_bytes(b'1')
        raise InputError('wrong')

    monkeypatch.setattr(own_data, 'find_data', find)
    config = read('classification/pvt_s_300e')
    config.work_dir = str(tmp_path / 'runs/mine')
    with pytest.raises(InputError, match='wrong'):
        find_own_data(config, 'c.py', [str(tmp_path)], resume=False)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*') if path.is_file())
    assert left == (['runs/other/epoch_1.pth'] if other else [])
    assert (tmp_path / 'runs').exists() == other
    assert not (tmp_path / 'runs/mine').exists()
