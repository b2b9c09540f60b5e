"""Training the model of a config, after all checks: what ``tools/train.py`` and ``pvt_mm.train`` do."""

import argparse
import contextlib
import difflib
import inspect
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from torch import nn

from pvt_mm.apis import data_checks, flags, schedule, weight_checks
from pvt_mm.apis.config import READ_BY_TOOLS, check_submodules, settings_of
from pvt_mm.apis.image_size import check_size, use_size
from pvt_mm.apis.installed import find_config
from pvt_mm.apis.launch import build_model, build_runner, prepare_config, report_lost_ranks, report_unknown_arguments
from pvt_mm.apis.own_data import count_images, find_own_data, parts_of, use_data
from pvt_mm.apis.published import first_download
from pvt_mm.apis.ranks import on_each_machine, on_first_rank
from pvt_mm.apis.rehearsal import rehearse
from pvt_mm.apis.resuming import report_changes
from pvt_mm.checkpoint.reader import safe_reading
from pvt_mm.datasets.image_io import report_unreadable_images
from pvt_mm.engine.hooks.start_hooks import OtherHeadHook, StartHook
from pvt_mm.engine.randomness import check_deterministic
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.files import atomic_write


def train(
    config: str | Config,
    data: str | Sequence[str] | None = None,
    work_dir: str | None = None,
    *,
    batch: int | None = None,
    epochs: int | None = None,
    size: int | None = None,
    weights: str | None = None,
    scale_lr: bool = True,
    auto_scale_lr: bool = False,
    resume: bool | str = False,
    new_schedule: bool = False,
    validate: bool = True,
    amp: str | None = None,
    compile: bool = False,
    seed: int | None = None,
    deterministic: bool = False,
    vis: Sequence[str] = (),
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
    trust: bool = False,
    **unknown: Any,
) -> dict[str, Any]:
    """Trains the model of a config, as ``tools/train.py`` does.

    Args:
        config: The path of a config, or MMEngine's ``Config``.
        data: A folder of the user's own data, or its COCO json files: classes, heads, data sets and evaluators follow
            it, training starts from the published weights of the config if there are any, and the learning rate is
            scaled to the batch. By default the data of the config.
        work_dir: The folder for checkpoints and logs; by default the config's, or ``work_dirs/<name of the config>``,
            with ``data`` ``work_dirs/<name of the config>_<folder of the data>``.
        batch: Images per process and step.
        epochs: Passes through the training data; the schedule of the learning rate is stretched to them.
        size: The shorter side of a test image in pixels, at least 32; all sizes of the config follow in proportion.
        weights: Path or URL of the weights to start from, or ``'none'`` for random ones.
        scale_lr: Whether to scale the learning rate to the batch, with ``data`` and without a rate in ``cfg_options``.
        auto_scale_lr: Scale the learning rate by the batch over ``auto_scale_lr.base_batch_size``, as MMEngine does.
        resume: Whether to resume from the last checkpoint in the work directory, or the path of another one.
        new_schedule: Whether a resumed run takes the settings of the optimizer, its learning rate included, and the
            schedule from the config, not from the checkpoint.
        validate: Whether to evaluate during training.
        amp: ``'fp16'`` or ``'bf16'``: mixed precision, on a GPU.
        compile: Whether to compile backbone, neck and dense heads.
        seed: Of all random numbers; by default the config's, or else a random one.
        deterministic: Whether to use deterministic algorithms only.
        vis: Experiment trackers to log to, see :data:`~pvt_mm.apis.flags.TRACKERS`.
        cfg_options: Settings of the config by their dotted names, which win over all else.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``: what has started this process.
        local_rank: The rank of this process on its machine, if the launcher does not say it.
        trust: Whether to read checkpoints without the allow-list, see :func:`~pvt_mm.checkpoint.reader.safe_reading`.
        **unknown: None: any other option is an error.

    Returns:
        The metrics of the last evaluation by name (``coco/bbox_mAP``, ``mIoU``, ``accuracy/top1``), and the paths
        ``checkpoint``, of the best checkpoint if one is kept, else of the last, and ``config``, of the run's config.

    Raises:
        InputError: Something that was given is wrong: the message says what, where, and what to do.
        TypeError: There is no such option; the message lists all.
        SystemExit: The run was stopped by a signal, or another rank failed.
    """
    if unknown:
        _report_unknown(unknown)
    data = [data] if isinstance(data, (str, os.PathLike)) else list(data or ())
    with safe_reading(trust=trust), _config_path(config) as path:
        arguments = argparse.Namespace(
            config=path,
            data=data,
            cfg_options=cfg_options,
            work_dir=work_dir,
            launcher=launcher,
            local_rank=local_rank,
        )
        cfg = prepare_config(arguments)
        path = getattr(config, 'filename', None) or path
        options = dict(cfg_options or {})
        _check(batch=batch, epochs=epochs, size=size, weights=weights)
        notes = _use_data(cfg, path, data, options, bool(resume)) if data else []
        notes += _use_sizes(cfg, bool(data), batch, epochs, size)
        notes += _use_weights(cfg, path, weights, bool(data), options)
        if data and scale_lr and not auto_scale_lr and 'optim_wrapper.optimizer.lr' not in options:
            notes.append(schedule.scale_lr_to_batch(cfg, _processes(cfg)))
        with config_errors('--cfg-options do not fit the other options'):  # over which they win
            cfg.merge_from_dict({key: value for key, value in options.items() if key != 'data_root'})
        _name_visualizer(cfg)
        schedule.without_workers(cfg)
        if amp:
            flags.use_amp(cfg, amp)
        if auto_scale_lr:
            flags.scale_lr(cfg)
        if compile:
            flags.use_compile(cfg)
        flags.use_trackers(cfg, vis)
        if not validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        flags.set_randomness(cfg, seed, deterministic)
        start = cfg.get('load_from')
        if resume:
            flags.resume(cfg, 'auto' if resume is True else resume)
            flags.use_new_schedule(cfg, new_schedule)
        runner = _checked_runner(cfg)
        runner.register_hook(StartHook(notes))
        runner.register_hook(OtherHeadHook())
        if not resume:
            on_first_rank(flags.warn_of_other_run, cfg.work_dir)
        if data:
            on_first_rank(_write_config, runner, cfg, start)
        with report_unreadable_images(), report_lost_ranks(), report_unknown_arguments():
            runner.train()
        return _result(runner, tell=bool(data))


