"""The tables of both papers: their figures (quoted), those computed from the configs, and those measured by runs.

The quoted figures of a config come from its metafile.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from mmengine.config import Config

from pvt_mm.analysis import flops
from pvt_mm.apis.config import load_config
from pvt_mm.apis.flags import use_tta
from pvt_mm.apis.published import paper_results

PARAMS, GFLOPS, ERROR, TIME = 'parameters (M)', 'GFLOPs', 'top-1 error (%)', 'V100 (ms)'
# The largest relative difference between a computed and a quoted figure before its row must explain it. Half a unit of
# the last quoted digit is always accepted.
BOUNDS = {PARAMS: 0.01, GFLOPS: 0.02}


class Table(NamedTuple):
    """A table of a paper: its title, its columns in the paper's order, and its rows.

    Its rows are the configs whose metafile names the table, and those ``repeated`` from other tables; or, in the
    paper's order, ``rows`` by name: the figures of a model without a config, in the order of the columns, or the
    configs that a row combines, with the computed figures, and those that several have, of the last.
    """

    title: str
    columns: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    rows: dict[str, tuple] | None = None


class Paper(NamedTuple):
    """A paper: its name in the metafiles (``Source``), its file in ``docs`` with a note there, its tables by number."""

    name: str
    file: str
    note: str
    tables: dict[int, Table]


# * marks training as in the model's own paper.
CLASSIFIERS = {
    'ResNet18*': (11.7, 1.8, 30.2),
    'ResNet18': (11.7, 1.8, 31.5),
    'DeiT-Tiny/16': (5.7, 1.3, 27.8),
    'PVT-Tiny': ('classification/pvt_t_300e',),
    'ResNet50*': (25.6, 4.1, 23.9),
    'ResNet50': (25.6, 4.1, 21.5),
    'ResNeXt50-32x4d*': (25.0, 4.3, 22.4),
    'ResNeXt50-32x4d': (25.0, 4.3, 20.5),
    'T2T-ViTt-14': (22.0, 6.1, 19.3),
    'TNT-S': (23.8, 5.2, 18.7),
    'DeiT-Small/16': (22.1, 4.6, 20.1),
    'PVT-Small': ('classification/pvt_s_300e',),
    'ResNet101*': (44.7, 7.9, 22.6),
    'ResNet101': (44.7, 7.9, 20.2),
    'ResNeXt101-32x4d*': (44.2, 8.0, 21.2),
    'ResNeXt101-32x4d': (44.2, 8.0, 19.4),
    'T2T-ViTt-19': (39.0, 9.8, 18.6),
    'ViT-Small/16': (48.8, 9.9, 19.2),
    'PVT-Medium': ('classification/pvt_m_300e',),
    'ResNeXt101-64x4d*': (83.5, 15.6, 20.4),
    'ResNeXt101-64x4d': (83.5, 15.6, 18.5),
    'ViT-Base/16': (86.6, 17.6, 18.2),
    'T2T-ViTt-24': (64.0, 15.0, 17.8),
    'TNT-B': (66.0, 14.1, 17.2),
    'DeiT-Base/16': (86.6, 17.6, 18.2),
    'PVT-Large': ('classification/pvt_l_300e',),
}
# A row is a detector and the classifier that it starts from; parameters and error are the classifier's.
WIDER_OR_DEEPER = {
    'wider: retinanet/pvt_s_wide_1x': ('retinanet/pvt_s_wide_1x', 'classification/pvt_s_wide_300e'),
    'deeper: retinanet/pvt_m_1x': ('retinanet/pvt_m_1x', 'classification/pvt_m_300e'),
}
DETECTORS = {
    'Cascade Mask R-CNN, ResNet50': (82, 739, 46.3, 64.3, 50.5),
    'Cascade Mask R-CNN, Swin-T': (86, 745, 50.5, 69.3, 54.9),
    'Cascade Mask R-CNN, PVTv2-B2-Li': ('cascade_mask_rcnn/pvt_v2_b2_li_3x_ms',),
    'Cascade Mask R-CNN, PVTv2-B2': ('cascade_mask_rcnn/pvt_v2_b2_3x_ms',),
    'ATSS, ResNet50': (32, 205, 43.5, 61.9, 47.0),
    'ATSS, Swin-T': (36, 215, 47.2, 66.5, 51.3),
    'ATSS, PVTv2-B2-Li': ('atss/pvt_v2_b2_li_3x_ms',),
    'ATSS, PVTv2-B2': ('atss/pvt_v2_b2_3x_ms',),
    'GFL, ResNet50': (32, 208, 44.5, 63.0, 48.3),
    'GFL, Swin-T': (36, 215, 47.6, 66.8, 51.7),
    'GFL, PVTv2-B2-Li': ('gfl/pvt_v2_b2_li_3x_ms',),
    'GFL, PVTv2-B2': ('gfl/pvt_v2_b2_3x_ms',),
    'Sparse R-CNN, ResNet50': (106, 166, 44.5, 63.4, 48.2),
    'Sparse R-CNN, Swin-T': (110, 172, 47.9, 67.3, 52.3),
    'Sparse R-CNN, PVTv2-B2-Li': (104, 151, 48.9, 68.3, 53.4),
    'Sparse R-CNN, PVTv2-B2': (107, 215, 50.1, 69.5, 54.9),
}
# Top-1 errors are the classifiers'.
ABLATION = {
    'PVT-Small': ('classification/pvt_s_300e', 'retinanet/pvt_s_1x'),
    'PVT-Small, overlapping patch embedding': (34.9, 288.6, 18.9, 42.2),
    'PVTv2-B2': ('classification/pvt_v2_b2_300e', 'retinanet/pvt_v2_b2_1x'),
    'PVTv2-B2-Li': ('classification/pvt_v2_b2_li_300e', 'retinanet/pvt_v2_b2_li_1x'),
}
BOX, MASK = ('box AP', 'box AP50', 'box AP75'), ('mask AP', 'mask AP50', 'mask AP75')
SIX = (*BOX, 'box APs', 'box APm', 'box APl')
PVT = {
    2: Table('Image classification on ImageNet, 224 x 224', (PARAMS, GFLOPS, ERROR), rows=CLASSIFIERS),
    3: Table('RetinaNet on COCO val2017', (PARAMS, *SIX)),
    4: Table('Mask R-CNN on COCO val2017', (PARAMS, *BOX, *MASK)),
    5: Table('Semantic FPN on ADE20K, 512 x 512', (PARAMS, GFLOPS, 'mIoU')),
    6: Table('DETR on COCO val2017', SIX),
    7: Table('Trans2Seg and DeepLabV3+ on ADE20K, 512 x 512', (PARAMS, GFLOPS, 'mIoU')),
    8: Table('ViT and PVT, RetinaNet on COCO val2017', (PARAMS, *SIX), ('retinanet/pvt_s_1x',)),
    9: Table(
        'Wider and deeper: parameters and error of the classifier, AP of RetinaNet on COCO val2017',
        (PARAMS, ERROR, *BOX),
        rows=WIDER_OR_DEEPER,
    ),
    10: Table(
        'Global context blocks and PVT, Mask R-CNN on COCO val2017', (PARAMS, GFLOPS, *MASK), ('mask_rcnn/pvt_s_1x',)
    ),
    11: Table(
        'Input scales, RetinaNet on COCO val2017',
        (GFLOPS, TIME, *BOX),
        ('retinanet/r50_1x', 'retinanet/pvt_s_1x'),
    ),
}
PVT_V2 = {
    2: Table('Image classification on ImageNet, 224 x 224', (PARAMS, GFLOPS, ERROR)),
    3: Table('RetinaNet and Mask R-CNN on COCO val2017', (PARAMS, *SIX, *MASK)),
    4: Table('Other detectors on COCO val2017, 36 epochs', (PARAMS, GFLOPS, *BOX), rows=DETECTORS),
    5: Table('Semantic FPN on ADE20K, 512 x 512', (PARAMS, GFLOPS, 'mIoU')),
    6: Table('From PVT to PVTv2, RetinaNet on COCO val2017', (PARAMS, GFLOPS, ERROR, 'box AP'), rows=ABLATION),
}
PAPERS = (
    Paper(
        'PVT paper',
        'tables.md',
        'ResNet detectors have up to 0.7% more parameters than quoted, since the paper does not count the frozen stem\n'
        'and first stage (0.2 to 0.4 M).',
        PVT,
    ),
    Paper(
        'PVT v2 paper',
        'tables_v2.md',
        "Models without computed figures have no config. Detectors are counted at the paper's 800 x 1280 pixels.",
        PVT_V2,
    ),
)

# The paper's metrics and the evaluators' names of them.
METRICS = {
    f'{paper} {name}': f'coco/{ours}_mAP{suffix}'
    for paper, ours in (('box', 'bbox'), ('mask', 'segm'))
    for name, suffix in (('AP', ''), ('AP50', '_50'), ('AP75', '_75'), ('APs', '_s'), ('APm', '_m'), ('APl', '_l'))
} | {'mIoU': 'mIoU', ERROR: 'accuracy/error1'}


class Row(NamedTuple):
    """A row of a table: its figures by column, the input's (H, W), and why a computed figure is out of bounds."""

    name: str
    quoted: dict[str, float | str]
    computed: dict[str, float]
    measured: dict[str, float]
    shape: tuple[int, int]
    why: str = ''

    def out_of_bounds(self) -> list[str]:
        """Returns the columns whose computed figure differs from the quoted one by more than :data:`BOUNDS`."""
        both = [column for column in BOUNDS if column in self.quoted and column in self.computed]
        half_units = {column: 0.5 if isinstance(self.quoted[column], int) else 0.05 for column in both}
        bounds = {column: max(BOUNDS[column] * self.quoted[column], half_units[column]) for column in both}
        return [column for column in both if abs(self.computed[column] - self.quoted[column]) > bounds[column]]


