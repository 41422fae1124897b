"""Recordings as spectrograms, spoken digits, and samples of two modalities."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from stillroom.data import (
    Splits,
    TensorSamples,
    digit_halves,
    digits,
    load_data,
    log_mel,
    pair_by_class,
    read_wav,
    spoken_digits,
)
from stillroom.data.sound import mel_bands

REAL = pytest.mark.skipif(not os.environ.get("STILLROOM_DATA"), reason="STILLROOM_DATA is not set")


def tone(frequency, seconds=0.5, rate=8000, dtype=np.int16):
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    if np.issubdtype(dtype, np.integer):
        wave = wave * np.iinfo(dtype).max if dtype != np.uint8 else 128 + 127 * wave
    file = io.BytesIO()
    wavfile.write(file, rate, wave.astype(dtype))
    return file.getvalue()


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(np.int16, 1e-3), (np.int32, 1e-3), (np.uint8, 2e-2), (np.float32, 1e-3)]
)
def test_recordings_of_every_format_have_one_scale(dtype, accuracy):
    wave = read_wav(tone(440, dtype=dtype))
    assert wave.shape == (4000,)
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(4000) / 8000)
    torch.testing.assert_close(wave, expected, atol=accuracy, rtol=0)


def test_recordings_are_brought_to_one_rate_and_one_channel():
    wave = read_wav(tone(440, rate=16000))
    assert wave.shape == (4000,)
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(4000) / 8000)
    torch.testing.assert_close(wave[100:-100], expected[100:-100], atol=0.01, rtol=0)
    file = io.BytesIO()
    wavfile.write(file, 8000, np.stack([np.full(10, 0.5), np.full(10, -0.1)], axis=1).astype(np.float32))
    torch.testing.assert_close(read_wav(file.getvalue()), torch.full((10,), 0.2))


def test_a_tone_lights_up_its_own_band():
    low, high = (read_wav(tone(frequency)) for frequency in (300, 2500))
    spectrograms = log_mel([low, high], mels=16, frames=20)
    assert spectrograms.shape == (2, 1, 16, 20)
    bands = spectrograms[:, 0].mean(2).argmax(1).tolist()
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 18)[1:-1] / 2595) - 1)
    assert abs(centres[bands[0]] - 300) < 150
    assert abs(centres[bands[1]] - 2500) < 400
    torch.testing.assert_close(spectrograms.mean((1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    assert float(mel_bands(129, 8000, 16).sum(0).min()) > 0


def test_a_spectrogram_depends_on_its_own_recording_alone():
    waves = [read_wav(tone(frequency, seconds)) for frequency, seconds in ((300, 0.3), (700, 2.0), (90, 0.01))]
    together = log_mel(waves)
    for wave, spectrogram in zip(waves, together, strict=True):
        torch.testing.assert_close(log_mel([wave])[0], spectrogram)
    assert bool(together.isfinite().all())
    with pytest.raises(ValueError, match="mels must be 1 or more, given 0"):
        log_mel(waves, mels=0)


def test_spoken_digits_are_read_from_a_folder_of_recordings(tmp_path, monkeypatch):
    for digit in range(10):
        for take in (0, 4, 5, 7):
            (tmp_path / "recordings").mkdir(exist_ok=True)
            (tmp_path / "recordings" / f"{digit}_ann_{take}.wav").write_bytes(tone(200 + 50 * digit))
    splits = spoken_digits(tmp_path)
    assert (len(splits.train), len(splits.test)) == (20, 20)
    assert set(splits.train.fields["take"].tolist()) == {5, 7}
    assert splits.train.labels.bincount().tolist() == [2] * 10
    assert not set(splits.train.index.tolist()) & set(splits.test.index.tolist())
    (tmp_path / "recordings" / "noise.wav").write_bytes(tone(200))
    spoken_digits.__globals__["_read"].cache_clear()
    with pytest.raises(ValueError, match=r"'noise\.wav' is no spoken digit, expected a name like 7_jackson_12\.wav"):
        spoken_digits(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no spoken digits in .*empty.*train\.parquet and test\.parquet"):
        spoken_digits(empty)
    monkeypatch.setenv("STILLROOM_DATA", str(empty))
    with pytest.raises(FileNotFoundError, match=r"no spoken digits in .*empty/spoken-digits: put there"):
        load_data("spoken-digits")
    monkeypatch.delenv("STILLROOM_DATA")
    with pytest.raises(FileNotFoundError, match="that STILLROOM_DATA names: put there"):
        load_data("spoken-and-written-digits")


def small(seed, count=40, name="small"):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    samples = TensorSamples(torch.rand(count, 3, generator=generator) + labels[:, None], labels)
    half = torch.arange(count // 2)
    return Splits(samples.subset(half), samples.subset(half + count // 2), classes=list("abcd"), name=name)


def test_partners_have_the_same_class_and_part():
    first, second = small(0), small(1, count=24)
    paired = pair_by_class(first, second, names=("x", "y"), seed=3)
    used = {}
    for part in ("train", "test"):
        batch = getattr(paired, part).batch(torch.arange(20))
        assert torch.equal(batch.inputs["x"], getattr(first, part).batch(torch.arange(20)).inputs)
        assert torch.equal(batch.inputs["y"].floor().long()[:, 0], batch.labels)
        assert torch.equal(batch.index, getattr(first, part).index)
        known = getattr(second, part).batch(torch.arange(12)).inputs
        places = (batch.inputs["y"][:, None] == known[None]).all(2).int()
        assert places.sum(1).tolist() == [1] * 20  # every partner is a sample of the same part
        used[part] = places.argmax(1)
        counts = used[part].bincount(minlength=12)
        assert int(counts.max()) - int(counts.min()) <= 1  # all are used before any is used again
    again = pair_by_class(first, second, names=("x", "y"), seed=3).train.batch(torch.arange(20)).inputs["y"]
    other = pair_by_class(first, second, names=("x", "y"), seed=4).train.batch(torch.arange(20)).inputs["y"]
    mine = paired.train.batch(torch.arange(20)).inputs["y"]
    assert torch.equal(mine, again)
    assert not torch.equal(mine, other)


def test_what_cannot_be_paired_is_refused():
    first = small(0)
    with pytest.raises(ValueError, match="given 'x' twice"):
        pair_by_class(first, first, names=("x", "x"))
    with pytest.raises(ValueError, match=r"'small' has the classes .* but 'digits' has"):
        pair_by_class(first, digits(), names=("x", "y"))
    lacking = small(1)
    lacking.train = lacking.train.subset(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="no sample of class 3 to pair with"):
        pair_by_class(first, lacking, names=("x", "y"))
    with pytest.raises(ValueError, match="'small' has no class number for every sample"):
        pair_by_class(
            first, Splits(first.train.relabel(None), first.test, classes=list("abcd"), name="small"), names=("x", "y")
        )
    held = Splits(first.train, first.test, first.test, classes=list("abcd"))
    with pytest.raises(ValueError, match="'small' has no validation part"):
        pair_by_class(held, small(2), names=("x", "y"))


def test_halves_are_halves_of_one_image():
    splits = digit_halves()
    assert (len(splits.train), len(splits.test)) == (900, 897)
    whole = digits()
    images = {
        tuple(row)
        for part in (whole.train, whole.test)
        for row in part.batch(range(len(part))).inputs.flatten(1).tolist()
    }
    batch = splits.test.batch(torch.arange(50))
    joined = torch.cat([batch.inputs["upper"], batch.inputs["lower"]], dim=1)
    assert all(tuple(row) in images for row in joined.tolist())
    loaded = load_data("digit-halves", train_size=300, validation_share=1 / 3, seed=5)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (300, 300, 897)
    assert loaded.train.batch([0, 1]).inputs.keys() == {"upper", "lower"}
    parts = [set(part.index.tolist()) for part in (loaded.train, loaded.validation, loaded.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


@REAL
def test_the_real_recordings_and_their_images():
    splits = load_data("spoken-and-written-digits", train_size=200, seed=1)
    assert splits.test.labels.bincount().tolist() == [30] * 10
    assert int(splits.test.batch(range(300)).take.max()) == 4
    assert int(splits.train.batch(range(200)).take.min()) == 5
    train, test = splits.train.batch(range(200)), splits.test.batch(range(300))
    assert train.inputs["sound"].shape == (200, 1, 32, 40)
    assert train.inputs["image"].shape == (200, 1, 8, 8)
    seen = {tuple(row) for row in train.inputs["image"].flatten(1).tolist()}
    assert not any(tuple(row) in seen for row in test.inputs["image"].flatten(1).tolist())
    assert len(load_data("spoken-digits").classes) == 10


def test_av_mnist_is_made_of_both(tmp_path, monkeypatch):
    """Images in folders stand in for MNIST, tones for the recordings."""
    for digit in range(10):
        for part, shade in (("train", 100), ("train", 120), ("test", 200)):
            folder = tmp_path / "mnist" / part / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), shade + digit).save(folder / f"{shade}.png")
        recordings = tmp_path / "spoken-digits" / "recordings"
        recordings.mkdir(parents=True, exist_ok=True)
        for take in (0, 9):
            (recordings / f"{digit}_ann_{take}.wav").write_bytes(tone(200 + 50 * digit))
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    splits = load_data("av-mnist", validation_share=0.0)
    assert (len(splits.train), len(splits.test), len(splits.classes)) == (20, 10, 10)
    batch = splits.test.batch(torch.arange(10))
    assert batch.inputs["image"].shape == (10, 1, 28, 28)
    assert batch.inputs["sound"].shape == (10, 1, 32, 40)
    torch.testing.assert_close(batch.inputs["image"][:, 0, 0, 0], (200 + batch.labels) / 255)
