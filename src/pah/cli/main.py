"""The commands.

Exit status: 0 done, 1 some runs of a study failed, 2 bad input (one line on stderr), 130 after Ctrl-C with the state
saved.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence

from rich.console import Console

from pah.cli import learning, reporting, running, serving, studies
from pah.cli.errors import in_a_line, say, show_warning
from pah.core import distributed
from pah.core.config import InputError, RecoveryWarning, unknown

USAGE = """usage: pah COMMAND ...

  pah run [BENCHMARK]      learn a stream of tasks and measure what is kept   (pah run --help)
  pah compare [BENCHMARK]  the same stream with several methods and seeds     (pah compare --help)
  pah ablate [BENCHMARK]   how one method's options change its result         (pah ablate --help)
  pah resume RUN           continue a run that was stopped or killed          (pah resume --help)
  pah diagnose RUN         where a finished run's forgetting comes from: its heads or its features
  pah report RUN ...       a page to look at: one run, or several side by side [--out DIR]
  pah data [BENCHMARK]     a benchmark's tasks, classes, and where its images come from

  pah learn LEARNER        teach a learner a task of your own images          (pah learn --help)
  pah predict LEARNER IMAGE...   what is on the images                        (pah predict --help)
  pah export LEARNER       backbone and head of a task as an ONNX file        (pah export --help)
  pah forget LEARNER       remove a task from a learner
  pah data LEARNER         what a learner knows
  pah app [LEARNER]        a page to ask it and to teach it                   (pah app --help)
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    try:
        command = _command(words[0])
        with warnings.catch_warnings(), distributed.joined():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries' notes to developers are no answer to a user
            warnings.simplefilter("always", RecoveryWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]  # where in the code it arose is no answer
            # the name of a class or folder may look like markup or an emoji
            return command(Console(quiet=not distributed.is_first(), markup=False, emoji=False), words[1:])
    except distributed.LostError as error:
        return say(str(error), 1)
    except KeyboardInterrupt:  # before training began: there is nothing to save
        return 130
    except Exception as error:
        if (line := in_a_line(error, words[0])) is None:
            raise
        return say(line, 2)


def _command(name: str) -> Callable[[Console, list[str]], int]:
    """The command of that name; InputError if there is none, or if it is none for several processes."""
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if distributed.launched() and name not in TOGETHER:
        raise InputError(f"{name}: expected one process, got several; torchrun is for pah {' and pah '.join(TOGETHER)}")
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
    "predict": learning.predict,
    "export": learning.export,
    "forget": learning.forget,
    "app": serving.app,
}

TOGETHER = ("run", "resume")  # what several processes can do together

logging.getLogger("datasets").setLevel(logging.ERROR)
