# Three scales, with and without a flip, as in MMDetection's RetinaNet, and with masks.
_base_ = 'mmdet::retinanet/retinanet_tta.py'
tta_model = dict(type='pvt_mm.InstanceTTAModel')
