"""The process of one device of several, whose memory runs out in a later call: run as a script, as the pack's own."""

import runpy
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parents[2] / "runtime" / "devices" / "rank_worker.py"
CALLS = 2
"""Calls that go well."""


def main() -> None:
    entered = runpy.run_path(str(WORKER), run_name="worker")
    entered["name_pack"]()
    rank: Any = import_module(entered["RANK"])
    torch: Any = import_module("torch")

    class Full(rank.Rank):
        """The second process has no room for the third call."""

        calls = 0

        def answer(self, data: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
            self.calls += "call" in data
            if self.calls > CALLS and self._ranks.rank == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().answer(data, tensors)

    rank.serve(Full)


if __name__ == "__main__":
    main()
