"""The process of one device that also measures the exchange with the others: run as a script by `two_gpus`."""

from __future__ import annotations

import runpy
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent.parent
WORKER = PACK / "runtime" / "devices" / "rank_worker.py"
WARM_UP = 3


def main() -> None:
    """Serves as the pack's own process does, and answers `{"exchange": bytes, "count": N}` with seconds of one."""
    entered = runpy.run_path(str(WORKER), run_name="worker")
    entered["name_pack"]()
    rank: Any = import_module(entered["RANK"])
    torch: Any = import_module("torch")

    class Measuring(rank.Rank):
        """A process that gathers as many bytes from each process as it is told, so many times in a row."""

        def answer(self, data: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
            if "exchange" not in data:
                return super().answer(data, tensors)
            x = torch.ones(data["exchange"] // 2, dtype=torch.float16, device=self._device)
            started = 0.0
            for number in range(WARM_UP + data["count"]):
                if number == WARM_UP:
                    self._wait()
                    started = time.perf_counter()
                self._ranks.gather(x)
            self._wait()
            return {"seconds": (time.perf_counter() - started) / data["count"]}, {}

        def _wait(self) -> None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

    rank.serve(Measuring)


if __name__ == "__main__":
    main()
