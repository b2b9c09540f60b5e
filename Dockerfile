# PyTorch, mmcv compiled for CUDA, and this project, for the GPUs of a cluster. Nobody has built this image yet.
#
#     docker build --build-arg ARCHS='8.0;9.0' -t pvt_mm .
#     docker run --gpus all --shm-size=8g -v /data/coco:/pvt_mm/data/coco -v "$PWD/work_dirs:/pvt_mm/work_dirs" pvt_mm \
#         tools/train.py configs/retinanet/pvt_s_1x.py
#
# ARCHS are the compute capabilities of the GPUs: 8.0 for A100, 9.0 for H100 and H200. For drivers older than R580:
#
#     --build-arg IMAGE=nvidia/cuda:12.6.3-devel-ubuntu24.04 --build-arg CUDA=12.6
ARG IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${IMAGE}
ARG CUDA=13.0
ARG ARCHS='8.0;9.0'

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ git libgl1 libglib2.0-0 make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Only what the installation reads, so that another change to the project does not compile mmcv again.
WORKDIR /pvt_mm
COPY LICENSE README.md pyproject.toml setup.py ./
COPY requirements requirements
COPY pvt_mm/__init__.py pvt_mm/version.py pvt_mm/
COPY tools/install.sh tools/
RUN PIP_NO_CACHE_DIR=1 VENV=/opt/venv CUDA="$CUDA" TORCH_CUDA_ARCH_LIST="$ARCHS" tools/install.sh \
    || { cat /opt/venv/install.log; exit 1; }
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

COPY . .
RUN pip install --no-build-isolation --no-deps -e .
CMD ["bash"]
