"""Time, memory and arithmetic rate of models side by side: what ``tools/benchmark.py`` and ``make bench`` measure.

Every contender runs in a process of its own, so that its peak memory is its own, and waits while another is timed. They
take turns, a step each a round, so that whatever else slows the machine slows them all: ratios are medians over rounds.
"""

import contextlib
import copy
import itertools
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pvt_mm.analysis import flops
from pvt_mm.engine import run
from pvt_mm.errors import WRONG_CONFIG, InputError
from pvt_mm.models.pvt import ARCHS, PVT, attention

MODES = {
    'forward': 'the backbone, without gradients',
    'train': 'the backbone, forward and backward',
    'attention': "the backbone's attention alone, on random queries, keys and values",
    'detector': 'the whole detector or segmentor, without gradients',
    'end2end': 'the whole of testing: images from disk through the pipeline and the model to predictions',
}
PEERS = {'mmdet': "MMDetection's built-in PVT", 'hf': "Hugging Face's PvtModel (squares only)"}
MMDETS = ('tiny', 'small', 'medium', 'large')
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


@dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        model: A name of ``ARCHS``, the path of a config, or one of ``PRODUCTS``.
        shape: (H, W) of an image in pixels; end2end takes those of its data.
        mode: One of ``MODES``.
        peer: Whose PVT: one of ``PEERS``, or '' for this project's.
        batch: Images a step; end2end takes its data's.
        dtype: 'float32', or what ``torch.autocast`` runs in.
        compile: Whether ``torch.compile`` with dynamic sizes does its work first.
        memory_format: One of ``FORMATS``, or 'better' for the one that a few steps show to be faster.
        threads: Of PyTorch on the CPU; 0 leaves it to PyTorch.
        with_cp: Whether the backbone recomputes its layers in the backward pass.
        options: The config's settings to override.
        label: What tables and pictures call it, in place of the model's own name.
    """

    model: str
    shape: tuple[int, int] = (800, 1344)
    mode: str = 'forward'
    peer: str = ''
    batch: int = 1
    device: str = 'cpu'
    dtype: str = 'float32'
    compile: bool = False
    memory_format: str = 'contiguous'
    threads: int = 0
    with_cp: bool = False
    options: dict = field(default_factory=dict)
    label: str = ''

    @property
    def name(self) -> str:
        """What a table calls it."""
        path = Path(self.model)
        name = f'{path.parent.name}/{path.stem}'.lstrip('/') if path.suffix == '.py' else self.model
        if self.model in ARCHS:
            name = f'PVT-{name.title().replace("_", "-")}'
        name = self.label or name
        by = PEERS[self.peer].split("'")[0] if self.peer else ''
        extras = [by, 'compiled' * self.compile, 'with_cp' * (self.with_cp and self.mode == 'train')]
        return ', '.join([name, *filter(None, extras)])


@dataclass(frozen=True)
class Result:
    """What was measured of a contender.

    Attributes:
        seconds: Of each round's step.
        waited: Of these, the seconds that the model waited for data (end2end).
        images: That a step takes.
        gflops: Multiply-adds of a step in 1e9, as papers count; None where they are not known.
        peak_memory: GB above what the built model and its input take; None where the system does not tell.
        memory_format: That was used.
    """

    contender: Contender
    seconds: tuple[float, ...]
    waited: tuple[float, ...]
    images: int
    gflops: float | None
    peak_memory: float | None
    memory_format: str

    @property
    def median(self) -> float:
        """The median step in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return (third - first) / 2 / self.median

    @property
    def rate(self) -> float | None:
        """GFLOP/s, two a multiply-add."""
        return None if self.gflops is None else 2 * self.gflops / self.median

    def ratio(self, other: 'Result') -> float:
        """How many times as long ``other`` takes: the median over the rounds."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))

    def summary(self) -> dict:
        """Returns what the last line of the tool has, as JSON."""
        left_out = ('memory_format', 'options', 'label')
        return {
            **{key: value for key, value in asdict(self.contender).items() if key not in left_out},
            'name': self.contender.name,
            'threads': self.contender.threads or torch.get_num_threads(),
            'memory_format': self.memory_format,
            'median_s': round(self.median, 5),
            'spread': round(self.spread, 4),
            'rounds': len(self.seconds),
            'images_per_s': round(self.images / self.median, 3),
            'waited_share': round(sum(self.waited) / sum(self.seconds), 4),
            'gflops': self.gflops and round(self.gflops, 2),
            'gflop_per_s': self.rate and round(self.rate, 1),
            'peak_memory_gb': self.peak_memory and round(self.peak_memory, 3),
        }


def measure(contenders: Sequence[Contender], rounds: int, report: Callable[[str], Any]) -> list[Result]:
    """Measures contenders in turns, after two steps each to warm up; ``report`` gets the name of each before its steps.

    Raises:
        InputError: A contender cannot be built or run; the message names it.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for contender in contenders:
            report(contender.name)
            workers.append(stack.enter_context(_worker(contender)))
            for _ in range(2):
                workers[-1].step()
            workers[-1].forget_peak()
        steps = [[] for _ in workers]
        for _ in range(rounds):
            for worker, taken in zip(workers, steps, strict=True):
                report(worker.contender.name)
                taken.append(worker.step())
        results = []
        for worker, taken in zip(workers, steps, strict=True):
            seconds, waited, peaks = zip(*taken, strict=True)
            peak = max(peaks) if None not in peaks else None
            results.append(Result(worker.contender, seconds, waited, peak_memory=peak, **worker.facts))
    return results


