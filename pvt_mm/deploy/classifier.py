"""An image classifier as an exportable module."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """A classifier, from images to probabilities.

    Shape:
        - Input: ``image`` (B, C, H, W), normalised.
        - Output: ``scores`` (B, classes), which sum to 1.
    """

    task = 'classification'
    outputs = ('scores',)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether a model is of this kind."""
        return isinstance(getattr(getattr(model, 'head', None), 'fc', None), nn.Linear)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).softmax(1)
