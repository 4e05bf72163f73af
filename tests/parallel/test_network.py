"""Limits and addresses that a job of many processes needs."""

import json
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_alum.parallel import groups
from megatron_alum.parallel.network import Node, check_addresses, raise_file_limit


@pytest.fixture
def limits(monkeypatch):
    """(soft, hard) limit of open files, as `raise_file_limit` sees and sets them."""
    values = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: tuple(values))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, new: values.__setitem__(slice(None), new))
    return values


def test_512_processes_get_the_files_they_need(limits):
    """Two groups of 511 sockets each do not fit into 1,024 files."""
    raise_file_limit(512)
    assert 2 * 511 + 500 < limits[0] <= limits[1] == 4096


def test_a_limit_that_is_high_enough_stays(limits):
    limits[:] = [4096, 8192]
    raise_file_limit(512)
    assert limits == [4096, 8192]


@pytest.mark.parametrize("unlimited", [[1024, resource.RLIM_INFINITY], [resource.RLIM_INFINITY] * 2])
def test_no_limit_is_high_enough(limits, unlimited):
    limits[:] = unlimited
    raise_file_limit(100_000)
    assert limits[1] == resource.RLIM_INFINITY
    assert limits[0] == resource.RLIM_INFINITY or limits[0] > 200_000


def test_a_hard_limit_that_is_too_low_is_named(limits):
    with pytest.raises(ValueError, match=r"open files .* at least 9,214 for 4096 processes.* but is 4,096 instead"):
        raise_file_limit(4096)
    assert limits == [1024, 4096]


def complaints(*nodes):
    """The error of each node."""
    store = dist.HashStore()

    def check(rank):
        try:
            check_addresses(store, nodes[rank], rank=rank, number=len(nodes))
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(check, range(len(nodes))))


def test_an_address_that_means_the_node_itself_is_refused_on_all():
    first, second = complaints(Node("node0", "a", "10.0.0.1"), Node("node1", "b", "127.0.1.1"))
    assert first == second
    assert "node1 resolves to 127.0.1.1" in first and "GLOO_SOCKET_IFNAME" in first


def test_other_addresses_are_accepted():
    assert complaints(Node("node0", "a", "10.0.0.1"), Node("node1", "b", "10.0.0.2")) == [None, None]
    assert complaints(Node("node0", "a", ""), Node("node1", "b", "")) == [None, None], "GLOO_SOCKET_IFNAME is set"
    assert complaints(Node("one", "a", "127.0.0.1"), Node("one", "a", "127.0.0.1")) == [None, None], "one machine"


def test_the_interface_replaces_the_address(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert Node.here().address == "" and Node.here().host


@pytest.fixture
def job_of_two_nodes(monkeypatch):
    """This process is the first of two nodes' jobs, on a host that resolves to 127.0.1.1; the second is reachable."""
    store = dist.HashStore()
    store.set("node_1", json.dumps(asdict(Node("node1", "another machine", "10.0.0.2"))))
    for name, value in {"MASTER_ADDR": "node0", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(dist, "rendezvous", lambda *_arguments, **_options: iter([(store, 0, 2)]))
    monkeypatch.setattr(socket, "gethostname", lambda: "node0")
    monkeypatch.setattr(socket, "gethostbyname", lambda _host: "127.0.1.1")
    joined = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_options: joined.append(backend))
    return joined


def test_a_host_that_resolves_to_itself_ends_the_job_before_gloo_waits(job_of_two_nodes):
    with pytest.raises(ValueError, match=r"node0 resolves to 127\.0\.1\.1 there\. Set GLOO_SOCKET_IFNAME on all nodes"):
        groups._join("gloo", 2, timedelta(seconds=5))
    assert job_of_two_nodes == []


def test_such_a_host_joins_by_the_interface_that_is_set(job_of_two_nodes, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    groups._join("gloo", 2, timedelta(seconds=5))
    assert job_of_two_nodes == ["gloo"]


def test_a_host_without_an_address_is_left_to_gloo(job_of_two_nodes, monkeypatch):
    def unknown(_host):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    groups._join("gloo", 2, timedelta(seconds=5))
    assert job_of_two_nodes == ["gloo"]
