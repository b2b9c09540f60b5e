"""Export of a trained model to an ONNX file, which is written only if onnxruntime predicts what PyTorch does."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from torch import nn

from pvt_mm.analysis.predictor import find_classes
from pvt_mm.apis.channel_checks import channels_of
from pvt_mm.apis.data_checks import check_data
from pvt_mm.deploy import verify
from pvt_mm.serving.folders import find_inputs
from pvt_mm.serving.images import read_image
from pvt_mm.serving.model import OnnxModel
from pvt_mm.serving.preprocessing import preprocess
from pvt_mm.utils.errors import InputError, import_errors
from pvt_mm.utils.files import atomic_write, check_writable
from pvt_mm.version import __version__

SIZES = ((1, 64, 96), (2, 224, 224), (3, 101, 230))  # batch, height and width to compare classifiers and backbones on
TOLERANCE = 1e-4  # of their outputs, relative to the largest value


COMPARED, CALIBRATED = 4, 64  # images
KINDS = dict(detection='detector', instance_segmentation='detector', semantic_segmentation='segmentor')
KINDS |= dict(classification='classifier')


class Settings(NamedTuple):
    """What to export, and how to store and verify it."""

    part: str = 'model'  # or 'backbone'
    preprocess: bool = False  # whether the file takes images, uint8 of any size
    half: str = ''  # 'fp16' or 'bf16': the type of the stored weights
    int8: str = ''  # 'dynamic' or 'static'
    images: Sequence[str] = ()  # files to compare PyTorch and onnxruntime on
    calibration: Sequence[str] = ()  # files that set the ranges of int8 'static'
    val_images: int = 0  # how many of the test data to evaluate both on
    not_evaluated: str = ''  # why there are none, if some were asked for


def with_images(settings: Settings, config: Config, folder: str | None, val_images: int) -> Settings:
    """Returns settings with the images to compare and calibrate on, and to evaluate on, if the test data exists.

    Args:
        settings: The others.
        config: Its test data has the images.
        folder: A folder of images, or None for those of the test data.
        val_images: Maximum number of images to evaluate on.

    Raises:
        InputError: The folder has no image, or there is neither a folder nor test data.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    reason = ''
    try:
        check_data(config, 'test')
        known = DATASETS.build(config.test_dataloader.dataset)
    except InputError as error:
        if not folder:
            raise InputError(f'{error}; or name a folder of images to compare on: --images FOLDER') from error
        val_images, reason = 0, str(error)
    if folder:
        paths = [str(path) for path in find_inputs(folder)]
    else:
        paths = [known.get_data_info(i)['img_path'] for i in range(len(known))]
    compared, calibrated = (
        [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), count)).astype(int)]
        for count in (COMPARED, CALIBRATED)
    )
    return settings._replace(images=compared, calibration=calibrated, val_images=val_images, not_evaluated=reason)