def _report_unknown(names: Iterable[str]) -> NoReturn:
    options = [
        name for name, option in inspect.signature(train).parameters.items() if option.kind != option.VAR_KEYWORD
    ]
    for name in names:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f'did you mean {near[0]}? ' if near else ''
        raise TypeError(f'train() has no option {name}: {hint}Its options are {", ".join(options)}')


def _name_visualizer(config: Config) -> None:
    """Renames the visualizer if this process has one of that name, to whose folder MMEngine would log."""
    visualizer = config.get('visualizer')
    if not visualizer or 'name' not in visualizer:
        return
    with VISUALIZERS.switch_scope_and_registry(None) as registry:  # that of the default scope, such as mmdet
        kind, name = registry.get(visualizer.type), visualizer.name
    for number in itertools.count(2):
        if kind is None or not kind.check_instance_created(visualizer.name):
            return
        visualizer.name = f'{name}_{number}'


def _check(batch: int | None, epochs: int | None, size: int | None, weights: str | None) -> None:
    """Raises an InputError where an option has a wrong value, before anything is read or written."""
    schedule.check_count('--batch', batch)
    schedule.check_count('--epochs', epochs)
    check_size(size)
    if weights not in (None, 'none') and '://' not in weights and not os.path.isfile(weights):
        raise InputError(f'--weights {weights}: there is no such file; give a path or URL, or none for random weights')


def _use_data(config: Config, path: str, data: list[str], options: dict, resume: bool) -> list[str]:
    """Makes a config train on the user's data, and returns what was found."""
    if 'data_root' in options:
        raise InputError('--data and --cfg-options data_root: give one, the data of the user or that of the config')
    own = find_own_data(config, path, data, resume)
    use_data(config, own, path)
    schedule.fit_loading(config, _processes(config))
    return [f'data: {note}' for note in own.notes]


def _use_sizes(config: Config, own_data: bool, batch: int | None, epochs: int | None, size: int | None) -> list[str]:
    """Applies ``--batch``, ``--epochs`` and ``--size``, fits small data, and returns what was done."""
    notes, processes = [], _processes(config)
    if size is not None:
        use_size(config, size)
    if batch is not None:
        schedule.use_batch(config, batch)
    if not own_data:
        if epochs is None:
            return notes
        on_first_rank(data_checks.check_data, config, 'train')
    images = count_images(config)
    if own_data and (note := schedule.fit_batch(config, images, processes)):
        notes.append(note)
    steps = schedule.steps_of_epoch(config, images, processes)
    if epochs is not None:
        schedule.use_epochs(config, epochs, steps)
    schedule.fit_schedule(config, steps)
    return [*notes, schedule.describe_length(config, images, steps)]


