import pytest
import torch

from oekd_fast.data import DeviceBatches, HostBatches, LazySplit, Split, place

SPLIT = Split(torch.zeros(1000, 3, 1000, 1, dtype=torch.uint8), torch.zeros(1000, dtype=torch.int64))
MEGABYTE = 1_000_000


class UnreadableSource:
    image_shape = (1, 1, 1)

    def read(self, rows, out):
        raise AssertionError("place must not read images")


@pytest.fixture
def free(monkeypatch):
    """Set the free memory of a simulated GPU in bytes; copying a split to it raises OutOfMemoryError."""

    def set_free(size: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, 10 * size))

    def refuse(split, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")

    monkeypatch.setattr("oekd_fast.data.batches.placement.DeviceBatches", refuse)
    return set_free


@pytest.mark.parametrize(
    ("placement", "kind"),
    [("auto", DeviceBatches), ("device", DeviceBatches), ("host", HostBatches), ("stream", HostBatches)],
)
def test_on_the_cpu_the_placement_is_followed(placement, kind):
    batches, note = place(SPLIT, "cpu", placement, name="train")
    assert type(batches) is kind and note is None and len(batches) == 1000


@pytest.mark.parametrize("placement", ["auto", "device", "host", "stream"])
def test_a_lazy_split_is_always_prefetched(placement):
    lazy = LazySplit.of(UnreadableSource(), torch.arange(3))
    batches, note = place(lazy, "cuda:0", placement, name="train")
    assert type(batches) is HostBatches and note is None


def test_auto_prefetches_a_split_of_more_than_half_the_free_memory(free):
    free(5 * MEGABYTE)
    batches, note = place(SPLIT, "cuda:0", name="train")
    assert type(batches) is HostBatches and batches.device == torch.device("cuda:0")
    assert note == ("train: 0.003 GB take more than half of the 0.005 GB free on cuda:0: prefetched from host memory")


@pytest.mark.parametrize("placement", ["auto", "device"])
def test_out_of_memory_falls_back_to_prefetching(free, placement):
    free(6 * MEGABYTE)  # twice the size of the split
    batches, note = place(SPLIT, "cuda:1", placement, name="test")
    assert type(batches) is HostBatches
    assert note == "test: 0.003 GB do not fit on cuda:1, where 0.006 GB are free: prefetched from host memory"


def test_device_is_tried_even_with_little_free_memory(free):
    free(MEGABYTE)
    assert "do not fit on" in place(SPLIT, "cuda:1", "device", name="test")[1]


def test_unknown_placement_is_rejected():
    with pytest.raises(ValueError, match="placement: expected one of auto, device, host, stream, got 'disk'"):
        place(SPLIT, "cpu", "disk", name="train")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_keeps_a_small_split_on_the_gpu():
    batches, note = place(SPLIT, "cuda", name="train")
    assert type(batches) is DeviceBatches and batches.images.is_cuda and note is None
