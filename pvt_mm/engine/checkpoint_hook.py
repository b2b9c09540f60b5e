"""Checkpoints that are there whole or not at all, and a run that leaves one behind when it is told to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from pvt_mm.errors import InputError
from pvt_mm.files import whole_file
from pvt_mm.integrity import sign
from pvt_mm.registry import HOOKS

# sysexits.h's EX_TEMPFAIL: not done, to be tried again. For Slurm: RequeueExit=75 in slurm.conf.
STOPPED = 75


@register_backend('pvt_mm.whole')
class WholeFiles(LocalBackend):
    """MMEngine's local files, but written whole or not at all, with their size and digest."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a checkpoint."""
        with whole_file(filepath) as beside:
            beside.write_bytes(obj)
            sign(beside)


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's hook, whose arguments it takes, for runs that are killed, preempted or out of disk space.

    A checkpoint is written beside its place, flushed to disk and renamed; only then does ``last_checkpoint`` name it,
    and only then are older ones removed. At SIGTERM and SIGINT the run saves where it is at the next step, also in the
    middle of an epoch, and exits with 75; a second Ctrl-C ends it at once. Files elsewhere than on disk (``out_dir``
    of another backend) are MMEngine's to write.

    Of several processes the first writes, and the others wait for it; a signal to one of them stops all.

    Raises:
        InputError: A checkpoint cannot be written; the message names the last one that was.
        SystemExit: The run was told to stop, and has saved; or the first process could not write a checkpoint, and this
            is another.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stop = StopSignal()
        self.saved_at = -1
        self.common_val_steps = 0

    def before_train(self, runner: Runner) -> None:
        """Cleans up behind a run that was killed, and listens for signals from here on."""
        super().before_train(runner)
        self.on_disk = isinstance(self.file_backend, LocalBackend)
        if self.on_disk:
            self.backend_args = {'backend': 'pvt_mm.whole'}
            if is_main_process():
                left = [path.name for path in Path(self.out_dir).glob('.*.pth.*.tmp')]
                self._remove([*left, *runner.message_hub.runtime_info.get('outdated_ckpts', ())])
        if runner._resume:
            self.last_ckpt = runner._load_from or runner.message_hub.runtime_info.get('last_ckpt')
            self.saved_at = runner.iter
        self.stop.listen()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves where it is time to, and saves and stops where the run was told to."""
        super().after_train_iter(runner, *args, **kwargs)
        # Gradients that are still being accumulated would be lost.
        whole_step = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if self.stop.agreed() and whole_step:
            self._stop(runner, runner.epoch, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Counts the steps of the evaluation that all processes take: some may have one more."""
        self.common_val_steps = min(all_gather_object(len(runner.val_loop.dataloader)))

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Saves and stops where the run was told to, in the middle of an evaluation, which a resumed run repeats."""
        if batch_idx < self.common_val_steps and self.stop.agreed():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # has the trained weights in place of the averaged again
            self._stop(runner, runner.epoch, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Publishes what it is to, and no longer listens for signals."""
        super().after_train(runner)
        self.stop.ignore()

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> None:
        if self.saved_at != iteration:
            name = f'iter_{iteration}.pth'
            self._save(runner, name, dict(epoch=epoch, iter=iteration), outdated=[], stopped=name)
        if get_world_size() == 1:
            self.stop.ignore()  # torchrun and Slurm send SIGTERM to the others once the first process has ended
        print_log(
            f'stopped by {self.stop.name or "a signal to another process"} after step {iteration}, of which '
            f'{self.last_ckpt} is the checkpoint: the same command with --resume goes on from it (exit code {STOPPED})',
            'current',
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
        """Writes the checkpoint ``name``, then makes ``last_checkpoint`` name it, then removes what is outdated by it.

        That is in the checkpoint too, for the run that goes on from it should this one be killed before it is removed,
        and so is the name of the checkpoint of a ``stopped`` run, which the next one outdates.
        """
        hub, last = runner.message_hub, self.last_ckpt
        before = hub.runtime_info.get('stopped_ckpt')
        outdated = [*outdated, *([before] if before not in (None, name) else [])]
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info_dict(dict(last_ckpt=self.last_ckpt, outdated_ckpts=outdated, stopped_ckpt=stopped))
        parts = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        with self._failure_named(name, last):
            runner.save_checkpoint(
                self.out_dir,
                name,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **parts,
                **self.args,
            )
            self.saved_at = meta['iter']
            if is_main_process():
                with whole_file(Path(runner.work_dir) / 'last_checkpoint') as beside:
                    beside.write_text(self.last_ckpt)
                self._remove(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.on_disk:
            super()._save_best_checkpoint(runner, metrics)
            return
        before, backend = self._best(), self.file_backend
        self.file_backend = _RemovesNothing()  # MMEngine would remove the best before it has written the better
        try:
            with self._failure_named('the best checkpoint', self.last_ckpt):
                super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        if is_main_process():
            self._remove([Path(path).name for path in before - self._best()])

    def _best(self) -> set[str]:
        """Returns the paths of the best checkpoints."""
        paths = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        return {path for path in paths if path}

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (Path(self.out_dir) / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _failure_named(self, name: str, last: str | None) -> Iterator[None]:
        failures: list[OSError | None] = [None]
        try:
            yield
        except OSError as error:
            failures[0] = error
        broadcast_object_list(failures, group=self.stop.group)
        if failures[0] is None:
            return
        if not is_main_process():
            raise SystemExit(2)  # the first process says why
        kept = f'the last good checkpoint is {last}' if last else 'there is none before it'
        raise InputError(
            f'{name} cannot be written to {self.out_dir} ({failures[0].strerror or failures[0]}), and training stops; '
            f'{kept}: mend that, and go on from it with --resume'
        ) from failures[0]


class _RemovesNothing(WholeFiles):
    def isfile(self, filepath: str | Path) -> bool:
        return False

    isdir = isfile


class StopSignal:
    """SIGTERM, SIGINT and SIGUSR2, noted when they come and acted on when there is a good moment.

    Attributes:
        name: The signal that came, None before.
        group: The processes, where they ask each other on the CPU; None for PyTorch's default.
    """

    def __init__(self):
        self.name: str | None = None
        self._before: dict[int, Any] = {}
        self._listening = False
        self._noted = 0.0
        self.group: torch.distributed.ProcessGroup | None = None

    def listen(self) -> None:
        """Notes signals from here on. All processes must."""
        self._listening = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # the last is submitit's
                self._before[number] = signal.signal(number, self._note)
        if get_world_size() > 1 and torch.distributed.get_backend() != 'gloo':
            self.group = torch.distributed.new_group(backend='gloo')  # asks without waiting for the GPU

    def ignore(self) -> None:
        """Leaves signals to whom they were left before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._listening = False

    def agreed(self) -> bool:
        """Returns whether a signal came to any process of the training. All must ask."""
        if not self._listening or get_world_size() == 1:
            return self.name is not None
        came = torch.tensor(float(self.name is not None))
        torch.distributed.all_reduce(came, torch.distributed.ReduceOp.MAX, self.group)
        return bool(came)

    def _note(self, number: int, frame: Any) -> None:
        again = number == signal.SIGINT and self.name and time.monotonic() - self._noted > 1
        # a launcher passes on the Ctrl-C that the terminal has sent to all processes: two within a moment are one
        if again:
            self.ignore()
            raise KeyboardInterrupt
        if not self.name:
            self.name, self._noted = signal.Signals(number).name, time.monotonic()
