"""The tables of the papers: within the bounds or with a reason, complete, and not stale."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.analysis import flops, tables
from pvt_mm.apis.config import load_config
from pvt_mm.apis.flags import use_tta
from tests.conftest import ROOT
from tools import paper_tables

CONFIGS = ROOT / 'configs'


def without_measured(text: str) -> str:
    """Returns the tables without the columns of measured figures, which depend on the runs in work_dirs."""
    lines, kept = [], []
    for line in text.split('\n'):
        cells = line.split(' | ')
        if line.startswith('| model'):
            kept = [i for i, head in enumerate(cells) if not head.endswith(', measured')]
        lines.append(' | '.join(cells[i] for i in kept) if line.startswith('| ') else line)
    return '\n'.join(lines)


PAPERS = dict(zip(('v1', 'v2'), tables.PAPERS, strict=True))
DOCUMENTS = {
    name: without_measured((ROOT / 'docs' / paper.file).read_text(encoding='utf-8')) for name, paper in PAPERS.items()
}
# The numbers of rows, with and without a config.
SIZES = {
    'v1': {2: (4, 22), 3: (18, 0), 4: (18, 0), 5: (10, 0), 6: (2, 0), 7: (4, 0), 8: (3, 0), 9: (2, 0), 10: (2, 0)}
    | {11: (3, 0)},
    'v2': {2: (7, 0), 3: (14, 0), 4: (6, 10), 5: (7, 0), 6: (3, 1)},
}


@functools.cache
def rows_of(paper: str, number: int) -> list[tables.Row]:
    return tables.rows(PAPERS[paper], number, CONFIGS, runs={})


@pytest.mark.parametrize(('paper', 'number'), [(name, n) for name, paper in PAPERS.items() for n in paper.tables])
def test_table_is_within_the_bounds_or_says_why_and_is_not_stale(paper, number):
    rows = rows_of(paper, number)
    counted = sum(bool(row.computed) for row in rows)
    assert (counted, len(rows) - counted) == SIZES[paper][number]
    for row in rows:
        assert bool(row.out_of_bounds()) == bool(row.why), row
    assert tables.markdown(PAPERS[paper], number, rows) in DOCUMENTS[paper], 'run tools/paper_tables.py'


def test_v2s_classifiers_are_the_releases():
    exact = {  # parameters and multiply-adds in 1e9 of the authors' classes, at 224 x 224
        'b0': (3_666_760, 0.566),
        'b1': (14_009_000, 2.108),
        'b2': (25_362_856, 4.027),
        'b2_li': (22_553_512, 3.889),
        'b3': (45_238_696, 6.897),
        'b4': (62_556_072, 10.101),
        'b5': (81_956_008, 11.717),
    }
    computed = {row.name: (row.computed[tables.PARAMS], row.computed[tables.GFLOPS]) for row in rows_of('v2', 2)}
    assert computed == {
        f'classification/pvt_v2_{arch}_300e': (pytest.approx(params / 1e6), pytest.approx(gflops, rel=1e-3))
        for arch, (params, gflops) in exact.items()
    }


def test_every_config_is_in_a_table():
    known = {f'{paper.name}, Table {number}' for paper in tables.PAPERS for number in paper.tables}
    others = {
        name: entry['Metadata'] for name, entry in tables.entries(CONFIGS) if entry['Metadata']['Source'] not in known
    }
    figure_5 = {'retinanet/pvt_s_scratch_1x', 'retinanet/pvt_s_scratch_3x_ms'}
    assert others.keys() == figure_5 | {f'mask_rcnn/pvt_v2_{arch}_3x_ms' for arch in ('b0', 'b2_li', 'b2')}
    for name, metadata in others.items():
        whole = flops.count(load_config(str(CONFIGS / f'{name}.py')), (64, 64))[0]
        assert whole.params_m == pytest.approx(metadata['Parameters (M)'], rel=0.01)


def test_figures_beyond_the_bounds_are_noticed():
    def row(**computed):
        return tables.Row('x', {tables.PARAMS: 50.0, tables.GFLOPS: 100.0}, computed, {}, (1, 1))

    assert row(**{tables.PARAMS: 50.49, tables.GFLOPS: 98.1}).out_of_bounds() == []
    assert row(**{tables.PARAMS: 50.51, tables.GFLOPS: 100.0}).out_of_bounds() == [tables.PARAMS]
    assert row(**{tables.PARAMS: 50.0, tables.GFLOPS: 102.1}).out_of_bounds() == [tables.GFLOPS]


@pytest.mark.parametrize(('quoted', 'least', 'most'), [(30, 29.5, 30.5), (3.0, 2.95, 3.05)])
def test_half_a_unit_of_the_last_quoted_digit_is_within_the_bounds(quoted, least, most):
    for computed, within in ((least, True), (most, True), (least - 0.01, False), (most + 0.01, False)):
        row = tables.Row('x', {tables.PARAMS: quoted}, {tables.PARAMS: computed}, {}, (1, 1))
        assert (not row.out_of_bounds()) == within


FROZEN = [
    (name, entry['Metadata']['Parameters (M)'])
    for name, entry in tables.entries(CONFIGS)
    if name.startswith(('retinanet/r', 'retinanet/x', 'mask_rcnn/r50')) and '3x' not in name
]


@pytest.mark.parametrize(('name', 'quoted'), FROZEN)
def test_the_paper_counts_no_frozen_parameters(name, quoted):
    config = load_config(str(CONFIGS / f'{name}.py'))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(config.model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6
    assert trained == pytest.approx(quoted, abs=0.06)


def why(name: str) -> str:
    return next(entry['Metadata']['Difference'] for other, entry in tables.entries(CONFIGS) if other == name)


@pytest.mark.parametrize(('name', 'params', 'gflops'), [('r50_d8_40k', 26.8, 120.5), ('r50_d16_40k', 26.8, 45.5)])
def test_why_deeplabs_figures_are_not_the_papers(name, params, gflops, monkeypatch):
    config = load_config(str(CONFIGS / f'deeplabv3plus/{name}.py'))
    config.model.backbone.stem_channels = 128
    build = flops._build

    def with_a_1x1_convolution(model):
        built = build(model)
        with torch.device('meta'):
            built.decode_head.bottleneck = ConvModule(5 * 256, 256, 1, norm_cfg=dict(type='BN'), bias=False)
        return built

    monkeypatch.setattr(flops, '_build', with_a_1x1_convolution)
    whole = flops.count(config, (512, 512))[0]
    assert whole.params_m == pytest.approx(params, rel=0.01)
    assert whole.gflops == pytest.approx(gflops, rel=0.01)
    assert f'it counts {whole.params_m:.2f} M and {whole.gflops:.1f} GFLOPs' in why(f'deeplabv3plus/{name}')


def test_why_global_contexts_gflops_are_not_the_papers():
    parts = {
        name: flops.count(load_config(str(CONFIGS / f'mask_rcnn/{name}.py')), (800, 1280))
        for name in ('r50_1x', 'r50_gc_r4_1x')
    }
    plain, context = parts['r50_1x'][0].gflops, parts['r50_gc_r4_1x'][0].gflops
    boxes = parts['r50_1x'][-1]
    assert boxes.name == 'roi_head'  # its boxes are as many whatever the image
    text = why('mask_rcnn/r50_gc_r4_1x')
    assert f'add {context - plain:.2f} GFLOPs to the {plain:.1f} of' in text
    assert f'{(279.6 - boxes.gflops) / (context - boxes.gflops):.3f} times the pixels' in text


def a_run(folder: Path, config: str, options: dict, *lines: dict, log: str = 'vis_data/scalars.json') -> None:
    """Writes what a run leaves in its work directory: its config, and its log with the metrics."""
    (folder / 'now/vis_data').mkdir(parents=True)
    (folder / 'now/now.log').touch()
    kept = load_config(str(CONFIGS / f'{config}.py'))
    if options.pop('tta', False):
        use_tta(kept)
    kept.merge_from_dict(options)
    text = (f'{key} = {value!r}' for key, value in kept.to_dict().items())  # `dump` formats it, which takes seconds
    (folder / f'{Path(config).name}.py').write_text('\n'.join(text))
    (folder / 'now' / log).write_text('\n'.join(map(json.dumps, [{'loss': 1.0, 'step': 1}, *lines])) + '\n{"loss": 0.')


AP = {'coco/bbox_mAP': 0.361}
ACCEPTED = [
    ('retinanet/pvt_t_1x', {}, [{'coco/bbox_mAP': 0.1}, AP], {'box AP': 36.1}),  # the last epoch's
    ('mask_rcnn/pvt_t_1x', {}, [{**AP, 'coco/segm_mAP': 0.25}], {'box AP': 36.1, 'mask AP': 25.0}),
    ('semantic_fpn/pvt_s_80k', {'model.backbone.init_cfg.checkpoint': 'my.pth'}, [{'mIoU': 39.0}], {'mIoU': 39.0}),
    ('classification/pvt_t_300e', {}, [{'accuracy/error1': 25.0}], {tables.ERROR: 25.0}),
    ('semantic_fpn/pvt_l_320k', {'tta': True}, [{'mIoU': 44.0}], {'mIoU': 44.0}),
    (
        'retinanet/pvt_s_1x',
        {
            'optim_wrapper': dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16'),
            'train_dataloader.num_workers': 8,
            'test_dataloader.dataset.data_root': '/data/coco/',
            'test_evaluator.ann_file': '/data/coco/annotations/instances_val2017.json',
        },
        [AP],
        {'box AP': 36.1},
    ),
]
REFUSED = [
    ('retinanet/pvt_s_1x', {'model.bbox_head.num_classes': 3}, AP, 'model'),
    ('retinanet/pvt_s_1x', {'model.backbone.init_cfg': None}, AP, 'model'),
    ('retinanet/pvt_s_1x', {'train_cfg.max_epochs': 24}, AP, 'train_cfg.max_epochs'),
    ('semantic_fpn/pvt_t_80k', {'train_cfg.max_iters': 100}, {'mIoU': 3.0}, 'train_cfg.max_iters'),
    ('retinanet/pvt_s_1x', {'optim_wrapper.optimizer.lr': 2e-4}, AP, 'optim_wrapper'),
    ('retinanet/pvt_s_1x', {'param_scheduler': []}, AP, 'param_scheduler'),
    ('retinanet/pvt_s_1x', {'train_dataloader.batch_size': 1}, AP, 'train_dataloader'),
    ('retinanet/pvt_s_1x', {'test_dataloader.dataset.indices': 10}, AP, 'test_dataloader'),
    ('retinanet/pvt_s_1x', {'test_evaluator.ann_file': 'mine.json'}, AP, 'test_evaluator'),
    ('retinanet/pvt_t_1x', {'tta': True}, AP, 'model, test_dataloader'),
    ('semantic_fpn/pvt_l_320k', {}, {'mIoU': 42.0}, 'model, test_dataloader'),
]


@pytest.mark.parametrize(('config', 'options', 'lines', 'expected'), ACCEPTED)
def test_runs_of_an_unchanged_config_are_measured(config, options, lines, expected, tmp_path):
    log = 'now.json' if 'mask' in config else 'vis_data/scalars.json'  # of a test, of a training
    a_run(tmp_path / 'run', config, dict(options), *lines, log=log)
    found, refused = tables.measured(CONFIGS, tmp_path)
    assert found == {config: pytest.approx(expected)}
    assert refused == []


def test_other_runs_are_not(tmp_path):
    for i, (config, options, metrics, _) in enumerate(REFUSED):
        a_run(tmp_path / str(i), config, dict(options), metrics)
    found, refused = tables.measured(CONFIGS, tmp_path)
    assert found == {}
    expected = [f'{tmp_path}/{i}/now differs from {config} in {what}' for i, (config, *_, what) in enumerate(REFUSED)]
    assert sorted(refused) == sorted(expected)


def test_a_run_is_compared_by_the_config_that_mmengine_dumps(tmp_path):
    config = load_config(str(CONFIGS / 'semantic_fpn/pvt_s_80k.py'))
    a_run(tmp_path / 'run', 'semantic_fpn/pvt_s_80k', {}, {'mIoU': 39.0})
    config.dump(tmp_path / 'run/pvt_s_80k.py')
    assert tables.measured(CONFIGS, tmp_path) == ({'semantic_fpn/pvt_s_80k': {'mIoU': 39.0}}, [])


def test_the_newest_run_is_shown(tmp_path):
    a_run(tmp_path / 'new', 'semantic_fpn/pvt_s_80k', {}, {'mIoU': 39.0})
    a_run(tmp_path / 'old', 'semantic_fpn/pvt_s_80k', {}, {'mIoU': 30.0})
    os.utime(tmp_path / 'old/now/now.log', (1, 1))
    runs, _ = tables.measured(CONFIGS, tmp_path)
    row = tables.Row('semantic_fpn/pvt_s_80k', {'mIoU': 39.8}, {}, runs['semantic_fpn/pvt_s_80k'], (512, 512))
    heads, cells = tables.grid(tables.PVT[5], [row])
    assert cells == [['semantic_fpn/pvt_s_80k', '39.8', '39.0', '']]
    assert heads == ['model', 'mIoU, quoted', 'mIoU, measured', 'H x W']
    text = tables.markdown(PAPERS['v1'], 5, [row])
    assert without_measured(text).splitlines()[2] == '| model | mIoU, quoted | H x W |'


def test_a_narrow_terminal_has_the_first_columns_whole():
    rows = rows_of('v1', 10)
    wide, narrow = (paper_tables.shown(PAPERS['v1'], 10, rows, width) for width in (160, 80))
    assert len(wide.columns) == 9
    assert [column.header for column in narrow.columns][-1] == 'mask AP\nquoted'
    assert narrow.caption.startswith('not shown: mask AP50 quoted, mask AP75 quoted')
    assert wide.caption is None


def test_the_tool_writes_prints_and_ends_in_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paper = PAPERS['v1']._replace(tables={9: tables.PVT[9]})
    monkeypatch.setattr(tables, 'PAPERS', [paper])
    assert paper_tables.main(['--out', 'made']) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])['PVT paper']['9']
    assert figures['deeper: retinanet/pvt_m_1x'][tables.PARAMS] == pytest.approx(44.2, 0.01)
    assert 'Table 9.' in printed
    text = DOCUMENTS['v1']
    others = text[text.index('## Table 2') : text.index('## Table 9')], text[text.index('\n## Table 10') :]
    assert Path('made/tables.md').read_text() == text.replace(others[0], '').replace(others[1], '')
    assert paper_tables.main(['--results', 'gone']) == 2
    assert '--results gone is not a folder' in capsys.readouterr().err
    Path('file').touch()
    assert paper_tables.main(['--out', 'file']) == 2
    assert 'file is a file: --out takes a folder' in capsys.readouterr().err
