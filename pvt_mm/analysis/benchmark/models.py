"""What a step of each contender is: models built, inputs made, and the function to time."""

import contextlib
import copy
import importlib
import itertools
import operator
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.analysis import flops
from pvt_mm.analysis.benchmark.contender import FAMILIES, FAMILY_OF, FORMATS, Contender
from pvt_mm.analysis.benchmark.process import used_memory
from pvt_mm.apis.config import load_config
from pvt_mm.models.archs import Arch, ArchV2
from pvt_mm.models.backbone import Backbone
from pvt_mm.models.pvt import SRA
from pvt_mm.utils.errors import InputError, import_errors

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # torch < 2.3
    SDPBackend = sdpa_kernel = None

DROP_PATH_RATE = 0.1  # our default
TRIAL_SECONDS = 3.0  # of steps in each memory format, to find the better one


class Loaded(NamedTuple):
    """What loading a model for predictions took, as in ``Result``."""

    loaded_memory: float | None
    load_seconds: float | None
    megabytes: float | None


class Prepared(NamedTuple):
    """A contender that is ready to run; a step returns the seconds of its parts."""

    step: Callable[..., dict[str, float]]  # with mode 'predict' it takes the index of an image, by default 0
    memory: float | None  # bytes in use before the first step
    images: int
    gflops: float | None
    memory_format: str
    loaded: Loaded | None = None  # with mode 'predict'


def prepare(contender: Contender) -> Prepared:
    """Builds a contender.

    Raises:
        InputError: The flags do not fit each other or the config.
    """
    others = dict(product=_prepare_product, attention=_prepare_attention, end2end=_prepare_end2end)
    if contender.mode == 'predict':
        from pvt_mm.analysis.benchmark.prediction import prepare_prediction  # imports MMCV

        return prepare_prediction(contender)
    if contender.mode in others:
        return others[contender.mode](contender)
    model, gflops = build(contender)
    is_training = contender.is_training
    model = model.to(contender.device).train(is_training)
    if contender.compile:
        compile_parts(model)
    image = torch.randn(contender.batch, 3, *contender.shape, device=contender.device)

    def step(memory_format: torch.memory_format) -> None:
        with precision(contender), fused_attention(), torch.set_grad_enabled(is_training):
            outputs = model(image.contiguous(memory_format=memory_format))
        if is_training:
            sum(output.float().mean() for output in _tensors(outputs)).backward()
            model.zero_grad()

    memory = used_memory(contender.device)
    chosen = contender.memory_format
    if chosen == 'better':  # our backbones run channels-last whatever they are given
        chosen = 'channels_last' if isinstance(model, Backbone) else _faster_format(model, step, contender.device)
    model.to(memory_format=FORMATS[chosen])
    passes = 3 if is_training else 1  # the backward pass has two products for each of the forward pass
    gflops = gflops and gflops * passes * contender.batch
    # Hooks would break a compiled graph, on a GPU they would time launches, and they do not see the backward pass.
    parts = {} if contender.compile or contender.device == 'cuda' or is_training else _parts(model)
    run = _time_parts(parts, lambda: step(FORMATS[chosen]))
    return Prepared(run, memory, contender.batch, gflops, chosen)


def _faster_format(model: nn.Module, step: Callable[[torch.memory_format], None], device: str) -> str:
    best = {}
    for name, memory_format in FORMATS.items():
        torch.compiler.reset()  # a compiled model would reach the limit of its recompilations
        model.to(memory_format=memory_format)
        step(memory_format)  # to warm up
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < TRIAL_SECONDS:
            start = time.perf_counter()
            step(memory_format)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        best[name] = min(seconds)
    torch.compiler.reset()
    return min(best, key=best.get)


def synchronize(device: str) -> None:
    """Waits until a device has finished its work."""
    if device == 'cuda':
        torch.cuda.synchronize()


def fused_attention() -> contextlib.AbstractContextManager:
    """Makes PyTorch's attention raise a RuntimeError instead of using the kernel that builds the whole attention map.

    Nor does it use cuDNN's, which the configs turn off. Before torch 2.3 nothing is checked.
    """
    if sdpa_kernel is None:
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


