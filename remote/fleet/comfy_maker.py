"""A maker with a ComfyUI of its own on its GPU, started when the first clip asks for it and again after a crash."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

from ...common.errors import InputError
from ..comfyui.client import ComfyClient
from ..comfyui.errors import RunTimeoutError, ServerError
from ..comfyui.messages import made_files
from ..comfyui.server import ComfyServer, ServerStartError, find_comfyui, not_found_reason, start_server
from .clip_job import ClipJob
from .maker import BrokenWorkerError, CrashedError, WorkerSpec
from .shared_folder import load_workflow, read_picture

SCRATCH = "i2v-fleet-"
ARGUMENTS = ("--disable-api-nodes", "--database-url", "sqlite:///:memory:")
END_S = 10.0
"""How long a ComfyUI that breaks its connections may take to end."""
OWN = ("output", "temp")
"""Folders that a worker's ComfyUI has for itself."""


class ComfyMaker:
    """Runs each job's workflow; models, custom nodes and input files are those of the machine's ComfyUI."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._stack = ExitStack()
        self._server: ComfyServer | None = None
        self._own: list[Path] = []
        self._workflow = lru_cache(8)(lambda digest: load_workflow(Path(spec.out), digest))

    def make(self, job: ClipJob, folder: Path) -> list[Path]:
        """See `Maker`."""
        server = self._running()
        try:
            try:
                return self._run(server, job, folder)
            except ServerError as error:
                if error.status != 404:
                    raise
            # A file of an earlier clip, whose nodes ComfyUI did not run again.
            ComfyClient(server.url).free(unload_models=False)
            return self._run(server, job, folder)
        except RunTimeoutError as error:
            self.close()  # it may hang: the next clip has a new one
            raise InputError(f"The clip should take at most {self._spec.clip_s:g} s, and took longer.") from error
        except ServerError as error:
            if error.status is not None and server.process.poll() is None:
                raise
            raise CrashedError(f"{self._end_of(server)} while it made this.") from error
        finally:
            for own in self._own:
                _empty(own)

    def interrupt(self) -> None:
        """See `Maker`."""
        if self._server is not None:
            with suppress(ServerError):
                ComfyClient(self._server.url).interrupt()

    def close(self) -> None:
        """See `Maker`."""
        self._server, self._own = None, []
        self._stack.close()

    def _end_of(self, server: ComfyServer) -> str:
        """What became of a ComfyUI that no longer answers: its connections break before it has ended."""
        try:
            return f"ComfyUI ended with status {server.process.wait(END_S)}"
        except subprocess.TimeoutExpired:
            return "ComfyUI stopped answering"
        finally:
            self.close()

    def _run(self, server: ComfyServer, job: ClipJob, folder: Path) -> list[Path]:
        workflow, content, client = self._workflow(job.workflow_digest), read_picture(job), ComfyClient(server.url)
        name = None
        if content is not None:
            # A name of this worker's own: others have the same input folder.
            suffix = Path(job.picture or "").suffix
            name = client.upload_image(content, f"{job.file_stem}-{os.getpid()}{suffix}")
        try:
            result = client.run(
                workflow.with_picture(name),
                timeout_s=self._spec.clip_s,
                extra_data=self._spec.extra_data or None,
                is_alive=lambda: server.process.poll() is None,
            )
        finally:
            if name is not None:
                (server.base_directory / "input" / name).unlink(missing_ok=True)
        if result.status != "success":
            raise InputError(result.error or result.status)
        paths = []
        for number, file in enumerate(made_files(result.outputs), start=1):
            paths.append(folder / f"{number}{file.suffix}")
            client.download(file, paths[-1])
        return paths

    def _running(self) -> ComfyServer:
        """The server, started if need be; raises BrokenWorkerError where there can be none."""
        if self._server is not None and self._server.process.poll() is None:
            return self._server
        self.close()
        try:
            host = find_comfyui()
            if host is None:
                raise BrokenWorkerError(f"Expected a ComfyUI on {platform.node()}, but {not_found_reason()}.")
            base = Path(self._spec.base) if self._spec.base else host.directory
            scratch = Path(self._stack.enter_context(_scratch_folder()))
            self._own = [scratch / name for name in OWN]
            arguments = [*ARGUMENTS, *_own_folders(self._own), *self._spec.arguments]
            log, start_s = scratch / "comfyui.log", self._spec.start_s
            server = start_server(host, base, arguments, log, start_s, ends_with_us=True)
            self._server = self._stack.enter_context(server)
        except (ServerStartError, OSError) as error:
            self.close()
            raise BrokenWorkerError(str(error)) from error
        return self._server


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with this process; those of killed ones go now."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        owner = path.name.removeprefix(SCRATCH).partition("-")[0]
        if owner.isdecimal() and not _is_running(int(owner)):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", ignore_cleanup_errors=True)


def _is_running(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def _own_folders(folders: Sequence[Path]) -> list[str]:
    """Makes them; the arguments by which ComfyUI takes them."""
    arguments = []
    for folder in folders:
        folder.mkdir()
        arguments += [f"--{folder.name}-directory", str(folder)]
    return arguments


def _empty(folder: Path) -> None:
    """Removes what is in a folder, or clips would fill the disk."""
    for path in folder.glob("*"):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
