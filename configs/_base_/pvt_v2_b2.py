# PVTv2-B2 and its recipe as variables, in place of pvt_small.py.
_base_ = './pvt_recipe.py'
pvt = dict(
    _delete_=True,
    type='pvt_mm.PVTv2',
    arch='b2',
    init_cfg=dict(type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth'),
)
