# Table 9: is PVT-Small better made wider or deeper, at about the same size? Nobody published weights of the wide one:
# its config shows where to put your own.
#   tools/sweep.py configs/sweeps/deeper_or_wider.py --executor slurm --gpus 8
title = 'Wider or deeper, RetinaNet on COCO val2017 (Table 9)'
metric = 'coco/bbox_mAP'
configs = dict(wider='../retinanet/pvt_s_wide_1x.py', deeper='../retinanet/pvt_m_1x.py')
