"""The shell scripts that start training and testing on several GPUs: their interpreter, their arguments, requeuing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

ECHO = '#!/bin/sh\nprintf "%s\\n" "$0" "$@" > "$CALLS"\n'


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the scripts, with programs that write their name and arguments to ``calls``."""
    for path in (ROOT / 'tools').glob('*.s*h'):
        (tmp_path / 'two words/tools').mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / 'two words/tools')
    for name in ('python', 'srun', 'sbatch'):
        program(tmp_path / 'bin' / name)
    return tmp_path / 'two words'


def program(path: Path, text: str = ECHO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def start(checkout: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = dict(PATH=f'{checkout.parent}/bin:/usr/bin:/bin', CALLS=str(checkout / 'calls')) | variables
    command = [checkout / 'tools' / script, *arguments]
    return subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)


def run(checkout: Path, script: str, *arguments: str, **variables: str) -> list[str]:
    """Returns what a script calls."""
    (checkout / 'calls').unlink(missing_ok=True)
    result = start(checkout, script, *arguments, **variables)
    assert (result.returncode, result.stderr) == (0, '')
    return (checkout / 'calls').read_text().splitlines()


def test_the_interpreter(checkout):
    def used(**variables: str) -> str:
        return run(checkout, 'dist_train.sh', 'a.py', '2', **variables)[0]

    assert used() == f'{checkout.parent}/bin/python'
    venv = program(checkout / '.venv/bin/python')
    assert used() == str(venv)
    (checkout / '.venv/install.log').touch()  # `make setup` is still installing it, or has failed
    assert used() == f'{checkout.parent}/bin/python'
    (checkout / '.venv/pvt_mm.installed').touch()
    assert used() == str(venv)
    made = program(checkout / 'made by make/bin/python')
    (checkout / 'build').mkdir()
    (checkout / 'build/python').write_text(f'{made}\n')
    assert used() == str(made)
    made.unlink()
    assert used() == str(venv)
    # an active environment counts if it has PyTorch and MMEngine
    active = program(checkout / 'active/bin/python', f'#!/bin/sh\n[ "$1" = -c ] && exit 1\n{ECHO}')
    assert used(VIRTUAL_ENV=str(checkout / 'active')) == used(CONDA_PREFIX=str(checkout / 'active')) == str(venv)
    program(active)
    assert used(VIRTUAL_ENV=str(checkout / 'active')) == used(CONDA_PREFIX=str(checkout / 'active')) == str(active)
    chosen = program(checkout / 'chosen')
    assert used(VIRTUAL_ENV=str(checkout / 'active'), PYTHON=str(chosen)) == str(chosen)


@pytest.mark.parametrize(
    ('script', 'given', 'rest'),
    [
        ('dist_train.sh', ['a b.py', '2', '--amp'], ['train.py', 'a b.py', '--launcher', 'pytorch', '--amp']),
        ('dist_test.sh', ['a b.py', 'c.pth', '2'], ['test.py', 'a b.py', 'c.pth', '--launcher', 'pytorch']),
    ],
)
def test_torchrun(script, given, rest, checkout):
    def address(**variables: str) -> list[str]:
        _, launch, *flags = run(checkout, script, *given, **variables)
        assert launch == str(checkout / 'tools/launch.py')
        assert flags[-len(rest) :] == [str(checkout / 'tools' / rest[0]), *rest[1:]]
        assert flags[-len(rest) - 1] == '--nproc_per_node=2'
        return flags[: -len(rest) - 1]

    assert address() == ['--standalone', '--local_addr=127.0.0.1']  # a free port
    flags = ['--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--master_port=123']
    assert address(PORT='123') == flags
    flags = ['--nnodes=2', '--node_rank=1', '--master_addr=n7', '--master_port=29500']
    assert address(NNODES='2', NODE_RANK='1', MASTER_ADDR='n7') == flags


def error(checkout: Path, script: str, *arguments: str, **variables: str) -> str:
    """Returns the one line with which a script ends before it calls anything that matters."""
    result = start(checkout, script, *arguments, **variables)
    assert (result.returncode, result.stdout, result.stderr.count('\n')) == (2, '', 1), result.stderr
    return result.stderr


@pytest.mark.parametrize('gpus', ['abc', '0', '-1', '1.5', '08', '', '9999999999999999999'])
def test_wrong_numbers_of_gpus(gpus, checkout):
    assert error(checkout, 'dist_train.sh', 'a.py', gpus) == (
        f"error: GPUS (in CONFIG GPUS) is '{gpus}': set it to an integer of at least 1\n"
    )
    assert f"GPUS (in CONFIG CHECKPOINT GPUS) is '{gpus}'" in error(checkout, 'dist_test.sh', 'a.py', 'c.pth', gpus)
    if gpus:
        assert f"GPUS is '{gpus}'" in error(checkout, 'slurm_train.sh', *'abcd', GPUS=gpus)


@pytest.mark.parametrize(
    ('script', 'variables', 'message'),
    [
        ('dist_train.sh', dict(PORT='99999'), "PORT is '99999': set it to an integer of at least 1 and at most 65535"),
        ('dist_train.sh', dict(PORT='abc'), "PORT is 'abc'"),
        ('dist_train.sh', dict(NNODES='x'), "NNODES is 'x'"),
        (
            'dist_train.sh',
            dict(NNODES='2', NODE_RANK='2'),
            "NODE_RANK is '2': set it to an integer of at least 0 and at",
        ),
        (
            'slurm_train.sh',
            dict(GPUS='10', GPUS_PER_NODE='8'),
            'GPUS=10 is no multiple .* set GPUS_PER_NODE .now 8. too',
        ),
        ('slurm_test.sh', dict(GPUS='12'), 'GPUS=12 is no multiple'),
        ('slurm_test.sh', dict(GPUS_PER_NODE='0'), "GPUS_PER_NODE is '0'"),
        ('slurm_test.sh', dict(CPUS_PER_TASK='x'), "CPUS_PER_TASK is 'x'"),
        ('slurm_test.sh', dict(PORT='0'), "PORT is '0'"),
    ],
)
def test_wrong_variables(script, variables, message, checkout):
    arguments = ['a.py', '2'] if script == 'dist_train.sh' else 'abcd'
    assert re.search(message, error(checkout, script, *arguments, **variables))


def test_no_interpreter(checkout):
    assert 'PYTHON=/nope does not run' in error(checkout, 'dist_train.sh', 'a.py', '2', PYTHON='/nope')
    for name in ('python', 'python3'):
        program(checkout.parent / 'bin' / name, '#!/bin/sh\nexit 1\n')
    program(checkout / '.venv/bin/python')
    (checkout / '.venv/install.log').touch()
    commands = [('dist_train.sh', 'a.py', '2'), ('slurm_train.sh', *'abcd'), ('slurm_test.sh', *'abcd')]
    for command in [*commands, ('train.sbatch', 'a.py', 'out')]:
        assert 'no Python with PyTorch and MMEngine: run make setup, or' in error(checkout, *command)


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('slurm_train.sh', 'abcd', r"Slurm's srun is not on PATH: .* tools/dist_train.sh trains without Slurm"),
        ('slurm_train.sh', ['--requeue', *'abcd'], "Slurm's sbatch is not on PATH"),
        ('slurm_test.sh', 'abcd', r"Slurm's srun is not on PATH: .* tools/dist_test.sh tests without Slurm"),
        ('train.sbatch', ['a.py', 'out'], "Slurm's srun is not on PATH"),
    ],
)
def test_without_slurm(script, arguments, message, checkout):
    bin = checkout.parent / 'bin'
    for name in ('srun', 'sbatch'):
        (bin / name).unlink()
    for name in ('bash', 'cat', 'dirname'):
        (bin / name).symlink_to(shutil.which(name))
    assert re.search(message, error(checkout, script, *arguments, PATH=str(bin)))


