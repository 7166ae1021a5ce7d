"""Descriptions and usage lines of the commands that take the options of a run or of a lesson."""

from typing import Literal

Command = Literal["run", "compare", "ablate", "learn", "data"]
DESCRIPTIONS: dict[Command, str] = {
    "run": "Learn a stream of tasks, one after another, and measure how much is forgotten.",
    "compare": "Learn the same stream with several methods and seeds. Repeat the command to continue a stopped "
    "comparison; run it twice at the same time to share the work. --<method>.<option> sets an option of one method "
    "(list them with pah run --method NAME --help). --buffer N sets the number of stored samples of each method that "
    "stores samples.",
    "ablate": "Learn the same stream with one method, and change its options one at a time (--vary) or in every "
    "combination (--grid). Without both, PAH's prototypes and loss weights are varied as in figure 3 of its paper. The "
    "other options describe the base configuration. Repeat the command to continue a stopped ablation; run it twice at "
    "the same time to share the work; run it with another --vary to add to it.",
    "data": "Without arguments, list the benchmarks. For a benchmark, list the tasks, the classes and the source of "
    "the images that a run with the same options would learn; options of the training have no effect. For a learner, "
    "list what it knows. --json prints the list as a line of JSON. With --clear_cache alone, delete the decoded images "
    "that commands keep to start faster.",
    "learn": "Teach a learner a task; if the folder has no learner, make one. Method, backbone, image size and seed "
    "are those of the first lesson. Other options keep their values until a later lesson changes them.",
}
USAGES: dict[Command, str] = {
    "run": "pah run [BENCHMARK] [--method NAME] [--data PATH_OR_HUB_ID] [--OPTION VALUE] ...",
    "compare": "pah compare [BENCHMARK] [--methods NAME,...] [--seeds N,...] [--out DIR] [--OPTION VALUE] ...",
    "ablate": "pah ablate [BENCHMARK] [--vary NAME=V1,V2,...] ... [--seeds N,...] [--out DIR] [--OPTION VALUE] ...",
    "data": "pah data [BENCHMARK | LEARNER | --clear_cache] [--json] [--data PATH_OR_HUB_ID] [--tasks N] "
    "[--OPTION VALUE] ...",
    "learn": "pah learn LEARNER --name NAME --data PATH_OR_HUB_ID [--only CLASS,...] [--OPTION VALUE] ...",
}
CONFIG_HELP = (
    "YAML file of options. Other options override it. If they name another method or backbone, the file's options of "
    "its own method or backbone are ignored"
)
VALUE_SEPARATOR = "; put ; between values that contain commas, such as lists: 'method.hidden=[64,64];[256]'"
