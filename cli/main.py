"""The command line of run.py: `demo`, `test` and others, each in the pack's own environment.

Standard library only at module level, for `--help` and the set-up run before anything is installed.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ..common.child_process import PATIENT
from ..common.errors import I2VError
from .child import run_child
from .environment import ROOT, Environment
from .test_command import run_only, run_tests

IN_ENV = "--inside"
COMMANDS = {
    "demo": ".demo_command",
    "queue": ".queue_command",
    "fleet": ".fleet_command",
    "serve": ".serve_command",
    "engine": ".engine_command",
    "convert": ".convert_command",
    "bench": "..benchmarks.command",
    "evaluate": "..benchmarks.evaluation.command",
    "calibrate-cache": ".calibrate_cache",
    "train-interpolation": "..demo_model.training.interpolation",
    "words": ".words_command",
    "thumbnails": ".thumbnails.command",
}
"""Commands that another module owns, options and all."""
BARE = "words"
"""The command that needs no environment."""
INTERRUPTED = 130  # 128 + SIGINT

DESCRIPTION = """\
I2V TensorRT on a machine that has nothing but Python 3.10 or newer.

The first run makes an environment of its own in the folder .venv beside run.py and installs what
the commands need, with pip's settings (index, proxy, cache) as they are on this machine. Later runs
start at once. To begin anew, delete that folder."""

DEMO = """\
Turn the bundled picture into a video, from nothing: builds the engines of the bundled model for
this host, samples, decodes and saves; then prints where the video is, how long each stage took, and
where a contact sheet of the frames lies. When a ComfyUI is found (COMFYUI_DIR, or comfy-cli's default
workspace) the same job runs through it, and the demo says which of the two it did."""

LATER = """\
The other options are shown once the environment is made."""

QUEUE = """\
Run a workflow in API format on any ComfyUI server, once or for each picture of a folder, and fetch what it
makes. The same command goes on where an earlier one ended, even if client or server were killed."""

FLEET = """\
Run a workflow for a folder of pictures on every GPU of a Ray cluster, each with a ComfyUI of its own. Clips are
published once whatever is lost, and the same command goes on from any machine; Ray is installed when it is first asked
for. `fleet prebuild` builds the engines for each kind of GPU, `fleet status` counts what waits, runs, is done, failed
or lost."""

ENGINE = """\
Compile a checkpoint's networks ahead of time, for this machine or for other GPUs; list, check and remove
what is there; and say which backends can run here and what to install (doctor)."""

CONVERT = """\
Make a folder that I2V Model Loader opens from the single files that people have of DynamiCrafter, ToonCrafter, Stable
Video Diffusion and Wan, and from folders with the parts that the files lack."""

TEST = """\
Check everything: ruff, pyright, then pytest, with a summary at the end. The status is 0 only if all
three passed. The tests that need a ComfyUI run where one is found (COMFYUI_DIR, or comfy-cli's
default workspace); the summary says whether they ran."""

PYTEST_ARGUMENTS = """\
All other arguments go to pytest, with paths counted from the folder of run.py:
  python run.py test -k sampling
  python run.py test tests/unit/pipeline -x"""


COMMANDS_HELP = {
    "demo": ("[--out DIR] [--prompt TEXT] [more options]", "turn the bundled picture into a video", DEMO),
    "queue": (
        "WORKFLOW --out DIR [--image FILE|FOLDER] [--set NODE.INPUT=VALUE] [more options]",
        "run a workflow on a ComfyUI server, for a folder of pictures too",
        QUEUE,
    ),
    "fleet": (
        "[prebuild | status | ray] WORKFLOW --image FOLDER --out DIR [--address auto] [more options]",
        "run a workflow for a folder of pictures on the GPUs of many machines",
        FLEET,
    ),
    "serve": (
        "--out DIR [--port N] [--queue N] [--address auto] [more options]",
        "make clips for programs that ask over HTTP",
        "Make clips for programs that ask over HTTP: a bounded queue that outlasts a restart, status, file, cancel.",
    ),
    "engine": (
        "{build,list,verify,prune,doctor} ...",
        "build, list, check and remove compiled engines",
        ENGINE,
    ),
    "convert": (
        "FILE ... --out NAME [--parts DIR] [--kind KIND]",
        "make a model's folder from the single files that people have of it",
        CONVERT,
    ),
    "bench": (
        "NAME ...",
        "measure speed and likeness on this machine",
        "Measure on this machine, and write the figures as JSON.",
    ),
    "evaluate": (
        "[--model DIR] [--seeds N] [more options]",
        "judge the presets of I2V Accelerate against exact clips",
        "Make clips under each preset and say how far they are from the exact ones, and how much faster.",
    ),
    "calibrate-cache": (
        "[MODEL] [more options]",
        "measure a checkpoint's ratios for the step cache magnitudes",
        "Sample a few clips and keep how the network's residual changes from step to step.",
    ),
    "train-interpolation": (
        "[--minutes N] [--compile] [--out DIR] [more options]",
        "train the pack's own interpolation network",
        "Train the interpolation network on procedural clips, and measure it on held-out ones.",
    ),
    "words": (
        "[--check] [--server URL]",
        "write locale, READMEs' tables and help pages from the nodes' schemas",
        "Write what follows from the nodes' schemas.",
    ),
    "thumbnails": (
        "[NAME ...] [--frames DIR] [--out DIR]",
        "draw the pictures of the workflows that ComfyUI's page lists",
        "Run the workflows in a ComfyUI of this machine, and draw their pictures of the frames.",
    ),
}
"""Usage, line in the list of commands, and description of each command, without any installed package."""


def parser() -> argparse.ArgumentParser:
    """The command line of run.py; commands that another room owns have their options there."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("run.py", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (usage, line, description) in COMMANDS_HELP.items():
        command = commands.add_parser(
            name,
            help=line,
            description=description,
            epilog=LATER,
            formatter_class=raw,
            allow_abbrev=False,
            add_help=False,
            usage=f"run.py {name} [-h] {usage}",
        )
        command.add_argument("-h", "--help", action="store_true", help="show this help message and exit")
        command.set_defaults(show=command.print_help)
    test = commands.add_parser(
        "test",
        help="check the code and run all tests",
        description=TEST,
        epilog=PYTEST_ARGUMENTS,
        formatter_class=raw,
        allow_abbrev=False,
        usage="run.py test [-h] [--fast | --gpu | --torture | --browser] [pytest arguments]",
    )
    which = test.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="no slow tests, none that need a ComfyUI or a GPU")
    which.add_argument(
        "--gpu",
        dest="only",
        action="store_const",
        const="gpu",
        help="only every backend on the GPU at hand, with a report in out/ for bug reports",
    )
    which.add_argument(
        "--torture",
        dest="only",
        action="store_const",
        const="torture",
        help="only kills, races, faults, mutations and hostile requests, in full count: hours",
    )
    which.add_argument(
        "--browser",
        dest="only",
        action="store_const",
        const="browser",
        help="only ComfyUI's page in a browser: every workflow and node, pictures in out/browser (installs Playwright)",
    )
    return top


