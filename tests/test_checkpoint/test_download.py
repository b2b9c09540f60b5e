"""What is downloaded is complete and intact, or not there, and the error is one line."""

import errno
import hashlib
import io
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from pvt_mm.checkpoint import download, reader
from pvt_mm.checkpoint.download import cached_path, check_downloaded, fetch, file_name, published_digest
from pvt_mm.checkpoint.reader import read_checkpoint, safe_reading
from pvt_mm.models import PVT
from pvt_mm.models.archs import IMAGENET
from pvt_mm.utils.errors import CheckpointError
from tests.conftest import TINY_ARCH
from tests.server import serve


def saved(content: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


WEIGHTS = {'weight': torch.arange(1000.0)}
ZIP, LEGACY = saved(WEIGHTS), saved(WEIGHTS, _use_new_zipfile_serialization=False)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    with serve() as server:
        yield server


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('content', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_a_file_arrives_whole_and_its_progress_is_reported(content, server, tmp_path):
    server.files['/a%20b.pth'], reports = content, []
    url = server.url('/a%20b.pth?x=1')
    server.files['/a%20b.pth?x=1'] = content
    fetch(url, tmp_path / 'new' / file_name(url), lambda *report: reports.append(report))
    assert (tmp_path / 'new/a b.pth').read_bytes() == content
    assert reports[-1] == (len(content), len(content))
    check_downloaded(url, tmp_path / 'new/a b.pth')


FAULTS = {
    'absent': (None, '404 Not Found'),
    'web page': (b'\n<!DOCTYPE html><title>Google Drive</title>', 'this is a web page, not a checkpoint: download the'),
    'text': (b'hello', 'this is not a checkpoint'),
    'empty': (b'', '0 of 0 bytes arrived'),
    'flipped bit': (ZIP[:3000] + bytes([ZIP[3000] ^ 1]) + ZIP[3001:], 'it is damaged (.*): try again'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_is_wrong_is_one_line_and_leaves_nothing(fault, server, tmp_path):
    content, message = FAULTS[fault]
    if content is not None:
        server.files['/a.pth'] = content
    (tmp_path / 'a.pth').write_bytes(b'as it was')
    with pytest.raises(CheckpointError, match=message) as error:
        fetch(server.url('/a.pth'), tmp_path / 'a.pth')
    assert str(error.value).startswith(server.url('/a.pth'))
    assert '\n' not in str(error.value)
    assert (tmp_path / 'a.pth').read_bytes() == b'as it was'
    with pytest.raises(CheckpointError, match=r'cannot be downloaded .*put the file at .*home'):
        read_checkpoint(server.url('/a.pth'))
    assert left(tmp_path) == ['a.pth']


@pytest.mark.parametrize('content', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_a_download_that_is_cut_is_not_kept_and_the_next_one_is_whole(content, server, tmp_path):
    server.files['/a.pth'] = content
    server.cut.add('/a.pth')
    with pytest.raises(CheckpointError, match=rf'\d+ of {len(content)} bytes arrived: try again|IncompleteRead'):
        fetch(server.url('/a.pth'), tmp_path / 'a.pth')
    assert left(tmp_path) == []
    server.cut.clear()
    fetch(server.url('/a.pth'), tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == content


def test_no_server_no_disk_and_an_interruption_leave_nothing(server, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match='cannot be downloaded: Connection refused'):
        fetch('http://127.0.0.1:9/a.pth', tmp_path / 'a.pth')
    server.files['/a.pth'] = ZIP

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url('/a.pth'), tmp_path / 'a.pth', stop)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r'No space left on device: .*a.pth'):
        fetch(server.url('/a.pth'), tmp_path / 'a.pth', fail)
    assert left(tmp_path) == []


def test_the_digest_in_the_name_is_verified_where_names_have_one(server, tmp_path, monkeypatch):
    zoo = 'https://download.openmmlab.com/mmdetection/v2.0/pvt/retinanet_pvt-t_fpn_1x_coco_20210831_103110-17b566bd.pth'
    assert published_digest(zoo) == '17b566bd'
    assert published_digest('https://download.pytorch.org/models/resnet50-0676ba61.pth') == '0676ba61'
    assert published_digest('https://example.com/weights-20240101.pth') is None  # a date
    digest = hashlib.sha256(ZIP).hexdigest()[:8]
    monkeypatch.setattr(download, '_NAMES_WITH_DIGESTS', r'http://127\.0\.0\.1:\d+/.*-([0-9a-f]{8})\.pth')
    for name in (f'/a-{digest}.pth', '/a-00000000.pth'):
        server.files[name] = ZIP
    fetch(server.url(f'/a-{digest}.pth'), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'its SHA-256 begins with {digest}, not with 00000000 as its name says'):
        fetch(server.url('/a-00000000.pth'), tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match='not with 00000000'):
        check_downloaded(server.url('/a-00000000.pth'), tmp_path / 'a.pth')
    assert left(tmp_path) == ['a.pth']


def test_what_torch_hub_has_downloaded_is_used_where_its_name_says_its_digest(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, '_NAMES_WITH_DIGESTS', r'http://127\.0\.0\.1:\d+/.*-([0-9a-f]{8})\.pth')
    folder = tmp_path / 'home/hub/checkpoints'
    folder.mkdir(parents=True)
    whole, other = (f'a-{hashlib.sha256(content).hexdigest()[:8]}.pth' for content in (ZIP, LEGACY))
    for name in (whole, other, 'plain.pth'):
        (folder / name).write_bytes(ZIP)  # which is not the content that the name of the second says
    assert torch.equal(read_checkpoint(server.url(f'/{whole}'))['weight'], WEIGHTS['weight'])
    for name in (other, 'plain.pth'):
        with pytest.raises(CheckpointError, match=r'cannot be downloaded .*404'):
            read_checkpoint(server.url(f'/{name}'))
    assert server.requests == [f'/{other}', '/plain.pth']


@pytest.mark.parametrize(
    ('variables', 'downloads'),
    [
        ({}, True),
        (dict(LOCAL_RANK='0', RANK='8'), True),
        (dict(LOCAL_RANK='1'), False),
        (dict(SLURM_LOCALID='0', SLURM_PROCID='8'), True),
        (dict(SLURM_LOCALID='1'), False),
        (dict(OMPI_COMM_WORLD_LOCAL_RANK='0', OMPI_COMM_WORLD_RANK='8'), True),
        (dict(OMPI_COMM_WORLD_LOCAL_RANK='1'), False),
        (dict(OMPI_COMM_WORLD_LOCAL_RANK='1', LOCAL_RANK='0'), False),  # MMDetection's tools set it
        (dict(SLURM_LOCALID='0', LOCAL_RANK='1'), False),  # one task a machine, which runs torchrun
    ],
)
def test_only_the_first_rank_of_a_machine_downloads(variables, downloads, server, monkeypatch):
    for name in reader.LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    waits = []

    def wait():
        waits.append(server.requests.copy())
        if not downloads:  # the first rank has done it
            fetch(server.url('/a.pth'), cached_path(server.url('/a.pth')))

    server.files['/a.pth'] = ZIP
    monkeypatch.setattr(reader, 'barrier', wait)
    monkeypatch.setattr(reader, 'is_distributed', lambda: True)
    assert read_checkpoint(server.url('/a.pth')).keys() == WEIGHTS.keys()
    assert waits == [['/a.pth'] if downloads else []]


def test_a_task_that_runs_on_its_own_downloads_whatever_its_number(server, monkeypatch):
    """As one of several that srun starts, none of which waits for another."""
    monkeypatch.setenv('SLURM_LOCALID', '1')
    server.files['/a.pth'] = ZIP
    assert read_checkpoint(server.url('/a.pth')).keys() == WEIGHTS.keys()


def test_two_repositories_files_of_one_name_are_two(server):
    for owner, value in (('a', 1.0), ('b', 2.0)):
        server.files[f'/{owner}/pytorch_model.bin'] = saved({'weight': torch.full((2,), value)})
    first, second = (server.url(f'/{owner}/pytorch_model.bin') for owner in 'ab')
    assert read_checkpoint(first)['weight'][0] == 1
    assert read_checkpoint(second)['weight'][0] == 2
    assert read_checkpoint(first)['weight'][0] == 1
    assert server.requests == ['/a/pytorch_model.bin', '/b/pytorch_model.bin']  # once each


# --------------------------------------------------------------------------------------------------- Hugging Face's Hub


class Hub:
    """A stand-in for huggingface_hub: its repositories, its cache, and whether there is a network."""

    def __init__(self, folder: Path):
        self.folder, self.repositories, self.cache, self.online, self.asked = folder, {}, set(), True, []

    def download(self, repository, file, *, revision=None, local_files_only=False):
        key = repository, file, revision or 'main'
        self.asked.append((*key, local_files_only))
        utils = sys.modules['huggingface_hub.utils']
        path = self.folder / repository / key[2] / file
        if key not in self.cache:
            if local_files_only or not self.online:
                raise utils.LocalEntryNotFoundError('cannot find the requested files in the disk cache')
            if repository not in self.repositories:
                raise utils.RepositoryNotFoundError(f'404 Client Error.\n\nRepository Not Found: {repository}')
            if file not in self.repositories[repository]:
                raise utils.EntryNotFoundError(f'404 Client Error.\n\nEntry Not Found: {file}')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.repositories[repository][file])
            self.cache.add(key)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / 'hub')
    utils = types.ModuleType('huggingface_hub.utils')
    utils.RepositoryNotFoundError = type('RepositoryNotFoundError', (OSError,), {})
    utils.EntryNotFoundError = type('EntryNotFoundError', (Exception,), {})
    utils.LocalEntryNotFoundError = type('LocalEntryNotFoundError', (FileNotFoundError, utils.EntryNotFoundError), {})
    package = types.ModuleType('huggingface_hub')
    package.hf_hub_download, package.utils = hub.download, utils
    monkeypatch.setitem(sys.modules, 'huggingface_hub', package)
    monkeypatch.setitem(sys.modules, 'huggingface_hub.utils', utils)
    return hub


def test_safetensors_come_first_and_a_named_file_and_revision_are_taken(hub):
    from safetensors.torch import save

    files = {'model.safetensors': save({'x': torch.ones(1)}), 'pytorch_model.bin': saved({'x': torch.zeros(1)})}
    hub.repositories = {'a/both': files, 'a/old': {'pytorch_model.bin': saved({'x': torch.full((1,), 2.0)})}}
    assert read_checkpoint('hf://a/both')['x'] == 1
    assert read_checkpoint('hf://a/both/pytorch_model.bin@v1')['x'] == 0
    assert ('a/both', 'pytorch_model.bin', 'v1', False) in hub.asked
    assert read_checkpoint('hf://a/old')['x'] == 2
    with safe_reading():
        assert CheckpointLoader.load_checkpoint('hf://a/old')['x'] == 2
    hub.online = False
    assert read_checkpoint('hf://a/old')['x'] == 2  # from huggingface_hub's cache


@pytest.mark.parametrize(
    ('address', 'online', 'message'),
    [
        ('hf://a/none', True, 'RepositoryNotFoundError: 404 Client Error. Repository Not Found: a/none'),
        ('hf://a/empty', True, 'neither model.safetensors nor pytorch_model.bin is there'),
        ('hf://a/empty/x.pth', True, 'EntryNotFoundError: 404 Client Error. Entry Not Found: x.pth'),
        ('hf://a/empty/x.pth', False, 'LocalEntryNotFoundError: cannot find .*check the name and the network'),
        ('hf://a', True, 'write hf://owner/name, or hf://owner/name/file'),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(address, online, message, hub):
    hub.repositories, hub.online = {'a/empty': {}}, online
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(address)
    assert '\n' not in str(error.value)
    assert str(error.value).startswith(address)


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(CheckpointError, match=r"hf://a/b needs huggingface_hub: pip install 'pvt_mm\[hf\]'"):
        read_checkpoint('hf://a/b')


# ------------------------------------------------------------------------------------------------ PVT(weights=...)


def test_the_constructor_loads_weights_from_anywhere(server, hub, tmp_path, monkeypatch):
    source = PVT(TINY_ARCH)
    content = saved(source.state_dict())
    (tmp_path / 'a.pth').write_bytes(content)
    server.files['/a.pth'], hub.repositories = content, {'a/b': {'pytorch_model.bin': content}}
    for weights in (str(tmp_path / 'a.pth'), server.url('/a.pth'), 'hf://a/b'):
        torch.manual_seed(1)
        loaded = PVT(TINY_ARCH, weights=weights)
        loaded.init_weights()  # which MMEngine's runner calls
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_imagenet_is_the_authors_release_for_the_arch(server, monkeypatch):
    assert set(IMAGENET) == {'tiny', 'small', 'medium', 'large'}
    assert IMAGENET['large'] == 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
    from pvt_mm.checkpoint.formats import convert

    source = PVT('tiny')
    server.files['/pvt_tiny.pth'] = saved(convert(source.state_dict(), 'authors')[0])
    monkeypatch.setitem(IMAGENET, 'tiny', server.url('/pvt_tiny.pth'))
    torch.manual_seed(1)
    loaded = PVT('tiny', weights='imagenet')
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert Path(cached_path(server.url('/pvt_tiny.pth'))).is_file()
    assert reader.cached_path is cached_path


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(arch='small_wide', weights='imagenet'),
            "no published ImageNet weights of arch 'small_wide', only of tiny",
        ),
        (dict(arch=TINY_ARCH, weights='imagenet'), 'no published ImageNet weights of arch'),
        (dict(weights='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), 'weights and init_cfg both say'),
        (dict(weights=1), "weights must be 'imagenet', a path"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PVT(**options)
