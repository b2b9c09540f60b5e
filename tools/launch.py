#!/usr/bin/env python
"""PyTorch's torchrun, with the same flags, that exits with the exit code of the rank that failed first.

Torchrun always exits with 1. This exits with 75 if training was asked to stop and --resume continues it (so that a
scheduler can requeue the job), 2 for bad input or a port in use, and 128 + n for a rank killed by signal n.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import starting
from pvt_mm.utils.errors import is_port_in_use

with starting(__name__):
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    # Seconds to save a checkpoint after a signal, before the ranks are killed. Older versions of torchrun have 30.
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '120')
    signal.signal(signal.SIGUSR2, lambda *_: None)  # Slurm's warning before a time limit: the ranks handle it
    try:
        run.main(argv)
    except SignalException as stop:
        # Torchrun has forwarded the signal, and waited for the ranks or killed them.
        asked_to_stop = stop.sigval in (signal.SIGTERM, signal.SIGINT)
        return os.EX_TEMPFAIL if asked_to_stop else 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code != os.EX_TEMPFAIL:
            how = f'exited with code {code}' if code > 0 else f'was killed by {signal.Signals(-code).name}'
            sys.stderr.write(f'error: rank {rank} {how}, and the others were stopped; see its error above\n')
        return code if code > 0 else 128 - code
    except RuntimeError as error:
        if not is_port_in_use(error):
            raise
        number = re.search(r'port: (\d+)', str(error))  # newer versions of PyTorch say it
        port = f'port {number[1]}' if number else 'the port'
        sys.stderr.write(f'error: {port} is in use by another program: set another with PORT=\n')
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
