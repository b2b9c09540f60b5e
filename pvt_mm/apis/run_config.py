"""A test with another config than that of the run: of data that is missing, or of other classes."""

import contextlib
import logging
import os
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.logging import print_log

from pvt_mm.apis.config import innermost_dataset
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.datasets.classes import classes_of
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


@contextlib.contextmanager
def run_config_advice(config: str, checkpoint: str) -> Iterator[None]:
    """Adds the config in a checkpoint's folder, which is that of its run, to an InputError."""
    try:
        yield
    except InputError as error:
        of_run = os.path.join(os.path.dirname(checkpoint), os.path.basename(config))
        if not os.path.isfile(of_run) or os.path.samefile(of_run, config):
            raise
        raise InputError(f'{error}; the config of the run of this checkpoint is {of_run}') from error


def warn_of_other_classes(config: Config, checkpoint: str) -> None:
    """Warns if the classes that a checkpoint says it was trained on are not those of the test data, in their order."""
    content = read_file(checkpoint)
    meta = content.get('meta') if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    meta = meta.get('dataset_meta') or meta
    trained = meta.get('classes') or meta.get('CLASSES')
    tested = classes_of(innermost_dataset(config.test_dataloader.dataset))
    if not isinstance(trained, (list, tuple)) or not tested or list(trained) == list(tested):
        return
    print_log(
        f'{checkpoint} was trained on the classes {shorten(trained)}, and the test data has {shorten(tested)}: a score '
        'is right only where both mean the same; the config in the work directory of a run has its classes',
        logger='current',
        level=logging.WARNING,
    )
