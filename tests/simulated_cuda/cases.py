"""Runs one case after another on a CUDA device, simulated or not, and prints what happened as JSON.

Usage: ``python -m tests.simulated_cuda.cases [NAME ...]``. The last line is a dict of cases by name, or
``{"impossible": why}``.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

from tests.simulated_cuda.device import NoDeviceError, prepare

try:
    SIMULATED = prepare()
except NoDeviceError as reason:
    print(json.dumps({'impossible': str(reason)}))
    sys.exit()

import torch
import torch.nn.functional as F
from torch import nn

from pvt_mm.models import ImageClassifier
from pvt_mm.models.backbone import PVT, PVTv2
from pvt_mm.structures import DataSample
from tests.simulated_cuda.fake import Count, FakeCuda, SavedBytes, attend, to_fake_cuda

ARCH = dict(
    embed_dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), patch_sizes=(4, 2, 2, 2),
    sr_ratios=(8, 4, 2, 1), mlp_ratios=(2,) * 4,
)  # fmt: skip
ARCH_V2 = {'strides' if key == 'patch_sizes' else key: value for key, value in ARCH.items()}
LINEAR = {**ARCH_V2, 'linear': True}
WIDE = {**ARCH, 'embed_dims': (89, 178, 89, 178), 'num_heads': (1, 2, 1, 2)}
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DEVICE = 'cuda:0'


@contextlib.contextmanager
def cuda(simulated: bool = SIMULATED) -> Iterator[None]:
    """A CUDA device, whose tensors have no values if it is simulated."""
    if not simulated:
        yield
        return
    # A mode for functions would not reach the thread of the backward pass, where layers are recomputed.
    with FakeCuda(), patch.object(F, 'scaled_dot_product_attention', attend):
        yield


def place(model: nn.Module) -> nn.Module:
    return to_fake_cuda(model) if SIMULATED else model.to(DEVICE)


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast('cuda', dtype, enabled=dtype != FP32)


def report(*counts: Count) -> dict[str, Any]:
    kernels = {name for count in counts for name in count.kernels}
    return dict(
        simulated=SIMULATED,
        synchronizations=[name for count in counts for name in count.synchronizations],
        on_cpu=[name for count in counts for name in count.on_cpu],
        attention=sorted({name for name in kernels if 'attention' in name or name == '_softmax'}),
    )


def train_backbone(dtype: torch.dtype, arch: dict = ARCH, **settings: Any) -> dict[str, Any]:
    """Trains a backbone by a step and runs it once, with no tensor on the CPU."""
    model = place((PVTv2 if 'strides' in arch else PVT)(arch, **settings))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    image = torch.empty(2, 3, 96, 64, device=DEVICE)
    with Count() as training:
        with autocast(dtype):
            outputs = [output for output in model(image) if output.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    with torch.no_grad(), autocast(dtype), Count() as inference:
        model.eval()(image)
    step(parameters)
    return report(training, inference)


def train_with_hooks(dtype: torch.dtype, build: Callable[..., nn.Module], arch: dict) -> dict[str, Any]:
    """Trains a backbone by a step, and returns which linear layers it has and of which it called the hooks."""
    model, called = place(build(arch, drop_path_rate=0.1)), []
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    with autocast(dtype):
        outputs = model(torch.empty(2, 3, 96, 64, device=DEVICE))
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    step(list(model.parameters()))
    return dict(layers=sorted(layers), called=sorted(called))


def step(parameters: list[nn.Parameter]) -> None:
    assert all(parameter.grad.device == parameter.device for parameter in parameters)
    assert all(parameter.grad.dtype == parameter.dtype for parameter in parameters)
    torch.optim.AdamW(parameters).step()


def train_classifier(dtype: torch.dtype) -> dict[str, Any]:
    """Trains a classifier by a step, with every augmentation."""
    backbone = dict(type='pvt_mm.PVT', arch=ARCH, out_type='cls_token', drop_path_rate=0.1)
    head = dict(type='pvt_mm.LinearClsHead', num_classes=7, in_channels=64, label_smoothing=0.1)
    preprocessor = dict(
        type='pvt_mm.ClsDataPreprocessor', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True,
        rand_augment=dict(num_ops=2), erasing=0.25, mixup=0.8, cutmix=1.0,
    )  # fmt: skip
    model = place(ImageClassifier(backbone, head, preprocessor))
    model.data_preprocessor._device = torch.device(DEVICE)
    samples = [DataSample(gt_label=torch.tensor([i], device=DEVICE)) for i in range(4)]
    data = dict(inputs=torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device=DEVICE), data_samples=samples)
    with autocast(dtype):
        prepared = model.data_preprocessor(data, training=True)
        with Count() as count:
            loss = model(**prepared, mode='loss')['loss']
            loss.backward()
    step(list(model.parameters()))
    return dict(report(count), inputs=str(prepared['inputs'].device))


def train_trans2seg(dtype: torch.dtype) -> dict[str, Any]:
    """Trains the head of a segmentor, as far as its loss goes without reading values."""
    from pvt_mm.models import Trans2SegHead

    sizes = dict(in_channels=(16, 64), channels=12, embed_dims=16, num_layers=2, num_heads=2, num_classes=5)
    backbone, head = place(PVT(ARCH)), place(Trans2SegHead(**sizes, norm_cfg=dict(type='BN')))
    image = torch.empty(2, 3, 96, 64, device=DEVICE)
    with Count() as count:
        with autocast(dtype):
            scores = head(backbone(image))
            labels = torch.zeros(2, *scores.shape[2:], dtype=torch.long, device=DEVICE)
            loss = F.cross_entropy(scores, labels, ignore_index=255)
        loss.backward()
    step([*backbone.parameters(), *(p for p in head.parameters() if p.grad is not None)])
    return report(count)


def count_step(build: Callable[[], nn.Module], dtype: torch.dtype, batch: int) -> dict[str, Any]:
    """Counts a training step of a backbone at 800 x 1344, in GB, without a GPU's memory."""
    model = to_fake_cuda(build())
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    image = torch.empty(batch, 3, 800, 1344, device=DEVICE)
    saved = SavedBytes(model)
    with autocast(dtype), Count() as forward, saved:
        outputs = model(image)
    gradients = [torch.empty_like(output) for output in outputs]
    with Count() as backward:
        torch.autograd.backward(outputs, gradients)
    with torch.no_grad(), autocast(dtype), Count() as inference:
        model.eval()(image)
    passes = dict(forward=forward, backward=backward, inference=inference)
    counted = {f'{name}_gb': sum(count.moved.values()) / 1e9 for name, count in passes.items()}
    kernels = {f'{name}_kernels': sum(count.kernels.values()) for name, count in passes.items()}
    peak = saved.total + 2 * parameters + image.nbytes  # with the gradients, and without what is freed within a layer
    return dict(report(forward, backward), **counted, **kernels, saved_gb=saved.total / 1e9, peak_gb=peak / 1e9)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    'backbone in float32': partial(train_backbone, FP32, drop_path_rate=0.1),
    'backbone in float16': partial(train_backbone, FP16, drop_path_rate=0.1),
    'backbone in bfloat16': partial(train_backbone, BF16, drop_path_rate=0.1),
    'dropout': partial(train_backbone, BF16, drop_rate=0.1, attn_drop_rate=0.1),
    'with_cp': partial(train_backbone, BF16, with_cp=True, drop_path_rate=0.1),
    'class token': partial(train_backbone, BF16, out_type='cls_token', out_indices=3),
    'frozen stages': partial(train_backbone, BF16, frozen_stages=2),
    'wide in float32': partial(train_backbone, FP32, WIDE),
    'wide in bfloat16': partial(train_backbone, BF16, WIDE),
    'v2 in float32': partial(train_backbone, FP32, ARCH_V2, drop_path_rate=0.1),
    'v2 in bfloat16': partial(train_backbone, BF16, ARCH_V2, drop_path_rate=0.1),
    'v2 linear in bfloat16': partial(train_backbone, BF16, LINEAR, with_cp=True, out_type='avg_featmap'),
    'v2 with dropout, partly frozen': partial(
        train_backbone, BF16, ARCH_V2, drop_rate=0.1, attn_drop_rate=0.1, frozen_stages=2
    ),
    'hooks': partial(train_with_hooks, BF16, PVT, WIDE),
    'v2 hooks': partial(train_with_hooks, BF16, PVTv2, LINEAR),
    'classifier': partial(train_classifier, BF16),
    'trans2seg': partial(train_trans2seg, BF16),
}
COUNTS: dict[str, Callable[[], dict[str, Any]]] = {
    'count of small in bfloat16': partial(count_step, partial(PVT, 'small'), BF16, 16),
    'count of b2 in bfloat16': partial(count_step, partial(PVTv2, 'b2'), BF16, 16),
    'count of b2_li in bfloat16': partial(count_step, partial(PVTv2, 'b2_li'), BF16, 16),
    'count of small_wide in float32': partial(count_step, partial(PVT, 'small_wide'), FP32, 2),
}


def main() -> None:
    results, cases = {}, {**CASES, **COUNTS}
    for name in sys.argv[1:] or cases:
        try:
            with cuda(SIMULATED or name in COUNTS):
                results[name] = cases[name]()
        except Exception:
            results[name] = dict(error=traceback.format_exc())
    print(json.dumps(results))


if __name__ == '__main__':
    main()
