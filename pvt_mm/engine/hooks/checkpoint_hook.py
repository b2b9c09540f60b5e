"""Atomic checkpoints, also of a run that is stopped by a signal."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_comm_device, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from pvt_mm.checkpoint.integrity import sign
from pvt_mm.registry import HOOKS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

# sysexits.h's EX_TEMPFAIL: try again. For Slurm: RequeueExit=75 in slurm.conf.
STOPPED = 75
# Evaluation steps between two all-reduces of the stop flag, at which the ranks wait for each other.
ALL_REDUCE_INTERVAL = 10


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

    Rank 0 writes and the others wait for it. A signal to one rank stops all: in an evaluation within ten steps.

    Raises:
        InputError: A checkpoint cannot be written; the message names the last one that was.
        SystemExit: The run was stopped by a signal, and has saved; or, in other ranks, rank 0 could not write.
    """

    stop: 'StopSignal | None' = None  # during training
    saved_at = -1

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the optimizer's step counts on the CPU. PyTorch puts them on the device if the optimizer needs that."""
        # MMEngine loads a checkpoint to the GPU, where AdamW would wait for the count of each parameter, twice a step.
        step_counts_to_cpu(checkpoint.get('optimizer'))

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
        if is_update_step and self.stop.received():
            self._stop(runner, runner.epoch, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Chooses the steps after which to all-reduce the stop flag, of those that all ranks have."""
        common_steps = min(all_gather_object(len(runner.val_loop.dataloader)))
        self.val_steps = range(0, common_steps, ALL_REDUCE_INTERVAL if get_world_size() > 1 else 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Stops in the middle of an evaluation when a signal came; the resumed run evaluates again."""
        if self.stop and batch_idx in self.val_steps and self.stop.received():
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
            self.stop.ignore()
        elif threading.current_thread() is threading.main_thread():
            # Launchers send SIGTERM to the rest when the first exits. Python's exit restores handlers, but not this.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
        failure: OSError | None = None
        try:
            yield
        except OSError as error:
            failure = error
        (failed,) = any_rank(failure is not None)
        if not failed:
            return
        if failure is None:
            raise SystemExit(2)  # rank 0 says why
        kept = f'the last good checkpoint is {self.last_ckpt}' if self.last_ckpt else 'there is no earlier checkpoint'
        raise InputError(
            f'{name} cannot be written to {self.out_dir} ({failure.strerror or failure}), and training stops; '
            f'{kept}: make it writable, and continue with --resume'
        ) from failure


class StopSignal:
    """Catches SIGTERM, SIGINT and SIGUSR2, for the training to stop at the next good moment."""

    def __init__(self):
        self.name: str | None = None  # of the signal that came
        self._answer: bool | None = None  # of the ranks, to the last question of :meth:`any_rank`
        self._old_handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # the last is submitit's
                self._old_handlers[number] = signal.signal(number, self._catch)

    def ignore(self) -> None:
        """Restores the former handlers."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def any_rank(self, flag: Tensor) -> bool:
        """Returns whether ``flag`` is set in any rank, and asks for signals in the same reduction."""
        if get_world_size() == 1:
            return bool(flag)
        is_set, self._answer = any_rank(flag, self.name is not None)
        return is_set

    def received(self) -> bool:
        """Returns whether a signal came to any rank: as of the last :meth:`any_rank`, or asks now if there was none.

        All ranks must call it.
        """
        answer, self._answer = self._answer, None
        return any_rank(self.name is not None)[0] if answer is None else answer

    def _catch(self, number: int, frame: Any) -> None:
        # A Ctrl-C may come twice within a moment, from the terminal and passed on by a launcher: that counts once.
        if number == signal.SIGINT and self.name and time.monotonic() - self._time > 1:
            self.ignore()
            raise KeyboardInterrupt
        if not self.name:
            self._time, self.name = time.monotonic(), signal.Signals(number).name
            if is_main_process():  # print could be what was interrupted
                how = 'a second Ctrl-C' if number == signal.SIGINT else 'Ctrl-C'
                os.write(2, f'{self.name}: stopping after this step; {how} aborts without a checkpoint\n'.encode())


def any_rank(*flags: bool | Tensor) -> list[bool]:
    """Returns for each flag whether it is set in any rank, by one reduction on the device of the process group.

    All ranks must call it, with as many flags.
    """
    if get_world_size() == 1:
        return [bool(flag) for flag in flags]
    device = get_comm_device()
    # torch.full launches a kernel, where torch.tensor would wait for a copy to the GPU.
    on_device = [flag.to(device) if isinstance(flag, Tensor) else torch.full((), flag, device=device) for flag in flags]
    together = torch.stack(on_device).int()
    all_reduce(together, 'max')
    return [bool(value) for value in together.cpu().tolist()]


def step_counts_to_cpu(state: Any) -> None:
    """Moves the step counts in the state dict of an optimizer, or of several by name, to the CPU, in place."""
    for name, value in state.items() if isinstance(state, dict) else ():
        if name == 'step' and isinstance(value, Tensor):
            state[name] = value.cpu()
        else:
            step_counts_to_cpu(value)
