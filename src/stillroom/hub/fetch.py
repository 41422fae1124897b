"""Downloads of pretrained weights that fail within seconds and in one sentence, and libraries that keep quiet."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 5.0
"""Seconds that a server has to answer before it counts as out of reach."""


@contextmanager
def from_hugging_face(what: str) -> Iterator[None]:
    """Download from the Hugging Face hub inside, or, where it is out of reach, use what is in its cache.

    The library itself retries for a minute before it looks into the cache; here the hub is asked once.

    Args:
        what: what is fetched, for the message.

    Raises:
        ConnectionError: it is not in the cache and the hub is out of reach.
        FileNotFoundError: the hub answers, but does not give it (no such name, or no access).
    """
    from huggingface_hub import constants, errors

    offline_before = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if offline_before else _hub_silence()
    constants.HF_HUB_OFFLINE = bool(reason)
    try:
        yield
    except (OSError, errors.HfHubHTTPError) as error:
        if reason:
            raise ConnectionError(
                f"{what} is not on this machine and {constants.ENDPOINT} is out of reach ({reason}): connect, or put "
                f"it into the cache {constants.HF_HUB_CACHE} (HF_HOME moves it)"
            ) from error
        raise FileNotFoundError(f"{what} cannot be fetched from {constants.ENDPOINT}: {first_line(error)}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline_before


@contextmanager
def from_address(what: str, url: str) -> Iterator[None]:
    """Download weights that torch keeps in its own cache, or refuse at once where their server is out of reach.

    Args:
        what: what is fetched, for the message.
        url: where the weights are.

    Raises:
        ConnectionError: they are not in the cache and cannot be fetched.
    """
    import torch

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    reason = "" if (cache / url.rsplit("/", 1)[-1]).exists() else _silence(url)
    told = f"{what} is not on this machine and {url} is out of reach"
    if reason:
        raise ConnectionError(f"{told} ({reason}): connect, or put the file into {cache} (TORCH_HOME moves it)")
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"{told} ({first_line(error)}): connect, or put the file into {cache}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from warning and logging inside; errors still come through."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _hub_silence() -> str:
    """Why the hub gives no answer; empty where it does (any status is an answer)."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # each version of the library brings its own HTTP client with its own exceptions
        return first_line(error)
    return ""


def _silence(url: str) -> str:
    """Why an address gives no answer; empty where it does (any status is an answer)."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return first_line(getattr(error, "reason", error))
    return ""


def first_line(error: object) -> str:
    """The first line of an exception's message, or its name: libraries write paragraphs."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
