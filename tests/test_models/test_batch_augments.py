"""RandAugment, erasing, mixup and CutMix against Pillow, closed forms and expected frequencies."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from pvt_mm.models import batch_augments
from pvt_mm.models.batch_augments import OPERATIONS, apply_operation, mix, rand_augment, random_erasing
from pvt_mm.models.cls_data_preprocessor import ClsDataPreprocessor
from pvt_mm.structures import DataSample

GREY = torch.full((3,), 0.5)


@pytest.fixture
def image() -> torch.Tensor:
    """(1, 3, 40, 48), smooth except at the border of a rectangle, of every brightness, in multiples of 1 / 255."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing='ij')
    channels = [0.1 + 0.8 * x, 0.2 + 0.7 * y, 0.9 - 0.8 * x * y]
    image = torch.stack(channels)[None]
    image[..., 10:24, 14:34] = 1 - image[..., 10:24, 14:34]
    return ((image * 255).round() / 255).float()


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())


def by_pillow(name: str, image: Image.Image, level: float, sign: int) -> Image.Image:
    """Returns the operation done by Pillow, at DeiT's strengths."""
    factor = 1 + 0.9 * sign * level
    flat = dict(resample=Image.BICUBIC, fillcolor=(128, 128, 128))

    def affine(*matrix):
        return image.transform(image.size, Image.AFFINE, matrix, **flat)

    return {
        'auto_contrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image),
        'invert': lambda: ImageOps.invert(image),
        'rotate': lambda: image.rotate(30 * sign * level, **flat),
        'posterize': lambda: ImageOps.posterize(image, 4 - int(4 * level)),
        'solarize': lambda: ImageOps.solarize(image, 256 - int(256 * level)),
        'solarize_add': lambda: image.point([v + int(110 * level) if v < 128 else v for v in range(256)] * 3),
        'color': lambda: ImageEnhance.Color(image).enhance(factor),
        'contrast': lambda: ImageEnhance.Contrast(image).enhance(factor),
        'brightness': lambda: ImageEnhance.Brightness(image).enhance(factor),
        'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(factor),
        'shear_x': lambda: affine(1, -0.3 * sign * level, 0, 0, 1, 0),
        'shear_y': lambda: affine(1, 0, 0, -0.3 * sign * level, 1, 0),
        'translate_x': lambda: affine(1, 0, -0.45 * image.width * sign * level, 0, 1, 0),
        'translate_y': lambda: affine(1, 0, 0, 0, 1, -0.45 * image.height * sign * level),
    }[name]()


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_is_pillows(name, image):
    """Equal up to rounding, except at filled edges, since Pillow and kornia sample half a pixel apart."""
    for level in (0.5, 0.9):
        ours = apply_operation(name, image.expand(16, -1, -1, -1), torch.full((16,), level), GREY)
        assert ours.shape == (16, *image.shape[1:])
        signs = set()
        for output in ours:
            errors = []
            for sign in (-1, 1):
                theirs = np.array(by_pillow(name, as_pil(image), level, sign), dtype=np.float32) / 255
                errors.append((np.abs(output.permute(1, 2, 0).numpy() - theirs) > 0.012).mean())
            assert min(errors) < 0.1, (level, errors)
            signs.add(errors.index(min(errors)))
        signless = ('auto_contrast', 'equalize', 'invert', 'posterize', 'solarize', 'solarize_add')
        assert signs == ({0} if name in signless else {0, 1})


def test_each_image_has_its_own_operations_at_its_own_strength():
    images = torch.rand(64, 3, 16, 16)
    augmented = rand_augment(images, GREY, num_ops=1, prob=1.0)
    assert sum(not torch.equal(a, b) for a, b in zip(augmented, images, strict=True)) > 56
    bright = torch.full((200, 3, 4, 4), 0.25)
    levels = []
    original = batch_augments.apply_operation

    def spy(name, images, level, fill):
        levels.append((name, level))
        return original(name, images, level, fill)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_augments, 'apply_operation', spy)
        rand_augment(bright, GREY, num_ops=2, magnitude=9, magnitude_std=0.5, prob=0.5)
    count = sum(len(level) for _, level in levels)
    assert 150 < count < 250  # half of 400
    assert {name for name, _ in levels} == set(OPERATIONS)
    drawn = torch.cat([level for _, level in levels]) * 10
    assert drawn.mean().item() == pytest.approx(9, abs=0.15)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.12)
    assert drawn.max() <= 10


