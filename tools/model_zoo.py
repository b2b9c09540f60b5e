#!/usr/bin/env python
"""Write the model tables of configs/*/README.md from the metafiles."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = 'weights, with their own figures'
START, END = '<!-- model zoo -->', '<!-- /model zoo -->'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog='Example: tools/model_zoo.py --check')
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a table is out of date')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    import yaml

    from pvt_mm.apis.published import paper_results, published_in


def model_table(metafile: Path) -> str:
    """Returns a metafile's models as a Markdown table, a column for each metric that one of them has."""
    models = yaml.safe_load(metafile.read_text())['Models']
    has_gflops = all('GFLOPs' in model['Metadata'] for model in models)
    rows = []
    for model in models:
        metadata, config = model['Metadata'], Path(model['Config'])
        row = {'config': f'[{config.stem}]({config.name})', 'parameters (M)': metadata.get('Parameters (M)', '')}
        row |= {'GFLOPs': metadata['GFLOPs']} if has_gflops else {}
        row |= {length.lower(): metadata[length] for length in ('Epochs', 'Iterations') if length in metadata}
        row |= {name: value for result in paper_results(model) for name, value in result['Metrics'].items()}
        row |= {name: value for name, value in metadata.items() if name == 'box AP'}  # where only a difference is known
        row['source'] = metadata['Source']
        weights = [
            f'[{one.source}]({one.url}) {", ".join(map(str, one.metrics.values()))}' for one in published_in(model)
        ]
        rows.append(row | ({WEIGHTS: '; '.join(weights)} if weights else {}))
    last = ['source', WEIGHTS]
    names = [*dict.fromkeys(name for row in rows for name in row if name not in last), *last]
    names = [name for name in names if any(name in row for row in rows)]
    lines = [names, ['---'] * len(names), *([str(row.get(name, '')) for name in names] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def with_table(readme: str, table: str) -> str:
    """Returns a README with its model table replaced."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f'{before}{START}\n{table}\n{END}{after}'


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for metafile in sorted(ROOT.glob('configs/*/metafile.yml')):
        readme = metafile.with_name('README.md')
        text = readme.read_text()
        current = with_table(text, model_table(metafile))
        if args.check and text != current:
            raise InputError(f'the model table of {readme.relative_to(ROOT)} is out of date: run tools/model_zoo.py')
        if not args.check:
            readme.write_text(current)


if __name__ == '__main__':
    sys.exit(main())
