"""What checkpoints hold is read on every PyTorch and NumPy, and nothing in a planted one is run or changes a class."""

import argparse
import collections
import io
import os
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=[None, '1'], ids=['ours', 'PyTorch'])
def forced(request, monkeypatch):
    """Both readers: PyTorch's is used where the user has set this."""
    if request.param:
        monkeypatch.setenv(unpickling.FORCED, request.param)
    return request.param


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


def text(content: str) -> bytes:
    """The opcode of a text; below, those of other things."""
    return b'X' + len(content).to_bytes(4, 'little') + content.encode()


def found(path: str) -> bytes:
    return 'c{}\n{}\n'.format(*path.rsplit('.', 1)).encode()


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b'(' + b''.join(arguments) + b'tR'


def created(cls: bytes, state: bytes) -> bytes:
    return cls + b')\x81' + state + b'b'


def entries(**content: bytes) -> bytes:
    return b'}(' + b''.join(text(name) + value for name, value in content.items()) + b'u'


NAMESPACE, HISTORY = found('argparse.Namespace'), found('mmengine.logging.history_buffer.HistoryBuffer')
SCHEDULER = found(f'{OneCycleParamScheduler.__module__}.OneCycleParamScheduler')
METHOD = called(found('__builtin__.getattr'), HISTORY, text('register_statistics'))
GIVEN = created(NAMESPACE, entries(__name__=text('given'), as_subclass=METHOD))
DTYPE = found('numpy.dtype')
FLAGS_CLEARED = b'(K\3' + text('|') + b'NNN' + 2 * b'J\xff\xff\xff\xff' + b'K\0tb'
ADDRESS = entries(data=b'(K\1\x89t', shape=b'(K\1t', typestr=text('<f8'), version=b'K\3')
ARRAY = called(found('numpy.core.multiarray._reconstruct'), found('numpy.ndarray'), b'(K\0t', text('b'))
PROOFS = {
    'a class given to a function of PyTorch': called(
        *(found('torch._tensor._rebuild_from_type_v2'), METHOD, found('torch.Tensor'), b'(' + GIVEN + b't'),
        entries(canary=b'K\x2a'),
    ),
    'an object created by a function of PyTorch': called(
        *(found('torch._tensor._rebuild_from_type_v2'), NAMESPACE, NAMESPACE, b')'),
        entries(__array_interface__=ADDRESS),
    ),
    'a method called': called(METHOD, GIVEN),
    'a function of a scheduler called': called(
        called(found('__builtin__.getattr'), SCHEDULER, text('_annealing_linear')), b'K\1K\2K\3'
    ),
    'an attribute of a class': NAMESPACE + b'N}' + text('a') + b'K\1s\x86b',
    'an entry of a function': found('torch._utils._rebuild_tensor') + text('a') + b'K\1s',
    'an object with an append of its own': created(NAMESPACE, entries(append=METHOD)) + b'K\1a',
    'a setter of its own': created(NAMESPACE, entries(__setstate__=METHOD)) + b'K\1b',
    'an entry of what is no dict': ARRAY + b'K\0K\1s',
    'another kind of persistent object': b'(' + text('module') + NAMESPACE + text('a') + text('b') + b'tQ',
    'an address read by NumPy': called(
        HISTORY, b']' + created(NAMESPACE, entries(__array_interface__=ADDRESS)) + b'a', b']K\1a'
    ),
    'an address for NumPy': created(NAMESPACE, entries(__array_interface__=ADDRESS)),
    'attributes that are no dict': created(NAMESPACE, b']'),
    'flags that are no number': called(DTYPE, text('f8'), b'\x89\x88') + FLAGS_CLEARED.replace(b'K\0tb', b'\x89tb'),
    'an array of addresses': called(DTYPE, text('O8'), b'\x89\x88') + FLAGS_CLEARED,
    'flags of a dtype': called(DTYPE, text('f8'), b'\x89\x88') + FLAGS_CLEARED.replace(b'K\0tb', b'K\1tb'),
    'fields of a dtype': called(DTYPE, text('V8'), b'\x89\x88') + FLAGS_CLEARED,
    'a dtype that is shared': called(found('numpy.core.multiarray.scalar'), called(DTYPE, text('O')), b'K\1'),
    'no opcode': b'\xff',
}


@pytest.mark.parametrize('what', PROOFS)
def test_what_was_found_is_not_changed_or_used_otherwise(what, forced):
    torch.save({}, 'bad.pth')
    change_pickle('bad.pth', lambda _: b'\x80\2' + PROOFS[what] + b'.')
    classes = (argparse.Namespace, torch.Tensor, HistoryBuffer, np.ndarray)
    before, methods = [dir(one) for one in classes], HistoryBuffer._statistics_methods.copy()
    with pytest.raises(
        CheckpointError, match=r'^bad.pth (is refused|is not a checkpoint, or is damaged|cannot be read)'
    ):
        read_file('bad.pth')
    assert [dir(one) for one in classes] == before
    assert HistoryBuffer._statistics_methods == methods
    assert not hasattr(torch._utils._rebuild_tensor, 'a')


def test_a_history_brings_no_methods_of_its_own():
    """A file could replace those of the process, or hide those of the class."""
    torch.save({'a': HistoryBuffer()}, 'a.pth')  # which registers its own methods
    methods = HistoryBuffer._statistics_methods.copy()
    state = entries(
        statistics_methods=entries(mean=found('__builtin__.set')), mean=found('__builtin__.set'), max_length=b'K\5'
    )
    change_pickle('a.pth', lambda _: b'\x80\2' + created(HISTORY, state) + b'.')
    read = read_file('a.pth')
    assert HistoryBuffer._statistics_methods == methods
    assert vars(read) == {'max_length': 5}
    change_pickle('a.pth', lambda _: b'\x80\2' + METHOD + b'.')
    assert read_file('a.pth') is None


