"""The number of threads follows the environment, the cores and the control groups' quotas."""

import math

import pytest

from foredraft.errors import UserError
from foredraft.kernels.core import thread_count
from foredraft.kernels.core.thread_count import available_threads, cpu_quota


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("FOREDRAFT_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    available_threads.cache_clear()
    yield
    available_threads.cache_clear()


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("files, wanted", [
    ({}, math.inf),
    ({"proc/self/cgroup": "not a control group\n"}, math.inf),
    # version 2: the group's own limit, that of a group above it, none
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
      "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
    ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, math.inf),
    # in a container whose group is mounted as the root
    ({"proc/self/cgroup": "0::/../of/the/host\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
    # version 1
    ({"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n", "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n",
      "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 2.0),
    ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    # another controller's limit is not the processor's
    ({"proc/self/cgroup": "4:cpuset:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
      "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
])
def test_quotas(files, wanted, tmp_path):
    assert cpu_quota(tree(tmp_path, files)) == wanted


@pytest.mark.parametrize("quota, wanted", [(math.inf, 8), (20.0, 8), (8.0, 8), (2.5, 3), (0.1, 1)])
def test_a_quota_bounds_the_number_of_threads(quota, wanted, monkeypatch):
    monkeypatch.setattr(thread_count, "affinity", lambda: 8)
    monkeypatch.setattr(thread_count, "cpu_quota", lambda: quota)
    assert available_threads() == wanted


@pytest.mark.parametrize("variables, wanted", [
    ({"FOREDRAFT_THREADS": "3"}, 3),
    ({"OMP_NUM_THREADS": "4,2"}, 4),
    ({"FOREDRAFT_THREADS": "5", "OMP_NUM_THREADS": "1"}, 5),
])
def test_variables(variables, wanted, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_threads() == wanted


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_variable_that_is_no_number_is_refused(value, monkeypatch):
    monkeypatch.setenv("FOREDRAFT_THREADS", value)
    with pytest.raises(UserError, match=f"FOREDRAFT_THREADS={value}: not a positive number of threads"):
        available_threads()


def test_set_threads():
    import foredraft
    from foredraft.kernels.core import workers

    before = workers._number
    try:
        foredraft.set_threads(1)
        assert workers.get_num_threads() == 1
        for wrong in (0, -1, 10**6, "2", True, None):
            with pytest.raises(UserError, match="threads must be 1 to"):
                foredraft.set_threads(wrong)
    finally:
        workers.set_num_threads(before)