def precision(contender: Contender) -> contextlib.AbstractContextManager:
    """Sets the dtype of a contender: autocast, or how products of float32 are computed."""
    if contender.dtype in ('float32', 'tf32'):
        return _float32_precision('high' if contender.dtype == 'tf32' else 'highest')
    return torch.autocast(contender.device, dtype=getattr(torch, contender.dtype))


@contextlib.contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tensor_dtype(contender: Contender) -> torch.dtype:
    return torch.float32 if contender.dtype == 'tf32' else getattr(torch, contender.dtype)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in _tensors(output)]


def _time_parts(parts: dict[str, nn.Module], run: Callable[[], None]) -> Callable[[], dict[str, float]]:
    """Times the parts of a detector by hooks; its heads, which MMDetection calls past hooks, are the rest of a step."""
    spent: dict[str, float] = {}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: spent.update({name: -time.perf_counter()}))
        part.register_forward_hook(lambda *_, name=name: spent.update({name: spent[name] + time.perf_counter()}))

    def step() -> dict[str, float]:
        start = time.perf_counter()
        run()
        return {**spent, 'heads': time.perf_counter() - start - sum(spent.values())} if parts else {}

    return step


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the backbone and the neck of a detector, whose inputs are tensors alone; nothing of a backbone."""
    parts = {name: getattr(model, name, None) for name in ('backbone', 'neck')}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def compile_parts(model: nn.Module) -> None:
    """Compiles the backbone and the neck of a detector, or all of a backbone."""
    for part in _parts(model).values() or [model]:
        part.compile(dynamic=True)


def build(contender: Contender) -> tuple[nn.Module, float]:
    """Builds the model of a contender, which takes images, and counts the multiply-adds of one image in 1e9."""
    model, gflops = (_build_arch if contender.model in FAMILY_OF else _build_config)(contender)
    if contender.prepare:
        module, _, function = contender.prepare.partition(':')
        getattr(importlib.import_module(module), function)(getattr(model, 'backbone', model))
    return model, gflops


def _build_arch(contender: Contender) -> tuple[nn.Module, float]:
    name = contender.model
    if contender.mode in DETECTOR_MODES:
        raise InputError(f'--mode {contender.mode} takes the path of a config, not {name}')
    ours = _ours(name)
    if contender.peer == 'mmdet':
        model = MODELS.build(_mmdet_backbone(name, ours))
    elif contender.peer == 'hf':
        model = _hugging_face(name, contender.shape)
    else:
        model = MODELS.build(dict(ours, with_cp=contender.with_cp))
    return model, flops.count_backbone(Config(dict(model=dict(backbone=ours))), contender.shape)


def _ours(name: str) -> dict:
    """Returns the config of this project's backbone of an arch."""
    return dict(type=f'pvt_mm.{FAMILY_OF[name]}', arch=name)


def _hugging_face(name: str, shape: tuple[int, int]) -> nn.Module:
    is_v1 = FAMILY_OF[name] == 'PVT'
    if is_v1 and shape[0] != shape[1]:  # it cannot resample position embeddings to a map that is not square
        raise InputError(f'--peers hf takes squares only, and --shape is {shape[0]} {shape[1]}')
    with import_errors('--peers hf needs transformers', 'pvt_mm[hf]'):
        from transformers import PvtConfig, PvtModel, PvtV2Config, PvtV2Model

    theirs = dict(embed_dims='hidden_sizes', num_heads='num_attention_heads', linear='linear_attention')
    theirs |= dict(sr_ratios='sequence_reduction_ratios') if is_v1 else {}
    arch = {theirs.get(key, key): value for key, value in FAMILIES[FAMILY_OF[name]][name]._asdict().items()}
    arch |= dict(drop_path_rate=DROP_PATH_RATE, return_dict=False)
    if is_v1:
        return PvtModel(PvtConfig(image_size=shape[0], strides=arch['patch_sizes'], **arch))
    return PvtV2Model(PvtV2Config(**arch))


