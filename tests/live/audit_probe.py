"""A custom node for the tests: writes down what the server does with files that it should never touch.

ComfyUI loads this file; nothing else imports it. What is allowed stands in the variable I2V_AUDIT, as JSON: `log` takes
a line for each offence, `writable` are the folders in which files may be made, changed and removed, `watched` those
in which none may even be read, and `free_bytes`, where there is one, is the memory that ComfyUI believes to be free.
"""

import json
import os
import sys
import traceback

CHANGES = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "os.mkfifo": (0,),
}
"""Audit events by the places of their paths."""
FOLLOW_LINKS = {"os.truncate", "os.chmod", "os.chown", "os.utime"}
"""Changes that go through a link at a path's end; the others make, move or remove the link itself."""
HANDLES = "/proc/self/fd/"
LOOKS = {"open", "os.listdir", "os.scandir", "os.chdir"}
RUNS = {"os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "marshal.load", "marshal.loads"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Audit:
    """The hook; `sys.addaudithook` keeps it for as long as the process lives."""

    def __init__(self, rules):
        self._log = os.open(rules["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._writable = [os.path.realpath(path) for path in rules["writable"]]
        self._watched = [os.path.realpath(path) for path in rules["watched"]]
        self._busy = False

    def __call__(self, event, given):
        if self._busy or not (event in CHANGES or event in LOOKS or event in RUNS):
            return
        self._busy = True
        try:
            self._judge(event, given)
        finally:
            self._busy = False

    def _judge(self, event, given):
        if event in RUNS:
            if event == "pickle.find_class":
                self._tell(event, ".".join(map(str, given)))
            elif not event.startswith("marshal"):  # Python reads its own compiled files by it
                self._tell(event, str(given))
        elif event == "open":
            path, _, flags = given
            self._path(event, path, bool(flags is not None and flags & WRITING))
        elif event in LOOKS:
            self._path(event, given[0], False)
        else:
            for place in CHANGES[event]:
                self._path(event, self._below(given[place], given[-1]), True, event in FOLLOW_LINKS)

    @staticmethod
    def _below(path, folder):
        """A path that is given relative to an open folder."""
        if isinstance(folder, int) and folder >= 0 and isinstance(path, str | bytes):
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        return path

    def _path(self, event, path, writes, follows=True):
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.fsdecode(path)
        places = self._places(text, follows)
        if any(self._lies_in(place, self._watched) for place in places):
            self._tell(event, text)
        elif writes and text != os.devnull and not all(self._lies_in(place, self._writable) for place in places):
            self._tell(event, text)

    @staticmethod
    def _places(text, follows):
        """Where a path's last part itself lies, and where it leads if what is done to it follows links."""
        if text.startswith(HANDLES):  # the open folder, whatever has its name by now
            handle, _, name = text[len(HANDLES) :].partition("/")
            return {os.path.join(os.readlink(HANDLES + handle), name)}
        folder, name = os.path.split(os.path.abspath(text))
        itself = os.path.join(os.path.realpath(folder), name)
        return {itself, os.path.realpath(text)} if follows else {itself}

    @staticmethod
    def _lies_in(place, roots):
        return any(place == root or place.startswith(root + os.sep) for root in roots)

    def _tell(self, event, what):
        where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-9:-4]]
        os.write(self._log, (json.dumps({"event": event, "what": what, "where": where}) + "\n").encode())


class ProbeOffence:
    """Does what is not allowed, so that a test sees the hook at work."""

    CATEGORY = "tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {}), "mode": (["r", "w"], {})}}

    def run(self, path, mode):
        open(path, mode).close()
        return {}


def begin():
    rules = json.loads(os.environ["I2V_AUDIT"])
    if "free_bytes" in rules:
        import comfy.model_management

        real = comfy.model_management.get_free_memory

        def pretended(dev=None, torch_free_too=False):
            least = min(rules["free_bytes"], real(dev))
            return (least, least) if torch_free_too else least

        comfy.model_management.get_free_memory = pretended
    sys.addaudithook(Audit(rules))


if "I2V_AUDIT" in os.environ:
    begin()

NODE_CLASS_MAPPINGS = {"ProbeOffence": ProbeOffence}
