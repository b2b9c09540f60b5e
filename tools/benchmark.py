#!/usr/bin/env python
"""Measure the time, memory and arithmetic rate of models side by side, in turns."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text

with starting(__name__):
    import torch

    from pvt_mm.analysis import figures, latency
    from pvt_mm.analysis.benchmark import contender as tables
    from pvt_mm.analysis.benchmark.contender import FAMILIES, FAMILY_OF, FORMATS, MODES, PEERS, Contender
    from pvt_mm.analysis.benchmark.machine import machine
    from pvt_mm.analysis.benchmark.measure import measure
    from pvt_mm.analysis.benchmark.models import products
    from pvt_mm.analysis.benchmark.process import available_cores
    from pvt_mm.apis.config import load_config

LEGEND = """input: reading and preprocessing; output: from the model's outputs to the objects of predictions.json
peak: above the loaded model; total: the peak of the process; load: imports and the model, once Python has started"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The last line of the output is JSON.',
        epilog='Example: tools/benchmark.py --model small configs/retinanet/r50_1x.py --peers mmdet --mode train',
    )
    add = parser.add_argument
    what = f'configs, or any of {", ".join(FAMILY_OF)}; with --mode predict configs (random weights), work directories '
    what += '(the last checkpoint) and .onnx files'
    add('--model', nargs='+', required=True, metavar='CONFIG|ARCH|WORK_DIR|ONNX', help=what)
    add('--labels', nargs='+', metavar='NAME', help='what tables and plots call the models, one each')
    add('--peers', nargs='+', default=[], choices=list(PEERS), help="others' backbones of the same sizes")
    modes = '; '.join(f'{name}: {what}' for name, what in MODES.items())
    add('--mode', choices=list(MODES), default='forward', help=f'{modes} (default: %(default)s)')
    add('--images', metavar='FOLDER', help='of --mode predict: each round takes the next image, the same for all')
    add('--profile', action='store_true', help="with --mode predict: PyTorch's and onnxruntime's time by operator")
    add('--shape', nargs='+', type=int, default=[800, 1344], metavar=('H', 'W'), help='in pixels (default: 800 1344)')
    add('--scales', nargs='+', type=int, metavar='SIDE', help='squares of these sides in pixels instead of --shape')
    add('--batch', type=int, default=1, metavar='N', help='images per step (default: %(default)s)')
    add('--device', choices=('cpu', 'cuda'), default='cpu', help='(default: %(default)s)')
    add(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='the 16-bit dtypes by autocast, as with --amp (default: %(default)s)',
    )
    add('--compile', action='store_true', help='torch.compile every model, with dynamic sizes')
    add('--with-cp', action='store_true', help='recompute layers in the backward pass (not for peers)')
    add(
        '--prepare',
        default='',
        metavar='MODULE:FUNCTION',
        help='apply a function to the built backbone (not for peers)',
    )
    add(
        '--memory-format',
        choices=('better', *FORMATS),
        default='better',
        help='of images and weights; better: the faster of the two in a few steps (default: %(default)s)',
    )
    add('--busy', action='store_true', help='keep one core busy with another process during the steps')
    cores = 'with --mode predict one for each core, of PyTorch, OpenCV and onnxruntime alike'
    add('--threads', type=int, default=0, metavar='N', help=f"of the CPU (default: PyTorch's choice; {cores})")
    add('--rounds', type=int, default=10, metavar='N', help='steps of each model (default: %(default)s)')
    add('--plot', metavar='FILE', help='draw the times; with --scales, times and GFLOPs against the scale')
    add_cfg_options(parser)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    groups = contenders(args)
    if args.plot:
        figures.check_out(args.plot, '--plot')
    # With end2end nothing takes turns: data is loaded ahead, in the time of the others' steps.
    is_end2end = args.mode == 'end2end'
    rates = [] if args.mode in ('end2end', 'predict') else products(args.device, args.dtype, args.threads)
    where = machine(args.device)
    print(f'{where}; {args.mode}, batch {args.batch}, {args.dtype}')
    models = []
    for group in groups:
        turns = [[contender] for contender in group] if is_end2end else [[*group, *rates]]
        results = [result for together in turns for result in measure(together, args.rounds, args.profile)]
        print(f'\n{tables.table(results)}')
        models += results[: len(group)]
    print('\nms: median step; +-: half the interquartile range; x: times the first, median over the rounds')
    if args.mode == 'predict':
        print(LEGEND)
    if args.profile:
        print(f'\n{tables.operator_table(models)}')
    if args.plot:
        draw = latency.plot_scales if args.scales else latency.plot_times
        figures.save_figure(draw(models, where), args.plot)
    rates = {result.contender.model: round(result.rate, 1) for result in results[len(group) :]}
    print(json_text({'machine': where, 'products_gflop_per_s': rates, 'results': [r.summary() for r in models]}))


