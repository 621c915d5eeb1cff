"""A Ray cluster of pretended nodes on this machine: each a raylet of its own that says it has a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""A node's death is seen within seconds, in place of half a minute."""
STORE_BYTES = 80 << 20
KIND = "PRETENDED"


class PretendedCluster:
    """A head without GPUs, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": QUICK})

    @property
    def address(self) -> str:
        """For `--address`."""
        return str(self._cluster.address)

    def add(self, kind: str = KIND) -> Any:
        """A node with one GPU of a kind."""
        resources = {f"accelerator_type:{kind}": 1}
        return self._cluster.add_node(
            num_cpus=1, num_gpus=1, resources=resources, object_store_memory=STORE_BYTES, include_dashboard=False
        )

    def kill(self, node: Any) -> None:
        """Ends a node without a word to anybody."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """Ends them all."""
        self._cluster.shutdown()


@contextmanager
def pretended_cluster() -> Iterator[PretendedCluster]:
    """A cluster that leaves no process behind."""
    import psutil

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = set(psutil.Process().children(recursive=True))
    cluster = PretendedCluster()
    try:
        yield cluster
    finally:
        family = set(psutil.Process().children(recursive=True)) - before
        cluster.close()
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=20)
