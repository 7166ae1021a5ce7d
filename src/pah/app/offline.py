"""What gradio would fetch from elsewhere, it does not."""

import gradio as gr
from gradio import processing_utils


def refuse_addresses(*_: object, **__: object) -> str:
    """In place of gradio's download of a file that a user names by its address."""
    raise gr.Error("file: expected one that is sent, got an address", print_exception=False)


async def refuse_addresses_later(*_: object, **__: object) -> str:
    """The same, where gradio waits for it."""
    return refuse_addresses()


def stay_on_this_machine() -> None:
    """From now on gradio takes files that are sent, and fetches none that is named by its address."""
    for name in ("ssrf_protected_download", "save_url_to_cache"):
        setattr(processing_utils, name, refuse_addresses)
    processing_utils.async_ssrf_protected_download = refuse_addresses_later
