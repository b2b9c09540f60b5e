"""From flags and config to a runner: options that take effect or are refused, and checks before the start."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image

from pvt_mm.checkpoint import CheckpointError
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine import checks, run
from pvt_mm.errors import InputError, command
from tests.conftest import ROOT
from tests.test_configs import on_shapes
from tools import test as test_tool
from tools import train as train_tool

RETINANET = str(ROOT / 'configs/retinanet/pvt_t_1x.py')
SEGMENTOR = str(ROOT / 'configs/semantic_fpn/pvt_t_80k.py')
DEMO = str(ROOT / 'configs/demo/retinanet_shapes.py')


def test_data_root_moves_every_data_set_and_evaluator():
    config = run.load_config(RETINANET, {'data_root': '/elsewhere'})
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader'].dataset.data_root == '/elsewhere/'
    assert config.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'
    assert config.test_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'
    assert config.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'


def test_options_are_merged():
    config = run.load_config(RETINANET, {'model.backbone.drop_path_rate': 0.3, 'train_cfg.max_epochs': 2})
    assert config.model.backbone.drop_path_rate == 0.3
    assert config.train_cfg.max_epochs == 2


@pytest.mark.parametrize(
    ('path', 'options', 'message'),
    [
        (RETINANET.replace('pvt_t', 'pvt_z'), {}, r'does not exist; did you mean .*/retinanet/pvt_\w_1x.py\?'),
        (RETINANET.replace('retinanet', 'retinanat'), {}, r'does not exist; did you mean .*/retinanet/pvt_t_1x.py\?'),
        ('nowhere/at/all.py', {}, r'all.py does not exist$'),
        (str(ROOT / 'LICENSE'), {}, 'cannot be read'),
        (str(ROOT / 'configs'), {}, 'configs is a folder'),
        (RETINANET, {'modle.backbone.arch': 'small'}, 'the config has no modle; did you mean model?'),
        (RETINANET, {'quux': 1}, 'the config has no quux; it has'),
        (DEMO, {'metainfo.classes': ('a',)}, 'metainfo is a variable inside the config'),
        (RETINANET, {'model.backbone.arch.x': 1}, 'do not fit'),
    ],
)
def test_bad_configs_and_options_say_so(path, options, message):
    with pytest.raises(InputError, match=message):
        run.load_config(path, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu_says_so():
    with pytest.raises(InputError, match='--amp bf16 needs a GPU'):
        run.use_amp(run.load_config(RETINANET), 'bf16')


@pytest.mark.parametrize(('dtype', 'name', 'scale'), [('fp16', 'float16', 'dynamic'), ('bf16', 'bfloat16', None)])
def test_amp_with_a_gpu(dtype, name, scale, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = run.load_config(RETINANET)
    run.use_amp(config, dtype)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.dtype == name
    assert config.optim_wrapper.loss_scale == (scale or dict(enabled=False))


def test_flags_set_what_they_say(tmp_path):
    config = run.load_config(RETINANET)
    run.scale_lr(config)
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=16)
    run.draw_predictions(config, show=False, show_dir='drawn', wait_time=1)
    assert config.default_hooks.visualization.draw is True
    assert config.default_hooks.visualization.test_out_dir == 'drawn'
    run.dump_predictions(config, 'out.pkl')
    assert [metric.type for metric in config.test_evaluator] == ['CocoMetric', 'DumpDetResults']
    run.use_tta(config)
    assert config.model.type == 'DetTTAModel'
    assert config.model.module.type == 'RetinaNet'
    assert config.test_dataloader.dataset.pipeline[1].type == 'TestTimeAug'
    run.skip_validation(config)
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None
    config.work_dir = str(tmp_path)
    assert run.resume(config, 'auto') is None
    assert config.resume is False
    with pytest.raises(InputError, match=r'--resume: the checkpoint .*/gone.pth does not exist'):
        run.resume(config, str(tmp_path / 'gone.pth'))
    (tmp_path / 'last_checkpoint').write_text('gone.pth')
    with pytest.raises(InputError, match=rf'--resume: no checkpoint in {tmp_path} is whole: gone.pth does not exist'):
        run.resume(config, 'auto')


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ([], {'seed': 0}),
        (['--seed', '5'], {'seed': 5}),
        (['--deterministic'], {'seed': 0, 'deterministic': True}),
        (['--seed', '5', '--deterministic'], {'seed': 5, 'deterministic': True}),
    ],
)
def test_seed_and_determinism_change_what_is_asked_for_alone(flags, expected, built):
    assert built(train_tool, [DEMO, *flags]).randomness == expected


@pytest.mark.parametrize(('flags', 'dtype'), [(['--amp'], 'float16'), (['--amp', 'bf16'], 'bfloat16')])
def test_trains_flags_reach_the_runner(flags, dtype, built, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = built(train_tool, [*flags, DEMO, '--auto-scale-lr', '--no-validate'])
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.dtype == dtype
    assert config.auto_scale_lr.enable is True
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None


def test_tests_flags_reach_the_runner(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('any.pth').touch()
    config = built(test_tool, [DEMO, 'any.pth', '--tta', '--show-dir', 'drawn', '--out', 'out.pkl'])
    assert config.model.type == 'DetTTAModel'
    assert config.default_hooks.visualization.test_out_dir == 'drawn'
    assert [metric.type for metric in config.test_evaluator] == ['CocoMetric', 'DumpDetResults']


@pytest.fixture
def built(shapes, tmp_path, monkeypatch):
    """Returns the config that a command builds its runner from."""

    def run_until_built(tool, arguments) -> Config:
        given = []

        def stop(config):
            given.append(config)
            raise InputError('far enough')

        monkeypatch.setattr(run, 'build_runner', stop)
        monkeypatch.chdir(tmp_path)
        assert tool.main([*arguments, '--cfg-options', f'data_root={shapes}']) == 2
        return given[0]

    return run_until_built


def test_faults_that_are_no_mistake_in_the_config_are_not_called_one(monkeypatch):
    def fail(config):
        raise RuntimeError('CUDA out of memory')

    monkeypatch.setattr(run.Runner, 'from_cfg', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        run.build_runner(Config({}))


def test_a_checkpoint_that_is_not_there_is_near_one_that_is(tmp_path):
    (tmp_path / 'epoch_8.pth').touch()
    run.check_checkpoint_exists(str(tmp_path / 'epoch_8.pth'))
    run.check_checkpoint_exists('https://example.com/epoch_8.pth')
    with pytest.raises(InputError, match=r'epoch_80.pth does not exist; did you mean .*/epoch_8.pth\?'):
        run.check_checkpoint_exists(str(tmp_path / 'epoch_80.pth'))
    with pytest.raises(InputError, match='is a folder'):
        run.check_checkpoint_exists(str(tmp_path))


def test_dump_needs_a_pickle_for_detection_and_takes_a_folder_for_segmentation():
    with pytest.raises(InputError, match=r'name a .pkl file'):
        run.dump_predictions(run.load_config(RETINANET), 'folder')
    config = Config(dict(test_evaluator=dict(type='IoUMetric'), default_scope='mmseg'))
    run.dump_predictions(config, 'folder')
    assert config.test_evaluator.output_dir == 'folder'


# ---------------------------------------------------------------------------------------------- data and classes


def on(root: Path, **options) -> Config:
    config = run.load_config(DEMO, {'data_root': str(root), **options})
    run.init_default_scope('mmdet')
    return config


def test_data_that_fits_passes(shapes):
    checks.check_data(on(shapes), 'train', 'val', 'test')
    checks.check_data(Config(dict(train_dataloader=None)), 'train')


def test_missing_data_says_what_is_expected_where(tmp_path):
    with pytest.raises(
        InputError, match=rf'{tmp_path}/annotations/instances_train2017.json does not exist. COCO is laid'
    ):
        checks.check_data(on(tmp_path), 'train')


def test_missing_image_folder_and_evaluators_file(shapes):
    with pytest.raises(InputError, match=r'the val data is not there: .*/pictures does not exist'):
        checks.check_data(on(shapes, **{'val_dataloader.dataset.data_prefix.img': 'pictures'}), 'val')
    with pytest.raises(InputError, match=r'test_evaluator.ann_file, gone.json, does not exist'):
        checks.check_data(on(shapes, **{'test_evaluator.ann_file': 'gone.json'}), 'test')


def test_wrappers_are_looked_into(tmp_path, shapes):
    config = on(shapes)
    inner = {**config.train_dataloader.dataset, 'data_root': str(tmp_path)}
    config.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner])
    )
    with pytest.raises(InputError, match='the train data is not there'):
        checks.check_data(config, 'train')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'train_dataloader.dataset.metainfo.classes': ('circle', 'hexagon', 'triangle')},
            'has no hexagon; its classes are',
        ),
        (
            {'train_dataloader.dataset.metainfo.classes': ('circle', 'square')},
            'num_classes is 3, and .* has 2 classes',
        ),
        ({'train_dataloader.dataset.metainfo.classes': 'circle'}, 'write a tuple'),
        ({'model.bbox_head.num_classes': 80}, 'model.bbox_head.num_classes is 80, and the train data has 3 classes'),
    ],
)
def test_classes_that_do_not_fit(options, message, shapes):
    with pytest.raises(InputError, match=message):
        checks.check_data(on(shapes, **options), 'train')


def test_annotations_without_the_masks_that_are_loaded(shapes, tmp_path):
    mask_rcnn = RETINANET.replace('retinanet', 'mask_rcnn')
    heads = {f'model.roi_head.{kind}_head.num_classes': 3 for kind in ('bbox', 'mask')}
    config = run.load_config(mask_rcnn, {'data_root': str(shapes), **heads})
    config.train_dataloader.dataset.metainfo = dict(classes=('circle', 'square', 'triangle'))
    run.init_default_scope('mmdet')
    checks.check_data(config, 'train')
    content = json.loads((shapes / 'annotations/instances_train2017.json').read_text())
    for annotation in content['annotations']:
        del annotation['segmentation']
    bare = tmp_path / 'boxes.json'
    bare.write_text(json.dumps(content))
    config.train_dataloader.dataset.ann_file = str(bare)
    with pytest.raises(InputError, match=r'boxes.json has no "segmentation", which the pipeline loads'):
        checks.check_data(config, 'train')
    config.model.roi_head.mask_head.num_classes = 80
    with pytest.raises(InputError, match=r'roi_head.mask_head.num_classes is 80, and the train data has 3 classes'):
        checks.check_data(config, 'train')


@pytest.fixture
def segmentor(tmp_path):
    """A segmentor's config on shapes of its own, and a label map of its training data."""
    make_shapes(tmp_path / 'shapes', image_size=64, train=3, val=1)
    config = on_shapes(run.load_config(SEGMENTOR), tmp_path / 'shapes', tmp_path)
    init_default_scope('mmseg')
    return config, sorted((tmp_path / 'shapes/annotations/training').iterdir())[1]


