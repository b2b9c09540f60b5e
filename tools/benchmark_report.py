#!/usr/bin/env python
"""Measure what this project claims of its speed and memory, and write docs/benchmarks.md and docs/latency.png."""

import argparse
import contextlib
import datetime
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pvt_mm.analysis import benchmark, figures, latency
from pvt_mm.analysis.benchmark import Contender, Result
from pvt_mm.errors import InputError, command
from pvt_mm.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
PVT_S, R50, VIT = (str(ROOT / f'configs/retinanet/{name}_1x.py') for name in ('pvt_s', 'r50', 'vit_s_p32'))
SCALES = (320, 480, 640, 800, 960, 1120)


class Profile(NamedTuple):
    """Where the time goes: shares of the forward pass by kind of operator, and seconds by part of each RetinaNet."""

    kinds: dict[str, float]
    parts: dict[str, dict[str, float]]


class Claim(NamedTuple):
    """A figure to measure: what it is, its bound if it has one, whether it is to be at least that, and what it was."""

    what: str
    bound: float | None
    at_least: bool
    measured: float | None

    @property
    def holds(self) -> bool | None:
        """Whether the bound was reached; None where there is none, or nothing was measured."""
        if self.measured is None or self.bound is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def cells(self) -> list[str]:
        """Returns the row of the table."""
        reach = '' if self.bound is None else f'{">=" if self.at_least else "<="} {self.bound:.2f}'
        answer = {None: '', True: 'yes', False: 'no'}[self.holds]
        return [self.what, reach, 'not measured' if self.measured is None else f'{self.measured:.2f}', answer]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__
        + ' Takes 20 to 40 minutes on two cores; the last line of the output is JSON. Exits with 1 if a figure does '
        'not reach its bound; both files are written all the same.',
        epilog='Example: tools/benchmark_report.py --rounds 5',
    )
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='steps of each model (default: %(default)s)')
    parser.add_argument('--size', type=float, default=1.0, help='of the images, as a share of 800 x 1344 (default: 1)')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='the folder to write to (default: docs)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.rounds < 1 or not 0.1 <= args.size <= 2:
        raise InputError('--rounds must be at least 1, and --size between 0.1 and 2')
    out = args.out / 'benchmarks.md'
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(whole_file(out))
            beside.touch()  # nothing is measured that could not be written
        except OSError as error:
            raise InputError(f'--out {args.out} cannot be written: {error.strerror}') from error
        measured = measure(args)
        machine, made = ' and '.join(map(benchmark.machine, devices())), claims(measured)
        scales = [result for name, results in measured.items() if name.startswith('scale') for result in results]
        figures.save_figure(latency.plot_scales(scales, machine), args.out / 'latency.png')
        beside.write_text(document(machine, args, made, where_time_goes(args, measured), measured))
    table = Table('', 'reach', 'measured', 'holds', box=None, header_style='bold')
    for claim in made:
        table.add_row(*claim.cells(), style='bold red' if claim.holds is False else '')
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(machine, highlight=False)
    console.print(table)
    console.print(f'{out} and {args.out / "latency.png"} have the rest', highlight=False)
    print(json.dumps({'machine': machine, 'claims': [claim._asdict() for claim in made]}))
    return int(any(claim.holds is False for claim in made))


def measure(args: argparse.Namespace) -> dict[str, list[Result]]:
    """Measures everything, and returns the results by the name of the comparison; what a GPU cannot hold has none."""
    groups = plans(args.size) | (gpu_plans() if torch.cuda.is_available() else {})
    console, measured = Console(stderr=True), {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=(args.rounds + 1) * sum(map(len, groups.values())))
        for name, group in groups.items():
            if not console.is_terminal:
                console.print(f'{name}: {", ".join(contender.name for contender in group)}', highlight=False)
            try:
                measured[name] = benchmark.measure(
                    group, args.rounds, lambda one: progress.update(task, description=one, advance=1)
                )
            except InputError as error:
                if not name.startswith('GPU'):
                    raise
                console.print(f'{name}: not measured: {error}', highlight=False)  # batches that its memory cannot hold
    return measured


def devices() -> list[str]:
    """Returns what can be measured on here."""
    return ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


def where_time_goes(args: argparse.Namespace, measured: dict[str, list[Result]]) -> Profile:
    """Profiles the forward pass and both RetinaNets, in the memory formats that they were measured in."""
    ours, pvt, r50 = (
        replace(result.contender, memory_format=result.memory_format)
        for result in (measured['forward'][0], *measured['RetinaNet'][:2])
    )
    parts = benchmark.time_by_part([pvt, r50], args.rounds)
    return Profile(benchmark.time_by_kind(ours, args.rounds), dict(zip((pvt.name, r50.name), parts, strict=True)))


