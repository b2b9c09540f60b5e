"""What travels with an image of a classifier."""

from mmengine.structures import BaseDataElement


class DataSample(BaseDataElement):
    """An image's label and what a classifier predicts for it; each field is there once it is known.

    Attributes:
        gt_label: (1,) int64, the index of its class.
        gt_score: (K,) floats, the shares of the K classes where labels are mixed.
        pred_label: (1,) int64, the index of the class with the best score.
        pred_score: (K,) floats, the classes' scores.
        img_path: Where the image is; this and what follows is metainfo.
        ori_shape: (H, W) of the image in the file.
        img_shape: (H, W) of the image that the model gets.
    """