def test_labels_that_fit_pass(segmentor, capsys):
    config, path = segmentor
    labels = np.array(Image.open(path))
    labels[:4] = 255
    Image.fromarray(labels).save(path)
    checks.check_data(config, 'train', 'val', 'test')
    config.model.decode_head.num_classes = 2
    with pytest.raises(InputError, match='num_classes is 2, and the train data has 3'):
        checks.check_data(config, 'train')


def test_labels_outside_the_classes(segmentor, monkeypatch):
    config, path = segmentor
    labels = np.array(Image.open(path))
    labels[0, 0] = 4
    Image.fromarray(labels).save(path)
    message = f'{path} has the label 3 once reduce_zero_label has taken 1 off, and the 3 classes are 0 to 2'
    with pytest.raises(InputError, match=message):
        checks.check_data(config, 'train')
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=config.train_dataloader.dataset)
    with pytest.raises(InputError, match=message):
        checks.check_data(config, 'train')
    checks.check_data(config, 'val')
    monkeypatch.setenv('SLURM_PROCID', '1')
    checks.check_data(config, 'train')  # the first process reads them
    monkeypatch.delenv('SLURM_PROCID')
    config.resume = True
    checks.check_data(config, 'train')  # as it did when the run began


def test_labels_far_outside_the_classes_in_the_validation_data(segmentor):
    config, _ = segmentor
    (path,) = Path(config.val_dataloader.dataset.data_root, 'annotations/validation').iterdir()
    labels = np.array(Image.open(path))
    labels[0, 0] = 200
    Image.fromarray(labels).save(path)
    for step in config.val_dataloader.dataset.pipeline:
        step.type = f'mmseg.{step.type}' if step.type == 'LoadAnnotations' else step.type
    with pytest.raises(InputError, match=f'{path} has the label 199 once'):
        checks.check_data(config, 'val')
    run.use_tta(config)
    config.val_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
    config.model.module.decode_head = [config.model.module.decode_head]  # as a cascade's
    with pytest.raises(InputError, match=f'{path} has the label 199 once'):
        checks.check_data(config, 'val')