def test_a_history_that_was_read_works_and_is_saved_again():
    torch.save({'loss': HistoryBuffer([1.0, 3.0], [1, 1], max_length=3)}, 'a.pth')
    torch.save(read_file('a.pth'), 'b.pth')
    read = read_file('b.pth')['loss']
    assert type(read) is HistoryBuffer
    assert read.max_length == 3
    for value in (5.0, 7.0):
        read.update(value)
    assert [read.statistics(name) for name in ('min', 'max', 'mean', 'current')] == [3, 7, 5, 7]


@pytest.mark.parametrize('kind', ['<f8', '>f8', '|b1', '>i2', '<c8', '<u4'])
def test_arrays_of_either_byte_order_are_read_and_dtypes_are_left_alone(kind):
    array = np.arange(3).astype(kind)
    torch.save({'array': array, 'scalar': array[1], 'dtype': array.dtype}, 'a.pth')
    read = read_file('a.pth')
    assert (read['array'] == array).all()
    assert read['dtype'] == array.dtype
    assert read['scalar'] == 1
    assert np.dtype(kind[1:]).isnative


# By opcode, a pickle that would run it on what no checkpoint has.
UNWANTED = {
    pickle.REDUCE: called(NAMESPACE),
    pickle.NEWOBJ: found('collections.OrderedDict') + b')\x81',
    pickle.BUILD: b'\x8f}b',
    pickle.APPEND: called(found('builtins.bytearray')) + b'K\1a',
    pickle.APPENDS: called(found('builtins.bytearray')) + b'(K\1e',
    pickle.ADDITEMS: called(found('collections.Counter')) + b'(\x90',
    pickle.SETITEM: b']K\0aK\0K\1s',
    pickle.SETITEMS: b']K\0a(K\0K\1u',
    pickle.BINPERSID: b'K\1Q',
    pickle.PERSID: b'P1\n',
    pickle.INST: b'(iargparse\nNamespace\n',
    pickle.OBJ: b'(' + NAMESPACE + b'o',
    pickle.NEWOBJ_EX: NAMESPACE + b')}\x92',
    pickle.EXT1: b'\x82\1',
    pickle.EXT2: b'\x83\1\0',
    pickle.EXT4: b'\x84\1\0\0\0',
}


def test_no_guard_is_without_a_test():
    assert set(UNWANTED) == set(unpickling.GUARDS)


@pytest.mark.parametrize('opcode', UNWANTED, ids=bytes.hex)
def test_each_opcode_is_guarded(opcode):
    class Unpickler(unpickling.AllowListUnpickler):
        found = {**unpickling._torch_globals(), **unpickling.allowed_globals()}  # noqa: RUF012

    with pytest.raises(pickle.UnpicklingError, match=f'^opcode {opcode[0]} does what no checkpoint needs$'):
        Unpickler(io.BytesIO(b'\x80\4' + UNWANTED[opcode] + b'.')).load()


@pytest.mark.filterwarnings('ignore')  # of TorchScript
def test_formats_that_are_read_without_the_unpickler_are_refused(forced):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), 'script.pth')
    Path('storages').write_bytes(pickle.dumps(Asks(Path('canary').touch)))
    with tarfile.open('old.pth', 'w') as archive:
        archive.add('storages')
    for path, why in {
        'script.pth': 'it is a TorchScript archive',
        'old.pth': 'it was written by PyTorch 0.1.9',
    }.items():
        with pytest.raises(CheckpointError, match=f'^{path} (cannot be read|is not a checkpoint).*: {why}$'):
            read_file(path)
    assert not Path('canary').exists()


def test_where_only_weights_are_forced_the_error_says_so(monkeypatch):
    """Weights are read, by PyTorch's reader; MMEngine's checkpoints are not, also with --trust."""
    torch.save({'a': torch.ones(1)}, 'weights.pth')
    torch.save(training_checkpoint(), 'training.pth')
    torch.save({'a': Path('a')}, 'foreign.pth')
    monkeypatch.setenv(unpickling.FORCED, 'Yes')
    assert read_file('weights.pth')['a'] == 1
    with pytest.raises(
        CheckpointError, match=f'training.pth cannot be read: .* as {unpickling.FORCED} is set; unset it$'
    ):
        read_file('training.pth')
    with pytest.raises(CheckpointError, match=r'foreign.pth is refused: it asks to run pathlib'):
        read_file('foreign.pth')
    with (
        safe_reading(trust=True),
        pytest.raises(CheckpointError, match=f'{unpickling.FORCED} is set, which forbids --trust'),
    ):
        read_file('foreign.pth')


def test_reading_in_threads_changes_nothing_for_the_others(monkeypatch):
    torch.save(training_checkpoint(), 'a.pth')
    torch.save(nn.Linear(2, 2).state_dict(), 'legacy.pth', _use_new_zipfile_serialization=False)
    load, seen = torch.load, []

    def watch() -> list:
        allowed = getattr(torch.serialization, 'get_safe_globals', list)()
        return [torch.jit.load, tarfile.open, dict(os.environ), set(allowed)]

    def watching(*arguments, **settings):
        seen.append(watch())
        return load(*arguments, **settings)

    monkeypatch.setattr(torch, 'load', watching)
    before = watch()
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(read_file, ['a.pth', 'legacy.pth'] * 8))
    assert seen == [before] * len(read)
    assert watch() == before
    assert all(one['losses'].mean() == 1 for one in read[::2])


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
