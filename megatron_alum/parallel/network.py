"""What a job of many processes needs of the machines: enough open files, and addresses that other nodes can reach.

gloo connects every rank of a group with every other one, with one open file each: the groups of `training.control` and
of the checkpoints hold all ranks. It offers the address that the host's own name resolves to, which Debian's installer
makes 127.0.1.1; NCCL chooses an interface by itself.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

_FULL_MESHES = 2
_OTHER_FILES = 1024
"""shards, checkpoints, NCCL's and torchrun's own sockets, libraries"""


def raise_file_limit(world_size: int) -> None:
    """Allow this process the open files that `world_size` processes need. Raises: ValueError if the limit forbids
    it."""
    needed = _FULL_MESHES * (world_size - 1) + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        soft, hard = (hard if soft == resource.RLIM_INFINITY else soft), 2**62
    if soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    elif needed > max(soft, hard):
        raise ValueError(
            f"The limit of open files (`ulimit -Hn`) must be at least {needed:,} for {world_size} processes, which are "
            f"all connected with each other, but is {hard:,} instead. Raise it where the job is started: `ulimit -n`, "
            "LimitNOFILE of the service, or --ulimit nofile of the container."
        )


@dataclass(frozen=True)
class Node:
    """One machine of a job, as the others need to know it."""

    host: str
    """its name"""
    machine: str
    """different on every machine"""
    address: str
    """where gloo can be reached there; "" if its interface is set by GLOO_SOCKET_IFNAME"""

    @classmethod
    def here(cls) -> Node:
        """This machine."""
        host, boot = socket.gethostname(), Path("/proc/sys/kernel/random/boot_id")
        try:
            address = "" if os.environ.get("GLOO_SOCKET_IFNAME") else socket.gethostbyname(host)
        except OSError:  # gloo finds another address, or fails
            address = ""
        return cls(host, boot.read_text().strip() if boot.is_file() else host, address)


def check_addresses(store: dist.Store, node: Node, *, rank: int, number: int) -> None:
    """Collective over the processes of `number` nodes, one or more on each, through `store`; this one is on node
    `rank`.

    Raises: ValueError on all nodes if one offers the others a loopback address.
    """
    store.set(f"node_{rank}", json.dumps(asdict(node)))
    nodes = [Node(**json.loads(store.get(f"node_{other}"))) for other in range(number)]
    unreachable = [found for found in nodes if found.address.startswith("127.")]
    if unreachable and len({found.machine for found in nodes}) > 1:
        first = unreachable[0]
        raise ValueError(
            f"The name of every node must resolve to an address that the others can reach, but {first.host} resolves "
            f"to {first.address} there. Set GLOO_SOCKET_IFNAME on all nodes to the network interface between them (`ip "
            "-brief address` lists them; the launchers in examples/ take IFACE), or correct /etc/hosts."
        )
