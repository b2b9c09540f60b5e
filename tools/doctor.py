#!/usr/bin/env python
"""Check the environment, and print the command that fixes each problem."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis import doctor
from pvt_mm.apis.command_line import Parser
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text

COLORS = {'ok': '32', 'note': '33', 'broken': '31'}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' A note is about something that not everyone needs. The exit code is 1 if anything is '
        'broken. The last line of the output is JSON.',
        epilog='Example: tools/doctor.py',
    )
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parse_args(argv)
    lines = []
    for line in doctor.examine():
        state = f'{line.state:6}'
        state = f'\033[{COLORS[line.state]}m{state}\033[0m' if sys.stdout.isatty() else state
        print(f'{state}  {line.name}: {line.text}', flush=True)
        if line.fix:
            print(f'        fix: {line.fix}', flush=True)
        lines.append(line)
    print(json_text({state: [line.name for line in lines if line.state == state] for state in COLORS}))
    return int(any(line.state == 'broken' for line in lines))


if __name__ == '__main__':
    sys.exit(main())
