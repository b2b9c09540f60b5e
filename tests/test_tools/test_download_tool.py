"""tools/download.py: the published weights of a config and those that it starts from, and what to do with them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from pvt_mm.apis.published import Published
from pvt_mm.checkpoint.download import cached_path
from pvt_mm.checkpoint.formats import convert
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.models import PVT
from tests.conftest import ROOT, TINY_ARCH
from tests.server import serve
from tests.test_checkpoint.test_whole_models import DETECTOR
from tools import download as tool
from tools import test as test_tool


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A config whose detector and backbone are served, in MMDetection's and the authors' format."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    init_default_scope('mmdet')
    Path('plain.py').write_text(DETECTOR.format(root=ROOT, arch=TINY_ARCH))
    detector = MODELS.build(Config.fromfile('plain.py').model)
    torch.save({'meta': {'CLASSES': ('a',)}, 'state_dict': convert(detector.state_dict(), 'mmdet')[0]}, 'detector.pth')
    torch.save(convert(PVT(TINY_ARCH).state_dict(), 'authors')[0], 'pvt.pth')
    with serve() as server:
        server.files = {f'/{name}.pth': Path(f'{name}.pth').read_bytes() for name in ('detector', 'pvt')}
        weights = dict(_delete_=True, type='Pretrained', checkpoint=server.url('/pvt.pth'))
        Path('config.py').write_text(f"{Path('plain.py').read_text()}model['backbone']['init_cfg'] = {weights}\n")
        found = [
            Published('MMDetection', server.url('/detector.pth'), {'box AP': 36.6}),
            Published('authors', 'https://drive.google.com/file/d/1/view', {'box AP': 36.7}),
        ]
        monkeypatch.setattr(tool, 'list_published', lambda path: found)
        server.published = found
        for name in ('detector.pth', 'pvt.pth'):
            os.remove(name)
        yield server


def run(capsys, *arguments: str) -> tuple[int, list[str], list[str]]:
    code = tool.main([*arguments])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err.splitlines()


def test_both_files_arrive_in_a_folder_and_the_commands_name_them(zoo, capsys, shapes):
    code, lines, _ = run(capsys, 'config.py', '--dest', 'weights', '--convert')
    assert code == 0
    assert lines[0] == (
        'authors: box AP 36.7: https://drive.google.com/file/d/1/view (Google Drive: download it with a browser)'
    )
    assert lines[1].startswith('weights/detector.pth: ')
    assert lines[1].endswith('no hash of it is published; MMDetection: box AP 36.6')
    assert lines[2].endswith('model.backbone starts from it')
    assert 'tools/test.py config.py weights/detector.pth' in lines
    start = 'tools/train.py config.py --cfg-options'
    assert f'{start} load_from=weights/detector.pth model.backbone.init_cfg=None' in lines
    assert f'{start} model.backbone.init_cfg.checkpoint=weights/pvt.pth' in lines
    named = json.loads(lines[-1])
    assert named == {
        'model': 'weights/detector.pth',
        'model.backbone': 'weights/pvt.pth',
        'converted': 'weights/detector_pvt_mm.pth',
    }
    assert sorted(path.name for path in Path('weights').iterdir()) == ['detector.pth', 'detector_pvt_mm.pth', 'pvt.pth']
    ours, theirs = read_checkpoint(named['converted']), read_checkpoint(named['model'])
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith('backbone.'))
    assert test_tool.main(['config.py', 'weights/detector.pth', '--cfg-options', f'data_root={shapes}']) == 0


def test_without_a_folder_they_are_where_a_node_without_a_network_looks(zoo, capsys):
    code, lines, _ = run(capsys, 'config.py')
    assert code == 0
    detector, backbone = (cached_path(zoo.url(path)) for path in ('/detector.pth', '/pvt.pth'))
    assert json.loads(lines[-1]) == {'model': detector, 'model.backbone': backbone}
    assert lines[-2] == 'tools/train.py config.py  # finds model.backbone without a network'
    zoo.files.clear()  # no network
    model = MODELS.build(Config.fromfile('config.py').model)
    model.backbone.init_weights()
    assert run(capsys, 'config.py')[0] == 0  # they are there
    assert zoo.requests == ['/detector.pth', '/pvt.pth']


def test_a_damaged_file_is_downloaded_again(zoo, capsys):
    assert run(capsys, 'config.py', '--dest', 'weights')[0] == 0
    content = Path('weights/pvt.pth').read_bytes()
    Path('weights/pvt.pth').write_bytes(content[:-100])
    code, lines, _ = run(capsys, 'config.py', '--dest', 'weights')
    assert code == 0
    assert any(line.startswith('weights/pvt.pth: it is damaged') for line in lines)
    assert Path('weights/pvt.pth').read_bytes() == content


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'cannot be downloaded: the server answers 404 Not Found'),
        (b'<html>Google Drive - Virus scan warning</html>', 'this is a web page, not a checkpoint: download the file'),
        ({'meta': {}}, 'holds no parameters'),
        (b'\x80\x04\x95 a pickle?', 'is not a checkpoint, or is damaged'),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(content, message, zoo, capsys):
    if isinstance(content, dict):
        torch.save(content, 'other.pth')
        content = Path('other.pth').read_bytes()
    zoo.files['/detector.pth'] = content
    code, _, errors = run(capsys, 'config.py', '--dest', 'weights')
    assert code == 2
    assert len([line for line in errors if line.startswith('error: ')]) == 1
    assert message in errors[-1]
    assert not list(Path('weights').glob('*'))
    assert not list(Path('weights').glob('.*'))


@pytest.mark.parametrize('recipe', sorted((ROOT / 'configs/own_data').glob('*.py')), ids=lambda path: path.stem)
def test_the_recipes_for_own_data_find_their_weights_without_a_network(recipe, zoo, capsys, monkeypatch):
    """Where a server stands in for the sites that they name."""
    name = 'detector' if recipe.stem.startswith('detection') else 'pvt'
    url = zoo.url(f'/{name}.pth')
    config = re.sub(r'https://[^\']*', url, Config.fromfile(recipe).pretty_text)
    Path('recipe.py').write_text(config)
    zoo.published.clear()
    assert zoo.url('/') in config
    start = 'load_from' if name == 'detector' else 'model.backbone'
    code, lines, _ = run(capsys, 'recipe.py')
    assert code == 0
    assert json.loads(lines[-1]) == {'model' if name == 'detector' else start: cached_path(url)}
    assert any(line.endswith(f'no hash of it is published; {start} starts from it') for line in lines)
    assert lines[-2] == f'tools/train.py recipe.py  # finds {start} without a network'
    code, lines, _ = run(capsys, 'recipe.py', '--dest', 'weights')
    assert code == 0
    setting = start if name == 'detector' else f'{start}.init_cfg.checkpoint'
    assert lines[-2] == f'tools/train.py recipe.py --cfg-options {setting}=weights/{name}.pth'
    zoo.files.clear()  # no network
    path = cached_path(url)
    assert zoo.requests == [f'/{name}.pth'] * 2
    assert read_checkpoint(url).keys() == read_checkpoint(path).keys()
    assert zoo.requests == [f'/{name}.pth'] * 2


def test_configs_without_anything_to_download_say_so(zoo, capsys):
    zoo.published.clear()
    code, lines, errors = run(capsys, 'plain.py')
    assert (code, lines) == (2, ['no weights of the whole model of plain.py are published'])
    assert errors == ['error: plain.py: there is nothing to download']
    assert run(capsys, 'config.py')[0] == 0  # its backbone's
    assert run(capsys, 'absent.py')[0] == 2


def test_an_interrupted_download_leaves_nothing(tmp_path):
    """SIGTERM, as a scheduler sends it, in the middle of a file that comes slowly."""
    with serve() as server:
        server.files['/a.pth'] = b'PK\3\4' + bytes(4 * 2**20)
        server.held.add('/a.pth')
        script = (
            'import signal, sys; from pvt_mm.checkpoint.download import fetch; '
            'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); '
            f'fetch({server.url("/a.pth")!r}, "a.pth", lambda *_: print("some", flush=True))'
        )
        process = subprocess.Popen(
            [sys.executable, '-c', script],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert process.stdout.readline() == b'some\n'
        (temporary,) = tmp_path.iterdir()
        assert re.fullmatch(rf'\.a\.pth\..*\.{process.pid}\.[0-9a-f]{{8}}\.tmp', temporary.name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        server.released.set()
    assert list(tmp_path.iterdir()) == []
