"""The display of a sweep: a live table on a terminal, otherwise a line for each change."""

import io

from rich.console import Console

from pvt_mm.sweep.display import display
from pvt_mm.sweep.spec import Trial
from pvt_mm.sweep.trials import Status

FIRST, SECOND = (Trial('pvt_s', 'pvt_s.py', (), seed, 12) for seed in (0, 1))


def shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    running = Status('running', progress='epoch 2/12', eta='1:02:03')
    with display('coco/bbox_mAP', console) as show:
        show({FIRST: running, SECOND: Status('waiting')})
        show({FIRST: running, SECOND: Status('waiting')})
        finished = Status('finished', progress='epoch 12/12', metric=0.4042)
        show({FIRST: finished, SECOND: Status('running')})
    return console.file.getvalue()


def test_lines_show_changes():
    lines = [line.split(' ', 1)[1] for line in shown(terminal=False).splitlines()]
    assert lines == [
        'pvt_s-seed0: running, epoch 2/12, 1:02:03 remaining',
        'pvt_s-seed0: finished, epoch 12/12, coco/bbox_mAP 0.4042',
        'pvt_s-seed1: running',
    ]


def test_a_terminal_gets_a_table_of_all_trials():
    out = shown(terminal=True)
    assert 'epoch 2/12' in out
    assert '1:02:03' in out
    assert '1 running, 1 waiting' in out
    last = out[out.rindex('trial') :]
    assert '0.4042' in last
    assert '1 finished, 1 running' in last
