#!/usr/bin/env python
"""Measure this project's speed and memory on a CPU, and write docs/benchmarks.md and README's paragraph on them."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import atomic_write
from pvt_mm.utils.text import json_text

ROOT = Path(__file__).resolve().parents[1]
PVT_S, R50 = (str(ROOT / f'configs/retinanet/{name}_1x.py') for name in ('pvt_s', 'r50'))
PROFILED = ('Forward', 'Training', 'Forward, PVTv2', 'Training, PVTv2')
PARAGRAPH = re.compile('(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)', re.DOTALL)  # of README


class Bounds(NamedTuple):
    """What the figures of a backbone next to MMDetection's are to reach; None where nothing is asked."""

    forward: float | None  # MMDetection's time / ours
    training: float | None
    memory: float  # of training, ours / MMDetection's
    busy: float | None = None  # MMDetection's time / ours, both with a busy neighbour
    slowdown: float | None = None  # of a forward pass of ours by a busy neighbour


BOUNDS = {
    'AMD': Bounds(2.4, 1.6, 0.3, 1.0, 3.0),
    'Intel': Bounds(3.2, 2.6, 0.3, 1.0, 3.0),
    '': Bounds(None, None, 0.3, 1.0, 3.0),
}
BOUNDS_V2 = Bounds(2.0, 1.8, 0.5)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' Takes about 15 minutes on two cores; the last line of the output is JSON.',
        epilog='Example: tools/benchmark_report.py --rounds 10',
    )
    add = parser.add_argument
    add('--rounds', type=int, default=3, metavar='N', help='steps of each model (default: %(default)s)')
    add('--size', type=float, default=1.0, help='of the images, as a share of 800 x 1344 (default: 1)')
    add(
        '--prepare',
        default='pvt_mm.models.conv_linear:use_conv_linear',
        metavar='MODULE:FUNCTION',
        help="a function to apply to our backbone for comparison, or '' for none (default: %(default)s)",
    )
    add(
        '--out',
        type=Path,
        default=ROOT / 'docs',
        help='the folder of benchmarks.md, in that of README.md (default: docs)',
    )
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.analysis.benchmark.contender import Contender, Result, markdown, replace_section, table
    from pvt_mm.analysis.benchmark.machine import Processor, find_processor, machine
    from pvt_mm.analysis.benchmark.measure import measure, time_by_kind
    from pvt_mm.analysis.benchmark.models import products


