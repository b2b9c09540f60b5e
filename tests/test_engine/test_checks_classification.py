"""What can be wrong with a classifier's folders, found before the run."""

import shutil

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pvt_mm.engine import checks
from pvt_mm.errors import InputError
from tools import test as test_tool
from tools import train as train_tool


@pytest.fixture
def config(shapes, tmp_path) -> Config:
    """A classifier's config on a copy of the shapes."""
    root = tmp_path / 'classes'
    shutil.copytree(shapes / 'classification', root)
    init_default_scope('mmengine')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.RandomResizedCrop', scale=32)]
    loaders = {
        f'{split}_dataloader': dict(
            batch_size=2,
            dataset=dict(type='pvt_mm.ImageFolder', data_root=f'{root}/', data_prefix=folder, pipeline=pipeline),
        )
        for split, folder in (('train', 'train'), ('val', 'val'), ('test', 'val'))
    }
    return Config(dict(default_scope='mmengine', model=dict(head=dict(num_classes=3)), **loaders))


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'classes'


def test_data_that_fits_passes(config):
    checks.check_data(config, 'train', 'val', 'test')
    config.val_dataloader.dataset.data_prefix = dict(img_path='val')
    checks.check_data(config, 'train', 'val')


def test_no_folder(config, root):
    shutil.rmtree(root / 'val')
    message = rf'the val data is not there: {root}/val does not exist. ImageNet is laid out as .*, below {root}/; where'
    with pytest.raises(InputError, match=message):
        checks.check_data(config, 'train', 'val')
    config.val_dataloader.dataset.data_prefix = dict(img_path='val')
    with pytest.raises(InputError, match=message):
        checks.check_data(config, 'val')


def test_testing_needs_no_training_data(config, root):
    shutil.rmtree(root / 'train')
    checks.check_data(config, 'test')
    (root / 'train').mkdir()
    checks.check_data(config, 'test')
    config.train_dataloader = None
    checks.check_data(config, 'test')
    config = Config(dict(model=config.model, test_dataloader=config.test_dataloader))
    checks.check_data(config, 'test')


def test_no_class_and_one_class(config, root):
    shutil.move(root / 'train', root / 'pictures')
    (root / 'train').mkdir()
    with pytest.raises(InputError, match=r'train has no folder in it: it must have one for each class'):
        checks.check_data(config, 'train')
    shutil.copytree(root / 'pictures', root / 'train/pictures')
    with pytest.raises(InputError, match=r'the train data has one class, pictures: .*/train must have a folder for'):
        checks.check_data(config, 'train')


def test_a_class_without_images(config, root):
    for path in (root / 'train/square').iterdir():
        path.rename(path.with_suffix('.txt'))
    with pytest.raises(InputError, match=r'the train data has no image of square: fill the folder in .*/train, or'):
        checks.check_data(config, 'train')


def test_classes_of_one_split_alone(config, root):
    (root / 'val/square').rename(root / 'val/star')
    checks.check_data(config, 'train')
    with pytest.raises(InputError, match=r'the train and the val data differ: .*/val has no square; give both'):
        checks.check_data(config, 'train', 'val')
    shutil.copytree(root / 'train/square', root / 'val/square')
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=config.train_dataloader.dataset)
    with pytest.raises(InputError, match=r'the train and the test data differ: .*/train has no star; give both'):
        checks.check_data(config, 'test')
    config.test_dataloader.dataset.metainfo = dict(classes=('circle', 'square', 'triangle'))
    checks.check_data(config, 'test')


def test_classes_in_another_order(config):
    config.train_dataloader.dataset.metainfo = dict(classes=['square', 'circle', 'triangle'])
    with pytest.raises(InputError, match=r'metainfo.classes of the train and the val data are in different orders'):
        checks.check_data(config, 'train', 'val')
    config.val_dataloader.dataset.metainfo = dict(classes=('square', 'circle', 'triangle'))
    checks.check_data(config, 'train', 'val')


def test_many_names_are_cut_short(config, root):
    for i in range(7):
        shutil.copytree(root / 'val/square', root / f'val/other{i}')
    with pytest.raises(InputError, match='has no other0, other1, other2, other3, other4 …; give'):
        checks.check_data(config, 'val')


@pytest.mark.parametrize('classes', [2, 1000])
def test_heads_for_another_number_of_classes(classes, config):
    config.model.head.num_classes = classes
    with pytest.raises(InputError, match=f'model.head.num_classes is {classes}, and the train data has 3 classes'):
        checks.check_data(config, 'train')


def test_classes_that_are_no_folders(config):
    config.train_dataloader.dataset.metainfo = dict(classes=('circle', 'star'))
    with pytest.raises(InputError, match=r'train has no folder star: each of metainfo.classes'):
        checks.check_data(config, 'train')
    config.train_dataloader.dataset.metainfo = dict(classes='circle')
    with pytest.raises(InputError, match='write a tuple'):
        checks.check_data(config, 'train')


def test_steps_that_cannot_be_built(config):
    config.train_dataloader.dataset.pipeline[1].interpolation = 'bicubik'
    message = r"pipeline.1 \(pvt_mm.RandomResizedCrop\) cannot be built: InputError: .*no interpolation 'bicubik'"
    with pytest.raises(InputError, match=message):
        checks.check_data(config, 'train')


def test_the_commands_answer_with_one_line(config, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config.dump('classes.py')
    shutil.rmtree(root / 'val/square')
    (tmp_path / 'any.pth').touch()
    for main, arguments in ((train_tool.main, []), (test_tool.main, ['any.pth'])):
        assert main(['classes.py', *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: the classes of the train and the ')


def test_fewer_images_than_a_batch(config):
    config.train_dataloader.update(drop_last=True, batch_size=12)
    checks.check_data(config, 'train')
    config.train_dataloader.batch_size = 13
    with pytest.raises(
        InputError, match=r'has 12 images, which on 1 process\(es\) fill no batch of 13: add --cfg-options'
    ):
        checks.check_data(config, 'train')
    config.train_dataloader.drop_last = False
    checks.check_data(config, 'train')


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS')])
def test_fewer_images_than_a_batch_of_every_process(launcher, variable, config, monkeypatch):
    monkeypatch.setenv(variable, '4')
    config.train_dataloader.update(drop_last=True, batch_size=4)
    checks.check_data(config, 'train')
    config.launcher = launcher
    with pytest.raises(InputError, match=r'has 12 images, which on 4 process\(es\) fill no batch of 4'):
        checks.check_data(config, 'train')
    config.train_dataloader.batch_size = 3
    checks.check_data(config, 'train')