def scaled(shape: tuple[int, int], size: float) -> tuple[int, int]:
    """Returns a shape at ``size``, in multiples of 32 as detectors pad their images to."""
    return tuple(max(64, round(length * size / 32) * 32) for length in shape)


def plans(size: float) -> dict[str, list[Contender]]:
    """Returns what is measured in turns, by the name of the comparison."""
    full, small, large = (scaled(shape, size) for shape in ((800, 1344), (640, 1088), (1600, 2688)))
    rates = benchmark.products('cpu', 'float32', 0)
    better = dict(memory_format='better')
    ours = Contender('small', full, **better)
    mmdet = replace(ours, peer='mmdet')
    detector = dict(mode='detector', **better)
    plan = {
        'forward': [
            ours,
            replace(ours, compile=True),
            mmdet,
            *rates,
        ],
        'forward, both compiled': [
            replace(ours, compile=True),
            replace(mmdet, compile=True),
        ],
        'train': [
            replace(ours, mode='train'),
            replace(ours, mode='train', with_cp=True),
            replace(mmdet, mode='train'),
        ],
        'RetinaNet': [
            Contender(PVT_S, full, **detector),
            Contender(R50, full, **detector),
            Contender(PVT_S, full, peer='mmdet', **detector),
        ],
        'RetinaNet, 640 pixels': [Contender(PVT_S, small, **detector), Contender(R50, full, **detector)],
        'growth': [ours, replace(ours, shape=large)],
    }
    for scale in SCALES:
        side = scaled((scale, scale), size)
        plan[f'scale {side[0]}'] = [
            replace(ours, shape=side),
            replace(mmdet, shape=side),
            Contender(R50, side, label='ResNet-50', **better),
            Contender(VIT, side, label='ViT-Small/32', options=NO_WEIGHTS, **better),
        ]
    return plan


# Nobody has published weights of ViT-Small/32, and none are needed here.
NO_WEIGHTS = {'model.backbone.init_cfg': None}


def claims(measured: dict[str, list[Result]]) -> list[Claim]:
    """Returns the claims with what was measured of each."""
    ours, compiled, mmdet, mm, conv = measured['forward']
    both_compiled = measured['forward, both compiled']
    train, with_cp, mmdet_train = measured['train']
    pvt, r50, _ = measured['RetinaNet']
    pvt_640, r50_800 = measured['RetinaNet, 640 pixels']
    at_800, at_1600 = measured['growth']
    memory = [share(result.peak_memory, mmdet_train.peak_memory) for result in (train, with_cp)]
    growth = at_800.ratio(at_1600) / (at_1600.gflops / at_800.gflops)
    return [
        Claim('forward: mmdet / ours, both eager', 3.2, True, ours.ratio(mmdet)),
        Claim('forward: mmdet / ours, ours compiled', 3.6, True, compiled.ratio(mmdet)),
        Claim('forward: mmdet / ours, both compiled', None, True, both_compiled[0].ratio(both_compiled[1])),
        Claim("forward, compiled: arithmetic rate / torch.mm's (MKL)", 0.78, True, compiled.rate / mm.rate),
        Claim("forward, compiled: arithmetic rate / a convolution's (oneDNN)", None, True, compiled.rate / conv.rate),
        Claim('forward + backward: mmdet / ours', 3.0, True, train.ratio(mmdet_train)),
        Claim('peak memory of forward + backward: ours / mmdet', 0.45, False, memory[0]),
        Claim('the same with_cp', 0.25, False, memory[1]),
        Claim('RetinaNet: PVT-S / ResNet-50 (paper 1.38)', 1.15, False, r50.ratio(pvt)),
        Claim('RetinaNet: PVT-S at 640 / ResNet-50 at 800 (paper 0.92)', 0.70, False, r50_800.ratio(pvt_640)),
        Claim('growth of time / growth of arithmetic, 800 to 1600', 1.1, False, growth),
        *gpu_claims(measured),
    ]


def gpu_plans() -> dict[str, list[Contender]]:
    """Returns what is measured where there is a GPU: ours beside mmdet's, all ways to run them."""
    plan = {}
    for mode, dtype, batch, compiled in itertools.product(
        ('forward', 'train'), ('float32', 'bfloat16'), (1, 2, 16), (False, True)
    ):
        kept = dict(mode=mode, dtype=dtype, batch=batch, compile=compiled, device='cuda', memory_format='better')
        name = f'GPU, {mode}, {dtype}, batch {batch}' + ', compiled' * compiled
        plan[name] = [Contender('small', **kept), Contender('small', peer='mmdet', **kept)]
    for dtype in ('float32', 'bfloat16'):
        alone = Contender('small', mode='attention', dtype=dtype, batch=16, device='cuda')
        plan[f'GPU, attention, {dtype}'] = [alone, *benchmark.products('cuda', dtype, 0)]
    return plan


