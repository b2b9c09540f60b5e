"""Atomic checkpoints, also of a run that is stopped by a signal."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from pvt_mm.checkpoint.integrity import sign
from pvt_mm.registry import HOOKS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

# sysexits.h's EX_TEMPFAIL: try again. For Slurm: RequeueExit=75 in slurm.conf.
STOPPED = 75


@register_backend('pvt_mm.atomic')
class AtomicBackend(LocalBackend):
    """MMEngine's local files, with atomic writes of checkpoints and their size and digest."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_write(filepath) as temporary:
            temporary.write_bytes(obj)
            sign(temporary)


class _NoDeleteBackend(AtomicBackend):
    """Says that nothing exists: MMEngine would remove the old best checkpoint before it writes the new one."""

    def isfile(self, filepath: str | Path) -> bool:
        return False

    isdir = isfile


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's hook, with its arguments, for runs that are killed, preempted or out of disk space.

    A checkpoint is written to a temporary file, flushed to disk and renamed. Then ``last_checkpoint`` names it, and
    then older ones are removed. On SIGTERM and SIGINT the run saves a checkpoint after the current step, in the middle
    of an epoch too, and exits with 75; a second Ctrl-C ends it at once. If ``out_dir`` is not on disk, MMEngine writes.

    Rank 0 writes and the others wait for it. A signal to one rank stops all.

    Raises:
        InputError: A checkpoint cannot be written; the message names the last one that was.
        SystemExit: The run was stopped by a signal, and has saved; or, in other ranks, rank 0 could not write.
    """

    stop: 'StopSignal | None' = None  # during training
    saved_at = -1

    def before_train(self, runner: Runner) -> None:
        """Removes what a killed run has left, and listens for signals from here on."""
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        self.on_disk = isinstance(self.file_backend, LocalBackend)
        if self.on_disk:
            self.file_backend, self.backend_args = _NoDeleteBackend(), {'backend': 'pvt_mm.atomic'}
            if is_main_process():
                temporary = [path.name for path in Path(self.out_dir).glob('.*.pth.*.tmp')]
                self._remove([*temporary, *info.get('outdated_ckpts', ())])
        if runner._resume:
            self.last_ckpt = runner._load_from or info.get('last_ckpt')
            self.saved_at = runner.iter
        self.stop = StopSignal()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint when it is due, and stops when a signal came."""
        super().after_train_iter(runner, *args, **kwargs)
        # A checkpoint does not contain accumulated gradients: the run stops after the next update.
        is_update_step = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if self.stop.received() and is_update_step:
            self._stop(runner, runner.epoch, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Counts the evaluation steps that all ranks have: some may have one more."""
        self.common_val_steps = min(all_gather_object(len(runner.val_loop.dataloader)))

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Stops in the middle of an evaluation when a signal came; the resumed run evaluates again."""
        if self.stop and batch_idx < self.common_val_steps and self.stop.received():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # swaps the trained weights back in
            self._stop(runner, runner.epoch, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Publishes a checkpoint if MMEngine's hook is to, and stops listening for signals."""
        super().after_train(runner)
        self.stop.ignore()
        self.stop = None

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> None:
        if self.saved_at != iteration:
            name = f'iter_{iteration}.pth'
            self._save(runner, name, dict(epoch=epoch, iter=iteration), outdated=[], stopped=name)
        if get_world_size() == 1:
            self.stop.ignore()  # with several ranks, launchers send SIGTERM to the rest when the first exits
        runner.logger.info(
            f'stopped by {self.stop.name or "a signal to another rank"} after step {iteration}, saved as '
            f'{self.last_ckpt}: add --resume to the command to continue (exit code {STOPPED})'
        )
        raise SystemExit(STOPPED)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not self.on_disk:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta, outdated, stopped=None)

    def _save(self, runner: Runner, name: str, meta: dict, outdated: list[str], stopped: str | None) -> None:
        # If this run is killed before it removes outdated checkpoints, the resumed run does: their names are saved too.
        # So is the name of the checkpoint of a ``stopped`` run, which the next checkpoint outdates.
        hub, path = runner.message_hub, self.file_backend.join_path(self.out_dir, name)
        last_stopped = hub.runtime_info.get('stopped_ckpt')
        if last_stopped not in (None, name):
            outdated = [*outdated, last_stopped]
        hub.update_info_dict(dict(last_ckpt=path, outdated_ckpts=outdated, stopped_ckpt=stopped))
        with self._report_write_error(name):
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                with atomic_write(Path(runner.work_dir) / 'last_checkpoint') as temporary:
                    temporary.write_text(path)
                self._remove(outdated)
        self.last_ckpt, self.saved_at = path, meta['iter']

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.on_disk:
            super()._save_best_checkpoint(runner, metrics)
            return
        info = runner.message_hub.runtime_info
        old = {name: path for name, path in info.items() if name.startswith('best_ckpt')}
        with self._report_write_error('the best checkpoint'):
            super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self._remove(Path(path).name for name, path in old.items() if path != info[name])

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            # The names may come from a checkpoint of anybody: nothing else and nothing elsewhere is removed.
            path = Path(self.out_dir, Path(name).name)
            if path.suffix in ('.pth', '.tmp'):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _report_write_error(self, name: str) -> Iterator[None]:
        """Ends all ranks where rank 0 cannot write a checkpoint."""
        failures: list[OSError | None] = [None]
        try:
            yield
        except OSError as error:
            failures[0] = error
        broadcast_object_list(failures, group=self.stop.group)
        if failures[0] is None:
            return
        if not is_main_process():
            raise SystemExit(2)  # rank 0 says why
        kept = f'the last good checkpoint is {self.last_ckpt}' if self.last_ckpt else 'there is no earlier checkpoint'
        raise InputError(
            f'{name} cannot be written to {self.out_dir} ({failures[0].strerror or failures[0]}), and training stops; '
            f'{kept}: make it writable, and continue with --resume'
        ) from failures[0]


class StopSignal:
    """Catches SIGTERM, SIGINT and SIGUSR2, for the training to stop at the next good moment.

    All ranks must construct it at the same time.
    """

    def __init__(self):
        self.name: str | None = None  # of the signal that came
        self.group: torch.distributed.ProcessGroup | None = None  # on the CPU; None is PyTorch's default
        self._old_handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # the last is submitit's
                self._old_handlers[number] = signal.signal(number, self._catch)
        if get_world_size() > 1 and torch.distributed.get_backend() != 'gloo':
            self.group = torch.distributed.new_group(backend='gloo')  # does not wait for the GPU

    def ignore(self) -> None:
        """Restores the former handlers."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def received(self) -> bool:
        """Returns whether a signal came to any rank. All ranks must call it."""
        came = torch.tensor(float(self.name is not None))
        all_reduce(came, 'max', self.group)
        return bool(came)

    def _catch(self, number: int, frame: Any) -> None:
        # A Ctrl-C may come twice within a moment, from the terminal and passed on by a launcher: that counts once.
        if number == signal.SIGINT and self.name and time.monotonic() - self._time > 1:
            self.ignore()
            raise KeyboardInterrupt
        if not self.name:
            self._time, self.name = time.monotonic(), signal.Signals(number).name
