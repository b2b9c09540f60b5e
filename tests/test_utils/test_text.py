"""Text of messages, and strict JSON."""

import json

import numpy as np
import torch

from pvt_mm.utils.text import json_text


def test_json_has_no_nan():
    values = {'a': float('nan'), 'b': [1.5, (float('inf'), None)], 'c': np.float32(0.5), 'd': {'e': -np.inf}}
    values |= {'f': torch.tensor([1.0, float('nan')]), 'g': np.float64('nan'), 'h': True}
    expected = {'a': None, 'b': [1.5, [None, None]], 'c': 0.5, 'd': {'e': None}, 'f': [1.0, None], 'g': None, 'h': True}
    assert json.loads(json_text(values)) == expected
