"""Batches that depend on their number alone, not on the workers that load them or on what was loaded before.

Every sample is loaded with random numbers seeded by its position: run seed, rank, epoch, batch and place in the batch.
So a resumed run skips the batches that it has trained on without loading them, and continues with exactly the batches
that an uninterrupted run would have.
"""

import copy
import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log
from torch.utils.data import DataLoader, Dataset, Sampler

from pvt_mm.datasets.image_io import find_fault, loader_of, unreadable_error
from pvt_mm.engine.randomness import seed_cpu
from pvt_mm.utils.errors import InputError


class Batch(NamedTuple):
    """A batch's epoch, its number in the epoch, and the indices of its samples."""

    epoch: int
    number: int
    indices: list[int]


class NumberedBatches(Sampler[Batch]):
    """The batches of another batch sampler, numbered, from batch ``start`` of epoch ``epoch`` on.

    Batches at the end that only some ranks have are left out, since all ranks take a step together. All ranks must
    construct this at the same time.
    """

    def __init__(self, batch_sampler: Sampler[list[int]]):
        self.batch_sampler, self.sampler = batch_sampler, batch_sampler.sampler
        self.batch_size = batch_sampler.batch_size
        self.epoch = self.start = 0
        self.length = min(all_gather_object(len(batch_sampler)))
        self.endless = hasattr(self.sampler, '_indices_of_rank')  # MMEngine's InfiniteSampler: an epoch without an end

    def __iter__(self) -> Iterator[Batch]:
        return self.batches_from(self.epoch, self.start)

    def batches_from(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number ``start`` on."""
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)
        if self.endless:  # it would continue where it stopped
            self.sampler.indices = self.sampler._indices_of_rank()
        # MMDetection's AspectRatioBatchSampler keeps samples of an interrupted pass: each pass uses its own copy.
        shared = {id(part): part for part in (self.sampler, getattr(self.sampler, 'dataset', None))}
        for number, indices in enumerate(copy.deepcopy(self.batch_sampler, shared)):
            if number >= start and (self.endless or number < self.length):
                yield Batch(epoch, number, list(indices))

    def __len__(self) -> int:
        """Batches per epoch; with an infinite sampler, per pass through the data."""
        return self.length


class DeterministicFetcher:
    """Loads the samples of a :class:`Batch`, each with random numbers seeded by its position.

    It runs in a data worker, of the :mod:`multiprocessing` ``context``, or in the main process. A sample with an
    unreadable image or label map is replaced by a random other one, for up to ``max_unreadable`` files, and
    :meth:`report_unreadable`, in the main process, logs it.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, max_unreadable: int, context: Any = multiprocessing):
        self.dataset, self.seed, self.rank, self.context = dataset, seed, rank, context
        self.max_unreadable = max_unreadable
        self.queue = context.SimpleQueue()  # faults, from the workers to the main process
        self.found: set[str] = set()  # by this worker, which must stop by itself: the queue is read between steps only
        self.reported: set[str] = set()

    def __deepcopy__(self, memo: dict) -> 'DeterministicFetcher':
        dataset = copy.deepcopy(self.dataset, memo)  # a queue cannot be copied
        return DeterministicFetcher(dataset, self.seed, self.rank, self.max_unreadable, self.context)

    def __call__(self, batch: Batch) -> list:
        return [self._load(batch, place, index) for place, index in enumerate(batch.indices)]

    def _load(self, batch: Batch, place: int, index: int) -> Any:
        seed_cpu(self.seed, self.rank, batch.epoch, batch.number, place)
        while True:
            info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
            fault = find_fault(info, decode=False)
            try:
                if not fault:
                    return self.dataset[index]
            except Exception:  # readers and decoders raise errors of any type
                fault = find_fault(info, decode=True, load=loader_of(self.dataset))
                if not fault:
                    raise
            if fault not in self.found:
                self._count(self.found, fault)
                if len(self.found) == len(self.dataset):
                    raise unreadable_error(fault)
                self.queue.put(fault)
            index = random.randrange(len(self.dataset))

    def report_unreadable(self) -> None:
        """Logs the files that any worker has found to be unreadable since the last call.

        Raises:
            InputError: There are more than ``max_unreadable`` in all.
        """
        while not self.queue.empty():
            fault = self.queue.get()
            if fault not in self.reported:
                self._count(self.reported, fault)
                count = f'{len(self.reported)} of at most {self.max_unreadable}'
                level = logging.WARNING if is_main_process() else logging.ERROR  # other ranks log errors only
                print_log(f'skipped an unreadable image, {count}: {fault}', 'current', level)

    def _count(self, faults: set[str], fault: str) -> None:
        faults.add(fault)
        if self.max_unreadable == 0:
            raise unreadable_error(fault)
        if len(faults) > self.max_unreadable:
            raise InputError(
                f'more than {self.max_unreadable} images cannot be read, the last: {fault}; restore them, or increase '
                'train_cfg.max_broken_images'
            )


def exact_loader(dataloader: DataLoader, seed: int, max_unreadable: int = 0) -> DataLoader:
    """Returns a loader of the same batches, numbered, with every sample loaded by :class:`DeterministicFetcher`.

    The data set stays the same object, for hooks that change its pipeline. It gains ``__getitems__``, the method by
    which PyTorch loads a batch.

    Raises:
        InputError: There are too few samples for one batch in each rank.
    """
    dataset, batches = dataloader.dataset, NumberedBatches(dataloader.batch_sampler)
    if not len(batches):
        raise InputError(
            f'the training data has {len(dataset)} images, too few for {get_world_size()} processes with a batch of '
            f'{batches.batch_size}: lower train_dataloader.batch_size, or train in fewer processes'
        )
    context = dataloader.multiprocessing_context or multiprocessing
    dataset.__getitems__ = DeterministicFetcher(dataset, seed, get_rank(), max_unreadable, context)
    loader, worker_init = copy.copy(dataloader), ignore_signals(dataloader.worker_init_fn)
    vars(loader).update(batch_sampler=batches, worker_init_fn=worker_init)  # a loader refuses new batches otherwise
    return loader


def shared_seed(seed: int) -> int:
    """Returns rank 0's seed: with ``diff_rank_seed`` the seeds of ranks differ, but they share one order of data."""
    seeds = [seed]
    broadcast_object_list(seeds)
    return seeds[0]


def reseed(dataloader: DataLoader, seed: int) -> None:
    """Changes the seed of an :func:`exact_loader`: a resumed run uses the seed of the run that it continues."""
    fetcher, sampler = dataloader.dataset.__getitems__, dataloader.batch_sampler.sampler
    if fetcher.seed != seed and hasattr(sampler, 'seed'):
        sampler.seed = shared_seed(seed)
    fetcher.seed = seed


def ignore_signals(worker_init: Callable[[int], None] | None) -> Callable[[int], None]:
    """Returns a ``worker_init_fn`` after which a worker ignores SIGTERM, SIGINT and SIGUSR2, and calls ``worker_init``.

    Schedulers and terminals send them to every process. The main process alone acts on them, and ends its workers.
    """
    ending = multiprocessing.RawValue('b', 0)
    # At exit Python sends SIGTERM to the remaining workers and waits for them: set the flag before that.
    multiprocessing.util.Finalize(None, setattr, args=(ending, 'value', 1), exitpriority=0)
    return functools.partial(_start_worker, worker_init, ending)


def _start_worker(worker_init: Callable[[int], None] | None, ending: Any, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    if worker_init is not None:
        worker_init(worker)
