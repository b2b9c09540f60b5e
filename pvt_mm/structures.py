"""The data sample of a classifier."""

from mmengine.structures import BaseDataElement


class DataSample(BaseDataElement):
    """The label of an image and the prediction of a classifier; each field is present once it is known.

    Attributes:
        gt_label: (1,) int64, the index of the image's class.
        gt_score: (K,) floats, the weights of the K classes where labels are mixed.
        pred_label: (1,) int64, the index of the class with the highest score.
        pred_score: (K,) floats, the scores of the classes.
        img_path: Path of the image; metainfo, like the following.
        ori_shape: (H, W) of the image in the file.
        img_shape: (H, W) of the image that the model gets.
    """
