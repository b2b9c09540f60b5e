"""Batches that depend on their number alone, not on the workers that load them or on what was loaded before.

Every sample is loaded with the random numbers of its place: seed, process, epoch, batch and place in the batch. So a
run that resumes skips the batches that it has trained on without loading them, and goes on with the very ones that
follow.
"""

import copy
import functools
import multiprocessing
import multiprocessing.util
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size
from torch.utils.data import DataLoader, Dataset, Sampler

from pvt_mm.datasets.broken_files import broken_file
from pvt_mm.engine.randomness import seed_cpu
from pvt_mm.errors import InputError


class Batch(NamedTuple):
    """Which batch: its epoch, its number in the epoch, and the indices of its samples."""

    epoch: int
    number: int
    indices: list[int]


class NumberedBatches(Sampler[Batch]):
    """The batches of another batch sampler, numbered, from the one numbered ``start`` on in ``epoch``.

    Processes of which some would have one more than others leave it out, as no process can take a step alone. All must
    make this at the same time.
    """

    def __init__(self, batch_sampler: Sampler[list[int]]):
        self.batch_sampler = batch_sampler
        self.epoch = self.start = 0
        self.length = min(all_gather_object(len(batch_sampler)))

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
        if isinstance(self.sampler, InfiniteSampler):  # which would go on where it was left
            self.sampler.indices = self.sampler._indices_of_rank()
        epoch, start = self.epoch, self.start
        # MMDetection's AspectRatioBatchSampler keeps what a pass that was broken off has left: each pass has its own.
        shared = {id(part): part for part in (self.sampler, getattr(self.sampler, 'dataset', None))}
        for number, indices in enumerate(copy.deepcopy(self.batch_sampler, shared)):
            if number >= start and (self.endless or number < self.length):
                yield Batch(epoch, number, list(indices))

    def __len__(self) -> int:
        """Batches of a whole epoch; with an endless sampler, as many as go through the data once."""
        return self.length


class PlaceSeeded:
    """Loads the samples of a :class:`Batch` from a data set, in a worker or the main process alike.

    A sample whose image or label map is broken is replaced by another one, drawn from its own random numbers, and told
    to the main process.

    Args:
        dataset: The data set.
        seed: The run's.
        rank: The process's.
        max_broken: How many broken files are put up with; the one after them raises.
        context: What starts the workers, of :mod:`multiprocessing`.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, max_broken: int, context: Any):
        self.dataset, self.seed, self.rank, self.max_broken, self.context = dataset, seed, rank, max_broken, context
        self.told = context.SimpleQueue()
        # By this worker: it may stop by itself, as nobody empties the queue while a batch is loaded.
        self.found: set[str] = set()

    def __deepcopy__(self, memo: dict) -> 'PlaceSeeded':
        dataset = copy.deepcopy(self.dataset, memo)
        return PlaceSeeded(dataset, self.seed, self.rank, self.max_broken, self.context)

    def __call__(self, batch: Batch) -> list:
        return [self._load(batch, place, index) for place, index in enumerate(batch.indices)]

    def _load(self, batch: Batch, place: int, index: int) -> Any:
        seed_cpu(self.seed, self.rank, batch.epoch, batch.number, place)
        while True:
            info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
            fault = broken_file(info, thorough=False)
            try:
                if not fault:
                    return self.dataset[index]
            except Exception:  # whatever reader and decoder it is raises in its own way
                fault = broken_file(info, thorough=True)
                if not fault:
                    raise
            if fault not in self.found:
                self.found.add(fault)
                if len(self.found) > self.max_broken or len(self.found) == len(self.dataset):
                    raise too_many_broken(fault, self.max_broken)
                self.told.put(fault)
            index = random.randrange(len(self.dataset))

    def broken(self) -> list[str]:
        """Returns what was found to be broken since the last call, from all workers."""
        found = []
        while not self.told.empty():
            found.append(self.told.get())
        return found


def too_many_broken(fault: str, allowed: int) -> InputError:
    """Returns the error that ends a training of which more files than ``allowed`` are broken, the last by ``fault``."""
    if not allowed:
        return InputError(f'an image cannot be read: {fault}; restore it, or take it out of the annotations')
    return InputError(
        f'more than {allowed} images cannot be read, the last: {fault}; restore them, or allow more with '
        'train_cfg.max_broken_images'
    )


def exact_loader(dataloader: DataLoader, seed: int, max_broken: int = 0) -> DataLoader:
    """Returns a loader of the same batches that are numbered and loaded as this module says.

    The data set stays what it is, for hooks that change its pipeline, but for the method ``__getitems__``, by which
    PyTorch loads a batch.

    Raises:
        InputError: There are too few samples for a batch in each process.
    """
    dataset, batches = dataloader.dataset, NumberedBatches(dataloader.batch_sampler)
    if not len(batches):
        raise InputError(
            f'the training data has {len(dataset)} images, too few for {get_world_size()} processes with a batch of '
            f'{batches.batch_size}: lower train_dataloader.batch_size, or train in fewer processes'
        )
    dataset.__getitems__ = PlaceSeeded(
        dataset, seed, get_rank(), max_broken, dataloader.multiprocessing_context or multiprocessing
    )
    same = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'generator')
    more = ('prefetch_factor', 'persistent_workers') if dataloader.num_workers else ()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        worker_init_fn=ignoring_signals(dataloader.worker_init_fn),
        **{name: getattr(dataloader, name) for name in (*same, *more)},
    )


def reseed(dataloader: DataLoader, seed: int) -> None:
    """Makes an :func:`exact_loader` that of another seed: where a run resumes, that of the run that it goes on with."""
    dataset, sampler = dataloader.dataset, dataloader.batch_sampler.sampler
    before, dataset.__getitems__.seed = dataset.__getitems__.seed, seed
    if hasattr(sampler, 'seed') and seed != before:
        seeds = [seed]
        broadcast_object_list(seeds)  # with diff_rank_seed processes have seeds of their own, but share out one order
        sampler.seed = seeds[0]


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
    """Returns what starts a worker so that SIGTERM and SIGINT stop the main process alone, which then ends its workers.

    Schedulers and terminals send them to every process.
    """
    ending = multiprocessing.RawValue('b', 0)
    # Python ends the workers that are left at its end by SIGTERM, and waits for them.
    multiprocessing.util.Finalize(None, setattr, args=(ending, 'value', 1), exitpriority=0)
    return functools.partial(_start_worker, worker_init, ending)


def _start_worker(worker_init: Callable[[int], None] | None, ending: Any, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    if worker_init is not None:
        worker_init(worker)
