#!/usr/bin/env python
"""Measure the time, memory and arithmetic rate of models side by side, in turns."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pvt_mm.analysis import benchmark, figures, latency
from pvt_mm.analysis.benchmark import ARCHS, MODES, PEERS, Contender, Result
from pvt_mm.engine import run
from pvt_mm.errors import InputError, command

MODE_HELP = '; '.join(f'{name}: {what}' for name, what in MODES.items())


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' The last line of the output is JSON.',
        epilog='Example: tools/benchmark.py --model small configs/retinanet/r50_1x.py --peers mmdet --mode train',
    )
    parser.add_argument(
        '--model', nargs='+', required=True, metavar='CONFIG|ARCH', help=f'config files, or any of {", ".join(ARCHS)}'
    )
    parser.add_argument(
        '--peers',
        nargs='+',
        default=[],
        choices=list(PEERS),
        help="others' PVT of the same size, for each model of PVT",
    )
    parser.add_argument('--mode', choices=list(MODES), default='forward', help=f'{MODE_HELP} (default: %(default)s)')
    parser.add_argument(
        '--shape', nargs='+', type=int, default=[800, 1344], metavar=('H', 'W'), help='in pixels (default: 800 1344)'
    )
    parser.add_argument(
        '--scales', nargs='+', type=int, metavar='SIDE', help='squares of these sides in pixels instead of --shape'
    )
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images a step (default: %(default)s)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='(default: %(default)s)')
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='the two of 16 bits by autocast, as with --amp (default: %(default)s)',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile every model, with dynamic sizes')
    parser.add_argument('--with-cp', action='store_true', help='recompute layers in the backward pass (not for peers)')
    parser.add_argument(
        '--memory-format',
        choices=('better', *benchmark.FORMATS),
        default='better',
        help='of images and weights; better: whichever of the two is faster, found out first (default: %(default)s)',
    )
    parser.add_argument('--threads', type=int, default=0, metavar='N', help="of the CPU (default: PyTorch's choice)")
    parser.add_argument(
        '--rounds', type=int, default=10, metavar='N', help='steps of each model (default: %(default)s)'
    )
    parser.add_argument(
        '--plot', metavar='FILE', help='draw the times; with --scales, against the scale and the GFLOPs'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=run.CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='override settings of configs',
    )
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    groups = contenders(args)
    if args.plot:
        figures.check_out(args.plot, '--plot')
    # Data that is loaded ahead would have the time that others are measured in.
    rates = [] if args.mode == 'end2end' else benchmark.products(args.device, args.dtype, args.threads)
    results, names = [], [contender.name for group in groups for contender in group]
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=(args.rounds + 1) * (len(names) + len(rates) * len(groups)))

        def advance(name: str) -> None:
            progress.update(task, description=name, advance=1)

        for group in groups:
            if not console.is_terminal:
                console.print(f'measuring {", ".join(contender.name for contender in group)}', highlight=False)
            turns = [[contender] for contender in group] if args.mode == 'end2end' else [[*group, *rates]]
            measured = []
            for taking_turns in turns:
                measured += benchmark.measure(taking_turns, args.rounds, advance)
            results.append((measured[: len(group)], measured[len(group) :]))
    machine = benchmark.machine(args.device)
    output = Console(width=None if sys.stdout.isatty() else 140)
    output.print(machine, highlight=False)
    for measured, rate in results:
        output.print(table(measured, rate))
    every = [result for measured, _ in results for result in measured]
    if args.plot:
        draw = latency.plot_scales if args.scales else latency.plot_times
        figures.save_figure(draw(every, machine), args.plot)
    rates = {result.contender.model: result.summary()['gflop_per_s'] for result in results[0][1]}
    print(json.dumps({'machine': machine, 'products_gflop_per_s': rates, 'results': [r.summary() for r in every]}))


def contenders(args: argparse.Namespace) -> list[list[Contender]]:
    """Returns what the flags ask for: for each size of the image, what is measured in turns.

    Raises:
        InputError: A flag is out of its range, or a device or a file is not there.
    """
    for name in ('batch', 'rounds'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.threads < 0:
        raise InputError(f'--threads must be at least 0, got {args.threads}')
    if len(args.shape) > 2 or min(args.shape + (args.scales or [])) < 1:
        raise InputError('--shape takes one or two positive numbers, and --scales positive ones')
    if args.mode == 'end2end' and args.scales:
        raise InputError('--mode end2end takes the sizes of its data, and no --scales')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: PyTorch finds no GPU here')
    for model in args.model:
        if model not in ARCHS and not os.path.isfile(model):
            raise InputError(f'--model {model}: no file, and none of {", ".join(ARCHS)}')
    shapes = [(side, side) for side in args.scales] if args.scales else [(args.shape[0], args.shape[-1])]
    kept = dict(
        mode=args.mode,
        batch=args.batch,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        memory_format=args.memory_format,
        threads=args.threads,
        options=args.cfg_options,
    )
    groups = []
    for shape in shapes:
        groups.append([])
        for model in args.model:
            pvt = model in ARCHS or run.load_config(model, args.cfg_options).model.backbone.type == 'pvt_mm.PVT'
            groups[-1].append(Contender(model, shape, with_cp=args.with_cp and pvt, **kept))
            groups[-1] += [Contender(model, shape, peer=peer, **kept) for peer in args.peers if pvt]
    return groups


def table(results: Sequence[Result], rates: Sequence[Result]) -> Table:
    """Returns the table of what took turns."""
    first = results[0].contender
    size = 'images from disk' if first.mode == 'end2end' else f'{first.batch} x 3 x {first.shape[0]} x {first.shape[1]}'
    made = Table(title=f'{first.mode}, {size}, {first.dtype}', box=None, header_style='bold', title_justify='left')
    made.add_column('model')
    shown: dict[str, list[str]] = {}
    for result in results:
        cells = {
            'ms': f'{1000 * result.median:.0f}' if result.median > 0.1 else f'{1000 * result.median:.2f}',
            '+-': f'{result.spread:.1%}',
            'x': f'{results[0].ratio(result):.2f}',
            'images/s': f'{result.images / result.median:.2f}',
            'peak GB': '' if result.peak_memory is None else f'{result.peak_memory:.2f}',
            'format': result.memory_format,
        }
        if first.mode == 'end2end':
            cells['waited for data'] = f'{sum(result.waited) / sum(result.seconds):.0%}'
        elif result.rate:
            cells['GFLOPs'] = f'{result.gflops:.1f}'
            cells['GFLOP/s'] = f'{result.rate:.0f}'
            for rate in rates:
                cells[f'of {rate.contender.model}'] = f'{result.rate / rate.rate:.2f}'
        for name, cell in cells.items():
            shown.setdefault(name, []).append(cell)
    for name in shown:
        made.add_column(name, justify='right')
    for i, result in enumerate(results):
        made.add_row(result.contender.name, *(cells[i] if i < len(cells) else '' for cells in shown.values()))
    products = ', '.join(f'{rate.contender.model} {rate.rate:.0f} GFLOP/s' for rate in rates)
    made.caption = (
        f'ms: the median step; +-: half the distance of its quartiles; x: times the first, round by round.\n{products}'
    )
    made.caption_justify = 'left'
    return made


if __name__ == '__main__':
    sys.exit(main())
