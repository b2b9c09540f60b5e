# PVT-Small and its recipe as variables, for a config that inherits one of MMDetection's whole configs: model.backbone
# is `_base_.pvt`, and so on (configs/heads). pvt_v2_b2.py has the same of PVTv2-B2.
_base_ = './pvt_recipe.py'
pvt = dict(
    _delete_=True,
    type='pvt_mm.PVT',
    arch='small',
    init_cfg=dict(type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'),
)
