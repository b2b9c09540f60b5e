#!/usr/bin/env python
"""Measure this project's speed and memory, and write this processor's section of docs/benchmarks.md."""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pvt_mm.analysis.benchmark import measure as measuring
from pvt_mm.analysis.benchmark.contender import Contender, Result, table_rows
from pvt_mm.analysis.benchmark.machine import Processor, find_processor, machine
from pvt_mm.analysis.benchmark.models import products
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PVT_S, R50 = (str(ROOT / f'configs/retinanet/{name}_1x.py') for name in ('pvt_s', 'r50'))
SLOW_ROUNDS = 3  # of training, at most
# The least MMDetection / ours that is hoped for, by vendor.
FORWARD_REACH = {'AMD': 2.4, 'Intel': 3.2}
TRAINING_REACH = {'AMD': 1.6, 'Intel': 2.6}

Plan = dict[str, dict[str, Contender]]  # contenders by group and key; a group is measured in turns
Measured = dict[str, dict[str, Result]]

HEAD = """# Benchmarks

Written by `make bench` (`tools/benchmark_report.py`), which replaces the section of the processor that it runs on.
PVT-Small, one image of 800 x 1344 pixels, float32, random weights, unless a line says otherwise. All figures are
measured.

Every model has a process of its own, so that each peak memory is of one model. The models of a table take turns, a step
each per round, after a step to warm up. Times are medians, +- is half the interquartile range, and ratios (x, and those
of the first table) are medians of the ratios of the rounds. Peak memory is what the process holds above the built model
and its input. GFLOPs are multiply-adds, as papers count them. GFLOP/s count two for each, and nothing for what is
computed again in the backward pass. Each model has the better of the two memory formats, found by a trial before.
"Busy neighbour" is another process that keeps one core busy during the steps. `torch.mm` (MKL) and `torch.conv2d`
(oneDNN) are the machine's own rates of matrix products.

`tools/benchmark.py` measures any model, config, size, device and dtype in the same way.

"""


class Reach(NamedTuple):
    """A figure and the bound that it is to reach.

    Attributes:
        what: The figure in words.
        value: Its value; None where it could not be measured.
        bound: None where there is none.
        is_minimum: Whether the figure is to be at least the bound, or at most.
    """

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


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Takes about 15 minutes on two cores; the last line of the output is JSON.',
        epilog='Example: tools/benchmark_report.py --rounds 5',
    )
    add = parser.add_argument
    add('--rounds', type=int, default=5, metavar='N', help='steps of each model (default: %(default)s)')
    add('--size', type=float, default=1.0, help='of the images, as a share of 800 x 1344 (default: 1)')
    add('--prepare', metavar='MODULE:FUNCTION', help='also measure our backbone after this function has changed it')
    add('--out', type=Path, default=ROOT / 'docs', help='the folder of benchmarks.md (default: docs)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.rounds < 1 or not 0.1 <= args.size <= 2:
        raise InputError('--rounds must be at least 1, and --size between 0.1 and 2')
    out = args.out / 'benchmarks.md'
    if not os.access(args.out, os.W_OK) or out.is_dir():
        raise InputError(f'--out {args.out} is not a folder that can be written to')
    console, reaches = Console(width=None if sys.stdout.isatty() else 120), []
    for device in ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]:
        processor = find_processor(device)
        plan = cpu_plan(args.size, processor, args.prepare) if device == 'cpu' else gpu_plan()
        measured = measure(plan, args.rounds, may_fail=device == 'cuda')
        found = cpu_reaches(measured, processor) if device == 'cpu' else gpu_reaches(measured)
        kinds = where_time_goes(measured['Forward']['ours']) if device == 'cpu' else ''
        details = machine(device).removeprefix(f'{processor.name}, ')
        section = '\n\n'.join(filter(None, [details, reach_table(found), kinds, *group_tables(measured)]))
        text = out.read_text() if out.exists() else ''
        with atomic_write(out) as path:
            path.write_text(replace_section(text, processor.name, section))
        table = Table('', 'reach', 'measured', '', box=None, header_style='bold', title=processor.name)
        for reach in found:
            table.add_row(*reach.cells(), style='bold red' if reach.holds is False else '')
        console.print(table)
        reaches += found
    console.print(f'the rest is in {out}', highlight=False)
    claims = [{**reach._asdict(), 'holds': reach.holds} for reach in reaches]
    print(json.dumps({'machine': machine('cpu'), 'reaches': claims}))


