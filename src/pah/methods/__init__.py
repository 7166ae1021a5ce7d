"""The methods by name. To add one: a class in a module of its own or beside its kin, and a line here."""

from typing import NamedTuple

from pah.methods.base import Method, MethodOptions
from pah.methods.bounds import Finetune, Joint
from pah.methods.pah import PAH, PAHOptions


class Entry(NamedTuple):
    """A method and its options."""

    method: type[Method]
    options: type[MethodOptions]


METHODS: dict[str, Entry] = {
    "pah": Entry(PAH, PAHOptions),
    "finetune": Entry(Finetune, MethodOptions),
    "joint": Entry(Joint, MethodOptions),
}
