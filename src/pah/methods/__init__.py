"""The registry of methods. To add a method, write its class and options and add an entry to `METHODS`."""

from typing import NamedTuple

from pah.methods.architecture import PNN, Independent, IndependentOptions, PNNOptions
from pah.methods.base import Method, MethodOptions
from pah.methods.bounds import Finetune, Joint
from pah.methods.gcr import GCR, GCROptions
from pah.methods.hat import HAT, HATOptions
from pah.methods.hypernet import HN2, HN2Options, HNet, HNetOptions
from pah.methods.pah import PAH
from pah.methods.pah_options import PAHOptions
from pah.methods.regularization import EWC, SI, EWCOptions, LwF, LwFOptions, SIOptions
from pah.methods.replay import AGEM, DER, ER, DEROptions, DERpp, DERppOptions, EROptions, ReplayOptions


class Entry(NamedTuple):
    """A method and its options.

    Attributes:
        method: A class whose constructor takes a network, the options of the optimizer and the method's own options.
        options: A frozen dataclass. The `Args` section of its docstring is the help text of its fields.
    """

    method: type[Method]
    options: type[MethodOptions]


METHODS: dict[str, Entry] = {
    "pah": Entry(PAH, PAHOptions),
    "finetune": Entry(Finetune, MethodOptions),
    "joint": Entry(Joint, MethodOptions),
    "independent": Entry(Independent, IndependentOptions),
    "lwf": Entry(LwF, LwFOptions),
    "ewc": Entry(EWC, EWCOptions),
    "si": Entry(SI, SIOptions),
    "er": Entry(ER, EROptions),
    "agem": Entry(AGEM, ReplayOptions),
    "der": Entry(DER, DEROptions),
    "der++": Entry(DERpp, DERppOptions),
    "gcr": Entry(GCR, GCROptions),
    "pnn": Entry(PNN, PNNOptions),
    "hat": Entry(HAT, HATOptions),
    "hnet": Entry(HNet, HNetOptions),
    "hn2": Entry(HN2, HN2Options),
}
