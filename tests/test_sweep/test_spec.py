"""Definitions of sweeps: the shipped ones, their trials, and errors."""

import re
from pathlib import Path

import pytest
import yaml

from pvt_mm.sweep.spec import load_sweep
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

SWEEPS = sorted((ROOT / 'configs/sweeps').glob('*.py'))
# The folder and the source of the results in its metafile, for the sweeps of the paper's tables.
SOURCES = dict(
    retinanet_backbones=('retinanet', 'PVT paper, Table 3'),
    mask_rcnn_backbones=('mask_rcnn', 'PVT paper, Table 4'),
    semantic_fpn_backbones=('semantic_fpn', 'PVT paper, Table 5'),
)
TRIALS = dict(
    retinanet_backbones=18,
    mask_rcnn_backbones=18,
    semantic_fpn_backbones=10,
    deeper_or_wider=2,
    pretraining=4,
    pvt_v1_or_v2=9,
    input_scale=3,
    demo=6,
)


def test_every_sweep_is_discovered():
    assert {path.stem for path in SWEEPS} == set(TRIALS)


@pytest.mark.parametrize('path', SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_load_with_their_configs_and_options(path):
    sweep = load_sweep(str(path))
    assert len(sweep.trials) == len({trial.name for trial in sweep.trials}) == TRIALS[path.stem]
    assert all(Path(trial.config).is_file() for trial in sweep.trials)
    folders = {Path(trial.config).parent.name for trial in sweep.trials}
    assert sweep.metric == {'mask_rcnn': 'coco/segm_mAP', 'semantic_fpn': 'mIoU'}.get(*folders, 'coco/bbox_mAP')
    if path.stem in SOURCES:
        folder, source = SOURCES[path.stem]
        entries = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())['Models']
        expected = {entry['Config'] for entry in entries if entry['Metadata']['Source'] == source}
        assert {str(Path(trial.config).resolve().relative_to(ROOT)) for trial in sweep.trials} == expected


def test_pvt_and_pvtv2_are_compared_at_equal_sizes():
    """Every PVT, and each PVTv2 that has the parameters of one, within 6%."""
    entries = yaml.safe_load((ROOT / 'configs/retinanet/metafile.yml').read_text())['Models']
    sizes = {Path(entry['Config']).stem: entry['Metadata'].get('Parameters (M)') for entry in entries}
    pvt = {stem: size for stem, size in sizes.items() if re.fullmatch('pvt_[tsml]_1x', stem)}
    v2 = {stem: size for stem, size in sizes.items() if stem.startswith('pvt_v2_')}
    equal = {stem for stem, size in v2.items() if any(abs(size - other) <= 0.06 * other for other in pvt.values())}
    sweep = load_sweep(str(ROOT / 'configs/sweeps/pvt_v1_or_v2.py'))
    assert {Path(trial.config).stem for trial in sweep.trials} == pvt.keys() | equal
    assert all(Path(trial.config).parent.name == 'retinanet' for trial in sweep.trials)


CONFIG = """
model = dict(type='PVT')
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_epochs=12)
train_dataloader = dict(batch_size=2, dataset=dict(type='COCO'))
auto_scale_lr = dict(base_batch_size=16)
"""
CONFIGS = "metric = 'loss'\nrule = 'less'\nconfigs = dict(a='config.py')\n"
LR, EPOCHS = 'optim_wrapper.optimizer.lr', 'train_cfg.max_epochs'


def load(tmp_path, text: str, **others):
    (tmp_path / 'config.py').write_text(CONFIG)
    path = tmp_path / 'sweep.py'
    path.write_text(CONFIGS + text)
    return load_sweep(str(path), **others)


def test_options_and_seeds_are_combined(tmp_path):
    text = f"""
rates = ('1e-4', '1e-3')
options = [{{f'lr{{rate}}': [f'{LR}={{rate}}'] for rate in rates}}, dict(short=['{EPOCHS}=1'], long=['{EPOCHS}=24'])]
seeds = (0, 1)
exclude = ['*lr1e-3-long*', 'a-lr1e-4-short-seed1']
"""
    sweep = load(tmp_path, text, options=['train_dataloader.batch_size=4', f'{EPOCHS}=3'])
    assert (sweep.name, sweep.title, sweep.metric, sweep.rule) == ('sweep', 'sweep', 'loss', 'less')
    names = ['lr1e-4-short-seed0', 'lr1e-4-long-seed0', 'lr1e-4-long-seed1', 'lr1e-3-short-seed0', 'lr1e-3-short-seed1']
    assert [trial.name for trial in sweep.trials] == [f'a-{name}' for name in names]
    assert [trial.epochs for trial in sweep.trials] == [1, 24, 24, 1, 1]  # a trial's own options override
    assert sweep.trials[1].options == ('train_dataloader.batch_size=4', f'{EPOCHS}=3', f'{LR}=1e-4', f'{EPOCHS}=24')
    assert [trial.gpus for trial in sweep.trials] == [4.0] * 5  # of the batch size that the learning rate is for
    assert sweep.trials[1].setting == sweep.trials[2].setting == 'a-lr1e-4-long'
    assert [trial.seed for trial in load(tmp_path, '', seeds=[7]).trials] == [7]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("metric = ''", 'is not a sweep: metric not set; settings are title, metric'),
        ('seed = (0,)', 'a sweep has no seed; did you mean seeds'),
        ("rule = 'more'", "rule must be 'greater' or 'less', not 'more'"),
        ("configs = ['gone.py']", 'gone.py does not exist'),
        ("configs = 'gone.py'", 'configs must be a list of paths with different names'),
        ("options = ['a=b']", 'options must be a dict of lists by name'),
        ("options = {'a/b': []}", "'a/b' becomes a part of folder names"),
        ("configs = {'../b': 'b.py'}", "'../b' becomes a part of folder names"),
        ('configs = 3', 'configs must be a list of paths'),
        ('configs = [3]', 'configs must be a list of paths'),
        ('options = dict(a=None)', 'options must be a dict of lists by name'),
        ('options = dict(a=[1])', 'options must be a dict of lists by name'),
        ('seeds = 3', 'seeds must be a list of integers, such as [0, 1, 2], not 3'),
        ('seeds = []', 'seeds must be a list of integers'),
        ("exclude = 'a*'", "exclude must be a list of patterns, such as ['pvt_l*-seed2'], not 'a*'"),
        ("options = dict(a=['modle.backbone=1'])", 'the config has no modle; did you mean model'),
        ("options = dict(a=['model'])", 'takes KEY=VALUE pairs'),
        ("exclude = ['b*']", 'exclude pattern b* matches none of the trials a-seed0'),
        ("exclude = ['*']", 'all trials are excluded'),
        ('seeds = (0, 0)', 'two trials have the name a-seed0'),
    ],
)
def test_errors(text, message, tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