def products(device: str, dtype: str, threads: int) -> list[Contender]:
    """Returns the contenders that measure the machine's own rate of matrix products."""
    names = list(PRODUCTS) if (device, dtype) == ('cpu', 'float32') else ['torch.mm']
    return [Contender(name, (0, 0), 'product', device=device, dtype=dtype, threads=threads) for name in names]


def machine(device: str) -> str:
    """Returns what was measured on, in words: names such as "AMD EPYC" are of many generations, so with the model."""
    if device == 'cuda':
        return f'{torch.cuda.get_device_name()}, torch {torch.__version__}'
    facts = {}
    with contextlib.suppress(OSError):
        facts = dict(re.findall(r'^(.*?)\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE))
    name = facts.get('model name') or platform.processor() or platform.machine()
    if 'cpu family' in facts and 'model' in facts:
        name += f' (family {facts["cpu family"]}, model {facts["model"]})'
    capability = torch.backends.cpu.get_cpu_capability()
    return f'{name}, {os.cpu_count()} cores, {capability}, torch {torch.__version__}'


# ---------------------------------------------------------------------------------------------- where the time goes

# The operators of a model on a CPU by what they do; PyTorch's profiler names them.
KINDS = {
    'products': ('mkldnn::_linear_pointwise', 'aten::mkldnn_convolution', 'aten::addmm', 'aten::mm', 'aten::bmm'),
    'softmax': ('aten::_softmax',),
    'copies': ('aten::copy_', 'mkldnn::_reorder_linear_weight'),
    'norms and additions': ('aten::native_layer_norm', 'aten::native_batch_norm', 'aten::add', 'aten::add_'),
}


def time_by_kind(contender: Contender, steps: int) -> dict[str, float]:
    """Returns the shares of a contender's time on the CPU by kind of operator: those of ``KINDS``, and the rest."""
    step, _, _ = _prepare(contender)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as noted:
        for _ in range(steps):
            step()
    spent = {event.key: event.self_cpu_time_total for event in noted.key_averages()}
    total = sum(spent.values())
    shares = {kind: sum(spent.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    return shares | {'rest': 1 - sum(shares.values())}


def time_by_part(detectors: Sequence[Contender], rounds: int) -> list[dict[str, float]]:
    """Returns the median seconds that the backbone, the neck and the heads of each detector take, in turns."""
    models, spent = [], []
    for contender in detectors:
        memory_format = FORMATS[contender.memory_format]
        model = _build(contender)[0].eval().to(memory_format=memory_format)
        models.append(
            (model, torch.randn(contender.batch, 3, *contender.shape).contiguous(memory_format=memory_format))
        )
        spent.append({'backbone': [], 'neck': [], 'heads': []})
        for part, seconds in ((model.backbone, spent[-1]['backbone']), (model.neck, spent[-1]['neck'])):
            part.register_forward_pre_hook(lambda *_, seconds=seconds: seconds.append(-time.perf_counter()))
            part.register_forward_hook(lambda *_, seconds=seconds: seconds.append(seconds.pop() + time.perf_counter()))
    for _ in range(1 + rounds):  # one to warm up
        for (model, image), parts in zip(models, spent, strict=True):
            start = time.perf_counter()
            with torch.no_grad():
                model(image)
            # MMDetection calls its heads past their hooks: they are what is left.
            parts['heads'].append(time.perf_counter() - start - parts['backbone'][-1] - parts['neck'][-1])
    return [{part: statistics.median(seconds[1:]) for part, seconds in parts.items()} for parts in spent]


# ------------------------------------------------------------------------------------------------- a process each


class _Worker:
    """The process of a contender, seen from outside."""

    def __init__(self, contender: Contender):
        context = multiprocessing.get_context('spawn')
        self.contender = contender
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, contender), daemon=contender.mode != 'end2end')
        self.process.start()
        other.close()

    def build(self) -> None:
        """Waits until the contender is built, and takes what else a :class:`Result` has."""
        self.facts = self._receive()

    def step(self) -> tuple[float, float, float | None]:
        """Runs a step: its seconds, those of them spent waiting for data, and the peak memory so far in GB."""
        return self._receive('step')

    def forget_peak(self) -> None:
        """Looks for the peak memory from here on: what compiling and trying formats took is none of the steps'."""
        self.pipe.send('reset')

    def _receive(self, question: str | None = None) -> Any:
        try:
            if question:
                self.pipe.send(question)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise InputError(
                f'{self.contender.name}: its process died, as from a lack of memory: try a smaller --shape or --batch'
            ) from None
        if isinstance(answer, InputError):
            raise answer
        return answer


@contextlib.contextmanager
def _worker(contender: Contender) -> Iterator[_Worker]:
    worker = _Worker(contender)
    try:
        worker.build()
        yield worker
    finally:
        worker.process.terminate()
        worker.process.join()


def _serve(pipe: Any, contender: Contender) -> None:
    """Runs in the process of a contender: builds it, then a step whenever it is asked for one."""
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError, EOFError):
        try:
            if contender.threads:
                torch.set_num_threads(contender.threads)
            with _quiet():
                step, before, facts = _prepare(contender)
            pipe.send(facts)
            while True:
                if pipe.recv() == 'reset':
                    _memory(contender.device, 'reset')
                    continue
                start = time.perf_counter()
                waited = step() or 0.0
                _synchronize(contender.device)
                seconds = time.perf_counter() - start
                peak = _memory(contender.device, 'peak')
                pipe.send((seconds, waited, None if peak is None or before is None else (peak - before) / 1e9))
        except (*WRONG_CONFIG, RuntimeError, NotImplementedError) as error:
            first = str(error).strip().split('\n')[0]
            pipe.send(InputError(first if isinstance(error, InputError) else f'{contender.name}: {first}'))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What models say while they are built would break the progress bar."""
    import logging
    import warnings

    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter('ignore')
        yield


def _synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def _memory(device: str, what: str) -> float | None:
    """Returns the memory in use in bytes, from which on a peak is looked for ('reset'), or that peak ('peak').

    On a CPU it is the memory of the process, which Linux alone tells.
    """
    if device == 'cuda':
        if what == 'reset':
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    try:
        if what == 'reset':
            Path('/proc/self/clear_refs').write_text('5')
        status = Path('/proc/self/status').read_text()
    except OSError:
        return None
    key = {'reset': 'VmRSS', 'peak': 'VmHWM'}[what]
    found = re.search(rf'{key}:\s+(\d+)', status)
    return found and 1024 * int(found.group(1))


# ----------------------------------------------------------------------------------------------------- what is run


Prepared = tuple[Callable[[], float | None], float | None, dict]


def _prepare(contender: Contender) -> Prepared:
    """Builds a contender: a function that runs a step, the memory before, and what else a :class:`Result` has."""
    if contender.mode == 'product':
        return _prepare_product(contender)
    if contender.mode == 'end2end':
        return _prepare_end2end(contender)
    model, gflops = _build(contender)
    model = model.to(contender.device)
    model.train(contender.mode == 'train')
    if contender.compile:
        _compile(model)
    image = torch.randn(contender.batch, 3, *contender.shape, device=contender.device)

    def step(memory_format: torch.memory_format) -> None:
        with _precision(contender), fused_attention(), torch.set_grad_enabled(contender.mode == 'train'):
            outputs = model(image.contiguous(memory_format=memory_format))
        if contender.mode == 'train':
            sum(output.float().mean() for output in _tensors(outputs)).backward()
            model.zero_grad()

    before = _memory(contender.device, 'reset')
    chosen = contender.memory_format
    if chosen == 'better':
        chosen = _faster_format(model, step, contender.device)
    model.to(memory_format=FORMATS[chosen])
    passes = 3 if contender.mode == 'train' else 1  # the backward pass has two products for each of the forward
    gflops = gflops and gflops * passes * contender.batch
    return lambda: step(FORMATS[chosen]), before, dict(images=contender.batch, gflops=gflops, memory_format=chosen)


def _faster_format(model: nn.Module, step: Callable[[torch.memory_format], None], device: str) -> str:
    times = {name: [] for name in FORMATS}
    for attempt in range(3):
        for name, memory_format in FORMATS.items():
            model.to(memory_format=memory_format)
            start = time.perf_counter()
            step(memory_format)
            _synchronize(device)
            if attempt:
                times[name].append(time.perf_counter() - start)
    return min(times, key=lambda name: min(times[name]))


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Has PyTorch's attention fail, with a RuntimeError, where it would take the kernel that builds the whole map."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        yield


def _precision(contender: Contender) -> contextlib.AbstractContextManager:
    if contender.dtype == 'float32':
        return contextlib.nullcontext()
    return torch.autocast(contender.device, dtype=getattr(torch, contender.dtype))


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in _tensors(output)]


def _compile(model: nn.Module) -> None:
    """Compiles a backbone, or of a detector what has tensors alone for inputs: its backbone and neck."""
    parts = [getattr(model, name) for name in ('backbone', 'neck') if isinstance(getattr(model, name, None), nn.Module)]
    for part in parts or [model]:
        part.compile(dynamic=True)


def _build(contender: Contender) -> tuple[nn.Module, float | None]:
    """Builds the model of a contender: it takes images, or for 'attention' nothing, and its multiply-adds in 1e9."""
    if contender.mode == 'attention':
        return _build_attention(contender)
    if contender.model in ARCHS:
        if contender.mode == 'detector':
            raise InputError(f'--mode detector takes the path of a config, not {contender.model}')
        return _build_backbone(contender), _backbone_gflops(contender)
    config = run.load_config(contender.model, contender.options)
    if contender.peer:
        config.model.backbone = _peer_backbone(config, contender)
    if contender.with_cp:
        config.model.backbone.with_cp = True
    if contender.mode == 'detector':
        gflops = flops.count(config, contender.shape)[0].gflops
    else:
        gflops = next(part.gflops for part in flops.count(config, contender.shape) if part.name == 'backbone')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        model = MODELS.build(copy.deepcopy(config.model))
    return (_Detector(model) if contender.mode == 'detector' else model.backbone), gflops


def _build_backbone(contender: Contender) -> nn.Module:
    arch = ARCHS[contender.model]
    if contender.peer == 'mmdet':
        from mmdet.models.backbones import PyramidVisionTransformer

        if contender.model not in MMDETS:
            raise InputError(f'--peers mmdet has no PVT like {contender.model}, but {", ".join(MMDETS)}')
        return PyramidVisionTransformer(num_layers=list(arch.depths), drop_path_rate=0.1)
    if contender.peer == 'hf':
        return _HuggingFace(arch, contender.shape)
    return PVT(contender.model, with_cp=contender.with_cp)


def _peer_backbone(config: Any, contender: Contender) -> dict:
    backbone = config.model.backbone
    name = backbone.get('arch', 'small')
    if backbone.type != 'pvt_mm.PVT' or contender.peer != 'mmdet' or name not in MMDETS:
        raise InputError(
            f'{contender.model}: --peers {contender.peer} has no such backbone; mmdet has PVT-Tiny to Large'
        )
    kept = {key: backbone[key] for key in ('out_indices', 'drop_path_rate') if key in backbone}
    return dict(type='mmdet.PyramidVisionTransformer', num_layers=list(ARCHS[name].depths), **kept)


class _HuggingFace(nn.Module):
    """Hugging Face's PVT, built for one size: it cannot resample its position embeddings to a map that is no square."""

    def __init__(self, arch: Any, shape: tuple[int, int]):
        super().__init__()
        if shape[0] != shape[1]:
            raise InputError(f'--peers hf takes squares alone, and --shape is {shape[0]} {shape[1]}')
        from transformers import PvtConfig, PvtModel

        sizes = dict(
            depths=list(arch.depths), hidden_sizes=list(arch.embed_dims), num_attention_heads=list(arch.num_heads)
        )
        sizes.update(
            patch_sizes=list(arch.patch_sizes), sequence_reduction_ratios=list(arch.sr_ratios), strides=[4, 2, 2, 2]
        )
        self.model = PvtModel(PvtConfig(image_size=shape[0], mlp_ratios=list(arch.mlp_ratios), **sizes))

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).last_hidden_state