def test_weights_to_start_from_that_are_anothers(tmp_path):
    config = run.load_config(str(ROOT / 'configs/retinanet/vit_s_p32_1x.py'))
    small = dict(embed_dims=8, num_layers=2, out_indices=(0, 0, 1, 1), num_heads=2)
    with DefaultScope.overwrite_default_scope('mmseg'):
        vit = MODELS.build({**config.model.backbone, **small})
    weights = vit.state_dict()
    vit.init_cfg['checkpoint'] = str(tmp_path / 'vit.pth')
    torch.save({'state_dict': weights}, tmp_path / 'vit.pth')
    checks.check_pretrained(vit)
    torch.save({'state_dict': {**weights, 'head.weight': torch.zeros(2, 8)}}, tmp_path / 'vit.pth')
    checks.check_pretrained(vit)  # a classifier's
    timms = {name.replace('layers.', 'blocks.'): value for name, value in weights.items()}
    torch.save({'model': timms}, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=r'vit.pth fills 4 of 28 parameters of VisionTransformer: '):
        checks.check_pretrained(vit)


def test_pipelines_that_cannot_be_built(shapes):
    config = on(shapes, **{'train_dataloader.dataset.pipeline.2.scales': [(1, 1)]})
    with pytest.raises(InputError, match=r'train_dataloader.dataset.pipeline.2 \(Resize\) cannot be built: TypeError'):
        checks.check_data(config, 'train')


