"""Quick check whether the Hugging Face hub can be reached, as the hub's own client may retry for minutes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import huggingface_hub.constants  # the other parts of this package are imported on first use


def hub_is_reachable(seconds: float = 5.0) -> bool:
    """Return whether the hub answers within so many seconds."""
    answered = threading.Event()

    def request_head() -> None:
        with suppress(Exception):
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
            answered.set()

    # in a thread, as the name look-up of a broken network ignores every time limit
    thread = threading.Thread(target=request_head, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


@contextmanager
def hub_access(online: bool) -> Iterator[None]:
    """Let the hub's client use the network if `online`, and otherwise only its cache."""
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not online
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
