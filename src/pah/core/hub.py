"""Whether the Hugging Face hub can be reached: known before its client spends minutes on finding out."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import huggingface_hub.constants  # its other parts are imported when they are asked for


def hub_answers(seconds: float = 5.0) -> bool:
    """Whether the hub answers at all; without it its client would retry for half a minute."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # a broken network's name look-up ignores every time limit
    thread.start()
    thread.join(seconds)
    return answered.is_set()


@contextmanager
def cache_only_unless(online: bool) -> Iterator[None]:
    """Within it the hub's client, unless `online`, takes what its cache holds and does not try the network."""
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not online
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
