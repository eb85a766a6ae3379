import pytest
import torch

from oekd_fast.data import DeviceBatches, Split


@pytest.fixture
def batches() -> DeviceBatches:
    # Image i is filled with i, so images show which row they are.
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 2, 3, 3).contiguous()
    return DeviceBatches(Split(images, torch.arange(10) * 10), "cpu")


def test_order_is_a_permutation_that_the_generator_decides(batches):
    first = batches.order(torch.Generator().manual_seed(0))
    assert first.dtype == torch.int64 and first.device.type == "cpu"
    assert torch.equal(first.sort().values, torch.arange(10))
    assert torch.equal(first, batches.order(torch.Generator().manual_seed(0)))
    assert not torch.equal(first, batches.order(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("size", "drop_last", "expected"),
    [(5, True, 2), (5, False, 2), (4, True, 2), (4, False, 3), (11, True, 0)],
)
def test_num_batches(batches, size, drop_last, expected):
    assert batches.num_batches(size, drop_last=drop_last) == expected


def test_batch_takes_rows_in_the_order_asked(batches):
    images, labels = batches.batch(torch.tensor([7, 0, 7]))
    assert images.dtype == torch.uint8 and images.shape == (3, 2, 3, 3)
    assert images[:, 0, 0, 0].tolist() == [7, 0, 7]
    assert labels.tolist() == [70, 0, 70]


def test_an_epoch_resumed_from_its_order_sees_the_rest(batches):
    order = batches.order(torch.Generator().manual_seed(0))
    parts = [batches.batch(order[i * 4 : (i + 1) * 4])[1] for i in range(batches.num_batches(4, drop_last=False))]
    assert torch.equal(torch.cat(parts), order * 10)


def test_sequential_covers_the_split_in_order_without_copies(batches):
    parts = list(batches.sequential(4))
    assert [len(labels) for _, labels in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in parts]), batches.labels)
    assert parts[0][0].data_ptr() == batches.images.data_ptr()


@pytest.mark.parametrize("call", [lambda b: b.num_batches(0, drop_last=True), lambda b: b.sequential(0)])
def test_batch_size_is_checked(batches, call):
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        call(batches)
