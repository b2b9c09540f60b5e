"""Repeated augmentation: each image several times per epoch, on different ranks."""

import math
from collections.abc import Iterator, Sized

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from pvt_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class RepeatAugSampler(Sampler[int]):
    """Draws each image ``num_repeats`` times in succession and distributes the draws over the ranks in turn.

    Batch augmentation (Hoffer et al., 2020) and repeated augmentation (Berman et al., 2019, arXiv 1902.05509), as in
    DeiT (Touvron et al., 2021, arXiv 2012.12877): an epoch has as many draws as without repeats, so it sees one in
    ``num_repeats`` of the images. Each draw is augmented differently.

    Args:
        shuffle: Whether to draw in a random order, which differs between epochs.
        selected_round: The number of draws per epoch, over all ranks, is rounded down to a multiple of this; it is not
            rounded if this is 0 or greater than the size of the data.
        seed: Seed of the order, the same on all ranks; by default a random one that the ranks agree on.
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
        """Returns the number of draws of this rank per epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order is drawn next."""
        self.epoch = epoch
