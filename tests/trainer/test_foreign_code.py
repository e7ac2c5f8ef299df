"""What a stranger made, a config, model, adapter, embedding or cache, never runs code."""

import contextlib
import json
import shutil
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError

import torch

import pytest


@pytest.fixture
def evil(tmp_path):
    """(object that touches a file when it is unpickled, that file)"""
    ran = tmp_path / "CODE_RAN"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (ran,))

    return Evil(), ran


def test_a_config_names_no_code(make_run, tmp_path, evil):
    ran = evil[1]
    (tmp_path / "remote").mkdir()
    code = f"open({str(ran)!r}, 'w').write('x')\n"
    (tmp_path / "remote" / "e.py").write_text(f"{code}class E:\n    pass\n")
    (tmp_path / "remote" / "config.json").write_text(
        json.dumps({"model_type": "e", "auto_map": {"AutoConfig": "e.E", "AutoModel": "e.E"}})
    )
    arguments = [{"key": "model", "value": str(tmp_path / "remote")}, {"key": "trust_remote_code", "value": True}]
    custom = {"learning_rate_scheduler": "CUSTOM", "scheduler_params": arguments}
    for name in ("transformers.pipeline", "transformers.AutoModel.from_pretrained", "runpy.run_path", "os.system"):
        with pytest.raises(UserError, match="custom_learning_rate_scheduler: found"):
            make_run(name).train(**custom, custom_learning_rate_scheduler=name)
    with pytest.raises((UserError, ConfigError)):
        make_run("base").train(base_model_name=str(tmp_path / "remote"))
    assert not ran.exists()


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_model_folder_with_pickles_and_code_beside(make_run, mini_base, tmp_path, evil, component):
    evil, ran = evil
    base = tmp_path / "base"
    shutil.copytree(mini_base, base)
    for file in (base / component).glob("*.safetensors"):
        name = "pytorch_model.bin" if component == "text_encoder" else "diffusion_pytorch_model.bin"
        file.unlink()
    torch.save({"weight": evil}, base / component / name)
    with pytest.raises(UserError) as found:
        make_run().train(base_model_name=str(base))
    text = str(found.value)
    assert not ran.exists() and component in text and ".bin" in text and "\n" not in text


def test_code_beside_the_weights_is_not_imported(make_run, mini_base, tmp_path, evil):
    ran, base = evil[1], tmp_path / "base"
    shutil.copytree(mini_base, base)
    for folder in (path for path in base.iterdir() if path.is_dir()):
        (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('x')\nclass Evil:\n    pass\n")
        for config in folder.glob("*config.json"):
            data = json.loads(config.read_text())
            names = ("AutoConfig", "AutoModel", "AutoTokenizer", "UNet2DConditionModel", "CLIPTextModel")
            data["auto_map"] = dict.fromkeys(names, "evil.Evil")
            data["custom_pipelines"] = "evil"
            config.write_text(json.dumps(data))
    index = json.loads((base / "model_index.json").read_text())
    (base / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('x')\nclass Evil:\n    pass\n")
    (base / "model_index.json").write_text(
        json.dumps({**index, "_class_name": ["evil", "Evil"], "unet": ["evil", "E"]})
    )
    with contextlib.suppress(UserError):
        make_run().train(base_model_name=str(base), epochs=1)
    assert not ran.exists()


@pytest.mark.parametrize("ending", ["ckpt", "pt", "bin", "safetensors"])
def test_single_files_adapters_and_embeddings_are_not_unpickled(make_run, tmp_path, evil, ending):
    evil, ran = evil
    path = tmp_path / f"file.{ending}"
    torch.save({"state_dict": {"unet.weight": evil}, "string_to_param": {"*": evil}}, path)
    embedding = {"placeholder": "red", "model_name": str(path), "token_count": 1, "initial_embedding_text": "a"}
    for number, options in enumerate((
        {"base_model_name": str(path)}, {"lora_model_name": str(path)},
        {"training_method": "EMBEDDING", "embedding": embedding, "output_model_format": "SAFETENSORS"},
    )):  # fmt: skip
        with pytest.raises(UserError) as found:
            make_run(f"run{number}").train(**options)
        assert str(path) in str(found.value) and not ran.exists()


def test_a_cache_is_not_unpickled(make_run, mini_concept, evil):
    evil, ran = evil
    run = make_run(own_cache=True)
    run.train(epochs=1)
    whole = run.digest()
    entries = list(run.cache.rglob("*.safetensors"))
    for entry in entries:
        torch.save(evil, entry)
    assert entries
    run.train(epochs=1)
    assert not ran.exists() and run.digest() == whole
