"""MMEngine's training loops, with an exact resume: in the middle of an epoch too, with the same batches."""

import itertools
import math
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterBasedTrainLoop
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from pvt_mm.engine.loading import exact_loader, ignore_signals, reseed, shared_seed
from pvt_mm.engine.randomness import seed_all
from pvt_mm.registry import LOOPS
from pvt_mm.utils.errors import InputError


class ExactLoop:
    """What both loops add to MMEngine's, which take the other arguments.

    Args:
        max_broken_images: Maximum number of unreadable images and label maps that a rank skips, with a warning and
            another sample in its place, before raising.

    Raises:
        InputError: There are more unreadable images; the message names the last.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *, max_broken_images: int = 0, **kwargs: Any):
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(dataloader, seed=shared_seed(runner.seed))
        super().__init__(runner, exact_loader(dataloader, runner.seed, max_broken_images), **kwargs)

    def run(self) -> nn.Module:
        """Trains from the start, or from where the run was resumed."""
        try:
            self.start()
            self.train()
        finally:
            # Garbage collection would close the workers' queues first, and PyTorch then waits for seconds for each.
            for loop in filter(None, (self, self.runner.val_loop)):
                iterator, loop.dataloader._iterator = getattr(loop.dataloader, '_iterator', None), None
                if hasattr(iterator, '_shutdown_workers'):
                    iterator._shutdown_workers()
        self.runner.call_hook('after_train')
        return self.runner.model

    def start(self) -> None:
        """Starts or resumes the training.

        Raises:
            InputError: The ranks resume from different checkpoints.
        """
        starts = all_gather_object(self._iter)
        if min(starts) != max(starts):
            raise InputError(
                f'the ranks resume from different steps, {starts}: all machines must share one work directory'
            )
        hub, now = self.runner.message_hub, [get_world_size(), self.dataloader.batch_sampler.batch_size]
        before = hub.runtime_info.get('processes_and_batch', now)
        if before != now:
            same = math.prod(before) == math.prod(now)
            rate = '' if same else '; the learning rate is still that of the checkpoint'
            self.runner.logger.warning(
                f'{now[0]} processes with {now[1]} images each resume from a checkpoint of {before[0]} processes with '
                f'{before[1]} images each{rate}'
            )
        hub.update_info('processes_and_batch', now)
        reseed(self.dataloader, self.runner.seed)  # resuming restores the run's seed after the loader is built
        validation = self.runner.val_loop
        if validation is not None:
            validation.dataloader.worker_init_fn = ignore_signals(validation.dataloader.worker_init_fn)
        self.runner.call_hook('before_train')

    def run_iter(self, *args: Any) -> None:
        """Takes a step, with random numbers seeded by its number."""
        self.dataloader.dataset.__getitems__.report_unreadable()
        seed_all(self.runner.seed, get_rank(), self._iter)
        super().run_iter(*args)

    def validate_if_due(self, done: int, total: int) -> None:
        """Evaluates after the epochs or steps that ``val_interval`` and ``val_begin`` choose.

        A resumed run repeats the evaluation that is due at its checkpoint: the run may have ended in the middle of it.
        """
        self._decide_current_val_interval()
        due = done % self.val_interval == 0 or done == total
        if self.runner.val_loop is not None and due and done >= self.val_begin:
            self.runner.val_loop.run()

    def _remaining_batches(self) -> DataLoader:
        """Returns the loader, set to begin with the batch of the next step."""
        batches = self.dataloader.batch_sampler
        batches.epoch, batches.start = self.position()
        return self.dataloader


@LOOPS.register_module()
class EpochBasedTrainLoop(ExactLoop, MMEngineEpochBasedTrainLoop):
    """Trains for ``max_epochs``; see :class:`ExactLoop` and MMEngine's."""

    _epoch_start = 0  # the step at which the epoch began
    _starts_again = False  # whether the checkpoint is from the middle of an epoch that cannot be resumed

    def train(self) -> None:
        """Trains the remaining epochs."""
        if 0 < self._iter == self._epoch_start and not self._starts_again:
            self.validate_if_due(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self.validate_if_due(self._epoch, self._max_epochs)

    def start(self) -> None:
        """Finds the position in the epoch; see :class:`ExactLoop`."""
        info, length = self.runner.message_hub.runtime_info, len(self.dataloader)
        epoch, start, old_length = info.get('epoch_began', (self._epoch, self._epoch * length, length))
        done = self._iter - start if epoch == self._epoch else 0
        if done == old_length:
            done = length
        elif (done and old_length != length) or not 0 <= done < length:
            self.runner.logger.warning(
                f'the checkpoint is of epochs of {old_length} steps, and these have {length} (other data, batch size '
                f'or number of processes): epoch {self._epoch + 1} starts again'
            )
            done, self._starts_again = 0, True
        self._epoch_start = self._iter - done
        self._max_iters = self._epoch_start + (self._max_epochs - self._epoch) * length
        super().start()

    def run_epoch(self) -> None:
        """Trains for the rest of an epoch."""
        began = [self._epoch, self._epoch_start, len(self.dataloader)]
        self.runner.message_hub.update_info('epoch_began', began)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for number, data_batch in enumerate(self._remaining_batches(), self.position()[1]):
            self.run_iter(number, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._epoch_start = self._iter

    def position(self) -> tuple[int, int]:
        """Returns the epoch that the next step belongs to, and the number of its batch in it."""
        return self._epoch, self._iter - self._epoch_start


@LOOPS.register_module()
class IterBasedTrainLoop(ExactLoop, MMEngineIterBasedTrainLoop):
    """Trains for ``max_iters`` steps; see :class:`ExactLoop` and MMEngine's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = self.dataloader._iterator = None  # MMEngine 0.10.7 has started to load

    def train(self) -> None:
        """Takes the remaining steps."""
        if self._iter > 0:
            self.validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('before_train_epoch')  # to hooks, all of the training is one epoch
        batches = itertools.chain.from_iterable(self._remaining_batches() for _ in itertools.count())
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self.validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')

    def position(self) -> tuple[int, int]:
        """Returns the pass through the data that the next step belongs to, and the number of its batch in it."""
        batches = self.dataloader.batch_sampler
        return (0, self._iter) if batches.endless else divmod(self._iter, len(batches))
