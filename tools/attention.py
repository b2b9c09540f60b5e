#!/usr/bin/env python
"""Plot the attention of a point of an image in one layer of a trained PVT or PVTv2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, add_trust, starting
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The last line of the output is JSON.',
        epilog='Example: tools/attention.py street.jpg configs/retinanet/pvt_s_1x.py epoch_12.pth --query 310 180 '
        '--stage 3 --head each --out attention.png',
    )
    parser.add_argument('image', help='the image file')
    parser.add_argument('config', help='the config of a detector, segmentor or classifier with a PVT or PVTv2')
    parser.add_argument('checkpoint', help='the checkpoint, or a work directory for its last checkpoint')
    parser.add_argument('--stage', type=int, metavar='N', help='stage, counted from 1 (default: the last)')
    parser.add_argument('--layer', type=int, metavar='N', help='layer of the stage, from 1 (default: the last)')
    parser.add_argument('--head', default='mean', help='head, counted from 1; or mean, or each (default: %(default)s)')
    parser.add_argument(
        '--query',
        nargs=2,
        type=float,
        metavar=('X', 'Y'),
        help="the point, in pixels of the image (default: the class token, in the last stage of PVT's classifiers)",
    )
    add_cfg_options(parser)
    add_trust(parser)
    parser.add_argument('--out', default='attention.png', help='a .png, .svg, .pdf or .jpg file (default: %(default)s)')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.analysis import figures
    from pvt_mm.apis.config import load_config
    from pvt_mm.checkpoint.reader import safe_reading


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    figures.check_out(args.out)
    config = load_config(args.config, args.cfg_options)
    # The model's libraries take seconds to load.
    from pvt_mm.analysis import attention
    from pvt_mm.analysis.predictions import find_checkpoint
    from pvt_mm.apis.inference import image_steps, load_model
    from pvt_mm.datasets.image_io import read_image

    image = read_image(args.image, image_steps(config)[0])
    with safe_reading(trust=args.trust):
        model = load_model(config, find_checkpoint(args.checkpoint))
    backbone, stage, layer = attention.find_layer(model, args.stage, args.layer)
    heads = attention.choose_heads(args.head, backbone.arch.num_heads[stage])
    seen = attention.view(config, model, image, args.image)
    found = attention.attention_of(backbone, stage, layer, seen, args.query, image.shape[:2])

    where = f'stage {stage + 1}, layer {layer + 1}'
    title = f'{Path(args.config).stem}, {where}: {found.weights.shape[2]} x {found.weights.shape[1]} keys'
    figures.save_figure(attention.plot_attention(image, found, heads, title), args.out)
    print(args.out)
    kept = slice(None) if heads is None else heads
    results = dict(out=args.out, stage=stage + 1, layer=layer + 1, query=args.query, keys=found.weights.shape[1:])
    results['maximum'] = {
        name: round(float(one.max()), 5) for name, one in attention.panels(found.weights, heads).items()
    }
    results['on_padding'] = round(float(found.padding[kept].mean()), 5)
    if found.class_token is not None:
        results['on_class_token'] = round(float(found.class_token[kept].mean()), 5)
    print(json_text(results))


if __name__ == '__main__':
    sys.exit(main())