def check_packages() -> None:
    """Raises an InputError if PyTorch is too old or a package is missing."""
    if torch.__version__ < '2.6':
        raise InputError(f'exporting to ONNX needs torch 2.6 or later, and this is {torch.__version__}')
    with import_errors('exporting to ONNX', 'pvt_mm[onnx]'):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def export_model(
    model: nn.Module,
    config: Config,
    path: str | os.PathLike,
    settings: Settings,
    about: dict,
    verified: dict[bool, Any] | None = None,
) -> dict:
    """Writes a model of a config as ONNX, if onnxruntime agrees with PyTorch.

    A float32 file must agree within what rounding makes: boxes within half a pixel, scores within 1e-3, masks with an
    IoU of 0.99, 99.9% of a label map, and the metric of the test data within 0.1 points. Fewer bits are reported.

    Args:
        model: The model, in eval mode and on the CPU, with ``dataset_meta``.
        config: Its config.
        path: The file to write, atomically.
        settings: What to write.
        about: Entries to add to the file's metadata.
        verified: What an earlier call with the same model has exported and verified, which is not done again.

    Returns:
        ``outputs``, their names; ``agreement``, see :class:`pvt_mm.deploy.verify.Agreement`; ``metrics``, of PyTorch
        and of onnxruntime; ``megabytes``.

    Raises:
        InputError: A package is missing, the model cannot be exported, or the predictions differ.
    """
    check_packages()
    check_writable(path)
    import onnx

    from pvt_mm.deploy import graphs, preprocessing, quantise, to_onnx

    graph = to_onnx.Features(model) if settings.part == 'backbone' else graphs.build_graph(model)
    if (
        graph.task == 'semantic_segmentation' and settings.int8 == 'static'
    ):  # it aborts: a Scan next to quantised layers
        raise InputError('onnxruntime 1.32 cannot load segmentors of --int8 static: use --int8 dynamic')
    steps = preprocessing.describe(config) if settings.part == 'backbone' else preprocessing.require(config)
    about = {**about, 'task': graph.task, 'model': type(model).__name__, 'preprocessing': steps, 'pvt_mm': __version__}
    if graph.task != 'features':
        about['classes'], about['palette'] = find_classes(model, config, about['checkpoint'])

    def write(exported: onnx.ModelProto, file: Path, precision: str) -> Path:
        if settings.preprocess:
            exported = preprocessing.merge(preprocessing.graph(steps, KINDS[graph.task], to_onnx.OPSET), exported)
        to_onnx.set_metadata(exported, {**about, 'precision': precision})
        onnx.save(exported, file)
        return file

    verified = {} if verified is None else verified
    map_ffns = settings.int8 != 'dynamic'  # which multiplies matrices alone
    exported, results = verified.get(map_ffns), {}
    with tempfile.TemporaryDirectory() as folder:
        if exported is None:
            with _stage(f'exporting the {settings.part}: up to some minutes'):
                exported = to_onnx.to_onnx(graph, channels_of(config), map_ffns)
            if graph.task in ('features', 'classification'):  # whose images may all have one size
                results['difference'] = _check_sizes(graph, exported, channels_of(config))
            if settings.part == 'model':
                file = write(exported, Path(folder, 'float32.onnx'), 'float32')
                results['agreement'] = _check_agreement(model, config, file, settings)
            verified[map_ffns] = exported
        precision, file = 'float32', write(exported, Path(folder, 'float32.onnx'), 'float32')
        if settings.half:
            precision = {'fp16': 'float16', 'bf16': 'bfloat16'}[settings.half]
            file = write(quantise.store_half(exported, settings.half), Path(folder, 'half.onnx'), precision)
        elif settings.int8:
            precision = f'int8_{settings.int8}'
            with _stage('quantising to 8 bits'):
                file = write(_quantise(exported, settings, steps), Path(folder, 'int8.onnx'), precision)
        if settings.part == 'model':
            if precision != 'float32' or 'agreement' not in results:
                results['agreement'] = verify.compare(model, config, OnnxModel(file), settings.images)
            results['metrics'] = _check_metrics(model, config, file, settings, is_exact=precision == 'float32')
        with atomic_write(path) as temporary:
            shutil.copyfile(file, temporary)
    size = round(Path(path).stat().st_size / 1e6, 1)
    return dict(outputs=graph.outputs, task=graph.task, precision=precision, **results, megabytes=size)


