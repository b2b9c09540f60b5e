"""Tables 2 to 11 of the paper: its figures (quoted), those computed from the configs, and those measured by runs.

The quoted figures of a config come from its metafile. Only Table 2 has rows without a config.
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

TITLES = {
    2: 'Image classification on ImageNet, 224 x 224',
    3: 'RetinaNet on COCO val2017',
    4: 'Mask R-CNN on COCO val2017',
    5: 'Semantic FPN on ADE20K, 512 x 512',
    6: 'DETR on COCO val2017',
    7: 'Trans2Seg and DeepLabV3+ on ADE20K, 512 x 512',
    8: 'ViT and PVT, RetinaNet on COCO val2017',
    9: 'Wider and deeper: parameters and error of the classifier, AP of RetinaNet on COCO val2017',
    10: 'Global context blocks and PVT, Mask R-CNN on COCO val2017',
    11: 'Input scales, RetinaNet on COCO val2017',
}
# The columns of each table, in the paper's order.
BOX, MASK = ('box AP', 'box AP50', 'box AP75'), ('mask AP', 'mask AP50', 'mask AP75')
SIX = (*BOX, 'box APs', 'box APm', 'box APl')
COLUMNS = {
    2: (PARAMS, GFLOPS, ERROR),
    3: (PARAMS, *SIX),
    4: (PARAMS, *BOX, *MASK),
    5: (PARAMS, GFLOPS, 'mIoU'),
    6: SIX,
    7: (PARAMS, GFLOPS, 'mIoU'),
    8: (PARAMS, *SIX),
    9: (PARAMS, ERROR, *BOX),
    10: (PARAMS, GFLOPS, *MASK),
    11: (GFLOPS, TIME, *BOX),
}
# Rows that are repeated from the table that their metafile names.
REPEATED = {
    8: ('retinanet/pvt_s_1x',),
    9: ('retinanet/pvt_m_1x',),
    10: ('mask_rcnn/pvt_s_1x',),
    11: ('retinanet/r50_1x', 'retinanet/pvt_s_1x'),
}
# Parameters, GFLOPs and top-1 error; * marks training as in the model's own paper.
TABLE_2 = {
    'ResNet18*': (11.7, 1.8, 30.2),
    'ResNet18': (11.7, 1.8, 31.5),
    'DeiT-Tiny/16': (5.7, 1.3, 27.8),
    'PVT-Tiny': (13.2, 1.9, 24.9),
    'ResNet50*': (25.6, 4.1, 23.9),
    'ResNet50': (25.6, 4.1, 21.5),
    'ResNeXt50-32x4d*': (25.0, 4.3, 22.4),
    'ResNeXt50-32x4d': (25.0, 4.3, 20.5),
    'T2T-ViTt-14': (22.0, 6.1, 19.3),
    'TNT-S': (23.8, 5.2, 18.7),
    'DeiT-Small/16': (22.1, 4.6, 20.1),
    'PVT-Small': (24.5, 3.8, 20.2),
    'ResNet101*': (44.7, 7.9, 22.6),
    'ResNet101': (44.7, 7.9, 20.2),
    'ResNeXt101-32x4d*': (44.2, 8.0, 21.2),
    'ResNeXt101-32x4d': (44.2, 8.0, 19.4),
    'T2T-ViTt-19': (39.0, 9.8, 18.6),
    'ViT-Small/16': (48.8, 9.9, 19.2),
    'PVT-Medium': (44.2, 6.7, 18.8),
    'ResNeXt101-64x4d*': (83.5, 15.6, 20.4),
    'ResNeXt101-64x4d': (83.5, 15.6, 18.5),
    'ViT-Base/16': (86.6, 17.6, 18.2),
    'T2T-ViTt-24': (64.0, 15.0, 17.8),
    'TNT-B': (66.0, 14.1, 17.2),
    'DeiT-Base/16': (86.6, 17.6, 18.2),
    'PVT-Large': (61.4, 9.8, 18.3),
}
# A row of Table 9 is a detector and the classifier that it starts from; parameters and error are the classifier's.
TABLE_9 = {
    'retinanet/pvt_s_wide_1x': ('wider', 'classification/pvt_s_wide_300e'),
    'retinanet/pvt_m_1x': ('deeper', 'classification/pvt_m_300e'),
}

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
        bounds = {column: max(BOUNDS[column] * self.quoted[column], 0.05) for column in both}
        return [column for column in both if abs(self.computed[column] - self.quoted[column]) > bounds[column]]


def table(number: int, configs: Path, runs: dict[str, dict[str, float]]) -> list[Row]:
    """Returns the rows of a table of the paper, 2 to 11, with the first result of :func:`measured`."""
    rows, counted, every_entry = [], {}, dict(entries(configs))
    for name, figures in TABLE_2.items() if number == 2 else ():
        config = f'classification/pvt_{name[4].lower()}_300e' if name.startswith('PVT-') else ''
        computed = _count(load_config(str(configs / f'{config}.py')), (224, 224)) if config else {}
        quoted = dict(zip(COLUMNS[2], figures, strict=True))
        rows.append(Row(name, quoted, computed, runs.get(config, {}), (224, 224)))
    for name, entry in every_entry.items():
        if name.startswith('classification/'):
            continue
        if entry['Metadata']['Source'] == f'paper, Table {number}' or name in REPEATED.get(number, ()):
            figures = _quoted(entry, number)
            found = {key: value for key, value in runs.get(name, {}).items() if key in figures}
            label = name
            if number == 9:
                which, classifier = TABLE_9[name]
                label, shape = f'{which}: {name}', (224, 224)
                figures |= _quoted(every_entry[classifier], number)
                computed = _count(load_config(str(configs / f'{classifier}.py')), shape)
                found |= runs.get(classifier, {})
            else:
                config = load_config(str(configs / f'{name}.py'))
                shape = tuple(entry['Metadata'].get('Resolution') or flops.default_shape(config))
                key = repr((shape, _plain(config.model)))  # configs with other schedules share a model
                computed = counted[key] = counted.get(key) or _count(config, shape)
            rows.append(Row(label, figures, computed, found, shape, entry['Metadata'].get('Difference', '')))
    return rows


def grid(number: int, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the column heads of a table and the cells of each row.

    The head of a column says whether it is quoted, computed or measured. Columns without any figure are left out.
    """
    columns = [*BOUNDS, *(column for column in COLUMNS[number] if column not in BOUNDS)]
    heads, cells = ['config' if number > 2 else 'model'], [[row.name] for row in rows]
    for column in columns:
        for kind in ('quoted', 'computed', 'measured'):
            figures = [getattr(row, kind).get(column) for row in rows]
            if all(figure is None for figure in figures):
                continue
            heads.append(f'{column}, {kind}')
            for cell, row, figure in zip(cells, rows, figures, strict=True):
                text = (figure or '') if figure is None or isinstance(figure, str) else f'{figure:.1f}'
                if kind == 'computed' and figure is not None and column in row.quoted:
                    text = f'{figure:.2f} ({figure / row.quoted[column] - 1:+.1%})'
                cell.append(text)
    heads.append('H x W')
    for cell, row in zip(cells, rows, strict=True):
        cell.append(f'{row.shape[0]} x {row.shape[1]}' if row.computed else '')
    return heads, cells


def markdown(number: int, rows: list[Row]) -> str:
    """Returns a table as Markdown, followed by the explanations of figures that are out of bounds."""
    heads, cells = grid(number, rows)
    lines = [f'## Table {number}. {TITLES[number]}', '']
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


def _quoted(entry: dict, number: int) -> dict[str, float | str]:
    metadata = entry['Metadata']
    found = {PARAMS: metadata.get('Parameters (M)'), GFLOPS: metadata.get('GFLOPs'), TIME: metadata.get('V100 (ms)')}
    for result in paper_results(entry):
        found |= result['Metrics']
    return {key: value for key, value in found.items() if value is not None and key in COLUMNS[number]}


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
