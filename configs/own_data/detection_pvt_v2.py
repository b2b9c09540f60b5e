# Boxes on your own data: RetinaNet with PVTv2-B2 from the detector that MMDetection trained on COCO (44.6 AP there).
#   tools/train.py configs/own_data/detection_pvt_v2.py --data FOLDER
# The recipe is detection.py's.
_base_ = ['./detection.py', '../_base_/pvt_v2_b2.py']
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/pvt/retinanet_pvtv2-b2_fpn_1x_coco/'
    'retinanet_pvtv2-b2_fpn_1x_coco_20210901_174843-529f0b9a.pth'
)
model = dict(backbone={**_base_.pvt, 'init_cfg': None})
