#!/usr/bin/env python
"""Do the iteration again at which training stopped, its loss or a gradient not finite, and show where that begins."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pvt_mm.engine import run
from pvt_mm.errors import command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' The exit code is 0 where that happened again, and 1 where everything was finite; the '
        'last line of the output is JSON.',
        epilog='Example: tools/replay.py work_dirs/pvt_s_1x/pvt_s_1x.py work_dirs/pvt_s_1x/nonfinite_iter_4711.pth',
    )
    parser.add_argument('config', help='the config file of the run: its copy in the work directory has all options')
    parser.add_argument('file', help='the nonfinite_iter_N.pth that training has left')
    run.add_cfg_options(parser)
    return parser.parse_args(argv)


def print_losses(batches: Sequence[dict], losses: Sequence[dict[str, float]]) -> None:
    table = Table('batch', 'loss', box=None, pad_edge=False)
    for name in ('in training', 'here'):
        table.add_column(name, justify='right')
    for batch, found in zip(batches, losses, strict=True):
        for name, value in found.items():
            position = f'{batch["number"]} of epoch {batch["epoch"]}'
            table.add_row(position, name, f'{batch["losses"][name]:.6g}', f'{value:.6g}')
    Console().print(table)


def print_gradients(gradients: Sequence, limit: int = 10) -> None:
    table = Table('gradient of', box=None, pad_edge=False)
    for name in ('not finite', 'norm of the rest'):
        table.add_column(name, justify='right')
    for gradient in gradients[:limit]:
        table.add_row(gradient.name, f'{gradient.share:.1%}', f'{gradient.norm:.4g}')
    Console().print(table)


def print_origins(value: object, gradient: str | None) -> None:
    if value is None:
        print('no output of a module is not finite')
    else:
        print(f'the first values that are not finite: the {value.what} of {value.module} ({value.kind})')
        print(f'  the finite numbers in its input are from {value.low:.4g} to {value.high:.4g}')
        if value.parameters:
            print(f'  parameters of it that are not finite: {", ".join(value.parameters)}')
    if gradient:
        print(f'the first gradient that is not finite, going back from the loss: that of {gradient}')


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    config = run.load_config(args.config, args.cfg_options)
    # The model's libraries take seconds to load.
    from pvt_mm.engine import replay
    from pvt_mm.engine.finite_hook import image_name

    record = replay.read_record(args.file)
    model = replay.build_model(config, args.file)
    data = replay.load_batches(replay.build_loader(config, record), record)
    done = replay.replay(model, record, data, replay.half_of(config))

    batches = record['batches']
    print(f'iteration {batches[-1]["iter"] + 1}, process {record["rank"]} of {record["world_size"]}, again\n')
    print_losses(batches, done.losses)
    print()
    print_origins(done.value, done.gradient)
    print()
    print_gradients(done.gradients)
    print()
    images = [image for batch in batches for image in batch['images']]
    for image in images:
        print(f'image {image_name(image)}')
    if done.finite:
        print('\neverything was finite this time')
    bad = [gradient.name for gradient in done.gradients if gradient.share]
    results = dict(
        reproduced=not done.finite,
        losses=done.losses,
        first_value=asdict(done.value) if done.value else None,
        first_gradient=done.gradient,
        gradients=dict(bad=len(bad), all=len(done.gradients), first=bad[:10]),
        images=images,
    )
    print(json.dumps(plain(results)))
    return int(done.finite)


def plain(value: object) -> object:
    """Writes numbers that JSON has not as strings."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == '__main__':
    sys.exit(main())
