"""The sizes of the published models, by the names that ``arch`` takes, and their weights."""

from typing import Any, NamedTuple, TypeVar


class Arch(NamedTuple):
    """The sizes of a PVT, one entry a stage (section 3.4)."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    sr_ratios: tuple[int, ...]
    mlp_ratios: tuple[int, ...]

    @property
    def min_size(self) -> int:
        """The least side in pixels that leaves every stage a token, also after its spatial reduction."""
        stride, least = 1, 1
        for patch_size, sr_ratio in zip(self.patch_sizes, self.sr_ratios, strict=True):
            stride *= patch_size
            least = max(least, stride * sr_ratio)
        return least


class ArchV2(NamedTuple):
    """The sizes of a PVTv2, one entry a stage, and whether its attention is linear SRA (Table 1 of PVT v2)."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    strides: tuple[int, ...]
    sr_ratios: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    linear: bool = False

    @property
    def min_size(self) -> int:
        """The least side in pixels that leaves every spatial reduction a token; a stage's side is rounded up."""
        stride, least = 1, 1
        for step, sr_ratio in zip(self.strides, self.sr_ratios, strict=True):
            stride *= step
            least = max(least, stride * (sr_ratio - 1) + 1)
        return 1 if self.linear else least


Sizes = TypeVar('Sizes', Arch, ArchV2)

# Table 1; small_wide is Table 9's, whose heads are 64 * 1.4 = 89 wide.
# NOTE: stage 2 of small and medium has 4 layers, as in the authors' release, and not 3: only with 4 do they have the
# 24.5 M and 44.2 M parameters of Table 2.
# fmt: off
ARCHS = {
    #                  C: embed_dims         L: depths      N: num_heads  P: patch_sizes  R: sr_ratios  E: mlp_ratios
    'tiny':       Arch((64, 128, 320, 512), (2, 2,  2, 2), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'small':      Arch((64, 128, 320, 512), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'medium':     Arch((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'large':      Arch((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'small_wide': Arch((89, 178, 445, 712), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
}
# Table 1 of PVT v2.
# NOTE: stage 2 of b2, b2_li and b3 has 4 layers, as in the authors' release, and not 3: only with 4 does b2 have the
# 25.4 M parameters of Table 2.
ARCHS_V2 = {
    #               C: embed_dims         L: depths      N: num_heads  S: strides    R: sr_ratios  E: mlp_ratios
    'b0':    ArchV2((32,  64, 160, 256), (2, 2,  2, 2), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4)),
    'b1':    ArchV2((64, 128, 320, 512), (2, 2,  2, 2), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4)),
    'b2':    ArchV2((64, 128, 320, 512), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4)),
    'b2_li': ArchV2((64, 128, 320, 512), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4), True),
    'b3':    ArchV2((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4)),
    'b4':    ArchV2((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (8, 8, 4, 4)),
    'b5':    ArchV2((64, 128, 320, 512), (3, 6, 40, 3), (1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), (4, 4, 4, 4)),
}
# fmt: on
# The authors' releases, trained on ImageNet-1k at 224 x 224 pixels. Both papers' are of the release named v2.
_RELEASE = 'https://github.com/whai362/PVT/releases/download/v2'
IMAGENET = {arch: f'{_RELEASE}/pvt_{arch}.pth' for arch in ('tiny', 'small', 'medium', 'large')}
IMAGENET_V2 = {arch: f'{_RELEASE}/pvt_v2_{arch}.pth' for arch in ARCHS_V2}


def resolve_arch(arch: str | dict, named: dict[str, Sizes]) -> Sizes:
    """Returns the sizes that ``arch`` names or spells out.

    Raises:
        ValueError: An unknown name, a missing or unknown key, or sizes that do not fit each other.
    """
    if isinstance(arch, str):
        if arch not in named:
            other = 'PVT' if arch in ARCHS else 'PVTv2' if arch in ARCHS_V2 else ''
            hint = f" (it is one of type='pvt_mm.{other}')" if other else ''
            raise ValueError(
                f'unknown arch {arch!r}{hint}: choose from {", ".join(named)}, or give a dict of the sizes'
            )
        return named[arch]
    kind = type(next(iter(named.values())))
    if not isinstance(arch, dict) or set(arch) | set(kind._field_defaults) != set(kind._fields):
        given = sorted(map(str, arch)) if isinstance(arch, dict) else arch
        raise ValueError(f'arch must be a name or a dict with the keys {", ".join(kind._fields)}; got {given}')
    linear = arch.get('linear', False)
    if not isinstance(linear, bool):
        raise ValueError(f'linear must be True or False; got {linear!r}')
    columns = {key: value for key, value in arch.items() if key != 'linear'}
    if not all(isinstance(value, (list, tuple)) for value in columns.values()):
        raise ValueError(f'every entry of arch must be a list or tuple of one number a stage; got {columns}')
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f'every entry of arch must have one number a stage; got lengths {lengths}')
    for key, column in columns.items():
        if not all(type(number) is int and number > 0 for number in column):
            raise ValueError(f'every number in arch must be a positive integer; got {key}={tuple(column)}')
    for dims, heads in zip(columns['embed_dims'], columns['num_heads'], strict=True):
        if dims % heads:
            raise ValueError(f'embed_dims must be divisible by num_heads; got {dims} and {heads}')
    sizes: dict[str, Any] = {key: tuple(column) for key, column in columns.items()}
    return kind(**sizes, linear=linear) if kind is ArchV2 else kind(**sizes)


def first_stages(sizes: Sizes, count: int) -> Sizes:
    """Returns the sizes of the first ``count`` stages."""
    columns: list[Any] = [value[:count] if isinstance(value, tuple) else value for value in sizes]
    return type(sizes)(*columns)


def resolve_weights(
    weights: str | None, arch: str | dict, published: dict[str, str], init_cfg: dict | list[dict] | None
) -> str | None:
    """Returns the checkpoint that ``weights`` names.

    Raises:
        ValueError: It names none, or ``init_cfg`` does so too.
    """
    if weights is None:
        return None
    if init_cfg is not None:
        raise ValueError('weights and init_cfg both say what to load: give one of them')
    if not isinstance(weights, str):
        raise ValueError(f"weights must be 'imagenet', a path, a URL or hf://owner/name, got {weights!r}")
    if weights != 'imagenet':
        return weights
    if not isinstance(arch, str) or arch not in published:
        raise ValueError(
            f'there are no published ImageNet weights of arch {arch!r}, only of {", ".join(published)}: '
            'set weights=PATH'
        )
    return published[arch]