def rows(paper: Paper, number: int, configs: Path, runs: dict[str, dict[str, float]]) -> list[Row]:
    """Returns the rows of a paper's table, with the first result of :func:`measured`."""
    table, every_entry = paper.tables[number], dict(entries(configs))
    sources = {name: entry['Metadata']['Source'] for name, entry in every_entry.items()}
    own = [name for name in every_entry if sources[name] == f'{paper.name}, Table {number}' or name in table.repeated]
    made, counted = [], {}
    for label, cells in (table.rows or {name: (name,) for name in own}).items():
        if not isinstance(cells[0], str):
            made.append(Row(label, dict(zip(table.columns, cells, strict=True)), {}, {}, (0, 0)))
            continue
        quoted, found = {}, {}
        for name in cells:
            quoted |= _quoted(every_entry[name], table.columns)
            found |= {key: value for key, value in runs.get(name, {}).items() if key in quoted}
        metadata, config = every_entry[name]['Metadata'], load_config(str(configs / f'{name}.py'))
        shape = tuple(metadata.get('Resolution') or flops.default_shape(config))
        key = repr((shape, _plain(config.model)))  # configs with other schedules share a model
        counted[key] = counted.get(key) or _count(config, shape)
        made.append(Row(label, quoted, counted[key], found, shape, metadata.get('Difference', '')))
    return made


