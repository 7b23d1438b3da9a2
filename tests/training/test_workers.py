import pytest
from torch.utils.data import DataLoader, Dataset

from profusion_pipeline.training.workers import read_loader


class Broken(Dataset):
    """Raises an error, after another one if `first` is given."""

    def __init__(self, error: Exception, first: Exception | None = None):
        self.error, self.first = error, first

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        if self.first is None:
            raise self.error
        try:
            raise self.first
        except Exception as first:
            raise self.error from first


def raised(dataset: Dataset, num_workers: int) -> Exception:
    with pytest.raises(Exception) as caught:
        list(read_loader(DataLoader(dataset, batch_size=None, num_workers=num_workers)))
    return caught.value


@pytest.mark.parametrize(
    "dataset",
    [
        Broken(ValueError("`data` must hold whole pictures, 'a.png' is not one: ...")),
        Broken(OSError(28, "No space left on device", "a.png")),
        Broken(ValueError("the second"), first=ValueError("the first")),
        Broken(ValueError("several\n\nlines\nof text")),
        Broken(ValueError()),
    ],
    ids=range(5),
)
def test_an_error_of_a_worker_is_that_of_no_worker(dataset):
    there, here = raised(dataset, 1), raised(dataset, 0)
    assert (type(there), str(there)) == (type(here), str(here))
    assert "Traceback" in str(there.__cause__)  # for those who look for the place


def test_an_error_that_no_text_makes_is_named():
    error = raised(Broken(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")), 1)
    assert type(error) is RuntimeError
    assert str(error) == "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"


def test_a_key_that_is_missing():
    error = raised(Broken(KeyError("image")), 1)
    assert isinstance(error, KeyError)
    assert "Traceback" not in str(error) and "image" in str(error)


def test_an_error_of_this_process_stays_as_it_is():
    def samples():
        yield 1
        raise ValueError("`data` must be readable to its end")

    with pytest.raises(ValueError, match="^`data` must be readable to its end$"):
        list(read_loader(samples()))