class Reach(NamedTuple):
    """A figure, which is None where it cannot be measured, and the bound it is to reach, if there is one."""

    what: str
    value: float | None
    bound: float | None = None
    is_minimum: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether the bound is reached; None where there is none, or no value."""
        if self.value is None or self.bound is None:
            return None
        return self.value >= self.bound if self.is_minimum else self.value <= self.bound

    def cells(self) -> list[str]:
        """Returns the row of the table."""
        bound = '' if self.bound is None else f'{">=" if self.is_minimum else "<="} {self.bound:.2f}'
        value = 'not measured' if self.value is None else f'{self.value:.2f}'
        return [self.what, bound, value, {None: '', True: 'holds', False: 'missed'}[self.holds]]


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.rounds < 1 or not 0.1 <= args.size <= 2:
        raise InputError('--rounds must be at least 1, and --size between 0.1 and 2')
    out = args.out / 'benchmarks.md'
    if not os.access(args.out, os.W_OK) or out.is_dir():
        raise InputError(f'--out {args.out} is not a folder that can be written to')
    processor, measured = find_processor('cpu'), {}
    for group, contenders in plan(args, processor).items():
        measured[group] = dict(zip(contenders, measure(list(contenders.values()), args.rounds), strict=True))
    reaches = find_reaches(measured, processor)
    parts = [
        machine('cpu').removeprefix(f'{processor.name}, ') + f', rounds: {args.rounds}',
        markdown([['figure', 'reach', 'measured', ''], *(reach.cells() for reach in reaches)]),
        where_time_goes([measured[group]['ours'] for group in PROFILED]),
        *(f'### {group}\n\n{table(list(results.values()))}' for group, results in measured.items()),
    ]
    section = '\n\n'.join(parts)
    text = out.read_text() if out.exists() else '# Benchmarks\n'
    _write(out, replace_section(text, processor.name, section))
    print(f'## {processor.name}\n\n{section}\n\nwritten to {out}')
    readme = args.out.resolve().parent / 'README.md'
    page = readme.read_text() if readme.exists() else ''
    if args.size == 1 and PARAGRAPH.search(page):
        text = paragraph(measured, processor, reaches)
        _write(readme, PARAGRAPH.sub(lambda _: text, page))
        print(f'written to {readme}')
    claims = [{**reach._asdict(), 'holds': reach.holds} for reach in reaches]
    print(json_text({'machine': machine('cpu'), 'reaches': claims}))


def plan(args: argparse.Namespace, processor: Processor) -> dict[str, dict[str, Contender]]:
    """Returns the contenders by group and key; those of a group are measured in turns."""
    full, small = (
        tuple(max(64, round(args.size * side / 32) * 32) for side in shape) for shape in ((800, 1344), (640, 1088))
    )
    ours = Contender('small', full)
    forward, training = _with_mmdet(ours), _with_mmdet(replace(ours, mode='train'))
    compiled = {key: replace(contender, compile=True) for key, contender in forward.items()}
    bf16 = {f'{key} bf16': replace(contender, dtype='bfloat16') for key, contender in forward.items()}
    training['with_cp'] = replace(training['ours'], with_cp=True)
    if args.prepare:
        for contenders in (forward, training):
            contenders['prepared'] = replace(contenders['ours'], prepare=args.prepare)
    v2 = replace(ours, model='b2')
    forward_v2, training_v2 = _with_mmdet(v2), _with_mmdet(replace(v2, mode='train'))
    rates = {contender.model: contender for contender in products('cpu', 'float32', 0)}
    pvt = replace(ours, model=PVT_S, mode='detector')
    retinanet = {'pvt': pvt, 'r50': replace(pvt, model=R50), 'pvt 640': replace(pvt, shape=small)}
    if args.prepare:
        retinanet['prepared'] = replace(pvt, shape=small, prepare=args.prepare)
    # MMDetection's training with a busy neighbour would take a minute per step.
    return {
        'Forward': forward | (bf16 if processor.multiplies_bf16 else {}) | _busy(forward) | rates,
        'Forward, compiled': compiled,
        'Training': training | _busy(training, 'ours', 'prepared'),
        'Forward, PVTv2': forward_v2 | _busy(forward_v2) | rates,
        'Training, PVTv2': training_v2 | _busy(training_v2, 'ours'),
        'RetinaNet': retinanet,
    }


def _with_mmdet(ours: Contender) -> dict[str, Contender]:
    return {'ours': ours, 'mmdet': replace(ours, peer='mmdet')}


def _busy(contenders: dict[str, Contender], *keys: str) -> dict[str, Contender]:
    """Returns the contenders of some keys, or of all, with a busy neighbour."""
    return {f'{key} busy': replace(contenders[key], busy=True) for key in keys or contenders if key in contenders}


def find_reaches(measured: dict[str, dict[str, Result]], processor: Processor) -> list[Reach]:
    """Returns the figures of what was measured by the :func:`plan`."""
    forward, compiled, training, forward_v2, training_v2, retinanet = measured.values()
    name, mmdet, r50 = forward['ours'].contender.name, forward['mmdet'], retinanet['r50']
    bf16 = forward['ours bf16'].ratio(mmdet) if processor.multiplies_bf16 else None
    unsupported = '' if processor.multiplies_bf16 else ' (not multiplied here)'
    with_cp = _memory(training['with_cp'], training['mmdet'])
    reaches = [
        *_compare(forward, training, BOUNDS[processor.vendor]),
        Reach(f'{name}, peak memory of training with_cp: ours / MMDetection', with_cp, 0.20, False),
        Reach(f'{name}, forward, both compiled: MMDetection / ours', compiled['ours'].ratio(compiled['mmdet'])),
        Reach(f'{name}, forward: MMDetection in float32 / ours in bfloat16{unsupported}', bf16, 8.0),
        *_compare(forward_v2, training_v2, BOUNDS_V2),
        Reach('RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)', r50.ratio(retinanet['pvt 640']), 0.75, False),
        Reach('RetinaNet: PVT-S / ResNet-50, both at 800 (paper 1.38)', r50.ratio(retinanet['pvt'])),
    ]
    if 'prepared' in retinanet:
        ratio = r50.ratio(retinanet['prepared'])
        reaches.append(Reach('RetinaNet: PVT-S at 640 prepared / ResNet-50 at 800', ratio, 0.75, False))
    for mode, group in (('forward', forward), ('training', training)):
        for key in ('', ' busy'):
            if f'prepared{key}' in group:
                ratio = group[f'prepared{key}'].ratio(group[f'ours{key}'])
                reaches.append(Reach(f'{name}, {mode}{key}: ours / ours prepared', ratio))
    return reaches


def _compare(forward: dict[str, Result], training: dict[str, Result], bounds: Bounds) -> list[Reach]:
    """Returns the figures of a backbone next to MMDetection's."""
    ours, ours_busy, train, mmdet = forward['ours'], forward['ours busy'], training['ours'], training['mmdet']
    name = ours.contender.name
    busy = ours_busy.ratio(forward['mmdet busy'])
    return [
        Reach(f'{name}, forward: MMDetection / ours', ours.ratio(forward['mmdet']), bounds.forward),
        Reach(f'{name}, forward, busy neighbour: MMDetection / ours', busy, bounds.busy),
        Reach(f'{name}, forward, ours: busy neighbour / quiet', ours.ratio(ours_busy), bounds.slowdown, False),
        Reach(f'{name}, training: MMDetection / ours', train.ratio(mmdet), bounds.training),
        Reach(f'{name}, training, ours: busy neighbour / quiet', train.ratio(training['ours busy'])),
        Reach(f'{name}, peak memory of training: ours / MMDetection', _memory(train, mmdet), bounds.memory, False),
    ]


