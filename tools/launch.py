#!/usr/bin/env python
"""PyTorch's torchrun, with its flags, that ends with the exit code of the process that failed first.

Torchrun's own is 1, whatever it was. This one's is 75 where training was told to stop, and --resume goes on with it (a
scheduler can put the job back into the queue), 2 for bad input, and 128 + n for a process that signal n killed.
"""

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGUSR2, lambda *_: None)  # what submitit warns a job by, for the processes to act on
    try:
        run.main(argv)
    except SignalException as stop:
        # Torchrun has passed it on, and has killed those that had not ended within 30 seconds.
        told_to_stop = stop.sigval in (signal.SIGTERM, signal.SIGINT)
        return os.EX_TEMPFAIL if told_to_stop else 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code != os.EX_TEMPFAIL:
            how = f'ended with exit code {code}' if code > 0 else f'was killed by {signal.Signals(-code).name}'
            sys.stderr.write(f'error: process {rank} {how}, and the others were stopped; its own message is above\n')
        return code if code > 0 else 128 - code
    return 0


if __name__ == '__main__':
    sys.exit(main())
