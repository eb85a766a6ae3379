import pytest
import torch

from oekd_fast.data import Batches, DeviceBatches, HostBatches, LazySplit, Split, padded_order

COUNT = 10
LABELS = torch.arange(COUNT) * 10


def images() -> torch.Tensor:
    # Image i is filled with i, so that images identify their rows.
    return torch.arange(COUNT, dtype=torch.uint8).view(COUNT, 1, 1, 1).expand(COUNT, 2, 3, 3).contiguous()


class Rows:
    """An image source that creates its images when they are read."""

    image_shape = (2, 3, 3)

    def read(self, rows, out):
        out[...] = images()[rows].numpy()


KINDS = {
    "device": lambda: DeviceBatches(Split(images(), LABELS), "cpu"),
    "host": lambda: HostBatches(Split(images(), LABELS), "cpu"),
    "lazy": lambda: HostBatches(LazySplit.of(Rows(), LABELS), "cpu"),
}


@pytest.fixture(params=KINDS)
def batches(request) -> Batches:
    return KINDS[request.param]()


def next_batches(batches: Batches, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next `count` batches, concatenated; each is cloned, since the next one may reuse its memory."""
    taken = []
    for _ in range(count):
        batches.ready()
        taken.append([tensor.clone() for tensor in batches.take()])
    pixels, labels = (torch.cat(parts) for parts in zip(*taken, strict=True))
    assert pixels.dtype == torch.uint8 and pixels.shape[1:] == batches.image_shape
    return pixels, labels


def assert_rows(taken: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor) -> None:
    pixels, labels = taken
    assert labels.dtype == torch.int64 and torch.equal(labels, LABELS[rows])
    assert torch.equal(pixels, images()[rows])


def test_order_is_a_permutation_drawn_from_the_generator(batches):
    first = batches.order(torch.Generator().manual_seed(0))
    assert first.dtype == torch.int64 and first.device.type == "cpu"
    assert torch.equal(first.sort().values, torch.arange(10))
    assert torch.equal(first, batches.order(torch.Generator().manual_seed(0)))
    assert not torch.equal(first, batches.order(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("size", "drop_last", "expected"),
    [(5, True, 2), (5, False, 2), (4, True, 2), (4, False, 3), (11, True, 0)],
)
def test_num_batches_with_and_without_a_partial_batch(batches, size, drop_last, expected):
    assert batches.num_batches(size, drop_last=drop_last) == expected


@pytest.mark.parametrize("size", [1, 3, 5, 10])
def test_an_epoch_serves_full_batches_in_the_given_order(batches, size):
    assert (len(batches), batches.device) == (COUNT, torch.device("cpu"))
    for seed in range(2):
        order = batches.order(torch.Generator().manual_seed(seed))
        batches.begin(order, size)
        assert_rows(next_batches(batches, COUNT // size), order[: COUNT // size * size])


def test_an_order_may_repeat_and_be_longer_than_the_split(batches):
    order = torch.tensor([7, 0, 7] * 5)
    batches.begin(order, 5)
    assert_rows(next_batches(batches, 3), order)


@pytest.mark.parametrize("first", [0, 1, 4])
def test_an_epoch_resumed_from_its_order_serves_the_remaining_batches(batches, first):
    order = batches.order(torch.Generator().manual_seed(0))
    batches.begin(order, 2, first)
    assert_rows(next_batches(batches, 5 - first), order[2 * first :])


def test_begin_ends_the_current_epoch(batches):
    for taken in range(4):
        batches.begin(torch.arange(COUNT), 2)
        next_batches(batches, taken + 1)
        batches.begin(torch.arange(COUNT).flip(0), 5)
        assert_rows(next_batches(batches, 1), torch.tensor([9, 8, 7, 6, 5]))


def test_the_caller_may_change_its_order_after_begin(batches):
    order = torch.arange(COUNT)
    batches.begin(order, 2)
    order.zero_()
    assert_rows(next_batches(batches, 5), torch.arange(COUNT))


def test_rows_without_an_image_have_ignored_labels(batches):
    batches.begin(torch.tensor([-1, 3, 4, -1, -1, -1, 9, -1]), 2)
    pixels, labels = next_batches(batches, 4)
    assert labels.tolist() == [-100, 30, 40, -100, -100, -100, 90, -100]
    assert torch.equal(pixels[[1, 2, 6]], images()[[3, 4, 9]])


def test_padded_order_is_one_full_pass(batches):
    order = padded_order(COUNT, 4)
    assert order.dtype == torch.int64 and order.tolist() == [*range(10), -1, -1]
    assert padded_order(8, 4).tolist() == list(range(8))
    batches.begin(order, 4)
    assert next_batches(batches, batches.num_batches(4, drop_last=False))[1].tolist() == [*LABELS.tolist(), -100, -100]


def test_ready_raises_after_the_last_batch(batches):
    with pytest.raises(RuntimeError, match="the epoch has no batch left: call begin first"):
        batches.ready()
    batches.begin(torch.arange(COUNT), 5)
    next_batches(batches, 2)
    with pytest.raises(RuntimeError, match="the epoch has no batch left: call begin first"):
        batches.ready()


def test_the_signature_changes_if_and_only_if_a_captured_step_becomes_invalid(batches):
    batches.begin(torch.arange(COUNT), 5)
    before = batches.signature
    next_batches(batches, 1)
    batches.begin(torch.arange(COUNT).flip(0), 5, 1)
    assert batches.signature == before and hash(before) == hash(batches.signature)
    batches.begin(torch.arange(COUNT), 2)
    assert batches.signature != before


def test_the_signature_of_device_batches_includes_the_length_of_the_epoch():
    batches = KINDS["device"]()
    batches.begin(torch.arange(COUNT), 2)
    before = batches.signature
    batches.begin(torch.arange(8), 2)
    assert batches.signature != before


def test_a_warm_up_of_device_batches_can_be_undone_and_exceed_the_epoch():
    batches = KINDS["device"]()
    batches.begin(torch.arange(COUNT), 5, 1)
    batches.ready()
    before = [tensor.clone() for tensor in batches.state()]
    assert [batches.take()[1][0].item() for _ in range(3)] == [50, 0, 50]
    for tensor, value in zip(batches.state(), before, strict=True):
        tensor.copy_(value)
    assert_rows(batches.take(), torch.arange(5, 10))


def test_prefetched_batches_are_unchanged_until_the_next_is_ready():
    batches = KINDS["host"]()
    batches.begin(torch.arange(COUNT), 5)
    batches.ready()
    assert batches.state() == []
    taken = batches.take()
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(taken, batches.take(), strict=True))
    assert_rows(batches.take(), torch.arange(5))
    batches.ready()
    assert_rows(taken, torch.arange(5, 10))


def test_take_reads_nothing_on_the_host():
    batches = DeviceBatches(Split(images(), LABELS), "meta")  # reading a value of a meta tensor raises
    batches.begin(torch.arange(COUNT), 5)
    batches.ready()
    taken, labels = batches.take()
    assert taken.shape == (5, 2, 3, 3) and labels.shape == (5,)


@pytest.mark.parametrize(
    ("order", "size", "first", "error", "message"),
    [
        (torch.arange(10), 0, 0, ValueError, "batch_size: expected an integer >= 1, got 0"),
        ([0, 1], 1, 0, TypeError, "order: expected a tensor, got list"),
        (torch.arange(10.0), 5, 0, TypeError, r"order: expected dtype torch.int64, got torch.float32"),
        (torch.zeros(2, 5).long(), 5, 0, ValueError, r"order: expected one dimension on the CPU, got \[2, 5\] on cpu"),
        (torch.arange(10, device="meta"), 5, 0, ValueError, "on the CPU, got .* on meta"),
        (torch.arange(4), 5, 0, ValueError, "order: expected at least one batch of 5 rows, got 4"),
        (torch.arange(11), 11, 0, ValueError, r"order: expected rows in \[0, 10\) or -1 for no image, got 10"),
        (torch.arange(10) - 2, 5, 0, ValueError, "or -1 for no image, got -2"),
        (torch.arange(10), 4, 2, ValueError, r"first: expected a batch in \[0, 2\), got 2"),
        (torch.arange(10), 4, -1, ValueError, r"first: expected a batch in \[0, 2\), got -1"),
    ],
)
def test_begin_rejects_invalid_arguments_and_keeps_the_current_epoch(batches, order, size, first, error, message):
    batches.begin(torch.arange(COUNT), 2)
    with pytest.raises(error, match=message):
        batches.begin(order, size, first)
    assert_rows(next_batches(batches, 5), torch.arange(COUNT))


@pytest.mark.parametrize(
    "call", [lambda b: b.num_batches(0, drop_last=True), lambda b: padded_order(len(b), 0)], ids=["passes", "padded"]
)
def test_batch_size_below_one_is_rejected(batches, call):
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        call(batches)