def main(arguments: Sequence[str], environment: Environment | None = None) -> int:
    """Run the command line `arguments` (without the program's name) and return the exit status.

    Argparse ends the program itself after `--help` (0) and on a wrong command line (2).
    """
    if list(arguments[:1]) == [IN_ENV]:
        return inside(arguments[1], arguments[2:])
    environment = environment or Environment.of_repository()
    options = parser().parse_known_args(arguments)[0]
    if options.command is None:
        parser().print_help()
        return 2
    if options.command == BARE:
        return inside(BARE, arguments[1:])
    if options.command in COMMANDS and options.help and not environment.is_ready():
        options.show()
        return 0
    try:
        python = environment.prepare()
        return run_child([str(python), str(ROOT / "run.py"), IN_ENV, *arguments])
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("run.py: interrupted\n")
        return INTERRUPTED


def inside(command: str, arguments: Sequence[str]) -> int:
    """Do the job of `command` in this very process, which runs in the pack's own environment."""
    for name, value in PATIENT.items():  # before anything loads OpenMP
        os.environ.setdefault(name, value)
    try:
        if command in COMMANDS:
            return importlib.import_module(COMMANDS[command], __package__).main(list(arguments))
        options, for_pytest = parser().parse_known_args([command, *arguments])
        rest = [argument for argument in for_pytest if argument != "--"]
        return run_only(options.only, rest) if options.only else run_tests(rest, options.fast)
    except KeyboardInterrupt:
        return INTERRUPTED
