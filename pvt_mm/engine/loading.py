"""Batches that depend on their number alone, not on the workers that load them or on what was loaded before.

Every sample is loaded with the random numbers of its place: seed, process, epoch, batch and place in the batch. So a run
that resumes skips the batches that it has trained on without loading them, and goes on with the very ones that follow.
"""

import functools
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, Sampler

from pvt_mm.datasets.broken_files import broken_file
from pvt_mm.engine.randomness import seed_all
from pvt_mm.errors import InputError


class Batch(NamedTuple):
    """Which batch: its epoch, its number in the epoch, and the indices of its samples."""

    epoch: int
    number: int
    indices: list[int]


class NumberedBatches(Sampler[Batch]):
    """The batches of another batch sampler, numbered, from the one numbered ``start`` on in ``epoch``."""

    def __init__(self, batch_sampler: Sampler[list[int]]):
        self.batch_sampler = batch_sampler
        self.epoch = self.start = 0

    @property
    def sampler(self) -> Sampler[int]:
        """What the batches are made from."""
        return self.batch_sampler.sampler

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.batch_sampler.batch_size

    @property
    def endless(self) -> bool:
        """Whether there is but one epoch, which never ends."""
        return hasattr(self.sampler, '_indices_of_rank')

    def __iter__(self) -> Iterator[Batch]:
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.epoch)
        if self.endless:  # MMEngine's InfiniteSampler would go on where it was left
            self.sampler.indices = self.sampler._indices_of_rank()
        epoch, start = self.epoch, self.start
        for number, indices in enumerate(self.batch_sampler):
            if number >= start:
                yield Batch(epoch, number, list(indices))

    def __len__(self) -> int:
        """Batches of a whole epoch; with an endless sampler, as many as go through the data once."""
        return len(self.batch_sampler)


class PlaceSeeded:
    """Loads the samples of a :class:`Batch` from a data set, in a worker or the main process alike.

    A sample whose image or label map is broken is replaced by another one, drawn from its own random numbers, and told
    to the main process.

    Args:
        dataset: The data set.
        seed: The run's.
        rank: The process's.
        max_broken: How many broken files are put up with; the one after them raises.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, max_broken: int):
        self.dataset, self.seed, self.rank, self.max_broken = dataset, seed, rank, max_broken
        self.told = multiprocessing.SimpleQueue()

    def __call__(self, batch: Batch) -> list:
        return [self._load(batch, place, index) for place, index in enumerate(batch.indices)]

    def _load(self, batch: Batch, place: int, index: int) -> Any:
        seed_all(self.seed, self.rank, batch.epoch, batch.number, place)
        for _ in range(self.max_broken + 1):
            info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
            fault = broken_file(info, thorough=False)
            try:
                if not fault:
                    return self.dataset[index]
            except Exception:  # whatever reader and decoder it is raises in its own way
                fault = broken_file(info, thorough=True)
                if not fault:
                    raise
            self.told.put(fault)
            index = random.randrange(len(self.dataset))
        raise InputError(f'an image cannot be read: {fault}; restore it, or take it out of the annotations')

    def broken(self) -> list[str]:
        """Returns what was found to be broken since the last call, from all workers."""
        found = []
        while not self.told.empty():
            found.append(self.told.get())
        return found


def exact_loader(dataloader: DataLoader, seed: int, max_broken: int = 0) -> DataLoader:
    """Returns a loader of the same batches that are numbered and loaded as this module says.

    The data set stays what it is, for hooks that change its pipeline, but for the method ``__getitems__``, by which
    PyTorch loads a batch.
    """
    dataset = dataloader.dataset
    dataset.__getitems__ = PlaceSeeded(dataset, seed, get_rank(), max_broken)
    same = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'generator')
    more = ('prefetch_factor', 'persistent_workers') if dataloader.num_workers else ()
    return DataLoader(
        dataset,
        batch_sampler=NumberedBatches(dataloader.batch_sampler),
        worker_init_fn=ignoring_signals(dataloader.worker_init_fn),
        **{name: getattr(dataloader, name) for name in (*same, *more)},
    )


def reseed(dataloader: DataLoader, seed: int) -> None:
    """Makes an :func:`exact_loader` that of another seed: where a run resumes, that of the run that it goes on with."""
    dataset, sampler = dataloader.dataset, dataloader.batch_sampler.sampler
    dataset.__getitems__.seed = seed
    if hasattr(sampler, 'seed'):
        sampler.seed = seed


def load_batch(dataloader: DataLoader, epoch: int, number: int) -> Any:
    """Returns one batch of an :func:`exact_loader`, loaded again as it was in training.

    Raises:
        IndexError: The epoch has no batch of that number.
    """
    batches = dataloader.batch_sampler
    before = batches.epoch, batches.start
    batches.epoch, batches.start = epoch, number
    try:
        batch = next(iter(batches), None)
    finally:
        batches.epoch, batches.start = before
    if batch is None:
        raise IndexError(f'epoch {epoch} has no batch {number}: it has {len(batches)}')
    return dataloader.collate_fn(dataloader.dataset.__getitems__(batch))


def ignoring_signals(worker_init: Callable[[int], None] | None) -> Callable[[int], None]:
    """Returns what starts a worker so that SIGTERM and SIGINT, which schedulers and terminals send to every process, stop
    the main process alone, which ends its workers when it is done."""
    return functools.partial(_start_worker, worker_init)


def _start_worker(worker_init: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if worker_init is not None:
        worker_init(worker)
