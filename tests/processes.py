"""Several processes on this machine that find each other, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_together(code: str, *arguments: object, count: int = 2, limit: float = 600) -> list[tuple[int, str]]:
    """Run Python code in so many processes; return each one's exit status and what it wrote to both outputs.

    After ``limit`` seconds they are killed: then they wait for each other.
    """
    shared = {
        **os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-c", code, *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip
    found: list[tuple[int, str]] = []
    for process in processes:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            said, _ = process.communicate()
        found.append((process.returncode, said))
    return found