def test_weights_to_start_from_that_are_not_there(tmp_path, monkeypatch):
    config = run.load_config(str(ROOT / 'configs/retinanet/vit_s_p32_1x.py'))
    message = r'model.backbone.init_cfg names checkpoints/vit_small_p32.pth, which does not exist: .*init_cfg=None'
    with pytest.raises(InputError, match=message):
        checks.check_init_weights(config)
    config.model.backbone.init_cfg = None
    checks.check_init_weights(config)
    config = run.load_config(str(ROOT / 'configs/mask_rcnn/r50_1x.py'))
    monkeypatch.setattr(checks, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'names torchvision://resnet50, and torchvision is not installed'):
        checks.check_init_weights(config)
    monkeypatch.setattr(checks, 'find_spec', lambda name: object())
    checks.check_init_weights(config)
    checks.check_init_weights(run.load_config(RETINANET))


def test_labels_of_a_dataset_that_does_not_name_its_classes(segmentor):
    config, _ = segmentor
    config.train_dataloader.dataset.update(metainfo=None, reduce_zero_label=False)
    config.model.decode_head.num_classes = 4
    checks.check_data(config, 'train')
    config.model.decode_head.update(num_classes=3, ignore_index=3)
    checks.check_data(config, 'train')
    config.model.decode_head.ignore_index = 255
    with pytest.raises(InputError, match='has the label 3, and the 3 classes are 0 to 2: mend'):
        checks.check_data(config, 'train')