def _memory(ours: Result, mmdet: Result) -> float | None:
    return ours.peak_memory / mmdet.peak_memory if ours.peak_memory and mmdet.peak_memory else None


def where_time_goes(results: Sequence[Result]) -> str:
    """Profiles a step of each in the memory format that it was measured in, and returns the table."""
    rows = []
    for result in results:
        contender = replace(result.contender, memory_format=result.memory_format)
        kinds = time_by_kind(contender)
        rows.append([f'{contender.name}, {contender.mode}', *(f'{share:.0%}' for share in kinds.values())])
    return f'### Where the time goes\n\n{markdown([["share of the time", *kinds], *rows])}'


def paragraph(measured: dict[str, dict[str, Result]], processor: Processor, reaches: Sequence[Reach]) -> str:
    """Returns README's paragraph."""
    found = {reach.what: reach.value for reach in reaches}
    lines = []
    for group in ('Forward', 'Forward, PVTv2'):
        name = measured[group]['ours'].contender.name
        forward, training = (found[f'{name}, {mode}: MMDetection / ours'] for mode in ('forward', 'training'))
        memory = found[f'{name}, peak memory of training: ours / MMDetection']
        line = f"{name}'s forward pass is {forward:.1f} times as fast, a training step {training:.1f} times"
        lines.append(line if memory is None else f'{line}, with {memory:.2f} of the memory')
    where = re.sub(r', family \d+, model \d+', '', processor.name)
    missed = ', and the bounds that are missed' if any(reach.holds is False for reach in reaches) else ''
    text = (
        f"**Fast.** On {where} with {os.cpu_count()} cores, at 800 x 1344 in float32 and next to MMDetection's: "
        f'{"; ".join(lines)}. [docs/benchmarks.md](docs/benchmarks.md) has all figures{missed}; `make bench` measures '
        'them.'
    )
    return textwrap.fill(text, 128, break_long_words=False, break_on_hyphens=False) + '\n'


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


if __name__ == '__main__':
    sys.exit(main())
