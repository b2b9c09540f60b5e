"""Packaging: metadata, extras, and the configs, tools and model index that ship inside the package."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import FileError

ROOT = Path(__file__).resolve().parent
# Files of an OpenMMLab package in `<package>/.mim`, where MIM and `_base_ = '<package>::...'` look for them.
MIM = ('configs', 'tools', 'model-index.yml')


def read_version() -> str:
    """Reads the version without importing the package, whose dependencies may not be installed yet."""
    text = (ROOT / 'pvt_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


def check_mim() -> None:
    """Raises a FileError if a part of `.mim` is missing."""
    missing = [name for name in MIM if not (ROOT / name).exists()]
    if missing:
        raise FileError(f'cannot build a distribution without {", ".join(missing)} in {ROOT}')


class BuildPy(build_py):
    """Adds `pvt_mm/.mim`: copies of `MIM` in a wheel, links to them in the source tree of an editable install."""

    def run(self):
        super().run()
        if self.editable_mode:
            self.link_mim()
        else:
            check_mim()
            self.copy_mim()

    def copy_mim(self):
        target = self.mim_target()
        shutil.rmtree(target, ignore_errors=True)  # from an earlier build
        for source, copy in self.mim_files():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)

    def link_mim(self):
        target = ROOT / 'pvt_mm' / '.mim'
        target.mkdir(exist_ok=True)
        for name in MIM:
            source, link = ROOT / name, target / name
            if link.is_symlink() or link.is_file():
                link.unlink()
            elif link.is_dir():
                shutil.rmtree(link)
            if not source.exists():
                continue
            try:
                link.symlink_to(os.path.relpath(source, target), target_is_directory=source.is_dir())
            except OSError:  # the file system or the Windows account does not support links
                (shutil.copytree if source.is_dir() else shutil.copy)(source, link)

    def mim_target(self) -> Path:
        return Path(self.build_lib) / 'pvt_mm' / '.mim'

    def mim_files(self) -> list[tuple[Path, Path]]:
        """Returns each file of `MIM` with the path of its copy below `build_lib`."""
        files = [path for name in MIM for path in (ROOT / name, *(ROOT / name).rglob('*')) if path.is_file()]
        files = [path for path in files if '__pycache__' not in path.parts]
        return [(path, self.mim_target() / path.relative_to(ROOT)) for path in sorted(files)]

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + [str(copy) for _, copy in self.mim_files()]


class Sdist(sdist):
    """Raises a FileError if no wheel could be built from the source distribution."""

    def run(self):
        check_mim()
        super().run()


setup(
    name='pvt_mm',
    version=read_version(),
    description='The Pyramid Vision Transformer for MMDetection, MMSegmentation and anything built on MMEngine',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, object detection, semantic segmentation, vision transformer',
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['pvt_mm', 'pvt_mm.*']),
    include_package_data=False,
    cmdclass={'build_py': BuildPy, 'sdist': Sdist},
    zip_safe=False,
    python_requires='>=3.10',
    # OpenMMLab distributions are extras: upstream and the maintained forks share import names, so a requirement on one
    # would overwrite the other.
    install_requires=['numpy', 'rich', 'torch>=2.1'],
    extras_require={
        'onedl': [
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmengine>=0.10.12',
            'onedl-mmsegmentation>=1.4.2',
        ],
        'openmmlab': [
            'mmcv>=2.0.0,<2.2.0',
            'mmdet>=3.3.0,<4.0.0',
            'mmengine>=0.10.0,<1.0.0',
            'mmsegmentation>=1.2.0,<2.0.0',
            'ftfy',  # mmsegmentation imports ftfy and regex without requiring them
            'regex',
        ],
        'classification': ['kornia>=0.8'],  # the augmentations
        'hf': ['huggingface_hub', 'safetensors', 'transformers'],
        'onnx': ['onnx>=1.19', 'onnxruntime>=1.23', 'onnxscript>=0.5'],
        'serve': ['fastapi', 'onnxruntime>=1.23', 'pillow>=10.1', 'uvicorn'],
        'sweep': ['submitit>=1.5'],
        'tests': [
            'fastapi',
            'hypothesis',
            'import-linter',
            'mypy',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'pytest',
            'pytest-timeout',
            'pytest-xdist',
            'ruff',
            'safetensors',
            'submitit>=1.5',
            'transformers',
            'uvicorn',
        ],
    },
)
