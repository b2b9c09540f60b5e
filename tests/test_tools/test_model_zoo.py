"""The tables of the READMEs are the metafiles', and the metafiles name what is there."""

import yaml

from tests.conftest import ROOT
from tools import model_zoo


def test_tables_are_not_stale(capsys):
    assert model_zoo.main(['--check']) == 0, capsys.readouterr().err


def test_a_stale_table_is_noticed(monkeypatch, tmp_path, capsys):
    (tmp_path / 'README.md').write_text((ROOT / 'README.md').read_text().replace('| 40.4 |', '| 50.4 |'))
    monkeypatch.setattr(model_zoo, 'READMES', {str(tmp_path / 'README.md'): ''})
    assert model_zoo.main(['--check']) == 2
    assert 'is stale' in capsys.readouterr().err


def test_every_retinanet_config_is_in_the_metafile_and_the_index():
    assert 'configs/retinanet/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = yaml.safe_load((ROOT / 'configs/retinanet/metafile.yml').read_text())['Models']
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs/retinanet').glob('*.py')}
    assert {model['Config'] for model in models} == configs
