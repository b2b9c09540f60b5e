"""Pickles are read by PyTorch's reader and, on versions that cannot extend it, by ours: with the same result."""

import argparse
import collections
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from torch import nn

from pvt_mm.checkpoint import reader, unpickling
from pvt_mm.checkpoint.reader import read_file, safe_reading
from pvt_mm.utils.errors import CheckpointError


@pytest.fixture(autouse=True, params=['PyTorch', 'ours'] if unpickling.CAN_EXTEND_TORCH else ['ours'])
def _reader(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if request.param == 'ours':
        monkeypatch.setattr(unpickling, 'CAN_EXTEND_TORCH', False)


def training_checkpoint() -> dict:
    """What MMEngine and the authors' training write."""
    return dict(
        state_dict=nn.Linear(2, 2).state_dict(),
        parameter=nn.Parameter(torch.ones(2)),
        half=torch.ones(3, dtype=torch.bfloat16),
        sparse=torch.eye(2).to_sparse(),
        milestones=collections.Counter([3, 5]),
        args=argparse.Namespace(lr=0.1, device=torch.device('cpu'), dtype=torch.float16),
        losses=HistoryBuffer([0.5, 1.5], np.array([1, 1], np.int32)),
        nothing=HistoryBuffer(),
        score=np.float32(0.5),
        anneal=OneCycleParamScheduler._annealing_cos,
        random=np.random.RandomState(0).get_state(),
        flags=np.array([True]),
        other={1.5, None, True, 'text', b'bytes', 2j, 10**30},
    )


def change_pickle(path: str, change: Callable[[bytes], bytes]) -> None:
    """Changes the pickle in a checkpoint."""
    with zipfile.ZipFile(path) as source:
        members = {member: source.read(member) for member in source.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for member, content in members.items():
            archive.writestr(member, change(content) if member.endswith('data.pkl') else content)


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('written_by', [b'numpy.core.', b'numpy._core.'])
def test_the_checkpoints_of_either_numpy_are_read_under_any(written_by, trust, monkeypatch):
    content = training_checkpoint()
    if trust:
        content['unknown'] = Path('a')
    torch.save(content, 'a.pth')
    change_pickle('a.pth', lambda pickled: re.sub(rb'cnumpy\._?core\.', b'c' + written_by, pickled))
    for name in ('numpy.core', 'numpy._core'):  # neither is found by its name
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f'{name}.multiarray', None)
    with safe_reading(trust):
        read = read_file('a.pth')
    assert read['losses'].mean() == 1
    assert read['args'] == content['args']
    assert (read['random'][1] == content['random'][1]).all()
    assert all(read[name] == content[name] for name in ('milestones', 'anneal', 'score', 'flags', 'other'))
    assert all(torch.equal(read[name], content[name]) for name in ('parameter', 'half'))
    assert torch.equal(read['state_dict']['bias'], content['state_dict']['bias'])
    assert torch.equal(read['sparse'].to_dense(), torch.eye(2))


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('is_zip', [True, False])
def test_weights_in_any_protocol_are_read(protocol, is_zip):
    weights = nn.Linear(2, 2).state_dict()
    torch.save(weights, 'a.pth', pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert torch.equal(read_file('a.pth')['bias'], weights['bias'])


class Asks:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def get(owner: object, *names: str) -> object:
    for name in names:
        owner = Asks(getattr, owner, name)
    return owner


PLANTED = {
    'posix.system': lambda: Asks(__import__('os').system, 'touch canary'),
    'builtins.eval': lambda: Asks(eval, "open('canary', 'w')"),
    'builtins.exec': lambda: [{'a': (Asks(exec, "open('canary', 'w')"), argparse.Namespace(b=1))}],
    'builtins.getattr': lambda: get(HistoryBuffer, '__init__', '__globals__'),
    'operator.attrgetter': lambda: Asks(__import__('operator').attrgetter, 'mean'),
    'torch.jit._serialization.load': lambda: Asks(torch.jit.load, 'canary'),
}


@pytest.mark.parametrize('name', PLANTED)
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('is_zip', [True, False])
def test_what_runs_code_is_named_in_one_line(name, protocol, is_zip):
    content = dict(state_dict=nn.Linear(2, 2).state_dict(), history=HistoryBuffer(), planted=PLANTED[name]())
    if protocol == 4:
        del content['history']  # its names are others there
    torch.save(content, 'bad.pth', pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError) as refused:
        read_file('bad.pth')
    assert str(refused.value) == (
        f'bad.pth is refused: it asks to run {name}, which a file of weights does not need; use --trust if you trust '
        'its author'
    )
    assert not Path('canary').exists()


NAMESPACE = b'cargparse\nNamespace\n'
METHOD = b'c__builtin__\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\nX\6\0\0\0updatetR'
CHANGING = {
    'an attribute of a class': b'\x80\2' + NAMESPACE + b'(N}X\1\0\0\0aK\1stb.',
    'an entry of a function': b'\x80\2ctorch._utils\n_rebuild_tensor\n}X\1\0\0\0aK\1sb.',
    'a method called': b'\x80\2' + METHOD + b'(}K\1tR.',
    'an object with an append of its own': b'\x80\2' + NAMESPACE + b')\x81}X\6\0\0\0append' + METHOD + b'sbK\1a.',
    'an entry of what is no dict': b'\x80\2cnumpy\nndarray\n(K\1tRK\0K\1s.',
    'another kind of persistent object': b'\x80\2(X\6\0\0\0module' + NAMESPACE + b'X\1\0\0\0aX\1\0\0\0btQ.',
    'an instance by its class': b'\x80\2(' + NAMESPACE + b'o.',
    'an extension': b'\x80\2\x82\1.',
    'no opcode': b'\x80\2\xff.',
}


@pytest.mark.parametrize('what', CHANGING)
def test_what_was_found_is_not_changed_or_used_otherwise(what):
    torch.save({}, 'bad.pth')
    change_pickle('bad.pth', lambda _: CHANGING[what])
    before = vars(argparse.Namespace).copy()
    with pytest.raises(CheckpointError, match=r'^bad.pth is not a checkpoint, or is damaged$'):
        read_file('bad.pth')
    assert vars(argparse.Namespace) == before
    assert not hasattr(torch._utils._rebuild_tensor, 'a')


@pytest.mark.filterwarnings('ignore')  # of TorchScript
def test_formats_that_are_read_without_the_unpickler_are_refused(monkeypatch):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), 'script.pth')
    Path('storages').write_bytes(pickle.dumps(Asks(Path('canary').touch)))
    with tarfile.open('old.pth', 'w') as archive:
        archive.add('storages')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    for path in ('script.pth', 'old.pth'):
        with pytest.raises(CheckpointError, match=f'{path} (cannot be read|is not a checkpoint)'):
            read_file(path)
    assert not Path('canary').exists()
    torch.save({'a': torch.ones(1)}, 'a.pth')
    assert read_file('a.pth')['a'] == 1


def test_a_fault_of_the_reader_is_not_called_damage(monkeypatch):
    torch.save({'a': torch.ones(1)}, 'a.pth')
    for error in (AttributeError('no safe_globals'), RuntimeError('CUDA out of memory')):
        with monkeypatch.context() as patch:
            patch.setattr(torch, 'load', lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            with pytest.raises(CheckpointError, match=f'a.pth cannot be read: {type(error).__name__}: {error}'):
                read_file('a.pth')
    monkeypatch.setattr(reader, 'allowed_globals', lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_file('a.pth')
