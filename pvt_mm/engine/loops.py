"""MMEngine's training loops, with batches that a resumed run goes on with exactly, in the middle of an epoch too."""

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterBasedTrainLoop
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from pvt_mm.engine.loading import exact_loader, ignoring_signals, reseed, too_many_broken
from pvt_mm.engine.randomness import seed_all
from pvt_mm.errors import InputError
from pvt_mm.registry import LOOPS


class ExactLoop:
    """What both loops are beside MMEngine's.

    Args:
        runner: See MMEngine.
        dataloader: See MMEngine.
        max_broken_images: How many images or label maps that are missing, cut off or no images a process of the
            training names and replaces by others, before it stops.
        kwargs: The arguments of MMEngine's loop.

    Raises:
        InputError: More images are broken than that; the message names the last.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *, max_broken_images: int = 0, **kwargs: Any):
        if isinstance(dataloader, dict):
            # With diff_rank_seed processes have seeds of their own, but they share out one order of the data.
            seeds = [runner.seed]
            broadcast_object_list(seeds)
            dataloader = runner.build_dataloader(dataloader, seed=seeds[0])
        super().__init__(runner, exact_loader(dataloader, runner.seed, max_broken_images), **kwargs)
        self.max_broken_images = max_broken_images
        self._broken: set[str] = set()

    def start(self) -> None:
        """Begins the training, or goes on with it.

        A checkpoint that was to be evaluated is evaluated again: the run may have ended in the middle of that.

        Raises:
            InputError: The processes would go on from different checkpoints.
        """
        starts = all_gather_object(self._iter)
        if min(starts) != max(starts):
            raise InputError(
                f'the processes go on from different steps, {starts}: the work directory must be one that all machines '
                'see'
            )
        self._compare_with_checkpoint()
        reseed(self.dataloader, self.runner.seed)  # resuming restores the run's seed once the loader is built
        validation = self.runner.val_loop
        if validation is not None:
            validation.dataloader.worker_init_fn = ignoring_signals(validation.dataloader.worker_init_fn)
        self.runner.call_hook('before_train')
        if self._iter > 0:
            self._decide_current_val_interval()
            self.validate_if_due()

    def run_iter(self, *args: Any) -> None:
        """Takes a step, with the random numbers of its own."""
        self._count_broken()
        seed_all(self.runner.seed, get_rank(), self._iter)
        super().run_iter(*args)

    def _batches_from(self, epoch: int, start: int) -> DataLoader:
        self.dataloader.batch_sampler.epoch, self.dataloader.batch_sampler.start = epoch, start
        return self.dataloader

    def _compare_with_checkpoint(self) -> None:
        """Says what differs from the run that is gone on with, and notes it for the run that goes on with this one."""
        hub, now = self.runner.message_hub, [get_world_size(), self.dataloader.batch_sampler.batch_size]
        then = hub.runtime_info.get('processes_and_batch', now)
        if then != now:
            same = then[0] * then[1] == now[0] * now[1]
            rate = '' if same else ', at the learning rate of that'
            print_log(
                f'{now[0]} processes with {now[1]} images each go on from a checkpoint of {then[0]} processes with '
                f'{then[1]} images each{rate}',
                'current',
                logging.WARNING,
            )
        hub.update_info('processes_and_batch', now)

    def _count_broken(self) -> None:
        for fault in self.dataloader.dataset.__getitems__.broken():
            if fault in self._broken:
                continue
            self._broken.add(fault)
            count = f'{len(self._broken)} of at most {self.max_broken_images}'
            if len(self._broken) > self.max_broken_images:
                raise too_many_broken(fault, self.max_broken_images)
            # MMEngine shows nothing less than errors from the other processes
            level = logging.WARNING if is_main_process() else logging.ERROR
            print_log(f'skipped a broken image, {count}: {fault}', 'current', level)


@LOOPS.register_module()
class EpochBasedTrainLoop(ExactLoop, MMEngineEpochBasedTrainLoop):
    """Trains for ``max_epochs``; see :class:`ExactLoop` and MMEngine's."""

    _began = 0  # the step that the epoch began at

    def run(self) -> nn.Module:
        """Trains, from where the run was resumed."""
        self.start()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self.validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def start(self) -> None:
        """Finds where in its epoch the training is; see :class:`ExactLoop`."""
        info, length = self.runner.message_hub.runtime_info, len(self.dataloader)
        epoch, began, length_then = info.get('epoch_began', (self._epoch, self._epoch * length, length))
        done = self._iter - began if epoch == self._epoch else 0
        if done == length_then:
            done = length
        elif (done and length_then != length) or not 0 <= done < length:
            print_log(
                f'the checkpoint is of epochs of {length_then} steps, and these have {length} (other data, batch size '
                f'or number of processes): epoch {self._epoch + 1} begins anew',
                'current',
                logging.WARNING,
            )
            done = 0
        self._began = self._iter - done
        self._max_iters = self._began + (self._max_epochs - self._epoch) * length
        super().start()

    def run_epoch(self) -> None:
        """Trains for an epoch, or what is left of it."""
        start, length = self._steps_of_epoch(), len(self.dataloader)
        self.runner.message_hub.update_info('epoch_began', [self._epoch, self._began, length])
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for number, data_batch in enumerate(self._batches_from(self._epoch, start), start):
            self.run_iter(number, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._began = self._iter

    def position(self) -> tuple[int, int]:
        """Returns the epoch that the next step belongs to, and the number of its batch in it."""
        return self._epoch, self._steps_of_epoch()

    def validate_if_due(self) -> None:
        """Evaluates at the ends of the epochs that are for it."""
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and due and self._epoch >= self.val_begin and not self._steps_of_epoch():
            self.runner.val_loop.run()

    def _steps_of_epoch(self) -> int:
        return self._iter - self._began


@LOOPS.register_module()
class IterBasedTrainLoop(ExactLoop, MMEngineIterBasedTrainLoop):
    """Trains for ``max_iters`` steps; see :class:`ExactLoop` and MMEngine's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = self.dataloader._iterator = None  # MMEngine 0.10.7's has begun to load

    def run(self) -> nn.Module:
        """Trains, from where the run was resumed."""
        self.start()
        self.runner.call_hook('before_train_epoch')  # all of the training is one, to hooks
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            self.validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def position(self) -> tuple[int, int]:
        """Returns the pass through the data that the next step belongs to, and the number of its batch in it."""
        batches = self.dataloader.batch_sampler
        return (0, self._iter) if batches.endless else divmod(self._iter, len(batches))

    def validate_if_due(self) -> None:
        """Evaluates after the steps that are for it."""
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and due and self._iter >= self.val_begin:
            self.runner.val_loop.run()

    def _batches(self) -> Iterator[Any]:
        epoch, start = self.position()
        while True:
            yield from self._batches_from(epoch, start)
            epoch, start = epoch + 1, 0