def test_erasing_leaves_a_rectangle_of_noise():
    images = torch.full((400, 3, 32, 32), 7.0)
    erased = random_erasing(images, 0.25)
    changed = (erased != images).any(1)
    areas = changed.flatten(1).float().mean(1)
    hit = areas > 0
    assert 60 < hit.sum() < 145
    assert areas[hit].min() > 0.01
    assert areas[hit].max() < 0.36
    for mask in changed[hit]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
    noise = erased[:, 0][changed]
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_mixup_mixes_images_and_labels_by_one_share():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 8).contiguous()
    mixed, shares = mix(images, torch.arange(6), 6, mixup=0.8, cutmix=0.0, switch_prob=0.5)
    assert torch.allclose(shares.sum(1), torch.ones(6))
    assert torch.allclose(mixed[:, 0, 0, 0], shares @ torch.arange(6.0), atol=1e-5)
    assert mixed.flatten(1).std(1).max() < 1e-6
    assert len({round(share, 5) for share in shares.max(1).values.tolist()} - {1.0}) <= 1  # one share per batch


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 32, 32).contiguous()
    for _ in range(5):
        mixed, shares = mix(images, torch.arange(6), 6, mixup=0.0, cutmix=1.0, switch_prob=0.5)
        for i, image in enumerate(mixed[:, 0]):
            for label in range(6):
                assert (image == label).float().mean().item() == pytest.approx(shares[i, label].item(), abs=1e-5)
            other = image != i
            assert torch.equal(other, other.any(1)[:, None] & other.any(0)[None])


def test_cutmixs_boxes_are_drawn_as_deit_draws_them():
    """Against a simulation: centres uniform over the image, boxes clipped at its border."""
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 32, 32).contiguous()
    ours = [mix(images, torch.arange(2), 2, 0.0, 1.0, 0.5)[1][0, 1].item() for _ in range(2000)]
    random = np.random.default_rng(0)
    half = (32 * np.sqrt(1 - random.random(20000))).astype(int) // 2
    spans = [np.minimum(c + half, 32) - np.maximum(c - half, 0) for c in random.integers(32, size=(2, 20000))]
    theirs = spans[0] * spans[1] / 1024
    assert np.mean(ours) == pytest.approx(theirs.mean(), abs=0.02)
    for quartile in (25, 50, 75):
        assert np.percentile(ours, quartile) == pytest.approx(np.percentile(theirs, quartile), abs=0.035)


def test_half_of_the_batches_are_cut():
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 8, 8).contiguous()
    cut = 0
    for _ in range(300):
        mixed, _ = mix(images, torch.arange(16), 16, mixup=0.8, cutmix=1.0, switch_prob=0.5)
        cut += torch.equal(mixed, mixed.round())
    assert 110 < cut < 190


@pytest.mark.parametrize('alpha', [0.3, 0.8, 4.0])
def test_mixups_share_is_beta_distributed(alpha):
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 1, 1).contiguous()
    squares = []
    for _ in range(1000):
        _, shares = mix(images, torch.arange(8), 8, mixup=alpha, cutmix=0.0, switch_prob=0.5)
        squares.append((shares.max(1).values.min().item() - 0.5) ** 2)
    assert sum(squares) / 1000 == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # the variance


def data(count: int) -> dict:
    samples = [DataSample(gt_label=torch.tensor([i % 3])) for i in range(count)]
    return dict(inputs=[torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in samples], data_samples=samples)


def test_testing_only_normalises():
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    full = ClsDataPreprocessor(3, mean, std, bgr_to_rgb=True, rand_augment={}, erasing=1.0, mixup=0.8, cutmix=1.0)
    batch = data(4)
    expected = torch.stack(batch['inputs'])[:, [2, 1, 0]].float()
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    out = full(batch)
    assert torch.allclose(out['inputs'], expected)
    assert 'gt_score' not in out['data_samples'][0]