def grid(table: Table, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the column heads of a table and the cells of each row.

    The head of a column says whether it is quoted, computed or measured. Columns without any figure are left out.
    """
    columns = [*BOUNDS, *(column for column in table.columns if column not in BOUNDS)]
    heads, cells = ['model'], [[row.name] for row in rows]
    for column in columns:
        for kind in ('quoted', 'computed', 'measured'):
            figures = [getattr(row, kind).get(column) for row in rows]
            if all(figure is None for figure in figures):
                continue
            heads.append(f'{column}, {kind}')
            for cell, row, figure in zip(cells, rows, figures, strict=True):
                text = f'{figure:.1f}' if isinstance(figure, float) else str(figure or '')
                if kind == 'computed' and figure is not None and column in row.quoted:
                    text = f'{figure:.2f} ({figure / row.quoted[column] - 1:+.1%})'
                cell.append(text)
    heads.append('H x W')
    for cell, row in zip(cells, rows, strict=True):
        cell.append(f'{row.shape[0]} x {row.shape[1]}' if row.computed else '')
    return heads, cells


def markdown(paper: Paper, number: int, rows: list[Row]) -> str:
    """Returns a table as Markdown, followed by the explanations of figures that are out of bounds."""
    heads, cells = grid(paper.tables[number], rows)
    lines = [f'## Table {number}. {paper.tables[number].title}', '']
    lines += [f'| {" | ".join(line)} |' for line in (heads, ['---'] + ['---:'] * (len(heads) - 1), *cells)]
    for row in rows:
        if row.why:
            lines += ['', f'`{row.name}`: {row.why}']
    return '\n'.join(lines)


def entries(configs: Path) -> Iterator[tuple[str, dict]]:
    """Yields the name, ``folder/config``, and the metafile entry of every config that has one."""
    for metafile in sorted(configs.glob('*/metafile.yml')):
        for entry in yaml.safe_load(metafile.read_text())['Models']:
            yield f'{metafile.parent.name}/{Path(entry["Config"]).stem}', entry


def _quoted(entry: dict, columns: tuple[str, ...]) -> dict[str, float | str]:
    metadata = entry['Metadata']
    found = {PARAMS: metadata.get('Parameters (M)'), GFLOPS: metadata.get('GFLOPs'), TIME: metadata.get('V100 (ms)')}
    for result in paper_results(entry):
        found |= result['Metrics']
    return {key: value for key, value in found.items() if value is not None and key in columns}


def _count(config: Config, shape: tuple[int, int]) -> dict[str, float]:
    whole = flops.count(config, shape)[0]
    return {PARAMS: whole.params_m, GFLOPS: whole.gflops}


def measured(configs: Path, results: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Reads the last metrics of every run below a folder that trained or tested one of the configs unchanged.

    A run is a work directory of ``tools/train.py`` or ``tools/test.py``. It counts if the config saved in it equals the
    config of that name in every setting that affects metrics. Configs that the paper tests at several scales (``TTA``
    in the metafile) need runs with test-time augmentation, all others need runs without it.

    Returns:
        The paper's metrics in percent by config name, from the newest run of each; and one line for each run that does
        not count, with the reason.
    """
    names, load = {}, functools.cache(lambda name, tta: _load(configs / f'{name}.py', tta))
    for name, entry in entries(configs):
        names.setdefault(Path(name).stem, []).append((name, entry['Metadata'].get('TTA', False)))
    found, refused = {}, []
    for log in sorted(results.rglob('*/*.log'), key=lambda path: path.stat().st_mtime):
        metrics = _last_metrics(log.parent)
        for kept in log.parents[1].glob('*.py') if metrics else ():
            if kept.stem not in names:
                continue
            run = Config.fromfile(kept).to_dict()
            reasons = {name: _differences(run, load(name, tta)) for name, tta in names[kept.stem]}
            found |= {name: metrics for name, differing in reasons.items() if not differing}
            if all(reasons.values()):
                name = min(reasons, key=lambda name: len(reasons[name]))
                refused.append(f'{log.parent} differs from {name} in {", ".join(reasons[name])}')
    return found, refused


def _load(path: Path, tta: bool) -> dict:
    config = load_config(str(path))
    if tta:
        use_tta(config)
    return config.to_dict()


def _differences(run: dict, shipped: dict) -> list[str]:
    """Returns the settings that affect metrics and differ between a run's config and the shipped one."""
    ours, theirs = _plain(shipped), _plain(run)
    keys = ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'param_scheduler', 'optim_wrapper')
    differing = [key for key in keys if ours.get(key) != theirs.get(key)]
    schedules = [one.get('train_cfg') or {} for one in (ours, theirs)]
    lengths = [key for key in ('max_epochs', 'max_iters') if schedules[0].get(key) != schedules[1].get(key)]
    return differing + [f'train_cfg.{key}' for key in lengths]


# Settings that do not affect metrics; nor does mixed precision.
FREE = ('num_workers', 'persistent_workers', 'pin_memory', 'data_root', 'backend_args', 'checkpoint', 'prefix')


def _plain(value: object, key: str = '') -> object:
    """Returns a part of a config as plain values to compare, without settings that do not affect metrics."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if name not in FREE}
        if kept.get('type') in ('OptimWrapper', 'AmpOptimWrapper'):
            kept = {name: inner for name, inner in kept.items() if name not in ('type', 'dtype', 'loss_scale')}
        return {name: _plain(inner, name) for name, inner in sorted(kept.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return Path(value).name if key == 'ann_file' else value


def _last_metrics(log: Path) -> dict[str, float]:
    """Returns the metrics of the last evaluation, of a training or a test, in the folder of a run's log."""
    found = {}
    for path in (log / 'vis_data/scalars.json', *log.glob('*.json')):
        for text in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
                line = json.loads(text)
                for name, key in METRICS.items():
                    if key in line:
                        found[name] = line[key] * 100 if key.startswith('coco/') else line[key]
    return found
