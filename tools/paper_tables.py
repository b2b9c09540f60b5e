#!/usr/bin/env python
"""Print Tables 2 to 11 of the paper beside the parameters and GFLOPs of the configs, and what runs have measured."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pvt_mm.analysis import tables
from pvt_mm.errors import InputError, command
from pvt_mm.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The tables of the paper

Written by `tools/paper_tables.py`. **Quoted** figures are the paper's. **Computed** ones are those of the configs here:
the parameters of the whole model, and its multiply-adds on one image of H x W pixels, in brackets how far they are from
the quoted ones. **Measured** ones are of runs of these configs in `work_dirs`; a table without such columns has none.

Parameters agree within 1% and GFLOPs within 2%, or to half a unit of the last digit that the paper gives, but where the
lines below a table say why not. The parameters that are up to 0.7% above the paper's are those of ResNets in detectors:
the paper leaves out the frozen stem and first stage, 0.2 M.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Writes docs/tables.md; the last line of the output is JSON.',
        epilog='Example: tools/paper_tables.py --results work_dirs',
    )
    parser.add_argument(
        '--results',
        type=Path,
        help='the folder of the work directories (default: work_dirs, if it is there)',
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/tables.md', help='(default: docs/tables.md)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    results = args.results or Path('work_dirs')
    if args.results and not results.is_dir():
        raise InputError(f'--results: the folder {results} does not exist')
    runs = tables.measured(ROOT / 'configs', results)
    progress = Console(stderr=True)
    made = {
        number: tables.table(number, ROOT / 'configs', runs)
        for number in track(tables.TITLES, 'counting', console=progress, transient=True)
    }
    console = Console(width=None if sys.stdout.isatty() else 160)
    for number, rows in made.items():
        console.print(shown(number, rows))
        for row in rows:
            if row.why:
                console.print(f'{row.name}: {row.why}', style='dim')
        console.print()
    with whole_file(args.out) as path:
        path.write_text(document(made))
    every_row = [row for rows in made.values() for row in rows]
    unexplained = [f'{row.name}: {name}' for row in every_row if not row.why for name in row.out_of_bounds()]
    if unexplained:
        raise InputError(f'out of the bounds, and no Difference in the metafile says why: {"; ".join(unexplained)}')
    figures = {str(number): {row.name: row.computed for row in rows if row.computed} for number, rows in made.items()}
    print(json.dumps(figures))


def document(made: dict[int, list[tables.Row]]) -> str:
    """Returns docs/tables.md."""
    return '\n'.join([HEAD, *(f'{tables.markdown(number, rows)}\n' for number, rows in made.items())])


def shown(number: int, rows: list[tables.Row]) -> Table:
    """Returns a table for the terminal."""
    heads, cells = tables.grid(number, rows)
    table = Table(title=f'Table {number}. {tables.TITLES[number]}', box=None, header_style='bold', title_justify='left')
    for i, head in enumerate(heads):
        table.add_column(head.replace(', ', '\n'), justify='right' if i else 'left', no_wrap=True)
    for line in cells:
        table.add_row(*line)
    return table


if __name__ == '__main__':
    sys.exit(main())