@pytest.mark.parametrize('on', ['rand_augment', 'erasing', 'mixup', 'cutmix'])
def test_each_augmentation_is_switched_by_its_argument(on):
    setting = dict(rand_augment=dict(num_ops=2), erasing=1.0, mixup=0.8, cutmix=1.0)[on]
    batch = data(16)
    plain = ClsDataPreprocessor(3, [0.0] * 3, [1.0] * 3)(batch, training=True)
    assert torch.equal(plain['inputs'], torch.stack(batch['inputs']).float())
    out = ClsDataPreprocessor(3, [0.0] * 3, [1.0] * 3, **{on: setting})(batch, training=True)
    assert not torch.equal(out['inputs'], plain['inputs'])
    assert ('gt_score' in out['data_samples'][0]) == (on in ('mixup', 'cutmix'))
    if on in ('mixup', 'cutmix'):
        scores = torch.stack([sample.gt_score for sample in out['data_samples']])
        assert scores.shape == (16, 3)
        assert torch.allclose(scores.sum(1), torch.ones(16))


def test_training_augments_rgb_then_normalises_then_erases(monkeypatch):
    mean, std, seen = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0], {}

    def rand_augment(images, fill, **kwargs):
        seen.update(images=images, fill=fill, kwargs=kwargs)
        return images * 0.5

    def random_erasing(images, prob):
        seen.update(normalised=images, prob=prob)
        return images

    preprocessor = ClsDataPreprocessor(3, mean, std, bgr_to_rgb=True, rand_augment=dict(num_ops=1), erasing=0.3)
    monkeypatch.setattr(batch_augments, 'rand_augment', rand_augment)
    monkeypatch.setattr(batch_augments, 'random_erasing', random_erasing)
    batch = data(2)
    preprocessor(batch, training=True)
    rgb = torch.stack(batch['inputs']).flip(1).float()
    assert torch.allclose(seen['images'] * 255, rgb)
    assert torch.allclose(seen['fill'] * 255, torch.tensor(mean))
    expected = (rgb * 0.5 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(seen['normalised'], expected, atol=1e-5)
    assert (seen['kwargs'], seen['prob']) == (dict(num_ops=1), 0.3)


def test_ranks_of_one_seed_augment_differently_and_keep_equal_random_states(monkeypatch):
    preprocessor = ClsDataPreprocessor(3, [0.0] * 3, [1.0] * 3, erasing=1.0)
    batch, outputs, following = data(4), [], []
    for rank in (0, 1, 0):
        monkeypatch.setattr('pvt_mm.models.cls_data_preprocessor.get_rank', lambda rank=rank: rank)
        torch.manual_seed(3)
        outputs.append(preprocessor(batch, training=True)['inputs'])
        following.append(torch.rand(()).item())
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])
    assert len(set(following)) == 1


def test_autocast_changes_no_bit():
    settings = dict(rand_augment=dict(num_ops=4), erasing=0.5, mixup=0.8, cutmix=1.0)
    preprocessor = ClsDataPreprocessor(3, [110.0] * 3, [60.0] * 3, **settings)
    batch, outputs = data(24), []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            out = preprocessor(batch, training=True)
        outputs.append([out['inputs'], *(sample.gt_score for sample in out['data_samples'])])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outputs, strict=True))


def test_equalize_is_let_off_determinism_which_it_has(monkeypatch, image):
    """On CUDA, PyTorch has no deterministic cumsum; that of counts has the same bits in any order."""
    cumsum = torch.Tensor.cumsum

    def of_cuda(self, *args, **kwargs):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError('cumsum_cuda_kernel does not have a deterministic implementation')
        return cumsum(self, *args, **kwargs)

    expected = apply_operation('equalize', image, torch.tensor([0.9]), GREY)
    monkeypatch.setattr(torch.Tensor, 'cumsum', of_cuda)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.equal(apply_operation('equalize', image, torch.tensor([0.9]), GREY), expected)
        assert torch.get_deterministic_debug_mode() == 1  # warns
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_misspelt_key_is_refused_when_built():
    with pytest.raises(TypeError, match='magnitud'):
        ClsDataPreprocessor(3, [0.0] * 3, [1.0] * 3, rand_augment=dict(magnitud=3))


def test_a_constant_channel_is_unchanged():
    flat = torch.full((1, 3, 4, 4), 0.8)
    assert torch.equal(apply_operation('auto_contrast', flat, torch.tensor([0.9]), GREY), flat)


def test_a_rate_out_of_range_says_so():
    with pytest.raises(ValueError, match='erasing must be'):
        ClsDataPreprocessor(3, [0.0] * 3, [1.0] * 3, erasing=1.5)