def gpu_claims(measured: dict[str, list[Result]]) -> list[Claim]:
    """Returns the claims of a GPU, which are not measured where there is none."""
    found = measured.get('GPU, train, bfloat16, batch 16')
    speed = found and found[0].ratio(found[1])
    memory = found and share(found[0].peak_memory, found[1].peak_memory)
    return [
        Claim('GPU, bf16, training throughput: ours / mmdet', 2.0, True, speed),
        Claim('GPU, bf16, peak memory of training: ours / mmdet', 0.45, False, memory),
    ]


def share(part: float | None, whole: float | None) -> float | None:
    """Returns a ratio, or None where one of the two could not be measured."""
    return None if part is None or whole is None else part / whole


HEAD = """# Benchmarks

Written by `make bench` (`tools/benchmark_report.py`). **Measured** on {machine}, on {date}: PVT-Small,
one image of {H} x {W} pixels, float32, random weights, unless a line says otherwise. Nothing here is quoted.

{claims}

Every model has a process of its own, so that its peak memory is its own. They take turns, a step each a round: {rounds}
rounds after two steps to warm up. Times are medians, +- is half the distance of the quartiles, and ratios (x) are
medians of the ratios of the rounds. Peak memory is what the process holds above the built model and its input. GFLOPs
are multiply-adds as papers count them; the rate counts two for each, and nothing for what is computed again in the
backward pass. PyTorch multiplies float32 matrices by MKL (`torch.mm`) and convolves by oneDNN: both rates were measured
in the rounds of the forward passes. Each model is run in the better of the two memory formats, found out first.

![Time and arithmetic against the scale of the input](latency.png)

`tools/benchmark.py` measures any model, config, size, device and precision in this way.
"""


WHERE = """## Where the time goes

Of the forward pass, by `torch.profiler`, and of the whole RetinaNets in ms, medians of rounds in turns:

{kinds}

{parts}
"""


def markdown(rows: Sequence[Sequence[str]], rule: Sequence[str]) -> str:
    """Returns rows of cells as a table of Markdown, the first one its head and ``rule`` the line below that."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (rows[0], rule, *rows[1:]))


def profiles(profile: Profile) -> str:
    """Returns the section that says where the time goes."""
    shares = [['PVT-Small', *profile.kinds], ['forward', *(f'{share:.0%}' for share in profile.kinds.values())]]
    parts = [['', 'backbone', 'neck', 'heads']]
    for name, seconds in profile.parts.items():
        parts.append([name, *(f'{1000 * seconds[part]:.0f}' for part in parts[0][1:])])
    rules = [['---', *['---:'] * (len(rows[0]) - 1)] for rows in (shares, parts)]
    return WHERE.format(kinds=markdown(shares, rules[0]), parts=markdown(parts, rules[1]))


def document(
    machine: str,
    args: argparse.Namespace,
    made: Sequence[Claim],
    profile: Profile,
    measured: dict[str, list[Result]],
) -> str:
    """Returns docs/benchmarks.md."""
    H, W = scaled((800, 1344), args.size)
    rows = [['measured here', 'reach', 'figure', 'holds'], *(claim.cells() for claim in made)]
    parts = [
        HEAD.format(
            machine=machine,
            date=datetime.date.today(),
            H=H,
            W=W,
            rounds=args.rounds,
            claims=markdown(rows, ['---', '---:', '---:', '---']),
        ),
        profiles(profile),
    ]
    for name, results in measured.items():
        lines = [['model', 'size', 'ms', '+-', 'x', 'peak GB', 'GFLOPs', 'GFLOP/s', 'format']]
        for result in results:
            product = result.contender.mode == 'product'
            peak = '' if product or result.peak_memory is None else f'{result.peak_memory:.2f}'
            size = '' if product else ' x '.join(map(str, result.contender.shape))
            cells = [f'{1000 * result.median:.0f}', f'{result.spread:.1%}', f'{results[0].ratio(result):.2f}', peak]
            cells += ['', ''] if result.gflops is None else [f'{result.gflops:.1f}', f'{result.rate:.0f}']
            lines.append([result.contender.name, size, *cells, '' if product else result.memory_format])
        parts.append(f'## {name[0].upper()}{name[1:]}\n')
        parts.append(markdown(lines, ['---', *['---:'] * 7, '---']) + '\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    sys.exit(main())
