"""`run.py serve`: clips for programs that ask over HTTP, made by a fleet or by this machine."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from ..common.errors import I2VError
from ..remote.batch.workflow import Workflow
from ..remote.comfyui.messages import printable
from ..remote.fleet.door import make_app
from ..remote.fleet.limits import Limits
from ..remote.fleet.service import ClipService
from .extras import complete_fleet
from .fleet_command import add_worker_options, open_crew, positive
from .queue_command import FAILED

TOKEN = "I2VTRT_SERVE_TOKEN"  # noqa: S105 - the name of a variable
HOST, PORT, QUEUE = "127.0.0.1", 8190, 20
END_S = 5.0
"""How long answers under way may take once the service is to end."""

DESCRIPTION = f"""\
Make clips for programs that ask over HTTP:

  POST /clips            a form: workflow, image, any number of set=NODE.INPUT=VALUE; gives the clip's key (202), or
                         429 if too many wait
  GET /clips/KEY         waiting, running, done or failed
  GET /clips/KEY/file    the clip
  DELETE /clips/KEY      cancels it
  GET /health            how many wait and run

What is accepted outlasts a restart; the same picture and workflow are one clip. With the variable {TOKEN},
requests need it as a bearer's token."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("run.py serve", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="where clips and records go")
    top.add_argument("--listen", default=HOST, metavar="HOST", help="the address to listen on (%(default)s)")
    top.add_argument("--port", type=int, default=PORT, metavar="N", help="the port (%(default)s); 0 for any")
    top.add_argument("--queue", type=positive, default=QUEUE, metavar="N", help="how many clips may wait (%(default)s)")
    add_worker_options(top)
    return top


def main(argv: Sequence[str]) -> int:
    """Serves until it is interrupted; 0 then."""
    options = parser().parse_args(argv)
    try:
        complete_fleet()
        options.out.mkdir(parents=True, exist_ok=True)
        results = sys.stdout
        with redirect_stdout(sys.stderr):  # Ray prints its own lines
            serve(options, results)
    except KeyboardInterrupt:
        return 0
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py serve: {error}\n")
        return FAILED
    return 0


def serve(options: argparse.Namespace, results: TextIO) -> None:
    """Opens the workers, the queue and the door, until it is interrupted."""
    out = options.out.absolute()
    with closing(open_crew(options, out, Workflow({}))) as crew:
        service = ClipService(crew, out, options.queue, _note, Limits(workers=options.workers))
        service.start()
        try:
            asyncio.run(_listen(service, options, results))
        finally:
            service.stop()


async def _listen(service: ClipService, options: argparse.Namespace, results: TextIO) -> None:
    from aiohttp import web

    over = asyncio.Event()
    with suppress(NotImplementedError):  # on Windows an interruption is an exception, as elsewhere
        for number in (signal.SIGINT, signal.SIGTERM):
            # An exception in the midst of an answer would leave that answer waited for.
            asyncio.get_running_loop().add_signal_handler(number, over.set)
    app = make_app(service, os.environ.get(TOKEN))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=END_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.listen, options.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        results.write(f"http://{host}:{port}\n")
        results.flush()
        await over.wait()
    finally:
        await runner.cleanup()


def _note(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()
