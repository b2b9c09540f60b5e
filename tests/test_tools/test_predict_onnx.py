"""Predictions of exported models in an environment that has onnxruntime, NumPy and Pillow alone."""

import errno
import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import cv2
import numpy as np
import pytest

from pvt_mm.serving.drawing import MIN_SIDE
from pvt_mm.serving.result import Result
from tests.conftest import ROOT
from tests.test_serving.models import BOXES, save_model
from tools import predict_onnx

# Python itself and the packages of a folder: -S and -I keep it from adding others.
RUN = """
import importlib.util, runpy, sys
sys.path.append(sys.argv[1])
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'matplotlib', 'pycocotools', 'rich', 'scipy'):
    assert importlib.util.find_spec(name) is None, name
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def requirements(names: list[str]) -> set[str]:
    """Returns distributions with all that they require, extras aside."""
    found: set[str] = set()
    while names:
        found.add(name := names.pop())
        needed = [one for one in distribution(name).requires or () if 'extra ==' not in one]
        names += [one for one in (re.match(r'[\w.-]+', line)[0] for line in needed) if one not in found]
    return found


@pytest.fixture(scope='module')
def packages(tmp_path_factory) -> Path:
    """A folder of links to the packages of three distributions and of what they require."""
    folder = tmp_path_factory.mktemp('packages')
    for name in requirements(['onnxruntime', 'numpy', 'pillow']):
        one = distribution(name)
        for top in {file.parts[0] for file in one.files if file.parts[0] not in ('..', '__pycache__')}:
            if not (folder / top).exists():  # `google` may belong to several
                (folder / top).symlink_to(one.locate_file(top))
    return folder


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'images'
    (folder / 'more').mkdir(parents=True)
    pixels = np.full((64, 80, 3), (30, 20, 10), np.uint8)  # BGR
    for name in ('a.jpg', 'more/b.png', 'c.bmp'):
        cv2.imwrite(str(folder / name), pixels)
    (folder / 'cut.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:-100])
    return folder


def test_nothing_else_is_installed(packages, images, tmp_path):
    model = save_model(tmp_path / 'a.onnx', 'detection', BOXES)
    command = [sys.executable, '-S', '-I', '-c', RUN, str(packages), str(ROOT / 'tools/predict_onnx.py')]
    for _ in range(2):  # the output of the first run is not an input of the second
        arguments = [str(images), str(model), '--out', 'images/drawn', '--threads', '1']
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == {'out': 'images/drawn', 'images': 3, 'skipped': 1}
        (skipped,) = done.stderr.splitlines()
        assert skipped.startswith(f'skipped: {images}/cut.jpg is truncated or not an image (')
    drawn = sorted(path.relative_to(images / 'drawn').as_posix() for path in (images / 'drawn').rglob('*.*'))
    assert drawn == ['a.jpg', 'c.bmp.jpg', 'more/b.png', 'predictions.json']
    content = json.loads((images / 'drawn/predictions.json').read_text())
    assert content['model'] == str(model)
    assert sorted(content['images']) == ['a.jpg', 'c.bmp', 'more/b.png']
    assert content['images']['a.jpg'][0] == dict(label='triangle', score=0.9, bbox=[10.0, 12.0, 30.26, 40.0])
    picture = cv2.imread(str(images / 'drawn/more/b.png'))
    assert min(picture.shape[:2]) >= MIN_SIDE
    assert picture[-1, -1].tolist() == [30, 20, 10]
    assert picture[39 * 8, 10 * 8].tolist() == [115, 158, 0]  # the left side of the triangle's box, BGR


def test_tools_with_a_shebang_can_be_run():
    tools = [path for path in (ROOT / 'tools').iterdir() if path.is_file() and path.read_bytes()[:2] == b'#!']
    assert len(tools) > 25
    assert not [path.name for path in tools if not path.stat().st_mode & 0o100]


def test_a_folder_that_can_no_longer_be_written_ends_the_run(images, tmp_path, monkeypatch, capsys):
    model, save = save_model(tmp_path / 'a.onnx', 'detection', BOXES), Result.save

    def refuse(result, path):
        if path.name != 'a.jpg':
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        save(result, path)

    monkeypatch.setattr(Result, 'save', refuse)
    assert predict_onnx.main(['images', str(model), '--out', 'drawn', '--threads', '1']) == 2
    assert capsys.readouterr().err == 'error: drawn/c.bmp.jpg: Permission denied\n'
    assert list(json.loads(Path('drawn/predictions.json').read_text())['images']) == ['a.jpg']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone', 'MODEL'], 'gone does not exist: name a file or a folder of images'),
        (['images/cut.jpg', 'MODEL'], 'images/cut.jpg is truncated or not an image'),
        (['images', 'gone.onnx'], 'gone.onnx does not exist'),
        (['images', 'images/a.jpg'], 'images/a.jpg is not an ONNX file'),
        (['images', 'MODEL', '--out', 'images'], '--out images is the folder of the images'),
        (['images', 'MODEL', '--out', 'images/a.jpg/drawn'], 'images/a.jpg/drawn: Not a directory'),
        (['images', 'MODEL', '--score-thr', '2'], '--score-thr 2.0: it must be from 0 to 1'),
        (['images', 'MODEL', '--threads', '-1'], '--threads -1: it must be'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, images, tmp_path, capsys):
    model = save_model(tmp_path / 'a.onnx', 'detection', BOXES)
    before = set(tmp_path.rglob('*'))
    assert predict_onnx.main([str(model) if argument == 'MODEL' else argument for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {message}')
    assert not {path for path in set(tmp_path.rglob('*')) - before if path.is_file()}