def contenders(args: argparse.Namespace) -> list[list[Contender]]:
    """Returns what to measure: a group for each size of the image, whose contenders take turns.

    Raises:
        InputError: A flag is out of its range, or a device or a file does not exist.
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
    if args.labels and len(args.labels) != len(args.model):
        raise InputError(f'--labels takes one name for each --model, got {len(args.labels)} for {len(args.model)}')
    if args.mode == 'predict':
        return [predictions(args)]
    if args.images or args.profile:
        raise InputError(f'--{"images" if args.images else "profile"} is of --mode predict')
    for model in args.model:
        if Path(model).suffix == '.onnx' or os.path.isdir(model):
            raise InputError(f'--model {model}: ONNX files and work directories are of --mode predict')
        if model not in FAMILY_OF and not os.path.isfile(model):
            raise InputError(f'--model {model}: not a file, and none of {", ".join(FAMILY_OF)}')
    names = ('mode', 'batch', 'device', 'dtype', 'compile', 'memory_format', 'threads', 'busy')
    kept = {name: getattr(args, name) for name in names} | {'options': args.cfg_options or {}}
    shapes = [(side, side) for side in args.scales] if args.scales else [(args.shape[0], args.shape[-1])]
    groups, types = [], [f'pvt_mm.{family}' for family in FAMILIES]
    for shape in shapes:
        groups.append([])
        for model, label in zip(args.model, labels(args), strict=True):
            is_ours = model in FAMILY_OF or load_config(model, args.cfg_options).model.backbone.type in types
            ours = dict(with_cp=args.with_cp, prepare=args.prepare) if is_ours else {}
            groups[-1].append(Contender(model, shape, label=label, **ours, **kept))
            groups[-1] += [Contender(model, shape, peer=peer, label=label, **kept) for peer in args.peers if is_ours]
    return groups


def predictions(args: argparse.Namespace) -> list[Contender]:
    """Returns the contenders of ``--mode predict``.

    Raises:
        InputError: There is no image, a flag does not fit, or a model does not exist or is none that can predict.
    """
    from pvt_mm.analysis.benchmark import prediction  # imports MMCV, which a backbone alone does without

    if not args.images:
        raise InputError('--mode predict needs --images FOLDER')
    if args.batch != 1 or args.device != 'cpu':
        raise InputError('--mode predict takes one image at a time on the CPU, and no --batch or --device')
    for name in ('scales', 'peers', 'with_cp', 'prepare'):
        if getattr(args, name):
            raise InputError(f'--mode predict takes no --{name.replace("_", "-")}')
    images, threads = prediction.find_images(args.images), args.threads or available_cores()
    pytorchs = {name: getattr(args, name) for name in ('dtype', 'compile', 'memory_format')}
    found = []
    for model, label in zip(args.model, labels(args), strict=True):
        kept = dict(mode='predict', label=label, images=images, threads=threads, busy=args.busy)
        if Path(model).suffix != '.onnx':
            config = prediction.find_run(model)[0] if os.path.isdir(model) else model
            load_config(config, args.cfg_options)
            kept |= pytorchs | {'options': args.cfg_options or {}}
        elif not os.path.isfile(model):
            raise InputError(f'--model {model} does not exist')
        found.append(Contender(model, (0, 0), **kept))
    if args.dtype != 'float32' and all(one.is_onnx for one in found):
        raise InputError(f'--dtype {args.dtype} is of PyTorch: an ONNX file has its own')
    return found


def labels(args: argparse.Namespace) -> list[str]:
    return args.labels or [''] * len(args.model)


if __name__ == '__main__':
    sys.exit(main())
