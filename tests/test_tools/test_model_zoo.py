"""The tables of the READMEs are the metafiles', and the metafiles name what is there."""

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_configs import FOLDERS
from tools import model_zoo


def test_tables_are_not_stale(capsys):
    assert model_zoo.main(['--check']) == 0, capsys.readouterr().err


def test_a_stale_table_is_noticed(monkeypatch, tmp_path, capsys):
    (tmp_path / 'configs/retinanet').mkdir(parents=True)
    metafile = (ROOT / 'configs/retinanet/metafile.yml').read_text()
    (tmp_path / 'configs/retinanet/metafile.yml').write_text(metafile.replace('box AP: 40.4', 'box AP: 50.4'))
    readme = tmp_path / 'configs/retinanet/README.md'
    readme.write_text((ROOT / 'configs/retinanet/README.md').read_text())
    monkeypatch.setattr(model_zoo, 'ROOT', tmp_path)
    assert model_zoo.main(['--check']) == 2
    assert 'the model table of configs/retinanet/README.md is out of date' in capsys.readouterr().err
    assert model_zoo.main([]) == 0
    assert '| 50.4 |' in readme.read_text()
    assert model_zoo.main(['--check']) == 0


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_config_is_in_the_metafile_and_the_index(folder):
    assert f'configs/{folder}/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())['Models']
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs' / folder).glob('*.py')}
    assert {model['Config'] for model in models} == configs
