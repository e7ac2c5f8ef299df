"""`scripts/sample.py`: the images of a training's own samples, strengths, metadata, names, too little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.tool.sample_tool import Wishes, draw_images
from modules.util.UserError import UserError
from tests.load_script import load_script

import torch

import numpy
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sample.py"
SAMPLE = {
    "prompt": "a red shape", "negative_prompt": "blue", "width": 32, "height": 24, "diffusion_steps": 4,
    "cfg_scale": 3.0, "seed": 7, "noise_scheduler": "EULER_A",
}  # fmt: skip
# few steps at a high rate: what is trained must show after four steps of a sampler
TRAINING = {
    "samples": [SAMPLE], "sample_after": 1, "sample_after_unit": "EPOCH", "sample_image_format": "PNG", "epochs": 2,
    "learning_rate": 0.1, "text_encoder": {"train": True, "gradient_checkpointing": False},
}  # fmt: skip
KINDS = {
    "lora": {},
    "dora": {"lora_decompose": True},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_scaled": False},
    "lora in bfloat16": {"train_dtype": "BFLOAT_16"},
}


@pytest.fixture(scope="module")
def tool():
    return load_script("sample")


@pytest.fixture
def draw(tool, capsys, tmp_path):
    """draw(arguments …) -> the images, in the order in which they were written."""

    def call(*arguments: object) -> list[Image.Image]:
        code = tool.main([str(argument) for argument in arguments] + ["--output", str(tmp_path / "images")])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return [Image.open(path) for path in written(captured.out)]

    return call


def written(output: str) -> list[str]:
    return [line.removeprefix("written: ") for line in output.splitlines() if line.startswith("written: ")]


def same(first: Image.Image, second: Image.Image) -> bool:
    return numpy.array_equal(numpy.asarray(first), numpy.asarray(second))


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_training(mini_run, draw, kind):
    options = {**TRAINING, **KINDS[kind]}
    mini_run.train(**options)
    before, *_, after = (Image.open(values["path"]) for values in mini_run.of_kind("sample")[:-1])
    config = mini_run.write(**options)
    (trained,) = draw("--config", config, "--adapter", mini_run.output)
    (plain,) = draw("--config", config)
    assert same(trained, after) and same(plain, before) and not same(trained, plain)
    (none,) = draw("--config", config, "--adapter", f"{mini_run.output}:0")
    assert same(none, plain)
    (half,) = draw("--config", config, "--adapter", f"{mini_run.output}:0.5")
    assert not same(half, plain) and not same(half, trained)
    if kind == "lora":
        # ΔW of a LoRA is proportional to the strength: two halves make a whole
        halves = ["--adapter", f"{mini_run.output}:0.5"] * 2
        (whole,) = draw("--config", config, *halves)
        difference = numpy.asarray(whole, int) - numpy.asarray(trained, int)
        # other order of the sums, and rounding to 256 values
        assert abs(difference).max() <= 2


def test_strengths_stand_beside_one_another(mini_run, draw):
    # with a text encoder, whose prompts differ by strength
    mini_run.train(**TRAINING)
    config = mini_run.write(**TRAINING)
    plain, half, whole, grid = draw("--config", config, "--adapter", mini_run.output, "--strengths", 0, 0.5, 1)
    for strength, found in ((0, plain), (0.5, half), (1, whole)):
        (alone,) = draw("--config", config, "--adapter", f"{mini_run.output}:{strength}")
        assert same(found, alone) and alone.info["parameters"] == found.info["parameters"]
    assert not same(plain, half) and not same(half, whole)
    assert grid.width > 3 * 32 and "strengths-7.png" in grid.filename


def test_command_line(mini_run, tool, tmp_path, monkeypatch, capsys):
    mini_run.train(epochs=1)
    command = [
        sys.executable, str(SCRIPT), "--base", str(mini_run.base), "--adapter", f"{mini_run.output}:0.8",
        "--prompt", "a red/blue shape, größer", "--negative", "grey", "--steps", "3", "--cfg", "2", "--seed", "5",
        "--width", "33", "--height", "24", "--count", "2", "--sampler", "DPMPP", "--output", "own images",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert first.returncode == 0, first.stderr
    names = ["a redblue shape größer-5.png", "a redblue shape größer-6.png"]
    images = [tmp_path / "own images" / name for name in names]
    assert written(first.stdout) == [str(Path("own images") / name) for name in names]
    opened = [Image.open(path) for path in images]
    assert not same(*opened), "another seed, another image"
    assert opened[0].info["parameters"] == (
        "a red/blue shape, größer\nNegative prompt: grey\nSteps: 3, Sampler: DPMPP, CFG scale: 2, Seed: 5, "
        'Size: 32x24, Model: model, Adapters: "lora: 0.8"'
    )
    kept = [path.read_bytes() for path in images]
    monkeypatch.chdir(tmp_path)
    assert tool.main(command[2:]) == 0
    again = [tmp_path / path for path in written(capsys.readouterr().out)]
    assert [path.name for path in again] == ["a redblue shape größer-5-2.png", "a redblue shape größer-6-2.png"]
    assert [path.read_bytes() for path in images] == kept, "nothing is overwritten"
    assert [path.read_bytes() for path in again] == kept, "the same command draws the same"


def test_too_little_memory_costs_one_image(tool, mini_base, tmp_path, monkeypatch, capsys):
    drawn = StableDiffusionModel.sample

    def sample(self, sample, seed, on_step):
        if sample.prompt == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return drawn(self, sample, seed, on_step)

    monkeypatch.setattr(StableDiffusionModel, "sample", sample)
    samples = [{**SAMPLE, "prompt": prompt} for prompt in ("one", "huge", "two")]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"base_model_name": str(mini_base), "train_dtype": "FLOAT_32", "samples": samples}))
    code = tool.main(["--config", str(config), "--output", str(tmp_path / "images")])
    captured = capsys.readouterr()
    assert code == 3
    assert [Path(path).name for path in written(captured.out)] == ["one-7.png", "two-7.png"]
    assert "Too little memory for the sample 'huge' at 32x24; it is left out." in captured.out


def test_a_prompt_without_seed_draws_by_chance(draw, mini_base):
    arguments = ["--base", mini_base, "--prompt", "x", "--width", 16, "--height", 16, "--steps", 1, "--cfg", 1]
    seeds = {draw(*arguments)[0].info["parameters"].split("Seed: ")[1].split(",")[0] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--embedding", "none.pt:<x>"], ["none.pt", "no such file"]),
        (["--embedding", "foreign.safetensors"], ["foreign.safetensors", "holds no embedding"]),
        (["--adapter", "none.safetensors"], ["none.safetensors", "no such file"]),
        (["--adapter", "foreign.safetensors"], ["foreign.safetensors", "not in this model"]),
        (["--base", "nowhere/at/all"], ["--base: nowhere/at/all does not exist"]),
        (["--base", "other"], ["other", "MadeUpModel", "--model-type"]),
        (["--width", "3"], ["--width: ", "8"]),
        (["--steps", "0"], ["--steps: ", "1"]),
        (["--output", "foreign.safetensors"], ["Cannot write foreign.safetensors"]),
        (["--config", "broken.json"], ["broken.json"]),
        (["--device", "abacus"], ["abacus", "not a usable device"]),
        (["--model-type", "WUERSTCHEN_2"], ["WUERSTCHEN_2 is not supported yet"]),
    ],
)
def test_bad_inputs_are_told_in_words(tool, mini_base, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    save_file({"lora_unet_nothing.lora_up.weight": torch.ones(4, 1),
               "lora_unet_nothing.lora_down.weight": torch.ones(1, 4)}, "foreign.safetensors")  # fmt: skip
    Path("broken.json").write_text('{"batch_size": ')
    Path("other").mkdir()
    Path("other/model_index.json").write_text('{"_class_name": "X", "transformer": ["diffusers", "MadeUpModel"]}')
    usual = {"--base": str(mini_base), "--prompt": "a red shape", "--width": "16", "--height": "16", "--steps": "1"}
    usual |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code = tool.main([part for pair in usual.items() for part in pair])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines[0]


def test_embeddings_are_those_of_the_training(mini_run, draw):
    sample = {**SAMPLE, "prompt": "a shape"}
    own = {"placeholder": "shape", "token_count": 2, "initial_embedding_text": "circle"}
    options = {**TRAINING, "samples": [sample], "additional_embeddings": [own], "embedding_learning_rate": 1.0}
    mini_run.train(**options)
    after = Image.open([values["path"] for values in mini_run.of_kind("sample")][-2])
    config = mini_run.write(**options)
    arguments = ["--config", config, "--adapter", mini_run.output]
    (with_it,) = draw(*arguments, "--embedding", mini_run.output.with_name("shape.safetensors"))
    assert same(with_it, after) and 'Embeddings: "shape: shape"' in with_it.info["parameters"]
    (without,) = draw(*arguments)
    assert not same(without, after)
    options["samples"][0]["prompt"] = "a <it>"
    mini_run.write(**options)
    (renamed,) = draw(*arguments, "--embedding", f"{mini_run.output.with_name('shape.safetensors')}:<it>")
    assert same(renamed, after)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --base, --config or both"),
        (["--base", "x"], "give --prompt"),
        (["--base", "x", "--prompt", "y", "--count", "0"], "--count: found 0"),
        (["--base", "x", "--prompt", "y", "--adapter", "a.safetensors:nan"], "the strength nan"),
        (["--base", "x", "--prompt", "y", "--sampler", "SLOW"], "SLOW"),
    ],
)
def test_a_command_line_without_sense_ends_with_2(tool, capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        tool.main(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_file_whose_name_ends_like_a_strength(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool.adapter("a:0.5") == (Path("a"), 0.5)
    if os.name != "nt":
        Path("a:0.5").write_bytes(b"")
        assert tool.adapter("a:0.5") == (Path("a:0.5"), 1.0)
    assert tool.adapter("c:\\a.safetensors") == (Path("c:\\a.safetensors"), 1.0)
    assert tool.adapter("c:\\a.safetensors:-1") == (Path("c:\\a.safetensors"), -1.0)


def test_bundled_tensors_are_named(draw, mini_run, tmp_path, tool, capsys):
    mini_run.train(epochs=1)
    bundled = tmp_path / "bundled.safetensors"
    save_file({**load_file(mini_run.output), "bundle_emb.word.string_to_param.*": torch.ones(1, 16)}, bundled)
    arguments = ["--base", mini_run.base, "--prompt", "x", "--width", 16, "--height", 16, "--steps", 1, "--seed", 1]
    code = tool.main([*map(str, arguments), "--adapter", str(bundled), "--output", str(tmp_path / "images")])
    assert code == 0 and "embeddings in it are left out (1 tensors)" in capsys.readouterr().out


def test_an_image_is_refused_where_none_is_taken(mini_base, tmp_path):
    wishes = Wishes(base=str(mini_base), sample={"prompt": "a", "base_image_path": "a.png"}, output=tmp_path / "images")
    with pytest.raises(UserError, match="--image: STABLE_DIFFUSION_15 draws from no image"):
        draw_images(wishes, print)
