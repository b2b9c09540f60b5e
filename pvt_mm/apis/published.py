"""Published weights of the shipped configs, from the ``metafile.yml`` beside each."""

from pathlib import Path
from typing import NamedTuple

import yaml
from mmengine.config import Config

from pvt_mm.apis.config import as_list, settings_in


class Published(NamedTuple):
    """Weights that somebody published: who, where, and their own figures, by metric."""

    source: str
    url: str
    metrics: dict[str, float]

    @property
    def downloadable(self) -> bool:
        """Whether a program can download it. Google Drive shows a page in which to confirm large files."""
        return not self.url.startswith('https://drive.google.com/')


def first_download(config_path: str) -> str | None:
    """Returns the URL of the first published checkpoint of a shipped config that can be downloaded, None without one.

    It is a checkpoint of the whole model (a detector, a segmentor, a classifier), of any known format.
    """
    return next((one.url for one in list_published(config_path) if one.downloadable), None)


def list_published(config_path: str) -> list[Published]:
    """Returns all published checkpoints of a shipped config; of any other there are none."""
    path = Path(config_path).resolve()
    metafile = path.with_name('metafile.yml')
    if not metafile.is_file():
        return []
    models = yaml.safe_load(metafile.read_text(encoding='utf-8')).get('Models') or []
    shipped = (model for model in models if Path(model.get('Config', '')).name == path.name)
    return next((published_in(model) for model in shipped), [])


def initial_weights(config: Config) -> dict[str, str]:
    """Returns the URLs of the weights that parts of a config's model start from, by the part, ``model.backbone``."""
    settings = ((name, cfg) for name, value in settings_in(config.model, 'model') for cfg in as_list(value))
    return {
        name.removesuffix('.init_cfg'): cfg['checkpoint']
        for name, cfg in settings
        if name.endswith('.init_cfg') and isinstance(cfg, dict) and '://' in str(cfg.get('checkpoint', ''))
    }


def paper_results(model: dict) -> list[dict]:
    """Returns the paper's results in an entry of a metafile: those without a ``Source``."""
    return [result for result in model.get('Results', ()) if 'Source' not in result]


def published_in(model: dict) -> list[Published]:
    """Returns the published checkpoints in an entry of a metafile: the results with a ``Source`` and ``Weights``."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for result in model.get('Results', ()):
        if 'Source' in result and 'Weights' in result:
            found.setdefault((result['Source'], result['Weights']), {}).update(result['Metrics'])
    return [Published(*key, metrics) for key, metrics in found.items()]