def measure(plan: Plan, rounds: int, may_fail: bool) -> Measured:
    """Measures every group of a plan; one that fails is left out where that is allowed."""
    console, measured = Console(stderr=True), {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=(rounds + 1) * sum(map(len, plan.values())))
        for group, contenders in plan.items():
            if not console.is_terminal:
                names = ', '.join(contender.name for contender in contenders.values())
                console.print(f'{group}: {names}', highlight=False)
            turns = min(rounds, SLOW_ROUNDS) if group == 'Training' else rounds
            try:
                results = measuring.measure(
                    list(contenders.values()), turns, lambda name: progress.update(task, description=name, advance=1)
                )
            except InputError as error:
                if not may_fail:
                    raise
                console.print(f'{group}: not measured: {error}', highlight=False)
                continue
            measured[group] = dict(zip(contenders, results, strict=True))
    return measured


def cpu_plan(size: float, processor: Processor, prepare: str | None) -> Plan:
    """Returns what is measured on a CPU, with images of ``size`` times 800 x 1344."""
    full, small = ([max(64, round(size * side / 32) * 32) for side in shape] for shape in ((800, 1344), (640, 1088)))
    ours = Contender('small', tuple(full))
    mmdet = replace(ours, peer='mmdet')
    train = replace(ours, mode='train')
    forward = {'ours': ours, 'mmdet': mmdet}
    training = {'ours': train, 'with_cp': replace(train, with_cp=True), 'mmdet': replace(mmdet, mode='train')}
    if prepare:
        forward['prepared'] = replace(ours, prepare=prepare)
        training['prepared'] = replace(train, prepare=prepare)
    if processor.multiplies_bf16:
        for key, contender in list(forward.items()):
            forward[f'{key} bf16'] = replace(contender, dtype='bfloat16')
    for key in ('ours', 'mmdet', 'prepared'):
        if key in forward:
            forward[f'{key} busy'] = replace(forward[key], busy=True)
        if key in training and key != 'mmdet':  # which would take a minute a step
            training[f'{key} busy'] = replace(training[key], busy=True)
    mm, conv = products('cpu', 'float32', 0)
    pvt = Contender(PVT_S, tuple(full), mode='detector')
    return {
        'Forward': forward | {'mm': mm, 'conv': conv},
        'Forward, compiled': {key: replace(forward[key], compile=True) for key in ('ours', 'mmdet')},
        'Training': training,
        'RetinaNet': {'pvt': pvt, 'r50': replace(pvt, model=R50), 'pvt 640': replace(pvt, shape=tuple(small))},
    }


def cpu_reaches(measured: Measured, processor: Processor) -> list[Reach]:
    """Returns the figures of a CPU."""
    forward, compiled, training, retinanet = measured.values()
    ours, mmdet = forward['ours'], forward['mmdet']
    ours_busy, mmdet_busy = forward['ours busy'], forward['mmdet busy']
    train, mmdet_train, r50 = training['ours'], training['mmdet'], retinanet['r50']
    memory, memory_with_cp = (memory_ratio(result, mmdet_train) for result in (train, training['with_cp']))
    bf16 = forward['ours bf16'].ratio(mmdet) if processor.multiplies_bf16 else None
    unsupported = '' if processor.multiplies_bf16 else ' (not multiplied here)'
    reaches = [
        Reach('forward: MMDetection / ours', ours.ratio(mmdet), FORWARD_REACH.get(processor.vendor)),
        Reach('forward, both compiled: MMDetection / ours', compiled['ours'].ratio(compiled['mmdet'])),
        Reach(f'forward: MMDetection in float32 / ours in bfloat16{unsupported}', bf16, 8.0),
        Reach('forward, busy neighbour: MMDetection / ours', ours_busy.ratio(mmdet_busy), 1.0),
        Reach('forward, ours: busy neighbour / quiet', ours.ratio(ours_busy), 3.0, False),
        Reach('training: MMDetection / ours', train.ratio(mmdet_train), TRAINING_REACH.get(processor.vendor)),
        Reach('training, ours: busy neighbour / quiet', train.ratio(training['ours busy'])),
        Reach('peak memory of training: ours / MMDetection', memory, 0.30, False),
        Reach('the same with_cp', memory_with_cp, 0.20, False),
        Reach('RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)', r50.ratio(retinanet['pvt 640']), 0.75, False),
        Reach('RetinaNet: PVT-S / ResNet-50, both at 800 (paper 1.38)', r50.ratio(retinanet['pvt'])),
    ]
    for name, group in (('forward', forward), ('training', training)):
        for key in ('', ' bf16', ' busy'):
            if f'prepared{key}' in group:
                ratio = group[f'prepared{key}'].ratio(group[f'ours{key}'])
                reaches.append(Reach(f'{name}{key}: ours / ours prepared', ratio))
    return reaches


