"""tools/train.py and tools/test.py: train, resume, test, dump and draw, and one line for bad input."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.apis.config import load_config
from pvt_mm.checkpoint.reader import read_checkpoint
from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2, forget_runs
from tools import test as test_tool
from tools import train as train_tool

# without braces, which str.format would read
V2, LINEAR = (
    f'dict(_delete_=True, {", ".join(f"{key}={value}" for key, value in arch.items())})'
    for arch in (TINY_ARCH_V2, TINY_ARCH_LINEAR)
)
DETECTOR = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]), test_cfg=dict(score_thr=0.0))
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, **loading)
val_dataloader = loading
test_dataloader = loading
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
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
train_cfg = dict(max_epochs=1)
"""
SEGMENTOR = f"""
_base_ = '{ROOT}/configs/semantic_fpn/pvt_v2_b2_80k.py'
backbone = dict(arch={V2}, init_cfg=None)
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
MASKS = f"""
_base_ = '{ROOT}/configs/mask_rcnn/pvt_v2_b2_1x.py'
backbone = dict(arch={LINEAR}, init_cfg=None)
head = dict(num_classes=3)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]), roi_head=dict(bbox_head=head, mask_head=head))
shapes = dict(metainfo=dict(classes=('circle', 'square', 'triangle')))
train_dataloader = dict(dataset=shapes)
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=2, **shapes))
"""
# What is compiled is smaller still.
TWO_STAGES = """
_base_ = 'detector.py'
model = dict(
    backbone=dict(_delete_=True, type='pvt_mm.PVTv2', arch={arch}, drop_path_rate=0.0, out_indices=(0, 1)),
    neck=dict(in_channels=[8, 16], num_outs=2),
    bbox_head=dict(anchor_generator=dict(strides=[8, 16])),
)
"""
SMALL_ARCH = {name: sizes[:2] for name, sizes in TINY_ARCH_V2.items()}


@pytest.fixture(autouse=True)
def _configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in dict(detector=DETECTOR, classifier=CLASSIFIER, segmentor=SEGMENTOR, masks=MASKS).items():
        Path(f'{name}.py').write_text(text.format(root=ROOT, arch=TINY_ARCH))


def options(shapes: Path, *more: str) -> list[str]:
    return ['--cfg-options', f'data_root={shapes}', *more]


def losses(work_dir: str) -> dict[int, float]:
    lines = [
        json.loads(line)
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]


def metrics(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_detector_is_trained_resumed_and_tested(shapes, capsys):
    part = ['detector.py', '--work-dir', 'part', '--seed', '1']
    assert train_tool.main([*part, *options(shapes)]) == 0
    assert sorted(losses('part')) == list(range(1, 7))  # 12 images, 2 per step
    assert train_tool.main([*part, '--resume', *options(shapes, 'train_cfg.max_epochs=2')]) == 0
    assert sorted(losses('part')) == list(range(1, 13))
    assert Path('part/last_checkpoint').read_text().endswith('epoch_2.pth')

    capsys.readouterr()
    tested = ['--work-dir', 'tested', '--out', 'out.pkl', '--show-dir', 'drawn']
    assert test_tool.main(['detector.py', 'part/epoch_2.pth', *tested, *options(shapes)]) == 0
    expected = metrics(capsys)
    assert 'coco/bbox_mAP' in expected
    assert len(pickle.loads(Path('out.pkl').read_bytes())) == 6
    assert len(list(Path('tested').rglob('drawn/*.jpg'))) == 6

    # Weights under another name than MMEngine's can be tested, but no run resumes from them.
    torch.save({'model': torch.load('part/epoch_2.pth', weights_only=False)['state_dict']}, 'weights.pth')
    assert test_tool.main(['detector.py', 'weights.pth', *options(shapes)]) == 0
    assert metrics(capsys) == expected
    assert train_tool.main(['detector.py', '--resume', 'weights.pth', *options(shapes)]) == 2
    assert 'weights.pth has no meta, message_hub, optimizer' in errors(capsys)[0]


def test_a_compiled_training_is_resumed_and_ends_with_the_weights_of_an_eager_one(shapes, capsys):
    """With EMA, whose copy of the model is made after the parts are compiled. The backend runs graphs as they are."""
    compiled = "dict(type='pvt_mm.CompileHook', parts=('backbone',), backend='eager')"
    ema = "dict(type='EMAHook', momentum=0.1)"
    for name, hooks in dict(eager=ema, compiled=f'{compiled}, {ema}').items():
        Path(f'{name}.py').write_text(TWO_STAGES.format(arch=SMALL_ARCH) + f'custom_hooks = [{hooks}]\n')
    for config, more in (('eager', []), ('compiled', ['train_cfg.max_epochs=1']), ('compiled', [])):
        flags = ['--work-dir', config, '--seed', '1', '--no-validate', *(['--resume'] * (config == 'compiled'))]
        settings = options(shapes, 'train_dataloader.dataset.indices=4', 'train_cfg.max_epochs=2', *more)
        assert train_tool.main([f'{config}.py', *flags, *settings]) == 0
    eager, compiled = (read_checkpoint(f'{name}/epoch_2.pth') for name in ('eager', 'compiled'))
    assert eager.keys() == compiled.keys()
    for key, value in eager.items():
        torch.testing.assert_close(compiled[key], value, msg=key)
    assert 'batch size 2 (1 process x 2 images), and the learning rate is for 4: --auto' in capsys.readouterr().out


def test_a_classifier_is_trained_tested_and_starts_a_detector(shapes, capsys):
    data = options(shapes / 'classification')
    assert train_tool.main(['classifier.py', '--work-dir', 'whole', *data]) == 0
    capsys.readouterr()
    tested = ['classifier.py', 'whole/epoch_1.pth', '--work-dir', 'tested']
    assert test_tool.main([*tested, '--out', 'out.pkl', *data]) == 0
    accuracy = metrics(capsys)
    predictions = pickle.loads(Path('out.pkl').read_bytes())
    assert len(predictions) == 6
    right = sum(one['pred_label'].item() == one['gt_label'].item() for one in predictions)
    assert accuracy['accuracy/top1'] == pytest.approx(100 * right / 6)
    assert accuracy['accuracy/error1'] == pytest.approx(100 - accuracy['accuracy/top1'])

    start = [f'model.backbone.init_cfg.{part}' for part in ('type=Pretrained', 'checkpoint=whole/epoch_1.pth')]
    fixed = ['train_dataloader.dataset.indices=2', 'optim_wrapper.optimizer.lr=0.0']
    arguments = ['detector.py', '--no-validate', '--work-dir', 'detector', *options(shapes, *start, *fixed)]
    assert train_tool.main(arguments) == 0
    classifier, trained = map(read_checkpoint, ('whole/epoch_1.pth', 'detector/epoch_1.pth'))
    stages = [key for key in trained if key.startswith('backbone.')]
    assert {key for key in classifier if key.startswith('backbone.stages.')} == set(stages)
    table = 'pos_embed.table'  # resampled from 64 pixels to 224
    assert all(torch.equal(trained[key], classifier[key]) for key in stages if table not in key)


def test_a_segmentor_is_trained_and_tested_flipped_at_several_scales(shapes, capsys):
    small = [
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'test_dataloader.dataset.pipeline.1.scale=(256,64)',
    ]
    small += [f'tta_pipeline.1.transforms.0.{i}.scale=({128 + 32 * i},64)' for i in range(6)]
    more = ['--work-dir', 'seg', *options(shapes, *small, 'test_dataloader.dataset.indices=2')]
    assert train_tool.main(['segmentor.py', '--no-validate', *more]) == 0
    for flags in ([], ['--tta']):
        forget_runs()
        assert test_tool.main(['segmentor.py', 'seg/iter_1.pth', *flags, *more]) == 0
        assert 0 <= metrics(capsys)['mIoU'] <= 100


def test_a_mask_rcnn_is_tested_flipped_at_several_scales(shapes, capsys):
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save({'state_dict': MODELS.build(load_config('masks.py').model).state_dict()}, 'masks.pth')
    sizes = [f'tta_pipeline.1.transforms.0.{i}.scale=({64 + 32 * i},64)' for i in range(3)]
    more = options(shapes, 'model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rpn.max_per_img=20', *sizes)
    assert test_tool.main(['masks.py', 'masks.pth', '--work-dir', 'masks', '--tta', *more]) == 0
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics(capsys).keys()


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (train_tool, ['gone.py'], 'the config gone.py does not exist'),
        (train_tool, ['detector.py', '--cfg-options', 'data_root=gone'], 'instances_train2017.json does not exist'),
        (train_tool, ['detector.py', '--resume', 'gone.pth'], 'the checkpoint gone.pth does not exist'),
        (
            train_tool,
            ['detector.py', '--cfg-options', 'model.backbone.frozen_stages=9', 'DATA'],
            'frozen_stages must be',
        ),
        (train_tool, ['detector.py', '--cfg-options', 'load_from=other.pth', 'DATA'], 'cannot start from it'),
        (
            train_tool,
            ['detector.py', '--cfg-options', 'activation_checkpointing=backbone,nek', 'DATA'],
            'activation_checkpointing: AttributeError: RetinaNet has no attribute `nek`',
        ),
        (
            train_tool,
            ['detector.py', '--cfg-options', 'optim_wrapper.optimzer.lr=1', 'DATA'],
            "OptimWrapper.__init__() got an unexpected keyword argument 'optimzer'",
        ),
        (
            train_tool,
            [
                'detector.py',
                '--cfg-options',
                'model.backbone.init_cfg.type=Pretrained',
                'model.backbone.init_cfg.checkpoint=other.pth',
                'DATA',
            ],
            'other.pth: it holds no PVT',
        ),
        (test_tool, ['detector.py', 'gone.pth', '--cfg-options', 'DATA'], 'gone.pth does not exist'),
        (test_tool, ['detector.py', 'other.pth', '--cfg-options', 'DATA'], 'other.pth does not match the model'),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(tool, arguments, message, shapes, capsys):
    torch.save({'layer.weight': torch.ones(1)}, 'other.pth')
    assert tool.main([f'data_root={shapes}' if argument == 'DATA' else argument for argument in arguments]) == 2
    (error,) = errors(capsys)
    assert message in error
    if 'DATA' not in arguments:
        assert not Path('work_dirs').exists()


@pytest.mark.parametrize('fault', ['does not exist', 'is truncated or not an image'])
def test_an_unreadable_image_is_named_in_training(fault, shapes, tmp_path, capsys):
    image = damaged_copy(shapes, tmp_path, 'train2017', fault)
    assert train_tool.main(['detector.py', *options(tmp_path / 'shapes', 'train_cfg.max_broken_images=0')]) == 2
    (error,) = errors(capsys)
    if fault == 'does not exist':  # the check of the annotations finds it
        assert 'the train annotations' in error
        assert image.name in error
    else:
        assert f'an image cannot be read: {image} {fault}' in error


def test_an_unreadable_image_is_named_in_testing(shapes, tmp_path, capsys):
    image = damaged_copy(shapes, tmp_path, 'classification/val/circle', 'truncated')
    with DefaultScope.overwrite_default_scope('mmengine'):
        torch.save(MODELS.build(load_config('classifier.py').model).state_dict(), 'any.pth')
    assert test_tool.main(['classifier.py', 'any.pth', *options(tmp_path / 'shapes/classification')]) == 2
    (error,) = errors(capsys)
    assert f'an image cannot be read: {image} is truncated or not an image' in error


def damaged_copy(shapes: Path, tmp_path: Path, folder: str, fault: str) -> Path:
    """Copies the shapes into ``tmp_path`` and removes or truncates an image in a folder."""
    shutil.copytree(shapes, tmp_path / 'shapes')
    image = sorted((tmp_path / 'shapes' / folder).iterdir())[0]
    if fault == 'does not exist':
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:-100])
    return image


@pytest.mark.parametrize('arguments', [['detector.py', '--lr', '3'], ['detector.py', '--cfg-options', 'a'], []])
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        train_tool.main(arguments)
    assert stop.value.code == 2


def test_mmdets_own_tools_run_these_configs(shapes):
    """Nothing of this package is imported first: `type='pvt_mm.PVT'` is enough."""
    import mmdet

    tool = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    moved = [
        *(f'{split}_dataloader.dataset.data_root={shapes}/' for split in ('train', 'val', 'test')),
        *(f'{split}_evaluator.ann_file={shapes}/annotations/instances_val2017.json' for split in ('val', 'test')),
        'train_dataloader.dataset.indices=2',
    ]
    command = [sys.executable, str(tool), 'detector.py', '--work-dir', 'theirs', '--cfg-options', *moved]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]

    from mmdet.apis import inference_detector, init_detector

    model = init_detector('detector.py', 'theirs/epoch_1.pth', device='cpu')
    image = next((shapes / 'val2017').iterdir())
    assert inference_detector(model, str(image)).pred_instances.bboxes.shape[1] == 4


SAME_WEIGHTS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SameWeights(Hook):
    def after_train(self, runner):
        assert runner.model.find_unused_parameters
        weights = torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])
        both = [torch.empty_like(weights) for _ in range(2)]
        torch.distributed.all_gather(both, weights)
        assert torch.equal(*both)
        open(f'same{runner.rank}', 'w').close()
"""


def test_dist_train_trains_one_model_in_two_processes(shapes, tmp_path):
    Path('same_weights.py').write_text(SAME_WEIGHTS)
    hook = "custom_imports = dict(imports=['same_weights'])\ncustom_hooks = [dict(type='SameWeights'), compiled]\n"
    hook = f"compiled = dict(type='pvt_mm.CompileHook', parts=('backbone',), backend='eager')\n{hook}"
    Path('checked.py').write_text(TWO_STAGES.format(arch=SMALL_ARCH) + hook)
    tool = str(ROOT / 'tools/dist_train.sh')
    settings = options(shapes, 'find_unused_parameters=True')
    command = [tool, 'checked.py', '2', '--no-validate', '--work-dir', 'two words', *settings]
    path = f'{ROOT}:{tmp_path}'
    environment = {**os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable, 'PORT': '29511'}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(losses('two words')) == [1, 2, 3]  # half the steps that one process takes
    assert Path('two words/epoch_1.pth').is_file()
    assert Path('same0').exists()
    assert Path('same1').exists()
