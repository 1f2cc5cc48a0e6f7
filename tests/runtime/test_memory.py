"""Limits of control groups and of ulimit, from files as Linux writes them."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from diffusion_jax import data
from diffusion_jax.data.checks import require_memory
from diffusion_jax.errors import UserError
from diffusion_jax.presets import data_defaults
from diffusion_jax.runtime import memory
from diffusion_jax.runtime.memory import Available

HOST = 10_000
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes a system's files, with HOST bytes free."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    host = SimpleNamespace(available=HOST)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host)
    monkeypatch.setattr(memory, "resource", None)

    def write(membership, files):
        (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(str(content).encode() if not isinstance(content, bytes) else content)

    return write


STAT = "anon 700\nfile 650\nshmem 50\ninactive_file 400\nactive_file 200\nslab_reclaimable 30\n"
STAT_V1 = (
    "cache 9\ninactive_file 9\nactive_file 9\nhierarchical_memory_limit {}\n"
    "total_cache 650\ntotal_inactive_file 400\ntotal_active_file 200\n"
)
DOCKER = "4:memory:/docker/4f\n3:cpu,cpuacct:/docker/4f\n1:name=systemd:/docker/4f\n"


@pytest.mark.parametrize(
    ("membership", "files", "free", "file"),
    [
        # v2, by path: the limit of the group itself, its cache free.
        (
            "0::/job/step\n",
            {
                "job/step/memory.max": "3000\n",
                "job/step/memory.current": "1800\n",
                "job/step/memory.stat": STAT,
                "job/memory.max": "max\n",
                "job/memory.current": "1800\n",
            },
            3000 - (1800 - 630),
            "job/step/memory.max",
        ),
        # Of a group around it, which others fill.
        (
            "0::/job/step\n",
            {
                "job/step/memory.max": "max\n",
                "job/step/memory.current": "10\n",
                "job/memory.max": "5000\n",
                "job/memory.current": "4900\n",
                "job/memory.stat": "anon 4900\ninactive_file 0\n",
            },
            100,
            "job/memory.max",
        ),
        # The least of several; memory.high slows a process down until it stands.
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "4000",
                "a/b/memory.current": "0",
                "a/memory.max": "3000",
                "a/memory.high": "2000",
                "a/memory.current": "0",
            },
            2000,
            "a/memory.high",
        ),
        # In a container: its own group is the root that it is shown.
        ("0::/\n", {"memory.max": "3000", "memory.current": "500"}, 2500, "memory.max"),
        ("0::/../other\n", {"memory.max": "3000", "memory.current": "500"}, 2500, "memory.max"),
        (
            "0::/system.slice/docker-4f.scope\n",
            {"memory.max": "3000", "memory.current": "500"},
            2500,
            "memory.max",
        ),
        # v1, by path, in docker, and in a group made within its container.
        (
            "4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "3000",
                "memory/job/memory.usage_in_bytes": "1800",
                "memory/job/memory.stat": STAT_V1.format(3000),
                "memory/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/memory.usage_in_bytes": "9000",
            },
            3000 - (1800 - 600),
            "memory/job/memory.limit_in_bytes",
        ),
        (
            DOCKER,
            {
                "memory/memory.limit_in_bytes": "3000",
                "memory/memory.usage_in_bytes": "1800",
                "memory/memory.stat": STAT_V1.format(3000),
            },
            3000 - (1800 - 600),
            "memory/memory.limit_in_bytes",
        ),
        (
            "7:hugetlb,memory:/docker/4f/job\n",
            {
                "memory/job/memory.limit_in_bytes": "1500",
                "memory/job/memory.usage_in_bytes": "300",
                "memory/memory.limit_in_bytes": "3000",
                "memory/memory.usage_in_bytes": "300",
            },
            1200,
            "memory/job/memory.limit_in_bytes",
        ),
        # A limit around the container, which shows in the statistics alone.
        (
            DOCKER,
            {
                "memory/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/memory.usage_in_bytes": "1800",
                "memory/memory.stat": STAT_V1.format(2000),
            },
            2000 - (1800 - 600),
            "memory/memory.stat",
        ),
        # Both hierarchies: memory is with the first, or with the unified one.
        (
            "4:memory:/job\n0::/job\n",
            {
                "memory/job/memory.limit_in_bytes": "3000",
                "memory/job/memory.usage_in_bytes": "1000",
                "unified/job/cgroup.procs": "",
            },
            2000,
            "memory/job/memory.limit_in_bytes",
        ),
        (
            "1:name=systemd:/job\n0::/job\n",
            {"unified/job/memory.max": "3000", "unified/job/memory.current": "1000"},
            2000,
            "unified/job/memory.max",
        ),
        # More in use than the limit, as where it was lowered; and no word of what is in use.
        ("0::/\n", {"memory.max": "3000", "memory.current": "3500"}, 0, "memory.max"),
        ("0::/\n", {"memory.max": "3000"}, 3000, "memory.max"),
        # A cache larger than what is in use leaves no more than the limit.
        (
            "0::/\n",
            {"memory.max": "3000", "memory.current": "500", "memory.stat": STAT},
            3000,
            "memory.max",
        ),
    ],
)
def test_the_least_that_a_control_group_leaves(system, tmp_path, membership, files, free, file):
    system(membership, files)
    found = memory.available()
    assert found.num_bytes == free
    assert f"({tmp_path / 'cgroup' / file})" in found.limit


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("", {}),
        ("0::/\n", {}),
        ("0::/job\n", {"job/memory.max": "max\n", "job/memory.current": "5"}),
        ("0::/\n", {"memory.max": "", "memory.high": "-1"}),
        ("0::/\n", {"memory.max": b"\xff\xfe", "memory.stat": b"\xff 3"}),
        ("0::/\n", {"memory.max/as a folder": "3"}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED_V1}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "-1\n", "memory/memory.stat": "a b\nc"}),
        ("garbage\n::\n4:memory\n0\n", {"memory.max": "30", "memory.current": "many"}),
        ("4:cpu:/\n", {"memory/memory.limit_in_bytes": "30", "memory.max": "30"}),
        ("0::/\n", {"memory.max": HOST + 1, "memory.current": "0"}),  # the host has less
    ],
)
def test_what_is_no_limit_leaves_the_hosts_memory(system, membership, files):
    system(membership, files)
    assert memory.available() == Available(HOST, "")


def test_a_system_without_control_groups(system):
    assert memory.available() == Available(HOST, "")


@pytest.mark.parametrize(
    ("address_space", "heap", "free", "option"),
    [(9000, -1, 8000, "-v"), (-1, 9000, 8600, "-d"), (9000, 9000, 8000, "-v"), (-1, -1, HOST, "")],
)
def test_ulimits_count(system, monkeypatch, address_space, heap, free, option):
    limits = SimpleNamespace(
        RLIMIT_AS=0,
        RLIMIT_DATA=1,
        RLIM_INFINITY=-1,
        getrlimit=lambda which: ((address_space, heap)[which], -1),
    )
    monkeypatch.setattr(memory, "resource", limits)
    used = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=1000, data=400))
    monkeypatch.setattr(psutil, "Process", lambda: used)
    found = memory.available()
    assert found.num_bytes == free
    assert found.limit.endswith(f"ulimit {option}" if option else "")


@pytest.mark.parametrize("version", [1, 2])
def test_within_a_containers_memory_an_npy_is_mapped_or_what_is_missing_is_said(
    system, tmp_path, version
):
    """1.14 of 1.6, where the host has far more: as GiB, but in MiB."""
    limit, used = round(1.6 * 2**20), 2**18
    if version == 1:
        limits, usage = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    else:
        limits, usage = "memory.max", "memory.current"
    system(DOCKER if version == 1 else "0::/\n", {limits: limit, usage: used})
    psutil.virtual_memory().available = 2**40
    images = np.arange(round(1.14 * 2**20) // 64, dtype=np.uint8).repeat(64).reshape(-1, 8, 8)
    np.save(tmp_path / "a.npy", images)
    assert isinstance(data.load(data_defaults(str(tmp_path / "a.npy"))).images, np.memmap)
    np.save(tmp_path / "b.npy", images[: len(images) // 2])  # 0.57 of 1.35 that are free
    assert not isinstance(data.load(data_defaults(str(tmp_path / "b.npy"))).images, np.memmap)
    np.save(tmp_path / "floats.npy", images.astype(np.float32) / 255)
    with pytest.raises(UserError) as refused:
        data.load_images(tmp_path / "floats.npy")
    assert str(refused.value) == (
        f"loading {tmp_path}/floats.npy takes 0.00445 GiB of memory, more than the 0.00132 GiB "
        f"that are free of the 0.00156 GiB of this container or job "
        f"({tmp_path}/cgroup/{limits}); take fewer or smaller images"
    )


def test_a_limit_of_ones_own_is_not_the_containers(system):
    system("0::/\n", {"memory.max": "3000", "memory.current": "0"})
    require_memory("this", 2**30, memory_gib=1)
    with pytest.raises(UserError, match=r"than the 0.5 GiB that are allowed; take"):
        require_memory("this", 2**30, memory_gib=0.5)
    with pytest.raises(UserError, match=r"that are free of the 2.79e-06 GiB of this container"):
        require_memory("this", 4000)
