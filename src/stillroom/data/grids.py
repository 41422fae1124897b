"""Several handwritten digits in one image: which of them are there?"""

from __future__ import annotations

import torch

from stillroom.data.embedded import digits
from stillroom.data.rows import generator
from stillroom.data.samples import Samples, Splits, TensorSamples

CELLS = 4
FEWEST = 3


def digit_grids(*, train: int = 4000, test: int = 1000, noise: float = 0.2, seed: int = 0) -> Splits:
    """Multi-label: which of the digits 0 to 9 are in a 2x2 grid?

    Three or four of the cells, 8x8 each, hold one of scikit-learn's digits each, no digit twice; a fourth may be empty.
    The written digits are cut into training and test before any image is composed, so that no stroke is in both.

    Args:
        train: images to train on, 1 or more.
        test: images to report on, 1 or more.
        noise: standard deviation of what is added to every pixel, before it is cut to [0, 1]; 0 or more.
        seed: makes the training images; 0 or more. Test images are the same for all seeds.

    Returns:
        Inputs `(1, 16, 16)` in [0, 1], labels `(10,)` of 0 and 1, three or four of them 1. The field "written" `(4,)`
        numbers the digits in the cells, row by row, among scikit-learn's 1,797; -1 for an empty cell.

    Raises:
        ValueError: a number outside its range.
    """
    for name, value in (("train", train), ("test", test)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, given {value}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a number of 0 or more, given {noise}")
    written = digits()
    return Splits(
        _grids(written.train, train, noise, generator(seed, 31)),
        _grids(written.test, test, noise, generator(0, 32)),
        classes=written.classes,
        name="digit-grids",
        kind="multi-label",
    )


def _grids(written: Samples, count: int, noise: float, draw: torch.Generator) -> TensorSamples:
    batch = written.batch(torch.arange(len(written)))
    of_class = [(batch.labels == digit).nonzero().flatten() for digit in range(10)]
    sizes = torch.tensor([len(rows) for rows in of_class])
    table = torch.nn.utils.rnn.pad_sequence(of_class, batch_first=True)

    shown = torch.rand(count, 10, generator=draw).argsort(1)[:, :CELLS]  # four digits, the last for the last cell
    picked = (torch.rand(count, CELLS, generator=draw) * sizes[shown]).long()
    rows = table[shown, picked]
    filled = torch.ones(count, CELLS, dtype=torch.bool)
    filled[:, FEWEST:] = torch.rand(count, CELLS - FEWEST, generator=draw) < 0.5
    places = torch.rand(count, CELLS, generator=draw).argsort(1)  # where in the grid
    shown, rows, filled = (values.gather(1, places) for values in (shown, rows, filled))

    cells = batch.inputs[rows, 0] * filled[:, :, None, None]
    images = cells.view(count, 2, 2, 8, 8).permute(0, 1, 3, 2, 4).reshape(count, 1, 16, 16)
    images = (images + noise * torch.randn(images.shape, generator=draw)).clamp(0, 1)
    labels = torch.zeros(count, 10).scatter_(1, shown, filled.float())
    own = torch.arange(len(batch)) if batch.index is None else batch.index
    numbers = torch.where(filled, own[rows], -1)
    return TensorSamples((images * 255).round().to(torch.uint8), labels, fields={"written": numbers})