OPTIONS = ['--partition=gpu', '--job-name=pvt']


def test_slurm(checkout):
    python, tools = f'{checkout.parent}/bin/python', checkout / 'tools'
    called = run(
        checkout, 'slurm_train.sh', 'gpu', 'pvt', 'a b.py', 'out', '--amp', GPUS='16', SRUN_ARGS='--qos x --exclusive'
    )
    sizes = ['--gres=gpu:8', '--nodes=2', '--ntasks=16', '--ntasks-per-node=8', '--cpus-per-task=5']
    more = ['--signal=USR2@120', '--kill-on-bad-exit=1', '--qos', 'x', '--exclusive']
    train = [python, '-u', f'{tools}/train.py', 'a b.py', '--work-dir', 'out', '--launcher', 'slurm', '--amp']
    assert called[1:] == [*OPTIONS, *sizes, *more, *train]
    for flags in (['--signal', 'TERM@60'], ['--signal=TERM@60']):
        assert '--signal=TERM@60' in run(checkout, 'slurm_train.sh', *flags, 'gpu', 'pvt', 'a.py', 'out')

    called = run(
        checkout, 'slurm_train.sh', '--requeue', 'gpu', 'pvt', 'a b.py', 'out', '--amp', GPUS='4', CPUS_PER_TASK='9'
    )
    sizes = ['--gres=gpu:4', '--nodes=1', '--ntasks=4', '--ntasks-per-node=4', '--cpus-per-task=9']
    job = ['--signal=USR2@120', '--requeue', f'{tools}/train.sbatch', 'a b.py', 'out', '--amp']
    assert called == [f'{checkout.parent}/bin/sbatch', *OPTIONS, *sizes, *job]

    called = run(checkout, 'slurm_test.sh', 'gpu', 'pvt', 'a.py', 'c.pth', '--out', 'b c.pkl')
    rest = [python, '-u', f'{tools}/test.py', 'a.py', 'c.pth', '--launcher', 'slurm', '--out', 'b c.pkl']
    assert called[-len(rest) :] == rest
    program(checkout.parent / 'bin/srun', f'{ECHO}echo "$MASTER_PORT" >> "$CALLS"\n')
    assert [run(checkout, 'slurm_test.sh', *'abcd', PORT=port)[-1] for port in ('', '123')] == ['', '123']


