"""`run.py queue`: a workflow, for one picture or a folder of them, through any ComfyUI server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from ..common.errors import I2VError, InputError
from ..remote.batch.in_flight import RetryPolicy
from ..remote.batch.job import Job
from ..remote.batch.ledger import Ledger, exclusive_lock
from ..remote.batch.progress import JobResult, Report
from ..remote.batch.run import QueueRun
from ..remote.batch.workflow import (
    PICTURE_SUFFIXES,
    NodeInfo,
    UsageError,
    Workflow,
    find_input,
    find_picture,
    read_workflow,
    set_inputs,
)
from ..remote.comfyui.address import Address, parse_address
from ..remote.comfyui.client import ComfyClient

DEFAULT_SERVER = "http://127.0.0.1:8188"
TOKEN = "I2VTRT_SERVER_TOKEN"  # noqa: S105 - the name of a variable
HEADERS = "I2VTRT_SERVER_HEADERS"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

DESCRIPTION = f"""\
Run a workflow in API format on a ComfyUI server and fetch what it makes: once, or once for each picture.

The same command goes on where an earlier one ended, however it ended: what is done is skipped, and
what the server still has is waited for. The folder .jobs in that of --out keeps count.

Ctrl-C takes what is queued from the server. The status is 0 if all is done, {FAILED} if something
failed, {USAGE} for a wrong command line and {INTERRUPTED} after an interruption."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("run.py queue", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    add_job_options(top)
    top.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        metavar="URL",
        help="with a path, a name and password or a query where the server asks for them (%(default)s)",
    )
    top.add_argument("--token", metavar="TEXT", help=f"a bearer token; better in the variable {TOKEN}")
    top.add_argument(
        "--header",
        action="append",
        metavar="NAME:TEXT",
        help=f"a header that a gateway before the server asks for (repeatable); better in the variable {HEADERS}, a "
        "line each",
    )
    trust = top.add_mutually_exclusive_group()
    trust.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust in place of the system's")
    trust.add_argument("--insecure", action="store_true", help="take any certificate")
    top.add_argument("--json", action="store_true", help="one line of JSON for each result")
    top.add_argument("--previews", type=Path, metavar="DIR", help="keep the previews of the samplers there")
    top.add_argument(
        "--patience",
        type=float,
        default=RetryPolicy.gone_s,
        metavar="SECONDS",
        help="how long the server may be away in the middle (%(default)g)",
    )
    return top


def add_job_options(top: argparse.ArgumentParser) -> None:
    """The options that say which clips to make."""
    top.add_argument("workflow", type=Path, metavar="WORKFLOW", help="a workflow in API format, JSON")
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the videos and pictures go")
    top.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="an input's value; the node by its id, or by its title or class where only one has it (repeatable)",
    )
    top.add_argument(
        "--image",
        action="append",
        type=Path,
        default=[],
        metavar="FILE|FOLDER",
        help="a picture, or a folder of them: one job each (repeatable)",
    )
    top.add_argument("--into", metavar="NODE.INPUT", help="where the picture goes, if not into the only LoadImage")


def main(argv: Sequence[str]) -> int:
    """Runs the queue; the description lists the exit statuses."""
    options = parser().parse_args(argv)
    return status_of("run.py queue", lambda: 0 if all(result.is_done for result in run(options)) else FAILED)


def status_of(command: str, work: Callable[[], int]) -> int:
    """The exit status of a command that can be given again; its errors are told as sentences."""
    try:
        return work()
    except KeyboardInterrupt:
        sys.stderr.write(f"{command}: interrupted; the same command goes on from here\n")
        return INTERRUPTED
    except UsageError as error:
        sys.stderr.write(f"{command}: {error}\n")
        return USAGE
    except (I2VError, OSError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        return FAILED


def run(options: argparse.Namespace) -> list[JobResult]:
    """Runs the queue of the options; raises UsageError, ServerError or StorageError."""
    paths = find_pictures(options.image, options.out)
    client = ComfyClient(address_of(options))
    workflow = make_workflow(client.node_info, options)
    jobs = make_jobs(workflow, paths, options.workflow.stem)
    client.queued()  # a server that is not there from the start is reported at once
    with exclusive_lock(options.out):
        report = Report(len(jobs), sys.stderr, sys.stdout, options.json, options.previews)
        for job in jobs:
            if len(job.pictures) > 1:
                same = " and ".join(path.name for path in job.pictures)
                report.note(f"{same} hold the same picture, which is one job.")
        retry = RetryPolicy(gone_s=options.patience)
        try:
            return QueueRun(client, workflow, Ledger(options.out), options.out, report, retry).run(jobs)
        finally:
            report.close()


def make_workflow(info: NodeInfo, options: argparse.Namespace) -> Workflow:
    """The workflow with the options' changes; raises UsageError for a node or an input that it does not have."""
    graph, extra_data = read_workflow(options.workflow)
    prompt = set_inputs(graph, options.set, info)
    if options.into is not None and not options.image:
        raise UsageError("--into says where the picture of --image goes, and there is none.")
    if not options.image:
        return Workflow(prompt, extra_data=extra_data)
    place = find_input(prompt, options.into, info) if options.into else find_picture(prompt)
    return Workflow(prompt, place, extra_data)


def find_pictures(given: Sequence[Path], out: Path) -> list[Path]:
    """The files, and those in the folders by name; raises UsageError where there are none."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise UsageError(f"The pictures in {path} and what comes of them should lie in two folders.")
            inside = sorted(entry for entry in path.iterdir() if _is_picture(entry))
            if not inside:
                raise UsageError(f"Expected pictures in {path}, found none ({', '.join(sorted(PICTURE_SUFFIXES))}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"Expected a picture or a folder at {path}, found nothing.")
    return found


def make_jobs(workflow: Workflow, paths: Sequence[Path], name: str) -> list[Job]:
    """One job a picture, or one without; the same picture under several names is one."""
    if not paths:
        return [Job((), None, workflow.digest, name)]
    by_digest: dict[str, list[Path]] = {}
    for path in paths:
        by_digest.setdefault(_digest(path), []).append(path)
    digest = workflow.digest
    return [Job(tuple(same), picture, digest, same[0].stem) for picture, same in by_digest.items()]


def address_of(options: argparse.Namespace) -> Address:
    """The server's address with what it asks for; raises UsageError, which shows no secret."""
    try:
        token = options.token or os.environ.get(TOKEN)
        trust = False if options.insecure else options.ca or True
        headers = options.header or filter(None, os.environ.get(HEADERS, "").splitlines())
        return parse_address(options.server, token, trust, headers)
    except InputError as error:
        raise UsageError(f"--server: {error}") from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"Expected a picture at {os.fspath(path)} to read: {error.strerror or error}.") from error