def _build_config(contender: Contender) -> tuple[nn.Module, float]:
    config = _load_config(contender)
    if contender.with_cp:
        config.model.backbone.with_cp = True
    part = 'model' if contender.mode in DETECTOR_MODES else 'backbone'
    gflops = next(counted.gflops for counted in flops.count(config, contender.shape) if counted.name == part)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        model = MODELS.build(copy.deepcopy(config.model))
    return DETECTOR_MODES.get(contender.mode, operator.attrgetter('backbone'))(model), gflops


def _load_config(contender: Contender) -> Config:
    config = load_config(contender.model, contender.options)
    if contender.peer == 'hf':
        raise InputError(f'--peers hf takes an arch, and not the path of a config such as {contender.model}')
    if contender.peer:
        config.model.backbone = _mmdet_backbone(contender.model, config.model.backbone)
    return config


def _mmdet_backbone(model: str, ours: dict) -> dict:
    """Returns the config of MMDetection's backbone of the same sizes as one of ours."""
    if find_spec('mmdet') is None:
        raise InputError('--peers mmdet: MMDetection is not installed')
    with torch.device('meta'):
        backbone = MODELS.build(copy.deepcopy(ours))
    arch = backbone.arch if isinstance(backbone, Backbone) else None
    widths = {C / heads for C, heads in zip(arch.embed_dims, arch.num_heads, strict=True)} if arch else set()
    if len(widths) != 1 or (isinstance(arch, ArchV2) and arch.linear):
        raise InputError(f'--peers mmdet: MMDetection has no backbone like that of {model}')
    if isinstance(arch, Arch):
        kind = dict(patch_sizes=arch.patch_sizes, strides=arch.patch_sizes)
    else:  # MMDetection's class of PVTv2 has the strides of Table 1 only
        kind = dict(strides=arch.strides, use_abs_pos_embed=False, norm_after_stage=True, use_conv_ffn=True)
        kind |= dict(
            patch_sizes=[2 * stride - 1 for stride in arch.strides], paddings=[stride - 1 for stride in arch.strides]
        )
    return dict(
        type='mmdet.PyramidVisionTransformer',
        **kind,
        embed_dims=int(widths.pop()),
        num_stages=len(arch.depths),
        num_layers=arch.depths,
        num_heads=arch.num_heads,
        sr_ratios=arch.sr_ratios,
        mlp_ratios=arch.mlp_ratios,
        in_channels=backbone.in_channels,
        out_indices=backbone.out_indices,
        drop_path_rate=ours.get('drop_path_rate', DROP_PATH_RATE),
    )


