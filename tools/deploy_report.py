#!/usr/bin/env python
"""Export the models of runs as float32, float16 and int8, compare them with PyTorch, and write docs/deploy.md."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import atomic_write, check_writable
from pvt_mm.utils.text import json_text

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The figures go between the marks <!-- figures --> and <!-- /figures -->. It takes some '
        'minutes for each model; the last line of the output is JSON.',
        epilog='Example: tools/deploy_report.py work_dirs/retinanet work_dirs/mask_rcnn --images val2017',
    )
    add = parser.add_argument
    add('work_dirs', nargs='+', metavar='WORK_DIR', help='a run: its config and its last checkpoint')
    add('--images', required=True, metavar='FOLDER', help='to compare, calibrate and measure on')
    add('--out', type=Path, default=ROOT / 'docs/deploy.md', metavar='FILE', help='the page (default: docs/deploy.md)')
    add('--rounds', type=int, default=20, metavar='N', help='images of each measurement (default: %(default)s)')
    add('--threads', type=int, default=0, metavar='N', help='of PyTorch, OpenCV and onnxruntime (default: one a core)')
    add(
        '--val-images',
        type=int,
        default=200,
        metavar='N',
        help='images of the test data, if it exists, to evaluate on (default: %(default)s)',
    )
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console

    from pvt_mm.analysis.benchmark.machine import int8_instructions, machine
    from pvt_mm.analysis.benchmark.prediction import find_images, find_run
    from pvt_mm.apis.config import load_config
    from pvt_mm.deploy import report


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for name, least in (('rounds', 1), ('threads', 0), ('val_images', 0)):
        if getattr(args, name) < least:
            raise InputError(f'--{name.replace("_", "-")} must be at least {least}, got {getattr(args, name)}')
    images = find_images(args.images)
    for work_dir in args.work_dirs:
        load_config(find_run(work_dir)[0])
    write(args.out, '')  # only to check
    conditions = report.Conditions(args.work_dirs, args.images, images, args.rounds, args.threads, args.val_images)
    models, console = [], Console(stderr=True)
    for work_dir in args.work_dirs:
        with tempfile.TemporaryDirectory() as where:
            tell = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
            models.append(report.export_and_measure(work_dir, Path(where), conditions, tell))
    figures = report.figures(models, conditions)
    write(args.out, figures)
    print(f'{figures}\n\nwritten to {args.out}')
    where = {'machine': machine('cpu'), 'int8': int8_instructions()}
    print(json_text({'out': str(args.out), **where, 'models': report.summary(models)}))


def write(path: Path, figures: str) -> None:
    """Writes a page with other figures, or without figures only checks that it could be written."""
    if not path.is_file():
        raise InputError(f'--out {path} is not a file: name a page with the marks')
    check_writable(path)
    try:
        text = report.replace_figures(path.read_text(), figures)
    except InputError as error:
        raise InputError(f'--out {path} {error}') from None
    if figures:
        with atomic_write(path) as temporary:
            temporary.write_text(text)


if __name__ == '__main__':
    sys.exit(main())