@pytest.mark.parametrize('fault', ['damaged', 'missing'])
def test_label_maps_that_cannot_be_read(fault, segmentor):
    config, path = segmentor
    path.unlink()
    if fault == 'damaged':
        path.write_bytes(b'no picture')
    with pytest.raises(InputError, match=f'the label map {path} cannot be read: '):
        checks.check_data(config, 'train')


def test_cocos_80_classes_are_the_default(shapes):
    config = run.load_config(RETINANET, {'data_root': str(shapes)})
    run.init_default_scope('mmdet')
    with pytest.raises(InputError, match='has no person, bicycle, car, motorcycle, airplane …; its classes are circle'):
        checks.check_data(config, 'train')


@pytest.mark.parametrize('text', ['', 'text', '{"categories": 3}', '{"categories": [{"id": 1}]}', '{"images": []}'])
def test_files_that_are_no_coco_annotations(text, tmp_path):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(InputError, match=r'a.json is no COCO annotation file'):
        checks.coco_categories(str(tmp_path / 'a.json'))


def test_categories_are_found_anywhere_in_the_file(tmp_path):
    content = {
        'images': [{'id': 1}],
        'categories': [{'id': 7, 'name': 'ö'}, {'id': 9, 'name': 'b'}],
        'annotations': [],
    }
    for text in (json.dumps(content), json.dumps(content, indent=2), json.dumps(content, ensure_ascii=False)):
        (tmp_path / 'a.json').write_text(text)
        assert checks.coco_categories(str(tmp_path / 'a.json')) == ['ö', 'b']


def test_categories_are_found_where_a_letter_is_cut(tmp_path):
    content = {'categories': [{'id': 7, 'name': 'a'}], 'captions': 'x' + 'ö' * 6_000_000}
    (tmp_path / 'a.json').write_text(json.dumps(content, ensure_ascii=False))
    assert checks.coco_categories(str(tmp_path / 'a.json')) == ['a']


# --------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_of_another_model(tmp_path):
    model, path = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)), str(tmp_path / 'a.pth')
    torch.save({'state_dict': model.state_dict()}, path)
    checks.check_checkpoint(model, path, strict=True)
    weights = {**model.state_dict(), '1.weight': torch.ones(5, 3)}
    torch.save({'state_dict': weights}, path)
    checks.check_checkpoint(model, path, strict=False)
    with pytest.raises(InputError, match=r'of another model: .*1.weight \(5, 3\), not \(4, 3\)'):
        checks.check_checkpoint(model, path, strict=True)
    torch.save({'other': torch.ones(1)}, path)
    with pytest.raises(InputError, match='has nothing for this model'):
        checks.check_checkpoint(model, path, strict=False)


def test_slurms_launcher_outside_slurm_says_so(monkeypatch):
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(InputError, match='--launcher slurm: this is no task of Slurm'):
        run._name_slurm_tasks()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1', 'has no model: is it the config of a model'),
        ('model = [1]', r'model is \[1\], and must be a dict'),
        ('model = dict()\ntest_dataloader = 3', 'test_dataloader is 3, and must be a dict'),
        ('model = dict()\ntest_dataloader = dict()', 'has no test_dataloader.dataset'),
    ],
)
def test_a_config_without_what_every_tool_looks_into_is_refused(text, message, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(InputError, match=message):
        run.load_config(str(tmp_path / 'config.py'))


def test_a_name_that_is_too_long_or_no_text_is_a_line(capsys):
    @command
    def main(argv):
        print(argv[0])
        return Path(argv[0]).is_dir()

    assert main(['x' * 300]) == 2
    assert capsys.readouterr().err == f'error: {"x" * 300}: File name too long\n'
    assert main(['\udcff']) == 0