class _Detector(nn.Module):
    """A detector or segmentor from images to the outputs of its heads, before boxes are decoded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.backbone, self.neck = model.backbone, getattr(model, 'neck', None)

    def forward(self, image: Tensor) -> Any:
        if not hasattr(self.model, 'bbox_head') and not hasattr(self.model, 'roi_head'):
            return self.model(image, mode='tensor')
        from mmdet.structures import DetDataSample

        size = tuple(image.shape[2:])
        facts = dict(img_shape=size, batch_input_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        return self.model(image, [DetDataSample(metainfo=facts) for _ in image], mode='tensor')


class _DetectorTraining(_Detector):
    """A detector from images to its loss on twelve boxes an image, which are the same in each step.

    mmcv's operators and the losses are computed in float32, as with ``tools/train.py --amp bf16``.
    """

    def forward(self, image: Tensor) -> Tensor:
        if not hasattr(self, 'samples'):
            from mmdet.testing import demo_mm_inputs

            from pvt_mm.engine.hooks.float32_ops_hook import float32_ops  # imports MMCV

            float32_ops(self.model)
            shapes = [image.shape[1:]] * len(image)
            like = dict(num_classes=80, with_mask=True, device=str(image.device))
            self.samples = demo_mm_inputs(len(image), shapes, [12] * len(image), **like)['data_samples']
            for sample in self.samples:
                sample.set_metainfo(dict.fromkeys(('batch_input_shape', 'pad_shape'), tuple(image.shape[2:])))
        return self.model.parse_losses(self.model(image, self.samples, mode='loss'))[0]


DETECTOR_MODES = dict(detector=_Detector, detector_train=_DetectorTraining)


def _prepare_attention(contender: Contender) -> Prepared:
    """Prepares the attention of every layer of an arch on random queries, keys and values."""
    if contender.model not in FAMILY_OF or contender.peer:
        raise InputError(f'--mode attention takes one of {", ".join(FAMILY_OF)}, and no --peers')
    memory, like = used_memory(contender.device), dict(device=contender.device, dtype=_tensor_dtype(contender))
    with torch.device('meta'):
        backbone = MODELS.build(_ours(contender.model)).eval()
    inputs, gflops = [], 0.0

    def add(attn: SRA, args: tuple[Tensor, tuple[int, int]]) -> None:
        nonlocal gflops
        queries, C = args[0].shape[1:]
        keys = attn.reduce(*args).shape[1]
        lengths = (queries, keys, keys)
        inputs.append([torch.randn(contender.batch, attn.num_heads, n, C // attn.num_heads, **like) for n in lengths])
        gflops += 2 * queries * keys * C * contender.batch / 1e9

    for stage in backbone.stages:
        for layer in stage.layers:
            layer.attn.register_forward_pre_hook(add)
    with torch.no_grad():
        backbone(torch.empty(1, 3, *contender.shape, device='meta'))

    def step() -> dict[str, float]:
        with precision(contender), fused_attention(), torch.no_grad():
            for q, k, v in inputs:
                F.scaled_dot_product_attention(q, k, v)
        return {}

    return Prepared(step, memory, contender.batch, gflops, 'contiguous')


# Both multiply square matrices. On a CPU torch.mm uses MKL, and a convolution oneDNN (with one thread, if dilated).
PRODUCTS = {
    'torch.mm': lambda a, b: a @ b,
    'torch.conv2d': lambda a, b: F.conv2d(a[None, :, None].permute(0, 3, 1, 2), b[..., None, None], dilation=2),
}


def products(device: str, dtype: str, threads: int) -> list[Contender]:
    """Returns the contenders that measure the machine's own rate of matrix products."""
    names = list(PRODUCTS) if (device, dtype) == ('cpu', 'float32') else ['torch.mm']
    return [Contender(name, (0, 0), 'product', device=device, dtype=dtype, threads=threads) for name in names]


def _prepare_product(contender: Contender) -> Prepared:
    side, times = (8192, 8) if contender.device == 'cuda' else (2048, 4)
    a, b = (torch.randn(side, side, device=contender.device, dtype=_tensor_dtype(contender)) for _ in range(2))

    def step() -> dict[str, float]:
        with precision(contender), torch.no_grad():
            for _ in range(times):
                PRODUCTS[contender.model](a, b)
        return {}

    return Prepared(step, used_memory(contender.device), 1, times * side**3 / 1e9, 'contiguous')


def _prepare_end2end(contender: Contender) -> Prepared:
    """Prepares a step that loads the next batch of a config's test data and predicts."""
    if contender.model in FAMILY_OF or contender.peer == 'hf':
        raise InputError('--mode end2end takes the path of a config, and no --peers but mmdet')
    from pvt_mm.apis.data_checks import check_data  # imports MMCV, which a backbone alone does without

    config = _load_config(contender)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        check_data(config, 'test')
        model = MODELS.build(config.model).to(contender.device).eval()
        loader = Runner.build_dataloader(config.test_dataloader)
    chosen = 'contiguous' if contender.memory_format == 'better' else contender.memory_format  # the data is contiguous
    model.to(memory_format=FORMATS[chosen])
    if contender.compile:
        compile_parts(model)
    if len(loader.dataset) < loader.batch_size:
        raise InputError(f'{contender.model}: its test data is less than a batch of {loader.batch_size} images')
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    batches = (batch for batch in batches if len(batch['inputs']) == loader.batch_size)  # without the smaller last one

    def step() -> dict[str, float]:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        with precision(contender), fused_attention(), torch.no_grad():
            model.test_step(batch)
        return {'waiting for data': waited}

    return Prepared(step, used_memory(contender.device), loader.batch_size, None, chosen)
