# Table 11: RetinaNet with PVT-Small at a shorter side of 640 pixels, about as fast as ResNet-50 at 800.
#   tools/sweep.py configs/sweeps/input_scale.py --executor slurm --gpus 8
title = 'Input scale, RetinaNet on COCO val2017 (Table 11)'
metric = 'coco/bbox_mAP'
configs = dict(
    r50_800='../retinanet/r50_1x.py', pvt_s_640='../retinanet/pvt_s_640_1x.py', pvt_s_800='../retinanet/pvt_s_1x.py'
)
