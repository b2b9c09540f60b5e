"""The tables of the paper: within the bounds or with a reason, complete, and not stale."""

import json
from pathlib import Path

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.analysis import flops, tables
from pvt_mm.engine.run import load_config
from tests.conftest import ROOT
from tools import paper_tables

CONFIGS = ROOT / 'configs'
DOCUMENT = (ROOT / 'docs/tables.md').read_text()


@pytest.mark.parametrize('number', tables.TITLES)
def test_table_is_within_the_bounds_or_says_why_and_is_not_stale(number):
    rows = tables.table(number, CONFIGS, runs={})
    assert len(rows) == {2: 26, 3: 18, 4: 18, 5: 10, 6: 2, 7: 4, 8: 3, 9: 2, 10: 2, 11: 3}[number]
    for row in rows:
        assert bool(row.out_of_bounds()) == bool(row.why), row
        assert row.computed or number == 2
    assert tables.markdown(number, rows) in DOCUMENT, 'run tools/paper_tables.py'


def test_every_config_is_in_a_table():
    sources = {name: entry['Metadata']['Source'] for name, entry in tables.entries(CONFIGS)}
    known = {f'paper, Table {number}' for number in tables.TITLES}
    assert {name for name, source in sources.items() if source not in known} == {
        'retinanet/pvt_s_scratch_1x',  # Figure 5
        'retinanet/pvt_s_scratch_3x_ms',
    }


def test_figures_beyond_the_bounds_are_noticed():
    def row(**computed):
        return tables.Row('x', {tables.PARAMS: 50.0, tables.GFLOPS: 100.0}, computed, {}, (1, 1))

    assert row(**{tables.PARAMS: 50.49, tables.GFLOPS: 98.1}).out_of_bounds() == []
    assert row(**{tables.PARAMS: 50.51, tables.GFLOPS: 100.0}).out_of_bounds() == [tables.PARAMS]
    assert row(**{tables.PARAMS: 50.0, tables.GFLOPS: 102.1}).out_of_bounds() == [tables.GFLOPS]


FROZEN = [
    (name, entry['Metadata']['Parameters (M)'])
    for name, entry in tables.entries(CONFIGS)
    if name.startswith(('retinanet/r', 'retinanet/x', 'mask_rcnn/r', 'mask_rcnn/x')) and '3x' not in name
]


@pytest.mark.parametrize(('name', 'quoted'), FROZEN)
def test_the_paper_counts_no_frozen_parameters(name, quoted):
    config = load_config(str(CONFIGS / f'{name}.py'))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(config.model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6
    assert trained == pytest.approx(quoted, abs=0.06)


@pytest.mark.parametrize(('name', 'params', 'gflops'), [('r50_d8_40k', 26.8, 120.5), ('r50_d16_40k', 26.8, 45.5)])
def test_why_deeplabs_figures_are_not_the_papers(name, params, gflops, monkeypatch):
    config = load_config(str(CONFIGS / f'deeplabv3plus/{name}.py'))
    config.model.backbone.stem_channels = 128
    build = flops._build

    def with_a_1x1_convolution(model):
        built = build(model)
        head = built.decode_head
        with torch.device('meta'):
            head.bottleneck = ConvModule(5 * 256, 256, 1, norm_cfg=dict(type='BN'), bias=False)
        return built

    monkeypatch.setattr(flops, '_build', with_a_1x1_convolution)
    whole = flops.count(config, (512, 512))[0]
    assert whole.params_m == pytest.approx(params, rel=0.01)
    assert whole.gflops == pytest.approx(gflops, rel=0.01)


def a_run(folder: Path, config: str, options: dict, metrics: dict, log: str = 'vis_data/scalars.json') -> None:
    """Writes what a run leaves in its work directory: its config, and its log with the metrics."""
    (folder / 'now/vis_data').mkdir(parents=True)
    (folder / 'now/now.log').touch()
    kept = load_config(str(CONFIGS / f'{config}.py'))
    kept.merge_from_dict(options)
    kept.dump(folder / f'{Path(config).name}.py')
    (folder / 'now' / log).write_text('\n'.join(map(json.dumps, [{'loss': 1.0, 'step': 1}, metrics])))


def test_runs_are_measured_where_they_are_the_configs_own(tmp_path):
    a_run(tmp_path / 'a', 'retinanet/pvt_t_1x', {'train_dataloader.batch_size': 4}, {'coco/bbox_mAP': 0.361})
    a_run(tmp_path / 'b', 'mask_rcnn/pvt_t_1x', {}, {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.25}, log='now.json')
    a_run(tmp_path / 'c', 'semantic_fpn/pvt_t_80k', {'train_cfg.max_iters': 100}, {'mIoU': 3.0})
    a_run(tmp_path / 'd', 'semantic_fpn/pvt_s_80k', {'model.backbone.init_cfg.checkpoint': 'my.pth'}, {'mIoU': 39.0})
    a_run(tmp_path / 'e', 'retinanet/pvt_s_1x', {'model.bbox_head.num_classes': 3}, {'coco/bbox_mAP': 0.9})
    runs = tables.measured(CONFIGS, tmp_path)
    assert runs == {
        'retinanet/pvt_t_1x': {'box AP': pytest.approx(36.1)},
        'mask_rcnn/pvt_t_1x': {'box AP': pytest.approx(30), 'mask AP': pytest.approx(25)},
        'semantic_fpn/pvt_s_80k': {'mIoU': pytest.approx(39)},
    }
    row = tables.Row('semantic_fpn/pvt_s_80k', {'mIoU': 39.8}, {}, runs['semantic_fpn/pvt_s_80k'], (512, 512))
    heads, cells = tables.grid(5, [row])
    assert cells == [['semantic_fpn/pvt_s_80k', '39.8', '39.0', '']]
    assert heads == ['config', 'mIoU, quoted', 'mIoU, measured', 'H x W']


def test_the_tool_writes_prints_and_ends_in_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, 'TITLES', {9: tables.TITLES[9]})
    assert paper_tables.main(['--out', 'made/tables.md']) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])['9']['retinanet/pvt_m_1x'][tables.PARAMS] == pytest.approx(44.2, 0.01)
    assert 'Table 9.' in printed
    written = Path('made/tables.md').read_text()
    assert (
        written == paper_tables.HEAD + '\n' + DOCUMENT[DOCUMENT.index('## Table 9') : DOCUMENT.index('\n## Table 10')]
    )
    assert paper_tables.main(['--results', 'gone']) == 2
    assert '--results: the folder gone does not exist' in capsys.readouterr().err
