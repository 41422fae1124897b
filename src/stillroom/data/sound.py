"""Short recordings: WAV files as log-mel spectrograms, and the spoken digits."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.data.samples import Splits, TensorSamples

RATE = 8000
TEST_TAKES = 5  # of every speaker and digit, the first ones are reported
WHAT = (
    "train.parquet and test.parquet with the columns audio (WAV bytes), digit, speaker and take, or a clone of "
    "github.com/Jakobovski/free-spoken-digit-dataset (its folder recordings with DIGIT_SPEAKER_TAKE.wav)"
)


def spoken_digits(folder: str | Path | None = None, *, mels: int = 32, frames: int = 40) -> Splits:
    """Load recordings of the spoken digits 0 to 9 by six speakers: takes 5 and later to train on, 0 to 4 to report.

    Args:
        folder: where they lie (see `WHAT`); None for "spoken-digits" in the folder that STILLROOM_DATA names.
        mels: bands of the spectrogram, 1 or more.
        frames: of 20 milliseconds; longer recordings are cut, shorter ones followed by silence; 1 or more.

    Returns:
        Inputs `(1, mels, frames)`: log-mel spectrograms, each scaled to mean 0 and deviation 1 by itself; classes "0"
        to "9"; the fields `speaker` (a number, speakers sorted by name) and `take`; no validation split.

    Raises:
        FileNotFoundError: there are no recordings; the message says what to put where.

    Source: Jackson et al., Free Spoken Digit Dataset (CC BY-SA 4.0).
    """
    if folder is None:
        from stillroom.data.named import data_folder  # which lists this data set by name

        root = data_folder()
        if root is None or not (root / "spoken-digits").is_dir():
            where = (
                str(root / "spoken-digits") if root else "the folder spoken-digits below the one that STILLROOM_DATA"
            )
            raise FileNotFoundError(
                f"there are no spoken digits in {where}{'' if root else ' names'}: put there {WHAT}"
            )
        folder = root / "spoken-digits"
    return _read(Path(folder), mels, frames)


@lru_cache(maxsize=2)
def _read(folder: Path, mels: int, frames: int) -> Splits:
    if (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file():
        parts = {part: _from_parquet(folder / f"{part}.parquet") for part in ("train", "test")}
    elif files := sorted(folder.glob("recordings/*.wav")) or sorted(folder.glob("*.wav")):
        parts = _from_files(files)
    else:
        raise FileNotFoundError(f"there are no spoken digits in {str(folder)!r}: put there {WHAT}")
    speakers = sorted({speaker for rows in parts.values() for _, _, speaker, _ in rows})
    samples, start = {}, 0
    for part, rows in parts.items():
        waves = [read_wav(content) for content, _, _, _ in rows]
        samples[part] = TensorSamples(
            log_mel(waves, mels=mels, frames=frames),
            torch.tensor([digit for _, digit, _, _ in rows]),
            torch.arange(start, start + len(rows)),
            fields={
                "speaker": torch.tensor([speakers.index(speaker) for _, _, speaker, _ in rows]),
                "take": torch.tensor([take for _, _, _, take in rows]),
            },
        )
        start += len(rows)
    classes = [str(digit) for digit in range(10)]
    return Splits(samples["train"], samples["test"], classes=classes, name="spoken-digits")


def _from_parquet(file: Path) -> list[tuple[bytes, int, str, int]]:
    from pyarrow import parquet

    rows = parquet.read_table(file).to_pylist()
    content = (row["audio"]["bytes"] if isinstance(row["audio"], dict) else row["audio"] for row in rows)
    return [(wav, row["digit"], row["speaker"], row["take"]) for wav, row in zip(content, rows, strict=True)]


def _from_files(files: Sequence[Path]) -> dict[str, list[tuple[bytes, int, str, int]]]:
    parts: dict[str, list[tuple[bytes, int, str, int]]] = {"train": [], "test": []}
    for file in files:
        found = re.fullmatch(r"(\d)_(.+)_(\d+)", file.stem)
        if found is None:
            raise ValueError(f"{file.name!r} is no spoken digit, expected a name like 7_jackson_12.wav: move it away")
        take = int(found[3])
        part = "test" if take < TEST_TAKES else "train"
        parts[part].append((file.read_bytes(), int(found[1]), found[2], take))
    return parts


def read_wav(content: bytes, *, rate: int = RATE) -> Tensor:
    """Decode a WAV file to one channel at a sampling rate.

    Args:
        content: the file's bytes.
        rate: samples per second to bring it to.

    Returns:
        `(length,)` float32 in [-1, 1].
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    own, values = wavfile.read(io.BytesIO(content))
    wave = values.astype(np.float64)
    if values.dtype == np.uint8:  # 8 bits are stored without a sign
        wave = (wave - 128) / 128
    elif np.issubdtype(values.dtype, np.integer):
        wave = wave / np.iinfo(values.dtype).max
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if own != rate:
        common = int(np.gcd(own, rate))
        wave = resample_poly(wave, rate // common, own // common)
    return torch.from_numpy(wave.astype(np.float32)).clamp(-1, 1)


def log_mel(waves: Sequence[Tensor], *, rate: int = RATE, mels: int = 32, frames: int = 40) -> Tensor:
    """Turn recordings into log-mel spectrograms of one size, each scaled by itself.

    Windows of 32 ms (Hann) every 20 ms, power, triangular mel bands, logarithm; then minus the recording's own mean,
    divided by its own deviation: nothing is learned from other recordings.

    Args:
        waves: `(length,)` each, in [-1, 1].
        rate: samples per second.
        mels: bands, 1 or more.
        frames: time steps, 1 or more; longer recordings are cut, shorter ones followed by silence.

    Returns:
        `(N, 1, mels, frames)` float32.

    Raises:
        ValueError: mels or frames is below 1.
    """
    for name, value in (("mels", mels), ("frames", frames)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, given {value}")
    hop, window = round(0.02 * rate), round(0.032 * rate)
    length = (frames - 1) * hop + window
    padded = torch.zeros(len(waves), length)
    for row, wave in zip(padded, waves, strict=True):
        row[: min(len(wave), length)] = wave[:length]
    power = (padded.unfold(1, window, hop) * torch.hann_window(window)).float()
    spectrum = torch.fft.rfft(power).abs().square()  # (N, frames, bins)
    logs = (spectrum @ mel_bands(window // 2 + 1, rate, mels) + 1e-6).log().transpose(1, 2)
    mean, deviation = logs.mean(dim=(1, 2), keepdim=True), logs.std(dim=(1, 2), keepdim=True)
    return ((logs - mean) / deviation.clamp(min=1e-6)).unsqueeze(1)


def mel_bands(bins: int, rate: int, mels: int) -> Tensor:
    """Triangular bands, evenly spaced in mel = 2595 log10(1 + f / 700): `(bins, mels)`."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, bins)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))