def _use_weights(config: Config, path: str, weights: str | None, own_data: bool, options: dict) -> list[str]:
    """Chooses the weights to start from, and returns a line about them; without ``--data`` the config's stay."""
    if weights is None and own_data and 'load_from' not in options:
        weights = config.get('load_from') or first_download(path)
    pretrained = {
        place: part
        for place, part in parts_of(config.model, 'model')
        if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained'
    }
    if weights is None:
        found = [f'{place} from {part["init_cfg"]["checkpoint"]}' for place, part in pretrained.items()]
        return [f'starting with {", ".join(found)}'] if found and own_data else []
    config.load_from = None if weights == 'none' else weights
    for place, part in pretrained.items():  # their weights would be downloaded, and replaced
        if not any(key.startswith(f'{place}.init_cfg.') for key in options):
            part['init_cfg'] = None
    return [f'starting from {"random weights" if weights == "none" else weights}']


def _processes(config: Config) -> int:
    """Returns the number of processes of a run, which has found its ranks."""
    return 1 if config.launcher == 'none' else int(os.environ['WORLD_SIZE'])


@contextlib.contextmanager
def _config_path(config: str | Config) -> Iterator[str]:
    """Yields the path of a config; one in memory is written to a temporary file of its name."""
    if not isinstance(config, Config):
        yield find_config(config)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'{Path(config.filename or "config").stem}.py')
        config.dump(path)
        yield str(path)


def _checked_runner(config: Config) -> Runner:
    """Returns the runner of a config whose data and weights have been checked."""
    on_each_machine(data_checks.check_paths, config, 'train', 'val')
    on_first_rank(data_checks.check_data, config, 'train', 'val')
    on_first_rank(weight_checks.check_init_weights, config)
    if config.get('resume'):
        on_first_rank(weight_checks.check_resumable, config.load_from)
    on_first_rank(rehearse, config)
    _check_weights(config, build_model(config))
    runner = build_runner(config)
    flags.report_batch_size(config, runner.world_size, runner.logger)
    check_deterministic(runner.model)
    if config.get('resume'):
        on_first_rank(report_changes, config, config.load_from)
    return runner


def _check_weights(config: Config, model: nn.Module) -> None:
    """Checks that weights to start from fit the model, before the runner is built, which logs hundreds of lines."""
    check_submodules(config, model)
    on_first_rank(weight_checks.check_pretrained, model)
    if config.get('load_from'):
        check = weight_checks.check_resumed if config.get('resume') else weight_checks.check_start
        check(model, config.load_from)


def _config_of_run(runner: Runner) -> Path:
    """Returns the path to which MMEngine has written the config of a run."""
    name = Path(runner.cfg.filename).name if runner.cfg.filename else f'{runner.timestamp}.py'
    return Path(runner.work_dir).absolute() / name


def _write_config(runner: Runner, config: Config, load_from: str | None) -> None:
    """Writes the config of a run so that it can be read, edited and used without ``--data``, ``--resume`` and the like.

    It has all settings that something reads, and no variables. ``load_from`` is what the run has started from.
    """
    read, path = settings_of(type(runner)) | {*READ_BY_TOOLS}, _config_of_run(runner)
    settings = {name: value for name, value in config.to_dict().items() if name in read}
    settings |= dict(work_dir=os.path.abspath(config.work_dir), load_from=load_from, resume=False, launcher='none')
    text = (
        '# The config of this run, complete: train again, test or draw with it, or change it first.\n'
        f'#   tools/train.py {path} --work-dir FOLDER\n'
        f'#   tools/test.py {path} {config.work_dir}\n'
        f'#   tools/demo.py IMAGES {path} {config.work_dir} --out drawn\n'
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text + Config(settings).pretty_text, encoding='utf-8')


def _result(runner: Runner, tell: bool) -> dict[str, Any]:
    """Returns the last metrics and the paths of a run, and logs (``tell``) what to do with them."""
    hub = runner.message_hub
    scalars = {
        name.removeprefix('val/'): value.current() for name, value in hub.log_scalars.items() if name[:4] == 'val/'
    }
    metrics = {name: value for name, value in scalars.items() if name not in ('time', 'data_time')}
    best = hub.runtime_info.get('best_ckpt')
    checkpoint = best or hub.runtime_info.get('last_ckpt')
    checkpoint, config = (path and os.path.relpath(path) for path in (checkpoint, str(_config_of_run(runner))))
    if tell:
        runner.logger.info(
            f'the config of this run is {config}, and its {"best" if best else "last"} checkpoint {checkpoint}; next:\n'
            f'  tools/test.py {config} {checkpoint}\n'
            f'  tools/demo.py IMAGES {config} {checkpoint} --out drawn'
        )
    return {**metrics, 'checkpoint': checkpoint, 'config': config}
