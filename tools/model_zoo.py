#!/usr/bin/env python
"""Write the model tables of the READMEs from the metafiles."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from pvt_mm.errors import InputError, command

ROOT = Path(__file__).resolve().parents[1]
START, END = '<!-- model zoo -->', '<!-- /model zoo -->'
READMES = {
    'README.md': 'retinanet',
    'configs/retinanet/README.md': 'retinanet',
    'configs/mask_rcnn/README.md': 'mask_rcnn',
    'configs/semantic_fpn/README.md': 'semantic_fpn',
}


def model_table(metafile: Path, to_root: str) -> str:
    """Returns a metafile's models as a Markdown table, a column for each metric that one of them has."""
    models = yaml.safe_load(metafile.read_text())['Models']
    results = [{name: v for r in model.get('Results', ()) for name, v in r['Metrics'].items()} for model in models]
    names = list(dict.fromkeys(name for metrics in results for name in metrics))
    length = 'Epochs' if 'Epochs' in models[0]['Metadata'] else 'Iterations'
    rows = [('config', 'parameters (M)', length.lower(), *names, 'source'), ('---',) * (len(names) + 4)]
    for model, metrics in zip(models, results, strict=True):
        metadata = model['Metadata']
        metrics = metrics or metadata
        config = Path(model['Config'])
        rows.append(
            (
                f'[{config.stem}]({to_root}{config})',
                str(metadata.get('Parameters (M)', '')),
                str(metadata[length]),
                *(str(metrics.get(name, '')) for name in names),
                metadata['Source'],
            )
        )
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def with_table(readme: str, table: str) -> str:
    """Returns a README with its model table replaced."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f'{before}{START}\n{table}\n{END}{after}'


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog='Example: tools/model_zoo.py --check')
    parser.add_argument('--check', action='store_true', help='write nothing, and fail where a table is stale')
    args = parser.parse_args(argv)
    for name, folder in READMES.items():
        path = ROOT / name
        text = path.read_text()
        to_root = '../' * (len(Path(name).parts) - 1)
        current = with_table(text, model_table(ROOT / f'configs/{folder}/metafile.yml', to_root))
        if args.check and text != current:
            raise InputError(f'the model table of {name} is stale: run tools/model_zoo.py')
        if not args.check:
            path.write_text(current)


if __name__ == '__main__':
    sys.exit(main())
