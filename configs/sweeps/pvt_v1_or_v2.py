# PVT and PVTv2 at about equal sizes, RetinaNet 1x (Table 3 of both papers): 9 trials of 8 GPUs.
#   tools/sweep.py configs/sweeps/pvt_v1_or_v2.py --executor slurm --gpus 8
title = 'PVT and PVTv2 at equal size, RetinaNet on COCO val2017 (Table 3 of both papers)'
metric = 'coco/bbox_mAP'
backbones = ['t', 'v2_b1', 's', 'v2_b2_li', 'v2_b2', 'm', 'v2_b3', 'l', 'v2_b4']
configs = [f'../retinanet/pvt_{name}_1x.py' for name in backbones]