class _Detector(nn.Module):
    """A detector or segmentor from images to what its heads put out, before any box is decoded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def backbone(self) -> nn.Module:
        return self.model.backbone

    @property
    def neck(self) -> nn.Module | None:
        return getattr(self.model, 'neck', None)

    def forward(self, image: Tensor) -> Any:
        if not hasattr(self.model, 'bbox_head') and not hasattr(self.model, 'roi_head'):
            return self.model(image, mode='tensor')
        from mmdet.structures import DetDataSample

        size = tuple(image.shape[2:])
        facts = dict(img_shape=size, batch_input_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        return self.model(image, [DetDataSample(metainfo=facts) for _ in image], mode='tensor')


def _backbone_gflops(contender: Contender) -> float:
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        PVT(contender.model).requires_grad_(False)(torch.empty(1, 3, *contender.shape))
    return counter.get_total_flops() / 2e9


def _build_attention(contender: Contender) -> tuple[nn.Module, float]:
    """Returns a model that runs the attention of every layer of a backbone, with the queries that an image has."""
    if contender.model not in ARCHS or contender.peer:
        raise InputError(f'--mode attention takes one of {", ".join(ARCHS)}, and no --peers')
    sizes, gflops = [], 0.0
    side = 1
    for C, depth, heads, P, R, _ in zip(*ARCHS[contender.model], strict=True):
        side *= P
        H, W = (length // side for length in contender.shape)
        N, kept = H * W, (H // R) * (W // R)
        sizes += [(N, kept, C, heads)] * depth
        gflops += 2 * N * kept * C * depth / 1e9
    return _Attention(sizes), gflops


class _Attention(nn.Module):
    """The attention of layers, given by their N, N / R^2, C and heads, on random values that the first step makes."""

    def __init__(self, sizes: Sequence[tuple[int, int, int, int]]):
        super().__init__()
        self.sizes = sizes
        self.inputs: list[tuple[Tensor, Tensor, int]] = []

    def forward(self, image: Tensor) -> None:
        if not self.inputs:
            kind = image.device.type
            like = dict(device=kind, dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
            for N, kept, C, heads in self.sizes:
                self.inputs.append(
                    (torch.randn(len(image), N, C, **like), torch.randn(len(image), kept, 2 * C, **like), heads)
                )
        for q, kv, heads in self.inputs:
            attention(q, kv, heads, 0.0)


# What multiplies matrices on a CPU: torch.mm takes MKL, a convolution oneDNN (with one thread, if it is dilated).
PRODUCTS = {
    'torch.mm': lambda a, b: a @ b,
    'torch.conv2d': lambda a, b: nn.functional.conv2d(
        a[None, :, None].permute(0, 3, 1, 2), b[..., None, None], dilation=2
    ),
}


def _prepare_product(contender: Contender) -> Prepared:
    side, times = (8192, 8) if contender.device == 'cuda' else (2048, 4)
    a, b = (torch.randn(side, side, device=contender.device, dtype=getattr(torch, contender.dtype)) for _ in range(2))

    def step() -> None:
        with torch.no_grad():
            for _ in range(times):
                PRODUCTS[contender.model](a, b)

    return (
        step,
        _memory(contender.device, 'reset'),
        dict(images=1, gflops=times * side**3 / 1e9, memory_format='contiguous'),
    )


def _prepare_end2end(contender: Contender) -> Prepared:
    """Returns a step that takes the next batch of a config's test data and predicts, and tells how long it waited."""
    from mmengine.runner import Runner

    from pvt_mm.engine.checks import check_data

    if contender.model in ARCHS or contender.peer == 'hf':
        raise InputError('--mode end2end takes the path of a config, and no --peers but mmdet')
    config = run.load_config(contender.model, contender.options)
    if contender.peer:
        config.model.backbone = _peer_backbone(config, contender)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        check_data(config, 'test')
        model = MODELS.build(config.model).to(contender.device).eval()
        loader = Runner.build_dataloader(config.test_dataloader)
    chosen = 'contiguous' if contender.memory_format == 'better' else contender.memory_format  # the data is contiguous
    model.to(memory_format=FORMATS[chosen])
    if contender.compile:
        _compile(model)
    if len(loader.dataset) < loader.batch_size:
        raise InputError(f'{contender.model}: its test data is less than a batch of {loader.batch_size} images')
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    batches = (batch for batch in batches if len(batch['inputs']) == loader.batch_size)  # not the rest of the data

    def step() -> float:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        with _precision(contender), fused_attention(), torch.no_grad():
            model.test_step(batch)
        return waited

    facts = dict(images=loader.batch_size, gflops=None, memory_format=chosen)
    return step, _memory(contender.device, 'reset'), facts
