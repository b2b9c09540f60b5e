# Table 5: Semantic FPN on ADE20K with nine backbones, and PVT-Large with a longer schedule, which the paper tests with
# tools/test.py --tta. 10 trials; the batch of 16 is 4 images on each of 4 GPUs.
#   tools/sweep.py configs/sweeps/semantic_fpn_backbones.py --executor slurm --gpus 4
title = 'Semantic FPN on ADE20K (Table 5)'
metric = 'mIoU'
backbones = ['r18', 'pvt_t', 'r50', 'pvt_s', 'r101', 'x101_32x4d', 'pvt_m', 'x101_64x4d', 'pvt_l']
configs = [*(f'../semantic_fpn/{name}_80k.py' for name in backbones), '../semantic_fpn/pvt_l_320k.py']
