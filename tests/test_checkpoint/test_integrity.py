"""A checkpoint that is not, bit by bit, what was written is refused, wherever it was damaged."""

import os
import tracemalloc
import zipfile

import pytest
import torch
from mmengine.runner.checkpoint import load_from_local

from pvt_mm.checkpoint import integrity
from pvt_mm.checkpoint.integrity import sign, verify
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.checkpoint.writer import save_checkpoint
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.files import atomic_write

STATE = {'a': torch.arange(100.0), 'b': torch.ones(3, 4)}
COMMENT = len('pvt_mm size=') + 20 + len(' sha256=') + 64


@pytest.fixture
def signed(tmp_path):
    torch.save(STATE, tmp_path / 'signed.pth')
    sign(tmp_path / 'signed.pth')
    return tmp_path / 'signed.pth'


@pytest.fixture
def foreign(tmp_path):
    torch.save(STATE, tmp_path / 'foreign.pth')
    return tmp_path / 'foreign.pth'


def flip(path, place, bit=0):
    with open(path, 'r+b') as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_a_signed_file_is_read_by_everything(signed):
    verify(signed)
    for flags in ({}, {'mmap': True}, {'weights_only': False}):
        assert same(torch.load(str(signed), **flags))
    assert same(load_from_local(str(signed), 'cpu'))  # MMEngine's own
    assert same(read_file(signed))
    archive = zipfile.ZipFile(signed)
    assert archive.testzip() is None
    size = signed.stat().st_size - COMMENT
    assert archive.comment.startswith(f'pvt_mm size={size:020} sha256='.encode())


def test_a_bit_flipped_anywhere_is_found(signed):
    for place in range(signed.stat().st_size):
        bit = place % 8
        flip(signed, place, bit)
        with pytest.raises(CheckpointError, match='is damaged: '):
            verify(signed)
        flip(signed, place, bit)
    verify(signed)


def test_every_bit_of_the_signature_counts(signed):
    size = signed.stat().st_size
    for place in range(size - COMMENT - 2, size):
        for bit in range(8):
            flip(signed, place, bit)
            with pytest.raises(CheckpointError):
                verify(signed)
            flip(signed, place, bit)


@pytest.mark.parametrize('name', ['signed', 'foreign'])
def test_a_file_truncated_anywhere_is_found(name, request):
    path = request.getfixturevalue(name)
    whole = path.read_bytes()
    lengths = {*range(12), *range(12, len(whole), 97), *range(len(whole) - COMMENT - 60, len(whole))}
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        with pytest.raises(
            CheckpointError, match=f'{name}.pth is (damaged: it is truncated|not a checkpoint, or is dam)'
        ):
            read_file(path)
    for start in (1, 100):
        path.write_bytes(whole[start:])
        with pytest.raises(CheckpointError):
            read_file(path)


def test_the_message_is_one_line_and_says_what_is_wrong(signed):
    whole = signed.read_bytes()
    for content, message in (
        (whole[:-500], 'it is truncated'),
        (whole[:500] + whole[600:], f'it has {len(whole) - COMMENT - 100} bytes, and {len(whole) - COMMENT} were'),
        (whole[:500] + b'x' + whole[501:], 'it was changed after it was written'),
        (whole.replace(b'pvt_mm size', b'pvt-mm size'), 'its signature has been changed'),
    ):
        signed.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            read_file(signed)
        assert '\n' not in str(error.value)


def test_a_flipped_bit_that_torch_does_not_see_is_found_in_a_file_of_anyones(foreign):
    verify(foreign)
    member = next(one for one in zipfile.ZipFile(foreign).infolist() if one.filename.endswith('data/0'))
    flip(foreign, member.header_offset + 200)
    assert not same(torch.load(foreign))
    with pytest.raises(CheckpointError, match=r"foreign.pth is damaged: Bad CRC-32 for file '\w+/data/0'"):
        read_file(foreign)


def test_files_that_nobody_signed_are_read(foreign, tmp_path):
    assert same(read_file(foreign))
    with zipfile.ZipFile(foreign, 'a') as archive:
        archive.comment = b'of someone'
    assert same(read_file(foreign))
    torch.save(STATE, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    assert same(read_file(tmp_path / 'legacy.pth'))
    if not hasattr(torch.serialization, 'set_crc32_options'):  # torch < 2.6
        return
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / 'without.pth')
    finally:
        torch.serialization.set_crc32_options(computed)
    assert same(read_file(tmp_path / 'without.pth'))


def test_what_is_signed_already_or_no_archive_is_not_signed(signed, tmp_path):
    (tmp_path / 'text.pth').write_text('text')
    for path in (signed, tmp_path / 'text.pth'):
        before = path.read_bytes()
        with pytest.raises(ValueError, match='is not a zip archive without a comment'):
            sign(path)
        assert path.read_bytes() == before


def test_a_file_is_verified_once_unless_it_changes(signed, monkeypatch):
    verified = []
    monkeypatch.setattr(integrity, 'verify', verified.append)
    for _ in range(3):
        read_file(signed)
    assert verified == [str(signed)]
    os.utime(signed, ns=(1, 1))
    read_file(signed)
    assert len(verified) == 2


def test_damage_is_found_again(signed):
    flip(signed, 500)
    for _ in range(2):
        with pytest.raises(CheckpointError, match='is damaged'):
            read_file(signed)


def test_no_more_than_a_part_of_the_file_is_in_memory(tmp_path):
    torch.save(torch.zeros(8_000_000), tmp_path / 'large.pth')
    tracemalloc.start()
    try:
        verify(tmp_path / 'large.pth')
        sign(tmp_path / 'large.pth')
        verify(tmp_path / 'large.pth')
        assert tracemalloc.get_traced_memory()[1] < 5e6  # of 32e6
    finally:
        tracemalloc.stop()


def test_what_is_saved_is_signed(tmp_path):
    save_checkpoint(STATE, tmp_path / 'saved.pth')
    assert zipfile.ZipFile(tmp_path / 'saved.pth').comment.startswith(b'pvt_mm size=')
    assert same(read_file(tmp_path / 'saved.pth'))


def test_a_whole_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, flush, rename = [], os.fsync, os.replace

    def fsync(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def replace(*paths):
        rename(*paths)
        done.append('renamed')

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'replace', replace)
    with atomic_write(tmp_path / 'file') as beside:
        beside.write_text('text')
    assert done == [(tmp_path / 'file').stat().st_ino, 'renamed', tmp_path.stat().st_ino]
