"""How much RAM is free, also in a container."""

from modules.util.free_memory import free_memory

import psutil
import pytest


def write(folder, **values):
    for name, value in values.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_without_a_container_it_is_that_of_the_machine(tmp_path):
    assert 0 < free_memory(tmp_path) <= psutil.virtual_memory().total


def test_the_limit_of_a_container_counts(tmp_path):
    write(tmp_path, memory_dot_max=5000, memory_dot_current=1000)
    assert free_memory(tmp_path) == 4000
    write(tmp_path, memory_dot_current=9000)
    assert free_memory(tmp_path) == 0
    write(tmp_path, memory_dot_max="max")
    assert free_memory(tmp_path) > 2**20


def test_of_the_older_kind_too(tmp_path):
    write(tmp_path, memory__memory_dot_limit_in_bytes=300, memory__memory_dot_usage_in_bytes=100)
    assert free_memory(tmp_path) == 200


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (("memory_dot_max", "memory_dot_current", "memory_dot_stat"), "inactive_file"),
        (
            ("memory__memory_dot_limit_in_bytes", "memory__memory_dot_usage_in_bytes", "memory__memory_dot_stat"),
            "total_inactive_file",
        ),
    ],
    ids=["new", "old"],
)
def test_files_that_the_system_has_cached_are_free(tmp_path, files, line):
    limit, used, statistics = files
    write(tmp_path, **{limit: 5000, used: 4900})
    assert free_memory(tmp_path) == 100
    write(tmp_path, **{statistics: f"anon 7\nfile 4000\nactive_file 1000\n{line} 3000\nslab 1"})
    assert free_memory(tmp_path) == 3100
    write(tmp_path, **{statistics: f"{line}\n{line} many"})
    assert free_memory(tmp_path) == 100
