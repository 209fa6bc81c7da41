"What slices and scans share: taken by index, split by subject, moved, checked with the item's name"

import pytest
import torch

from deffi_lab.data.labelled import Labelled
from deffi_lab.data.scans import Scans
from deffi_lab.data.slices import Slices

NAMES = ["a", "b", "a", "c"]


def slices(**how) -> Slices:
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8).clone()
    mask = torch.ones(4, 8, 8, dtype=torch.bool)
    return Slices(image, mask, list(NAMES), **{"spacing": 1.5, "outer": ~mask, **how})


def scans(dims: int = 2, **how) -> Scans:
    image = torch.arange(4.0).view(4, *[1] * (1 + dims)).expand(4, 2, *[8] * dims).clone()
    label = torch.zeros(4, *[8] * dims, dtype=torch.uint8)
    return Scans(image, label, list(NAMES), **{"spacing": 2.0, "modalities": ("A", "B"), **how})


@pytest.mark.parametrize("make", [slices, scans, lambda: scans(3)])
def test_subjects_stay_together_and_every_tensor_follows(make):
    data = make()
    assert isinstance(data, Labelled) and len(data) == 4
    train, test = data.split(["a"])
    assert type(train) is type(data) and train.subject == ["b", "c"] and test.subject == ["a", "a"]
    assert test.image.flatten(1)[:, 0].tolist() == [0, 2] and test.where == ["a #0", "a #2"]
    back = data.take([3, 3, 0])
    assert back.image.flatten(1)[:, 0].tolist() == [3, 3, 0] and back.where[0] == "c #3"
    assert all(len(v) == 3 for v in back._tensors().values())
    moved = data.to("cpu")
    assert all(torch.equal(v, moved._tensors()[k]) for k, v in data._tensors().items())
    assert type(moved) is type(data) and data.dims == data.image.ndim - 2


def test_what_is_no_tensor_stays():
    assert slices(outer=None).take([0]).outer is None
    assert scans().take([1]).modalities == ("A", "B")
    assert slices(name="mine").split("a")[0].name == "mine"


@pytest.mark.parametrize("make, group", [(slices, "patient"), (scans, "case")])
def test_what_does_not_fit_is_named(make, group):
    data = make()
    for wrong, words in ((["d"], f"'d'.* not among the {group}s"), (NAMES, f"3 of 3 {group}s")):
        with pytest.raises(ValueError, match=words):
            data.split(wrong)
    for wrong in ([], [4], [-1], [[0]]):
        with pytest.raises(ValueError, match="one or more of 0..3"):
            data.take(wrong)
    with pytest.raises(ValueError, match="3 places for 4"):
        make(where=["x", "y", "z"])
    with pytest.raises(ValueError, match="spacing=0: must be above 0 mm"):
        make(spacing=0)
    data.image[2] = torch.nan
    with pytest.raises(ValueError, match="^a #2: .*not finite"):
        type(data)(**vars(data))
