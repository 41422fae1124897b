import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.data.images import Form, decode, decode_mask, fit_tensor, listed, mask_table, to_input

GREY, COLOUR = Form(1, 2, 2), Form(3, 2, 2)


def test_eight_bit_images_come_through_exactly():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert torch.equal(decode(Image.fromarray(pixels), COLOUR), torch.from_numpy(pixels).permute(2, 0, 1))
    grey = np.array([[0, 1], [128, 255]], dtype=np.uint8)
    assert decode(Image.fromarray(grey), GREY).tolist() == [[[0, 1], [128, 255]]]
    assert decode(Image.fromarray(grey), COLOUR)[2].tolist() == [[0, 1], [128, 255]]


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257], [257 * 100 + 128, 65535]], dtype=np.uint16)
    assert decode(Image.fromarray(values), GREY).tolist() == [[[0, 1], [100, 255]]]
    assert decode(Image.fromarray(values.astype(np.int32)), GREY).tolist() == [[[0, 1], [100, 255]]]
    with pytest.raises(ValueError, match="70000"):
        decode(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), GREY)


def test_float_grey_is_scaled_from_0_1():
    values = np.array([[0, 0.2], [0.6, 1]], dtype=np.float32)
    assert decode(Image.fromarray(values), GREY).tolist() == [[[0, 51], [153, 255]]]
    with pytest.raises(ValueError, match="to 3"):
        decode(Image.fromarray(3 * values), GREY)


def test_transparency_shows_white():
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    clear[0, 0] = (200, 100, 0, 255)
    clear[0, 1] = (200, 100, 0, 0)
    clear[1, 0] = (0, 0, 0, 51)  # a fifth black on white
    found = decode(Image.fromarray(clear), COLOUR)
    assert found[:, 0, 0].tolist() == [200, 100, 0]
    assert found[:, 0, 1].tolist() == [255, 255, 255]
    assert found[:, 1, 0].tolist() == [204, 204, 204]
    grey_with_alpha = Image.fromarray(np.array([[[10, 255], [10, 0]]] * 2, dtype=np.uint8))
    assert grey_with_alpha.mode == "LA"
    assert decode(grey_with_alpha, GREY).tolist() == [[[10, 255], [10, 255]]]


def palette_image(**info):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.info.update(info)
    return image


def test_palettes_become_colours():
    assert decode(palette_image(), COLOUR)[:, 1, 0].tolist() == [0, 0, 255]
    assert decode(palette_image(transparency=1), COLOUR)[:, 0, 1].tolist() == [255, 255, 255]
    assert decode(palette_image(transparency=bytes([255, 0, 255])), COLOUR)[:, 0, 1].tolist() == [255, 255, 255]


def test_one_bit_and_cmyk():
    assert decode(Image.new("1", (2, 2), 1), GREY).tolist() == [[[255, 255], [255, 255]]]
    assert decode(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), COLOUR).unique().tolist() == [255]


def test_orientation_is_obeyed(tmp_path):
    """Orientation 6: the camera was turned, the first row of the file is the right-hand column."""
    pixels = np.zeros((2, 4), dtype=np.uint8)
    pixels[0] = 200
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as found:
        upright = to_input(found)
    assert upright.shape == (1, 4, 2)
    assert (upright[0, :, 1] * 255).round().tolist() == [200] * 4
    assert upright[0, :, 0].tolist() == [0] * 4


def test_the_short_side_is_resized_and_the_middle_kept():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20, 0], pixels[:, 20:40, 1], pixels[:, 40:, 2] = 255, 255, 255
    found = decode(Image.fromarray(pixels), Form(3, 10, 10))
    assert found.shape == (3, 10, 10)
    assert found[1, :, 1:-1].unique().tolist() == [255]
    assert found[0, :, 2:-2].unique().tolist() == [0]
    tall = decode(Image.fromarray(pixels.transpose(1, 0, 2)), Form(3, 10, 10))
    assert tall[1, 1:-1].unique().tolist() == [255]


def test_masks_follow_their_images_by_nearest_pixel():
    classes = np.zeros((20, 60), dtype=np.uint8)
    classes[:, 20:40], classes[:, 40:] = 7, 255
    classes[:10] = 3
    found = decode_mask(Image.fromarray(classes), Form(3, 10, 10), mask_table())
    assert found[:5].unique().tolist() == [3]
    assert found[5:].unique().tolist() == [7]
    assert decode_mask(palette_image(), Form(3, 2, 2), mask_table()).tolist() == [[0, 1], [2, 1]]
    with pytest.raises(ValueError, match="RGB"):
        decode_mask(Image.new("RGB", (2, 2)), Form(3, 2, 2), mask_table())


def test_named_classes_of_a_mask():
    table = mask_table(["sky", "void", "road"])
    assert table[[0, 1, 2, 255]].tolist() == [0, -100, 1, -100]
    with pytest.raises(ValueError, match=r"class 9.* 3 classes"):
        decode_mask(Image.new("L", (2, 2), 9), Form(1, 2, 2), table)


def test_tensors_are_fitted_like_files():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    form = Form(3, 12, 12)
    from_file = decode(Image.fromarray(pixels), form)
    from_tensor = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0), form)[0]
    assert from_tensor.dtype == torch.uint8
    assert float((from_file.float() - from_tensor.float()).abs().max()) <= 2
    grey = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1), Form(1, 24, 36))
    assert float((grey.float() - decode(Image.fromarray(pixels), Form(1, 24, 36)).float()).abs().max()) <= 1
    assert torch.equal(fit_tensor(grey, Form(3, 24, 36))[1], grey[0])
    enlarged = fit_tensor(torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]), Form(1, 9, 9))
    assert 0 <= float(enlarged.min()) <= float(enlarged.max()) <= 1
    with pytest.raises(ValueError, match="2 channels"):
        fit_tensor(torch.zeros(1, 2, 4, 4), form)


def test_many_names_are_cut_short():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefghijkl")) == "a, b, c, d, e, f, g, h, i, j and 2 more"