def gpu_plan() -> Plan:
    """Returns what is measured on a GPU: ours and MMDetection's, in every way to run them."""
    plan = {}
    for mode, dtype, batch, compiled in itertools.product(
        ('forward', 'train'), ('float32', 'bfloat16'), (1, 2, 16), (False, True)
    ):
        ours = Contender('small', mode=mode, dtype=dtype, batch=batch, compile=compiled, device='cuda')
        name = f'{mode.title()}, {dtype}, batch {batch}' + ', compiled' * compiled
        plan[name] = {'ours': ours, 'mmdet': replace(ours, peer='mmdet')}
    for dtype in ('float32', 'bfloat16'):
        attention = Contender('small', mode='attention', dtype=dtype, batch=16, device='cuda')
        plan[f'Attention, {dtype}, batch 16'] = {'ours': attention, 'mm': products('cuda', dtype, 0)[0]}
    return plan


def gpu_reaches(measured: Measured) -> list[Reach]:
    """Returns the figures of a GPU; a group that its memory cannot hold has none."""
    group = measured.get('Train, bfloat16, batch 16')
    speed = group and group['ours'].ratio(group['mmdet'])
    memory = group and memory_ratio(group['ours'], group['mmdet'])
    return [
        Reach('training in bfloat16, batch 16: MMDetection / ours', speed, 2.0),
        Reach('peak memory of the same: ours / MMDetection', memory, 0.45, False),
    ]


def memory_ratio(result: Result, other: Result) -> float | None:
    """Returns a ratio of peak memories, or None where the system does not say them."""
    peaks = result.peak_memory, other.peak_memory
    return None if None in peaks else peaks[0] / peaks[1]


# ------------------------------------------------------------------------------------------------------ the document


def replace_section(text: str, heading: str, section: str) -> str:
    """Returns docs/benchmarks.md with one section replaced or added at the end, the others as they are."""
    parts = re.split(r'^## (.*)\n', text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True)) | {heading: f'\n{section}\n'}
    return HEAD + '\n'.join(f'## {name}\n{body.rstrip()}\n' for name, body in sections.items())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells, the first one the head, as a table in Markdown."""
    rule = ['---', *['---:'] * (len(rows[0]) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (rows[0], rule, *rows[1:]))


def reach_table(reaches: Sequence[Reach]) -> str:
    """Returns the table of the figures."""
    return markdown([['figure', 'reach', 'measured', ''], *(reach.cells() for reach in reaches)])


def where_time_goes(ours: Result) -> str:
    """Profiles the forward pass in the memory format that it was measured in, and returns the table."""
    kinds = measuring.time_by_kind(replace(ours.contender, memory_format=ours.memory_format), 3)
    rows = [['share of the time', *kinds], ['forward pass', *(f'{share:.0%}' for share in kinds.values())]]
    return f'### Where the time of the forward pass goes\n\n{markdown(rows)}'


def group_tables(measured: Measured) -> list[str]:
    """Returns a table for each group."""
    tables = []
    for group, results in measured.items():
        rounds = len(next(iter(results.values())).seconds)
        tables.append(f'### {group}\n\n{rounds} rounds.\n\n{markdown(table_rows(list(results.values())))}')
    return tables


if __name__ == '__main__':
    sys.exit(main())
