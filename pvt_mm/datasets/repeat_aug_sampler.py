"""Repeated augmentation: each image several times an epoch, in different processes."""

import math
from collections.abc import Iterator, Sized

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from pvt_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class RepeatAugSampler(Sampler[int]):
    """Draws each image ``num_repeats`` times in succession and deals the draws out to the processes in turn.

    Batch augmentation (Hoffer et al., 2020) and repeated augmentation (Berman et al., 2019, arXiv 1902.05509), in the
    form of DeiT (Touvron et al., 2021, arXiv 2012.12877): an epoch is no longer than without repeats, so it sees one
    in ``num_repeats`` of the images. Augmented anew at each draw, they differ.

    Args:
        dataset: What is drawn from.
        shuffle: Whether to draw in an order that is random and another one in every epoch.
        num_repeats: Draws of an image.
        selected_round: An epoch has a multiple of this many draws, over all processes, except that it is not rounded
            if this is 0 or above the size of the data.
        seed: Of the order, the same in all processes; by default a random one that they agree on.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        num_repeats: int = 3,
        selected_round: int = 256,
        seed: int | None = None,
    ):
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.num_repeats = num_repeats
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        size = len(dataset)
        if 0 < selected_round <= size:
            self.num_samples = size // selected_round * selected_round // self.world_size
        else:
            self.num_samples = math.ceil(size / self.world_size)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = len(self.dataset)
        order = torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size)
        draws = self.rank + self.world_size * torch.arange(self.num_samples)
        return iter(order[draws // self.num_repeats % size].tolist())

    def __len__(self) -> int:
        """The number of draws of this process in an epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Sets which epoch's order is drawn next."""
        self.epoch = epoch
