# RetinaNet with ViT-Small/32, 1x schedule. Paper: AP 31.7 (Table 8), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/retinanet/vit_s_p32_1x.py 8
# Layers 2, 4, 6 and 8, all of stride 32, are interpolated to the pyramid's strides (footnote 3). 8 layers of 768
# channels with a ratio of 3 have the 48.8 M parameters of ViT-Small/16 in Table 2. Nobody published weights: put your
# own, with the keys of MMSegmentation's ViT, at `checkpoint`, or add --cfg-options model.backbone.init_cfg=None
_base_ = './pvt_s_1x.py'
fpn = dict(type='FPN', in_channels=[768] * 4, out_channels=256, start_level=1, add_extra_convs='on_input', num_outs=5)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg.VisionTransformer',
        patch_size=32,
        embed_dims=768,
        num_layers=8,
        num_heads=8,
        mlp_ratio=3,
        out_indices=(1, 3, 5, 7),
        patch_bias=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_small_p32.pth'),
    ),
    neck=[dict(type='pvt_mm.InterpolatedPyramid', scales=(8, 4, 2, 1)), fpn],
)
