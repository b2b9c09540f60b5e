"""The commands themselves: train, resume, test, draw and dump, and one line for what is wrong."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.checkpoint import read_checkpoint
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine import run
from tests.conftest import ROOT, TINY_ARCH, forget_visualizers
from tools import test as test_tool
from tools import train as train_tool

CONFIG = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]))
"""
FAST = [
    'train_cfg.max_epochs=2',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
    'train_dataloader.dataset.pipeline.3.prob=0.0',  # no chance but the order: checkpoints have no random state
    'default_hooks.checkpoint.max_keep_ckpts=2',
    'model.test_cfg.score_thr=0.0',
]


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH))
    stopping = "_base_ = 'small.py'\ncustom_hooks = [dict(type='StopAfterEpoch')]\n"
    (tmp_path / 'stopping.py').write_text(stopping)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint='other.pth')
    pretrained = f"_base_ = 'small.py'\nmodel = dict(backbone=dict(init_cfg={init_cfg}))\n"
    (tmp_path / 'pretrained.py').write_text(pretrained)
    return 'small.py'


def options(shapes: Path, *more: str) -> list[str]:
    return ['--cfg-options', f'data_root={shapes}', *FAST, *more]


def losses(work_dir: str) -> dict[int, float]:
    lines = [
        json.loads(line)
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_train_resume_and_test(config, shapes, capsys):
    whole = ['small.py', '--work-dir', 'whole', '--seed', '1']
    assert train_tool.main([*whole, *options(shapes)]) == 0
    logged = losses('whole')
    assert sorted(logged) == list(range(1, 13))  # 12 pictures, 2 a step, 2 epochs

    # Stopped after the first epoch and resumed, the run is the one that was not stopped.
    forget_visualizers()
    part = ['--work-dir', 'part', '--seed', '1']
    assert train_tool.main(['stopping.py', *part, *options(shapes)]) == 130
    assert Path('part/last_checkpoint').read_text().endswith('epoch_1.pth')
    assert train_tool.main(['small.py', *part, '--resume', *options(shapes)]) == 0
    resumed = losses('part')
    assert sorted(resumed) == sorted(logged)
    assert resumed == pytest.approx(logged, rel=1e-5)

    # Weights under another name than MMEngine's are tested just the same, and no run goes on from them.
    capsys.readouterr()
    torch.save({'model': torch.load('whole/epoch_2.pth', weights_only=False)['state_dict']}, 'weights.pth')
    metrics = []
    for path in ('whole/epoch_2.pth', 'weights.pth'):
        assert test_tool.main(['small.py', path, '--work-dir', 'tested', *options(shapes)]) == 0
        metrics.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert metrics[0] == metrics[1]
    assert train_tool.main(['small.py', '--resume', 'weights.pth', '--work-dir', 'tested', *options(shapes)]) == 2
    assert 'weights.pth has no meta, message_hub, optimizer' in capsys.readouterr().err

    arguments = ['small.py', 'whole/epoch_2.pth', '--work-dir', 'tested', '--out', 'out.pkl', '--show-dir', 'drawn']
    assert test_tool.main([*arguments, *options(shapes)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 'coco/bbox_mAP' in metrics
    assert len(pickle.loads(Path('out.pkl').read_bytes())) == 6
    assert len(list(Path('tested').rglob('drawn/*.jpg'))) == 6
    scales = [f'tta_pipeline.1.transforms.0.{i}.scale=(96,96)' for i in range(3)]
    with_tta = [*arguments[:4], '--tta', *options(shapes, *scales)]
    assert test_tool.main(with_tta) == 0


CLASSIFIER = """
_base_ = '{root}/configs/classification/pvt_t_300e.py'
arch = dict(_delete_=True, **{arch})
model = dict(
    backbone=dict(arch=arch, pretrain_img_size=64, drop_path_rate=0.0), head=dict(num_classes=3, in_channels=32)
)
load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
resize, pack = dict(type='Resize', scale=(64, 64)), dict(type='pvt_mm.PackInputs')
loading = dict(num_workers=0, persistent_workers=False, batch_size=4, dataset=dict(pipeline=[load, resize, pack]))
train_dataloader = dict(sampler=dict(num_repeats=1, selected_round=0), **loading)
val_dataloader = loading
test_dataloader = loading
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
"""


def test_a_classifier_is_trained_resumed_tested_and_starts_a_detector(config, shapes, capsys):
    Path('classifier.py').write_text(CLASSIFIER.format(root=ROOT, arch=TINY_ARCH))
    Path('stopped.py').write_text("_base_ = 'classifier.py'\ncustom_hooks = [dict(type='StopAfterEpoch')]\n")
    off = [f'model.data_preprocessor.{name}=None' for name in ('rand_augment', 'erasing', 'mixup', 'cutmix')]
    data = ['--cfg-options', f'data_root={shapes}/classification', *off]
    assert train_tool.main(['classifier.py', '--work-dir', 'whole', '--seed', '1', *data]) == 0
    logged = losses('whole')
    assert sorted(logged) == list(range(1, 7))  # 12 pictures, 4 a step, 2 epochs
    forget_visualizers()
    part = ['--work-dir', 'part', '--seed', '1', *data]
    assert train_tool.main(['stopped.py', *part]) == 130
    assert train_tool.main(['classifier.py', '--resume', *part]) == 0
    assert losses('part') == pytest.approx(logged, rel=1e-5)

    capsys.readouterr()
    tested = ['classifier.py', 'whole/epoch_2.pth', '--work-dir', 'tested']
    assert test_tool.main([*tested, '--out', 'out.pkl', *data]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    predictions = pickle.loads(Path('out.pkl').read_bytes())
    assert len(predictions) == 6
    right = sum(one['pred_label'].item() == one['gt_label'].item() for one in predictions)
    assert metrics['accuracy/top1'] == pytest.approx(100 * right / 6)
    assert metrics['accuracy/error1'] == pytest.approx(100 - metrics['accuracy/top1'])

    start = [f'model.backbone.init_cfg.{part}' for part in ('type=Pretrained', 'checkpoint=whole/epoch_2.pth')]
    detector = ['small.py', '--work-dir', 'detector', *options(shapes, *start, 'train_cfg.max_epochs=1')]
    assert train_tool.main([*detector, 'optim_wrapper.optimizer.lr=0.0']) == 0
    classifier, trained = map(read_checkpoint, ('whole/epoch_2.pth', 'detector/epoch_1.pth'))
    stages = [key for key in trained if key.startswith('backbone.')]
    assert {key for key in classifier if key.startswith('backbone.stages.')} == set(stages)
    table = 'pos_embed.table'  # resampled from 64 pixels to 224
    # but for six steps of AdamW at the schedule's least rate
    assert all(torch.allclose(trained[key], classifier[key], atol=1e-4) for key in stages if table not in key)

    for faults, message in (
        (['model.head.num_classes=2'], 'model.head.num_classes is 2, and the train data has 3 classes'),
        (
            ["model.backbone.init_cfg={'type':'Pretrained'}"],
            'it must be a dict; write --cfg-options',
        ),
        (['data_root=gone'], 'the train data is not there: gone/train does not exist. ImageNet is laid out as'),
    ):
        assert train_tool.main(['classifier.py', '--work-dir', 'refused', *data, *faults]) == 2
        assert message in capsys.readouterr().err


SEGMENTOR = """
_base_ = '{root}/configs/semantic_fpn/pvt_t_80k.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), init_cfg=None)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=backbone,
    neck=dict(in_channels=[8, 16, 24, 32]),
    decode_head=dict(num_classes=3),
)
shapes = dict(type='BaseSegDataset', reduce_zero_label=True, metainfo=dict(classes=('circle', 'square', 'triangle'),
    palette=[[200, 0, 0], [0, 200, 0], [0, 0, 200]]))
train_dataloader = dict(dataset=shapes, num_workers=0, persistent_workers=False)
val_dataloader = dict(dataset=shapes, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1, val_interval=1)
"""
SMALL = ['train_dataloader.dataset.pipeline.3.crop_size=(64,64)', 'test_dataloader.dataset.pipeline.1.scale=(256,64)']
SMALL += [f'tta_pipeline.1.transforms.0.{i}.scale=({128 + 32 * i},64)' for i in range(6)]


def test_a_segmentor_is_trained_and_tested_flipped_at_several_scales(config, shapes, capsys):
    Path('segmentor.py').write_text(SEGMENTOR.format(root=ROOT, arch=TINY_ARCH))
    more = ['--work-dir', 'seg', '--cfg-options', f'data_root={shapes}', *SMALL]
    assert train_tool.main(['segmentor.py', *more]) == 0
    for flags in ([], ['--tta']):
        forget_visualizers()
        assert test_tool.main(['segmentor.py', 'seg/iter_1.pth', *flags, *more]) == 0
        metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert 0 <= metrics['mIoU'] <= 100


MASKS = """
_base_ = '{root}/configs/mask_rcnn/pvt_t_1x.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), init_cfg=None)
head = dict(num_classes=3)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]), roi_head=dict(bbox_head=head, mask_head=head))
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{shapes}', indices=2, metainfo=dict(classes=('circle', 'square', 'triangle'))),
)
test_evaluator = dict(ann_file='{shapes}/annotations/instances_val2017.json')
"""


def test_a_mask_rcnn_is_tested_flipped_at_several_scales(config, shapes, capsys):
    Path('masks.py').write_text(MASKS.format(root=ROOT, arch=TINY_ARCH, shapes=shapes))
    model = run.load_config('masks.py').model
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save({'state_dict': MODELS.build(model).state_dict()}, 'masks.pth')
    sizes = [f'tta_pipeline.1.transforms.0.{i}.scale=({64 + 32 * i},64)' for i in range(3)]
    more = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rpn.max_per_img=20', *sizes]
    assert test_tool.main(['masks.py', 'masks.pth', '--work-dir', 'masks', '--tta', *more]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (train_tool, ['gone.py'], 'the config gone.py does not exist'),
        (
            train_tool,
            ['small.py', '--cfg-options', 'data_root=gone'],
            'gone/annotations/instances_train2017.json does not',
        ),
        (train_tool, ['small.py', '--cfg-options', 'DATA', 'train_dataloader.batch_size=0'], 'must be at least 1'),
        (train_tool, ['small.py', '--resume', 'gone.pth'], '--resume: the checkpoint gone.pth does not exist'),
        (train_tool, ['small.py', '--work-dir', 'small.py/x'], 'the work directory small.py/x cannot be made'),
        (train_tool, ['small.py', '--cfg-options', 'model.backbone.frozen_stages=9', 'DATA'], 'frozen_stages must be'),
        (train_tool, ['small.py', '--cfg-options', 'model.type=RetinaNot', 'DATA'], 'RetinaNot'),
        (train_tool, ['small.py', '--cfg-options', 'load_from=other.pth', 'DATA'], 'has nothing for this model'),
        (train_tool, ['pretrained.py', '--cfg-options', 'DATA'], 'other.pth: it holds no PVT'),
        (test_tool, ['small.py', 'gone.pth', '--cfg-options', 'DATA'], 'gone.pth does not exist'),
        (test_tool, ['small.py', 'other.pth', '--cfg-options', 'DATA'], 'other.pth is of another model'),
        (test_tool, ['small.py', 'other.pth', '--out', 'folder', '--cfg-options', 'DATA'], 'name a .pkl file'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tool, arguments, message, config, shapes, capsys):
    torch.save({'layer.weight': torch.ones(1)}, 'other.pth')
    arguments = [f'data_root={shapes}' if argument == 'DATA' else argument for argument in arguments]
    if '--cfg-options' in arguments and f'data_root={shapes}' in arguments:
        after = arguments.index('--cfg-options') + 1
        arguments = [*arguments[:after], *FAST, *arguments[after:]]
    assert tool.main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]


def test_a_run_that_is_refused_leaves_no_folder(config, capsys):
    assert train_tool.main(['small.py', '--cfg-options', 'data_root=gone']) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert not Path('work_dirs').exists()


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('fault', ['damaged', 'does not exist'])
def test_an_image_that_cannot_be_read_is_named(fault, workers, config, tmp_path, capsys):
    make_shapes(tmp_path / 'shapes', image_size=64, train=2, val=1)
    image = next((tmp_path / 'shapes/train2017').iterdir())
    image.unlink()
    if fault == 'damaged':
        image.write_bytes(b'no picture')
    strict = (f'train_dataloader.num_workers={workers}', 'train_cfg.max_broken_images=0')
    arguments = ['small.py', *options(tmp_path / 'shapes', *strict)]
    assert train_tool.main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert f'an image cannot be read: {image} ' in error[0]
    assert fault in error[0]


@pytest.mark.parametrize('arguments', [['small.py', '--epochs', '3'], ['small.py', '--cfg-options', 'a'], []])
def test_bad_usage_exits_with_2(arguments, config):
    with pytest.raises(SystemExit) as stop:
        train_tool.main(arguments)
    assert stop.value.code == 2


def test_mmdets_own_tools_run_these_configs(config, shapes):
    """Nothing of ours is imported first: `type='pvt_mm.PVT'` is enough."""
    import mmdet

    tool = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    moved = [
        *(f'{split}_dataloader.dataset.data_root={shapes}/' for split in ('train', 'val', 'test')),
        *(f'{split}_evaluator.ann_file={shapes}/annotations/instances_val2017.json' for split in ('val', 'test')),
    ]
    command = [sys.executable, str(tool), 'small.py', '--work-dir', 'theirs', '--cfg-options', *moved, *FAST]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run([*command, 'train_cfg.max_epochs=1'], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]

    from mmdet.apis import inference_detector, init_detector

    model = init_detector('small.py', 'theirs/epoch_1.pth', device='cpu')
    picture = next((shapes / 'val2017').iterdir())
    assert inference_detector(model, str(picture)).pred_instances.bboxes.shape[1] == 4


SAME_WEIGHTS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SameWeights(Hook):
    def after_train(self, runner):
        weights = torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])
        both = [torch.empty_like(weights) for _ in range(2)]
        torch.distributed.all_gather(both, weights)
        assert torch.equal(*both)
        open(f'same{runner.rank}', 'w').close()
"""


def test_dist_train_trains_one_model_in_two_processes(config, shapes, tmp_path):
    Path('same_weights.py').write_text(SAME_WEIGHTS)
    hook = "custom_imports = dict(imports=['same_weights'])\ncustom_hooks = [dict(type='SameWeights')]\n"
    Path('checked.py').write_text(f"_base_ = 'small.py'\n{hook}")
    command = [str(ROOT / 'tools/dist_train.sh'), 'checked.py', '2', '--work-dir', 'two words', *options(shapes)]
    path = f'{ROOT}:{tmp_path}'
    environment = {**os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable, 'PORT': '29511'}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(losses('two words')) == list(range(1, 7))  # half the steps that one process takes
    assert Path('two words/epoch_2.pth').is_file()
    assert Path('same0').exists()
    assert Path('same1').exists()
