#!/usr/bin/env python
"""Measure this project's speed and memory on a CPU, and write this processor's section of docs/benchmarks.md."""

import argparse
import os
import sys
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
TRAINING_ROUNDS = 3  # at most: a step takes up to half a minute
# The bounds of MMDetection's time / ours by vendor: forward and training.
BOUNDS = {'AMD': (2.4, 1.6), 'Intel': (3.2, 2.6)}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' Takes about 15 minutes on two cores; the last line of the output is JSON.',
        epilog='Example: tools/benchmark_report.py --rounds 5',
    )
    add = parser.add_argument
    add('--rounds', type=int, default=5, metavar='N', help='steps of each model (default: %(default)s)')
    add('--size', type=float, default=1.0, help='of the images, as a share of 800 x 1344 (default: 1)')
    add(
        '--prepare',
        default='pvt_mm.models.conv_linear:use_conv_linear',
        metavar='MODULE:FUNCTION',
        help="a function to apply to our backbone for comparison, or '' for none (default: %(default)s)",
    )
    add('--out', type=Path, default=ROOT / 'docs', help='the folder of benchmarks.md (default: docs)')
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
        rounds = min(args.rounds, TRAINING_ROUNDS) if group == 'Training' else args.rounds
        results = measure(list(contenders.values()), rounds)
        measured[group] = dict(zip(contenders, results, strict=True))
    reaches = find_reaches(measured, processor)
    parts = [
        machine('cpu').removeprefix(f'{processor.name}, '),
        markdown([['figure', 'reach', 'measured', ''], *(reach.cells() for reach in reaches)]),
        where_time_goes(measured['Forward']['ours']),
    ]
    for group, results in measured.items():
        first = results['pvt' if group == 'RetinaNet' else 'ours']
        parts.append(f'### {group}\n\nRounds: {len(first.seconds)}\n\n{table(list(results.values()))}')
    section = '\n\n'.join(parts)
    text = out.read_text() if out.exists() else '# Benchmarks\n'
    with atomic_write(out) as path:
        path.write_text(replace_section(text, processor.name, section))
    print(f'## {processor.name}\n\n{section}\n\nwritten to {out}')
    claims = [{**reach._asdict(), 'holds': reach.holds} for reach in reaches]
    print(json_text({'machine': machine('cpu'), 'reaches': claims}))


def plan(args: argparse.Namespace, processor: Processor) -> dict[str, dict[str, Contender]]:
    """Returns the contenders by group and key; those of a group are measured in turns."""
    full, small = (
        tuple(max(64, round(args.size * side / 32) * 32) for side in shape) for shape in ((800, 1344), (640, 1088))
    )
    ours = Contender('small', full)
    train = replace(ours, mode='train')
    forward = {'ours': ours, 'mmdet': replace(ours, peer='mmdet')}
    training = {'ours': train, 'with_cp': replace(train, with_cp=True), 'mmdet': replace(train, peer='mmdet')}
    compiled = {key: replace(contender, compile=True) for key, contender in forward.items()}
    bf16 = {f'{key} bf16': replace(contender, dtype='bfloat16') for key, contender in forward.items()}
    if args.prepare:
        forward['prepared'] = replace(ours, prepare=args.prepare)
        training['prepared'] = replace(train, prepare=args.prepare)
    busy = {f'{key} busy': replace(contender, busy=True) for key, contender in forward.items()}
    # MMDetection's training would take a minute per step.
    busy_training = {
        f'{key} busy': replace(training[key], busy=True) for key in ('ours', 'prepared') if key in training
    }
    rates = {contender.model: contender for contender in products('cpu', 'float32', 0)}
    pvt = replace(ours, model=PVT_S, mode='detector')
    retinanet = {'pvt': pvt, 'r50': replace(pvt, model=R50), 'pvt 640': replace(pvt, shape=small)}
    if args.prepare:
        retinanet['prepared'] = replace(pvt, shape=small, prepare=args.prepare)
    return {
        'Forward': forward | (bf16 if processor.multiplies_bf16 else {}) | busy | rates,
        'Forward, compiled': compiled,
        'Training': training | busy_training,
        'RetinaNet': retinanet,
    }


def find_reaches(measured: dict[str, dict[str, Result]], processor: Processor) -> list[Reach]:
    """Returns the figures of what was measured by the :func:`plan`."""
    forward, compiled, training, retinanet = measured.values()
    ours, mmdet = forward['ours'], forward['mmdet']
    ours_busy, mmdet_busy = forward['ours busy'], forward['mmdet busy']
    train, mmdet_train, r50 = training['ours'], training['mmdet'], retinanet['r50']
    forward_bound, training_bound = BOUNDS.get(processor.vendor, (None, None))
    bf16 = forward['ours bf16'].ratio(mmdet) if processor.multiplies_bf16 else None
    unsupported = '' if processor.multiplies_bf16 else ' (not multiplied here)'
    memory, memory_with_cp = (
        result.peak_memory and mmdet_train.peak_memory and result.peak_memory / mmdet_train.peak_memory
        for result in (train, training['with_cp'])
    )
    reaches = [
        Reach('forward: MMDetection / ours', ours.ratio(mmdet), forward_bound),
        Reach('forward, both compiled: MMDetection / ours', compiled['ours'].ratio(compiled['mmdet'])),
        Reach(f'forward: MMDetection in float32 / ours in bfloat16{unsupported}', bf16, 8.0),
        Reach('forward, busy neighbour: MMDetection / ours', ours_busy.ratio(mmdet_busy), 1.0),
        Reach('forward, ours: busy neighbour / quiet', ours.ratio(ours_busy), 3.0, False),
        Reach('training: MMDetection / ours', train.ratio(mmdet_train), training_bound),
        Reach('training, ours: busy neighbour / quiet', train.ratio(training['ours busy'])),
        Reach('peak memory of training: ours / MMDetection', memory, 0.30, False),
        Reach('the same with_cp', memory_with_cp, 0.20, False),
        Reach('RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)', r50.ratio(retinanet['pvt 640']), 0.75, False),
        Reach('RetinaNet: PVT-S / ResNet-50, both at 800 (paper 1.38)', r50.ratio(retinanet['pvt'])),
    ]
    if 'prepared' in retinanet:
        ratio = r50.ratio(retinanet['prepared'])
        reaches.append(Reach('RetinaNet: PVT-S at 640 prepared / ResNet-50 at 800', ratio, 0.75, False))
    for name, group in (('forward', forward), ('training', training)):
        for key in ('', ' busy'):
            if f'prepared{key}' in group:
                ratio = group[f'prepared{key}'].ratio(group[f'ours{key}'])
                reaches.append(Reach(f'{name}{key}: ours / ours prepared', ratio))
    return reaches


def where_time_goes(ours: Result) -> str:
    """Profiles the forward pass in the memory format that it was measured in, and returns the table."""
    kinds = time_by_kind(replace(ours.contender, memory_format=ours.memory_format), 3)
    rows = [['share of the time', *kinds], ['forward pass', *(f'{share:.0%}' for share in kinds.values())]]
    return f'### Where the time of the forward pass goes\n\n{markdown(rows)}'


if __name__ == '__main__':
    sys.exit(main())
