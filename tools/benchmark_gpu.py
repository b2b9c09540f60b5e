#!/usr/bin/env python
"""Measure training on a GPU next to MMDetection, and write this GPU's section of docs/benchmarks_gpu.md."""

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import atomic_write
from pvt_mm.utils.text import json_text

ROOT = Path(__file__).resolve().parents[1]
RETINANET = {key: str(ROOT / f'configs/retinanet/{name}_1x.py') for key, name in dict(pvt='pvt_s', r50='r50').items()}
HEAD = """# Benchmarks on GPUs

`make bench-gpu` (`tools/benchmark_gpu.py`) measures these figures in under 5 minutes. It replaces the section of the
GPU that it runs on and leaves the others. PVT-Small with random weights on random images of 800 x 1344 pixels, bfloat16
by autocast, unless a line says otherwise. A training step is forward and backward, without the optimizer.

Models are measured one after another in one process, each after steps to warm up. Times are medians of synchronized
steps, +- is half the interquartile range, and x is relative to the first model of the table. Peak memory is what
PyTorch allocates above the model and its input. GFLOPs are multiply-adds, as papers count them. GFLOP/s count two for
each, and nothing for what the backward pass recomputes; "of torch.mm" is their share of the rate of a product of two
matrices of 8192 x 8192 in the same dtype. In float32, PyTorch's convolutions use TF32 by default; in `tf32` all
products do. Expected figures were computed before anything was measured.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' Takes under 5 minutes; the last line of the output is JSON.',
        epilog='To try it on a CPU: tools/benchmark_gpu.py --device cpu --shape 224 96 --batches 1 2 --rounds 2',
    )
    add = parser.add_argument
    add('--device', choices=('cuda', 'cpu'), default='cuda', help='(default: %(default)s)')
    add('--shape', nargs=2, type=int, default=[800, 1344], metavar=('H', 'W'), help='in pixels (default: 800 1344)')
    add('--batches', nargs=2, type=int, default=[2, 16], metavar='N', help='a small and a large one (default: 2 16)')
    add('--rounds', type=int, default=10, metavar='N', help='steps of each model (default: %(default)s)')
    add(
        '--budget',
        type=float,
        default=280,
        metavar='S',
        help='seconds to measure at most (default: %(default)s)',
    )
    add('--out', type=Path, help='the file to write (default: docs/benchmarks_gpu.md; on a CPU none)')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    import torch
    from rich.console import Console
    from rich.markdown import Markdown

    from pvt_mm.analysis.benchmark.contender import replace_section
    from pvt_mm.analysis.benchmark.gpu import Benchmark
    from pvt_mm.analysis.benchmark.machine import gpu_facts, machine


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if min(*args.batches, args.rounds) < 1:
        raise InputError('--batches and --rounds must be at least 1')
    if args.shape[0] < 224 or args.shape[1] < 96:
        raise InputError('--shape must be at least 224 96, since smaller images are measured too')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: PyTorch finds no GPU here (tools/doctor.py says why)')
    out = args.out or (ROOT / 'docs/benchmarks_gpu.md' if args.device == 'cuda' else None)
    if out and (not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir()):
        raise InputError(f'--out {out} is not a file that can be written')
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler would print two lines at each use
    console = Console(stderr=True, highlight=False)
    where, facts = machine(args.device), gpu_facts() if args.device == 'cuda' else {}
    console.print(where)
    benchmark = Benchmark(
        args.device, tuple(args.shape), tuple(args.batches), args.rounds, args.budget, RETINANET,
        lambda line: console.print(line, markup=False, soft_wrap=True),
    )  # fmt: skip
    benchmark.run()
    name = torch.cuda.get_device_name() if args.device == 'cuda' else where
    facts = {'date': str(datetime.date.today()), **facts}
    section = f'{", ".join(f"{fact} {value}" for fact, value in facts.items())}\n\n{benchmark.report()}'
    Console(width=None if sys.stdout.isatty() else 140).print(Markdown(f'## {name}\n\n{section}'))
    if out:
        text = out.read_text() if out.exists() else HEAD
        with atomic_write(out) as path:
            path.write_text(replace_section(text, name, section))
        print(f'written to {out}')
    measured = [result.summary() for results in benchmark.results.values() for result in results.values()]
    kernels = {name: [one._asdict() for one in found] for name, found in benchmark.attention.items()}
    print(json_text({
        'machine': where, **facts, 'figures': benchmark.figures(), 'attention': kernels,
        'new_sizes': {name: one._asdict() for name, one in benchmark.new_sizes.items()},
        'results': measured, 'not_run': benchmark.not_run,
    }))  # fmt: skip


if __name__ == '__main__':
    sys.exit(main())
