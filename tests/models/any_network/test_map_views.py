"""Maps [B, C, H, W] as views, and back."""

import pytest
import torch

from oekd_fast.models.any_network.map_views import as_map, from_map, map_shape


@pytest.mark.parametrize(
    "shape, axis, expected",
    [
        ((2, 3), 1, (2, 3, 1, 1)),
        ((2, 5, 3), 2, (2, 3, 5, 1)),
        ((2, 3, 5), 1, (2, 3, 5, 1)),
        ((2, 3, 5, 7), 1, (2, 3, 5, 7)),
        ((2, 5, 7, 3), 3, (2, 3, 5, 7)),
        ((2, 5, 3, 7), 2, (2, 3, 5, 7)),
        ((2, 1, 3), 2, (2, 3, 1, 1)),
    ],
)
def test_maps_are_views_and_have_their_way_back(shape, axis, expected):
    x = torch.randn(shape)
    m = as_map(x, axis)
    assert tuple(m.shape) == map_shape(shape, axis) == expected
    assert m.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(from_map(m, axis, len(shape)), x)
