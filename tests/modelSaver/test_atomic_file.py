import errno
import hashlib
import os
import struct
import subprocess
import sys

from modules.util import atomic_file
from modules.util.atomic_file import safetensors_sha256, write_bytes, write_json, write_safetensors
from modules.util.UserError import UserError

import torch

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "half": torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).t(),
    "empty": torch.zeros(0, 4),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
}
METADATA = {"z": 'ü\n"', "a": "1"}


def test_replaces_the_file_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new folder" / "file.json"
    write_json(path, {"ä": [1, 2]})
    assert path.read_text("utf-8") == '{\n    "ä": [\n        1,\n        2\n    ]\n}\n'
    write_bytes(path, [b"one", b"two"])
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"), (errno.EIO, os.strerror(errno.EIO))],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, number, words, call):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic_file.os, call, fail)
    with pytest.raises(UserError) as error:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(error.value) and words.lower() in str(error.value).lower()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, chunks())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_targets_that_cannot_be_files(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="a part of the path is a file"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(UserError, match="it is a folder, expected a file"):
        write_bytes(tmp_path, b"")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_keeps_pointing_to_its_file(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_safetensors_library_reads_it(tmp_path):
    path = tmp_path / "file.safetensors"
    write_safetensors(path, TENSORS, METADATA)
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert start % 8 == 0
    assert hashlib.sha256(data[start:]).hexdigest() == safetensors_sha256(TENSORS)


def test_safetensors_bytes_depend_on_content_alone(tmp_path):
    write_safetensors(tmp_path / "one", TENSORS, METADATA)
    backwards = {name: TENSORS[name].clone() for name in reversed(TENSORS)}
    write_safetensors(tmp_path / "two", backwards, dict(reversed(METADATA.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    # another process has other hash seeds
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from modules.util.atomic_file import safetensors_header\n"
        "names = {f'n{i}' for i in range(50)}\n"
        "print(safetensors_header({n: torch.zeros(1) for n in names}, {n: n for n in names}).hex())"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    runs = {
        subprocess.run(
            [sys.executable, "-c", code, root],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_unknown_dtype():
    with pytest.raises(ValueError, match="x: safetensors cannot hold torch.complex64"):
        atomic_file.safetensors_header({"x": torch.zeros(1, dtype=torch.complex64)})
