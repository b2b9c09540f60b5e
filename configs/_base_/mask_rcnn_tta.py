# Three scales, flipped and not, as MMDetection tests RetinaNet, with masks.
_base_ = 'mmdet::retinanet/retinanet_tta.py'
tta_model = dict(type='pvt_mm.InstanceTTAModel')
