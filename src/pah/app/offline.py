"""Keep gradio from downloading files."""

import gradio as gr
from gradio import processing_utils


def refuse_address(*_: object, **__: object) -> str:
    """Refuse a file that a visitor names by its web address; it replaces gradio's download function."""
    raise gr.Error("file: expected one that is sent, got an address", print_exception=False)


async def refuse_address_async(*_: object, **__: object) -> str:
    """Refuse a web address where gradio awaits the download."""
    return refuse_address()


def disable_downloads() -> None:
    """Replace gradio's download functions: from now on it accepts uploaded files only."""
    for name in ("ssrf_protected_download", "save_url_to_cache"):
        setattr(processing_utils, name, refuse_address)
    processing_utils.async_ssrf_protected_download = refuse_address_async
