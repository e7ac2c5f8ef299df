"""Torch files that are bombs: small on disk, endless in memory."""

import zipfile

from modules.model.weights_file import WeightsFile
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.embedding_file import read_embedding
from modules.util.torch_file import load_torch_file
from modules.util.UserError import UserError

import torch

import pytest


def packed(path):
    """A sound file whose zip was packed: 40 MB in some ten thousand bytes."""
    plain = path.with_name("plain.pt")
    torch.save({"lora_unet_x.lora_down.weight": torch.zeros(10_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    plain.unlink()


def repeated(path):
    """One number, called a petabyte."""
    torch.save({"lora_unet_x.lora_down.weight": torch.zeros(1).expand(2**20, 2**30)}, path)


@pytest.mark.parametrize("bomb", [packed, repeated])
def test_bombs_are_refused_before_they_are_big(tmp_path, bomb):
    for ending in ("pt", "ckpt", "bin"):
        path = tmp_path / f"bomb.{ending}"
        bomb(path)
        assert path.stat().st_size < 100_000
        with pytest.raises(ValueError, match="would unpack to 40,|stands on 4 bytes"):
            load_torch_file(path)
        for read in (lambda name: read_adapter(str(name)), lambda name: read_embedding(str(name)), WeightsFile):
            with pytest.raises(UserError, match=str(path)):
                read(path)


def test_lists_that_hold_themselves_end(tmp_path):
    path = tmp_path / "a.pt"
    shared = [torch.zeros(1)]
    for _ in range(60):
        shared = [shared, shared]
    own: list = [shared]
    own.append(own)
    torch.save({"a": own}, path)
    assert len(load_torch_file(path)["a"]) == 2
    for read in (lambda name: read_adapter(str(name)), lambda name: read_embedding(str(name))):
        with pytest.raises(UserError):
            read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_sound_files_are_read(tmp_path, zipped):
    whole = torch.arange(12.0).view(3, 4)
    value = {"a": whole, "b": [whole.t(), (whole[1:], torch.zeros(0, 5))], "c": 3}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    for mapped in (False, True):
        found = load_torch_file(tmp_path / "a.pt", mapped)
        assert torch.equal(found["a"], whole) and torch.equal(found["b"][1][0], whole[1:]) and found["c"] == 3