@pytest.mark.parametrize(
    ('script', 'arguments'),
    [
        ('dist_train.sh', ['a.py']),
        ('dist_test.sh', ['a.py', 'c.pth']),
        ('slurm_train.sh', ['--requeue', 'gpu', 'pvt', 'a.py']),
        ('slurm_train.sh', ['--unknown', 'gpu', 'pvt', 'a.py', 'out']),
        ('slurm_train.sh', ['--signal']),
        ('slurm_test.sh', ['gpu', 'pvt', 'a.py']),
        ('train.sbatch', ['a.py']),
    ],
)
def test_usage(script, arguments):
    result = subprocess.run([ROOT / 'tools' / script, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr.startswith('usage: ')


def job(checkout: Path, code: int, **variables: str) -> tuple[int, list[str], list[str]]:
    """Runs train.sbatch as Slurm does, a copy of it. Returns its exit code, what srun got and what scontrol got."""
    program(checkout.parent / 'bin/srun', f'{ECHO}exit {code}\n')
    program(checkout.parent / 'bin/scontrol', ECHO.replace('$CALLS', '$CALLS.scontrol'))
    copy = shutil.copy(checkout / 'tools/train.sbatch', checkout.parent / 'slurm_script')
    calls = [checkout / 'calls', checkout / 'calls.scontrol']
    for path in calls:
        path.unlink(missing_ok=True)
    environment = dict(
        PATH=f'{checkout.parent}/bin:/usr/bin:/bin',
        CALLS=str(calls[0]),
        SLURM_SUBMIT_DIR=str(checkout),
        SLURM_JOB_ID='7',
        SLURM_CPUS_PER_TASK='4',
    )
    result = subprocess.run([copy, 'a b.py', 'out', '--amp'], env={**environment, **variables}, cwd=checkout)
    called = [path.read_text().splitlines()[1:] if path.exists() else [] for path in calls]
    return result.returncode, *called


def test_the_sbatch_template(checkout):
    flags = ['a b.py', '--work-dir', 'out', '--launcher', 'slurm', '--amp']
    rest = [f'{checkout.parent}/bin/python', '-u', f'{checkout}/tools/train.py', *flags]
    srun = ['--kill-on-bad-exit=1', '--cpus-per-task=4']
    assert job(checkout, 0) == (0, [*srun, *rest], [])
    assert job(checkout, 1)[::2] == (1, [])
    assert job(checkout, 75) == (75, [*srun, *rest], ['requeue', '7'])  # stopped with a checkpoint
    # started again: it resumes if there is a checkpoint
    assert job(checkout, 0, SLURM_RESTART_COUNT='1')[1] == [*srun, *rest]
    (checkout / 'out').mkdir()
    (checkout / 'out/last_checkpoint').touch()
    assert job(checkout, 0, SLURM_RESTART_COUNT='1')[1] == [*srun, *rest, '--resume']
    assert job(checkout, 0)[1] == [*srun, *rest]
    elsewhere = dict(SLURM_SUBMIT_DIR='/', PVT_MM_TOOLS=str(checkout / 'tools'))
    assert job(checkout, 0, **elsewhere)[1] == [*srun, *rest]
    assert job(checkout, 0, SLURM_SUBMIT_DIR='/')[0] == 2


def test_the_sbatch_template_asks_for_what_slurm_train_does():
    lines = (ROOT / 'tools/train.sbatch').read_text().splitlines()
    options = [line.split('#')[1].split() for line in lines if line.startswith('#SBATCH ')]
    assert {'--requeue', '--signal=USR2@120', '--gres=gpu:8', '--open-mode=append'} <= {option for _, option in options}
    assert os.access(ROOT / 'tools/train.sbatch', os.X_OK)
