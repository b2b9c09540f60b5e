#!/usr/bin/env python
"""Repeat the iteration at which training stopped on NaN/Inf, and show where NaN/Inf starts."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, starting
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The exit code is 0 if NaN/Inf was there again, and 1 if everything was finite. The '
        'last line of the output is JSON.',
        epilog='Example: tools/replay.py work_dirs/pvt_s_1x/pvt_s_1x.py work_dirs/pvt_s_1x/nonfinite_iter_4711.pth',
    )
    parser.add_argument('config', help='the config that the run saved in its work directory')
    parser.add_argument('file', help='the nonfinite_iter_N.pth that training saved')
    add_cfg_options(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console
    from rich.table import Table

    from pvt_mm.apis.config import load_config


def print_losses(batches: Sequence[dict], losses: Sequence[dict[str, float]]) -> None:
    table = Table('batch', 'loss', box=None, pad_edge=False)
    for name in ('in training', 'repeated'):
        table.add_column(name, justify='right')
    for batch, found in zip(batches, losses, strict=True):
        for name, value in found.items():
            position = f'{batch["number"]} of epoch {batch["epoch"]}'
            table.add_row(position, name, f'{batch["losses"][name]:.6g}', f'{value:.6g}')
    Console().print(table)


def print_gradients(gradients: Sequence) -> None:
    table = Table('gradient of', box=None, pad_edge=False)
    for name in ('NaN/Inf', 'norm of the rest'):
        table.add_column(name, justify='right')
    for gradient in gradients:
        table.add_row(gradient.name, f'{gradient.share:.1%}', f'{gradient.norm:.4g}')
    Console().print(table)


def print_origins(value: object, gradient: str | None) -> None:
    if value is None:
        print('no NaN/Inf in the output of any module')
    else:
        print(f'first NaN/Inf in the forward pass: the {value.what} of {value.module} ({value.kind})')
        print(f'  finite numbers in its input: {value.low:.4g} to {value.high:.4g}')
        if value.parameters:
            print(f'  its parameters with NaN/Inf: {", ".join(value.parameters)}')
    if gradient:
        print(f'first NaN/Inf in the backward pass: the gradient of {gradient}')


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args.config, args.cfg_options)
    # The model's libraries take seconds to load.
    from pvt_mm.apis import replay
    from pvt_mm.apis.inference import load_model
    from pvt_mm.engine.hooks.finite_hook import image_name

    record = replay.read_record(args.file)
    model = load_model(config, args.file).train()
    result = replay.replay(model, record, replay.load_batches(config, record), replay.half_precision(config))

    batches = record['batches']
    print(f'iteration {batches[-1]["iter"] + 1}, rank {record["rank"]} of {record["world_size"]}, repeated\n')
    print_losses(batches, result.losses)
    print()
    print_origins(result.value, result.gradient)
    print()
    print_gradients(result.gradients[:10])
    print()
    images = [image for batch in batches for image in batch['images']]
    for image in images:
        print(f'image {image_name(image)}')
    if result.finite:
        print('\neverything was finite this time')
    bad = [gradient.name for gradient in result.gradients if gradient.share]
    results = dict(
        reproduced=not result.finite,
        losses=result.losses,
        first_value=asdict(result.value) if result.value else None,
        first_gradient=result.gradient,
        gradients=dict(bad=len(bad), all=len(result.gradients), first=bad[:10]),
        images=images,
    )
    print(json_text(quote_nonfinite(results)))
    return int(result.finite)


def quote_nonfinite(value: object) -> object:
    """Turns NaN/Inf, which JSON does not have, into strings."""
    if isinstance(value, dict):
        return {name: quote_nonfinite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [quote_nonfinite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == '__main__':
    sys.exit(main())