@contextlib.contextmanager
def _stage(text: str) -> Iterator[None]:
    """Says what takes long: on a terminal while it lasts, else in a line."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text, highlight=False, soft_wrap=True)
        yield


def _quantise(exported: Any, settings: Settings, steps: dict) -> Any:
    import onnx

    from pvt_mm.deploy import quantise

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, 'float32.onnx'), Path(folder, 'int8.onnx')
        onnx.save(exported, before)
        if settings.int8 == 'dynamic':
            quantise.quantise_dynamic(before, after)
        else:
            quantise.quantise_static(before, after, _feeds(settings.calibration, steps, exported))
        return onnx.load(after)


def _feeds(paths: Sequence[str], steps: dict, exported: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yields the inputs of a file without preprocessing for image files."""
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in exported.graph.input}
    for path in paths:
        image = read_image(path, steps['channels'])
        pixels, shape = preprocess(image, steps)
        feeds = {'image': pixels[None]}
        for name, size in (('img_shape', shape), ('ori_shape', image.shape[:2])):
            if name in ranks:
                feeds[name] = np.array([size] if ranks[name] == 2 else size, np.int64)
        yield feeds


def _check_agreement(model: nn.Module, config: Config, file: Path, settings: Settings) -> verify.Agreement:
    agreement = verify.compare(model, config, OnnxModel(file), settings.images)
    if not agreement.objects:
        raise InputError(
            'PyTorch finds nothing on the images, so that there is nothing to compare and nothing is written: name '
            'others with --images, or lower the score_thr of model.test_cfg'
        )
    if not agreement.holds:
        raise InputError(f'the exported model does not predict what PyTorch does, so nothing is written: {agreement}')
    return agreement


def _check_metrics(
    model: nn.Module, config: Config, file: Path, settings: Settings, is_exact: bool
) -> dict[str, dict[str, float]]:
    if not settings.val_images:
        return {}
    pytorch = verify.evaluate(config, verify.pytorch(model), settings.val_images, 'evaluating PyTorch')
    exported = verify.evaluate(config, verify.onnxruntime(OnnxModel(file)), settings.val_images, 'evaluating the file')
    metrics = {name: dict(pytorch=points, onnxruntime=exported.get(name, 0.0)) for name, points in pytorch.items()}
    for name, points in metrics.items():
        if is_exact and not abs(points['pytorch'] - points['onnxruntime']) <= verify.POINTS:
            both = f'{points["pytorch"]:.2f} with PyTorch and {points["onnxruntime"]:.2f} with onnxruntime'
            raise InputError(f'{name} is {both}: nothing is written')
    return metrics


def _check_sizes(graph: nn.Module, exported: Any, channels: int) -> float:
    """Returns the largest relative difference of onnxruntime's outputs on random images of :data:`SIZES`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=['CPUExecutionProvider'])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch, height, width in SIZES:
        image = torch.randn(batch, channels, height, width, generator=generator)
        with torch.no_grad():
            outputs = graph(image)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        for expected, found in zip(outputs, session.run(None, {'image': image.numpy()}), strict=True):
            if expected.shape != found.shape:
                raise InputError(f'an output is {found.shape} with onnxruntime and {(*expected.shape,)} with PyTorch')
            # unlike `max`, `np.maximum` keeps NaN
            worst = float(np.maximum(worst, np.abs(expected.numpy() - found).max() / expected.abs().max().item()))
    if not worst <= TOLERANCE:  # also if it is NaN
        raise InputError(f'onnxruntime differs from PyTorch by {worst:.1e}, so nothing is written')
    return worst


def describe_results(results: dict) -> str:
    """Returns the results of :func:`export_model` as lines for a reader."""
    lines = []
    if 'difference' in results:
        lines.append(f'outputs      within {results["difference"]:.1e} of the largest value')
    if 'agreement' in results:
        lines.append(f'agreement    {results["agreement"]}')
    for name, points in results.get('metrics', {}).items():
        if name != 'images':
            change = points['onnxruntime'] - points['pytorch']
            both = f'{points["pytorch"]:.2f} with PyTorch, {points["onnxruntime"]:.2f} with onnxruntime'
            lines.append(f'{name}: {both} ({change:+.2f})')
    return '\n'.join([*lines, f'size         {results["megabytes"]} MB'])


def plain(results: dict) -> dict:
    """Returns the results of :func:`export_model` for JSON."""
    agreement = results.get('agreement')
    return {**results, 'agreement': agreement.summary()} if agreement else results
