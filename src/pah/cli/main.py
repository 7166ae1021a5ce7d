"""The command `pah`.

Exit status: 0 done; 1 some runs of a study failed, or a lesson was rolled back; 2 bad input, with one line on stderr;
130 after Ctrl-C with the state saved.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

from rich.console import Console

from pah.cli import learning, predicting, reporting, running, serving, studies
from pah.cli.errors import end_with, show_warning, user_message
from pah.cli.printing import PlainConsole
from pah.core import distributed
from pah.core.config import InputError, RecoveryWarning, unknown_name_error

USAGE = """usage: pah COMMAND ...

  pah run [BENCHMARK]      learn a stream of tasks and measure the forgetting  (pah run --help)
  pah compare [BENCHMARK]  run several methods and seeds on the same stream    (pah compare --help)
  pah ablate [BENCHMARK]   change one method's options one at a time           (pah ablate --help)
  pah resume RUN           continue a run that was stopped or killed           (pah resume --help)
  pah diagnose RUN         split a run's forgetting into heads and features    (pah diagnose --help)
  pah report RUN ...       write an HTML report of one run or of several       (pah report --help)
  pah data [BENCHMARK]     list a benchmark's tasks, classes and image source  (pah data --help)

  pah learn LEARNER        teach a learner a task of your own images           (pah learn --help)
  pah predict LEARNER IMAGE_OR_FOLDER...   classify images                     (pah predict --help)
  pah export LEARNER       write a task's backbone and head as an ONNX file    (pah export --help)
  pah forget LEARNER       remove a task from a learner                        (pah forget --help)
  pah data LEARNER         list what a learner knows
  pah app [LEARNER]        serve a web page to ask and teach a learner         (pah app --help)

  pah --version            print the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; the arguments are those of the process unless given."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"pah {version('pah')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        command = _find_command(arguments[0])
        with warnings.catch_warnings(), distributed.process_group():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries' warnings are for developers, not for users
            warnings.simplefilter("always", RecoveryWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]  # without the line of code
            return command(PlainConsole(quiet=not distributed.is_main_process()), arguments[1:])
    except distributed.ProcessLostError as error:
        return end_with(str(error), 1)
    except KeyboardInterrupt:  # before training began: there is nothing to save
        return 130
    except Exception as error:
        if (message := user_message(error, arguments[0])) is None:
            raise
        return end_with(message, 2)


def _find_command(name: str) -> Callable[[Console, list[str]], int]:
    """Return the command of that name; InputError if there is none, or if several processes cannot share it."""
    if name not in COMMANDS:
        raise unknown_name_error("command", name, COMMANDS)
    if distributed.is_distributed() and name not in DISTRIBUTED:
        commands = " and pah ".join(DISTRIBUTED)
        raise InputError(f"{name}: expected one process, got several; torchrun is for pah {commands}")
    return COMMANDS[name]


COMMANDS = {
    "run": running.run,
    "compare": studies.compare,
    "ablate": studies.ablate,
    "resume": running.resume,
    "diagnose": running.diagnose,
    "report": reporting.report,
    "data": running.data,
    "learn": learning.learn,
    "predict": predicting.predict,
    "export": learning.export,
    "forget": learning.forget,
    "app": serving.app,
}

DISTRIBUTED = ("run", "resume")  # commands that several processes can share

logging.getLogger("datasets").setLevel(logging.ERROR)
