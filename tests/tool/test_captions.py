"""Captions by a model: what each kind says, what of a folder is never touched, and errors in words.

The models are of the real classes, tiny and with random weights.
"""

import json
import shutil
from pathlib import Path

from modules.dataLoader.check_dataset import check_dataset
from modules.model.hub import Hub
from modules.tool.captioner import Asked, BlipCaptioner, load_captioner
from modules.tool.WrittenCaptions import NAME
from modules.util.atomic_file import create_bytes
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.hub_server import HubServer
from tests.load_script import load_script
from tests.tool.tiny_captioners import WORDS, make_blip, make_blip2, make_chat, make_florence, make_tagger

import torch

import pytest
from huggingface_hub import constants
from PIL import Image
from transformers import BertConfig, CLIPTextConfig

CPU = torch.device("cpu")
TOKENS = 4
PERSONS = {"b.txt": "mine", "c.caption": "mine, too", "e.txt": "", "f.json": '{"caption": "of another tool"}'}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tests must not change them."""
    root = tmp_path_factory.mktemp("captioners")
    makers = {"blip": make_blip, "blip-2": make_blip2, "florence": make_florence, "chat": make_chat}
    return {kind: make(root / kind) for kind, make in makers.items()}


@pytest.fixture
def load(tmp_path):
    """load(folder, prompt) -> the captioner, for which the network may not be asked."""

    def load(model: object, prompt: str = "", **options):
        hub = Hub(TrainConfig(huggingface_cache_dir=str(tmp_path / "hub"), offline_mode=True, **options))
        return load_captioner(str(model), CPU, hub, Asked(prompt, TOKENS))

    return load


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images with captions of a person, without any, two of one name, a broken one, and one in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.jpg", "e.png", "f.png", "g.jpg", "g.png", "below/h.png")):
        Image.new("RGB", (40, 30), (30 * number, 200, 90)).save(folder / name)
    (folder / "d.png").write_bytes(b"no picture")
    for name, text in PERSONS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def caption(models, photos, capsys):
    """caption(options …) -> (status, what was printed) of the script on the photos, with BLIP."""
    script = load_script("caption")

    def caption(*options: str, folder: Path = photos) -> tuple[int, str]:
        arguments = [str(folder), "--model", str(models["blip"]), "--most-tokens", str(TOKENS), "--device", "cpu"]
        status = script.main([*arguments, *options])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith(("error: ", "Stopped"))]
        return status, "\n".join([captured.out, *errors])

    return caption


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def captions(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in content(folder).items() if name.endswith(".txt")}


@pytest.mark.parametrize("kind", ["blip", "blip-2"])
def test_blip_goes_on_from_a_text(models, load, photos, kind):
    with Image.open(photos / "a.png") as image:
        plain, begun = (load(models[kind], prompt).describe(image) for prompt in ("", "a red"))
    assert plain and set(plain.split()) <= set(WORDS)
    assert begun.startswith("a red ") and len(begun) > len("a red ")


def test_a_chat_model_sees_and_follows(models, load, photos):
    captioners = [load(models["chat"], prompt) for prompt in ("", "the small circle on a big red square")]
    other = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
    with Image.open(photos / "a.png") as image:
        said = [captioners[0].describe(image), captioners[0].describe(other), captioners[1].describe(image)]
        assert captioners[0].describe(image) == said[0]
    assert len(set(said)) == 3 and all(len(text.split()) == TOKENS for text in said)


def test_florence_is_asked_by_its_tasks(models, load, photos, monkeypatch):
    seen = []
    with Image.open(photos / "a.png") as image:
        for task in ("", "<CAPTION>"):
            captioner = load(models["florence"], task)
            generate = captioner.model.generate
            monkeypatch.setattr(captioner.model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))  # noqa: B023
            assert set(captioner.describe(image).split()) <= set(WORDS)
    long, short = (inputs["input_ids"][0].tolist() for inputs in seen)
    assert long != short and all(inputs["pixel_values"].shape == (1, 3, 32, 32) for inputs in seen)
    with pytest.raises(UserError, match=r"--prompt: found '<OD>'.*<DETAILED_CAPTION>"):
        load(models["florence"], "<OD>")


def test_a_tagger_writes_what_is_probable(load, tmp_path):
    tags = {
        "safe": (9, (1, 1, 1)), "red_dress": (0, (-0.1, 0, 0.1)), "blue_sky": (0, (0.1, 0, -0.1)),
        "o_o": (0, (0.01, 0.01, 0.01)), "some_name_(series)": (4, (0.1, -0.1, 0)), "unsure_name": (4, (0.006, 0, 0)),
        "white_sides": (0, (0, 0.1, -0.04)),
    }  # fmt: skip
    folder = make_tagger(tmp_path / "tagger", tags)
    tagger = load(folder)
    assert tagger.describe(Image.new("RGB", (8, 8), "red")) == "red dress, o_o"
    # beside an upright image there is white on both sides
    assert tagger.describe(Image.new("RGB", (4, 8), "blue")) == "blue sky, some name (series), white sides, o_o"
    with pytest.raises(UserError, match="is a tagger, which can't be asked"):
        load(folder, "the small circle")
    table = (folder / "selected_tags.csv").read_text()
    (folder / "selected_tags.csv").write_text(f"{table}\n8,more,0,1")
    with pytest.raises(UserError, match=r"answers with .*but selected_tags.csv has 8 tags"):
        load(folder)
    (folder / "selected_tags.csv").write_text("name\nred")
    with pytest.raises(UserError, match="expected a table with the columns name and category"):
        load(folder)
    (folder / "selected_tags.csv").write_text(table)
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model.onnx can't be used"):
        load(folder)


def test_what_a_person_wrote_is_never_touched(caption, photos):
    before = content(photos)
    status, printed = caption("--preview", "2", "--start", "ohwx,")
    # the second image without a caption is the broken one
    assert status == 3 and content(photos) == before
    assert "a.png: ohwx, " in printed and "d.png is left out: its content is no image" in printed
    assert "1 caption told, none written" in printed

    status, printed = caption("--start", "ohwx,")
    after = content(photos)
    written = {"a.txt", "g.jpg.txt", "g.png.txt"}
    assert status == 3 and set(after) - set(before) == written | {NAME}
    assert {name: after[name] for name in before} == before
    assert all(after[name].startswith(b"ohwx, ") for name in written) and "4 images with a caption" in printed
    report = check_dataset(
        TrainConfig(resolution="32"), [ConceptConfig(path=str(photos), text={"prompt_source": "sample"})], bar=False
    )
    found = {Path(image.path).name: image.captions for image in report.images}
    assert found["a.png"] == (after["a.txt"].decode().strip(),) and found["b.png"] == ("mine",)
    assert found["g.jpg"] == (after["g.jpg.txt"].decode().strip(),)
    assert not [line for line in report.lines() if NAME in line]

    (photos / "a.txt").write_text("ohwx, changed by hand")
    status, printed = caption()
    assert status == 3 and "0 captions written" in printed
    status, printed = caption("--redo", "--start", "other,", "--subfolders")
    again = content(photos)
    assert again["a.txt"] == b"ohwx, changed by hand" and {name: again[name] for name in before} == before
    assert again["g.jpg.txt"].startswith(b"other, ") and again["below/h.txt"].startswith(b"other, ")
    (photos / "d.png").unlink()
    assert caption("--subfolders")[1].endswith("There is no image without a caption.\n")


def test_a_caption_that_comes_meanwhile_is_kept_and_a_stop_loses_nothing(caption, photos, monkeypatch):
    (photos / "d.png").unlink()
    said = iter(["one", "two"])

    def describe(*_: object) -> str:
        (photos / "a.txt").write_text("mine")
        if (text := next(said, None)) is None:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(BlipCaptioner, "describe", describe)
    status, printed = caption()
    assert status == 130 and printed.endswith("Stopped; 1 captions are done. The same command goes on.")
    assert captions(photos) == {"a.txt": "mine", "b.txt": "mine", "e.txt": "", "g.jpg.txt": "two\n"}
    assert "a.png is left out: a.txt has been written or changed meanwhile" in printed
    # a line that was cut when the machine went down
    with open(photos / NAME, "ab") as file:
        file.write(b'{"file": "g.j')
    monkeypatch.setattr(BlipCaptioner, "describe", lambda *_: "three")
    assert caption("--redo")[0] == 0
    assert captions(photos)["g.jpg.txt"] == captions(photos)["g.png.txt"] == "three\n"

    def change(*_: object) -> str:
        (photos / "g.png.txt").write_text("mine")
        return "four"

    monkeypatch.setattr(BlipCaptioner, "describe", change)
    assert caption("--redo")[0] == 3
    assert captions(photos)["g.jpg.txt"] == "four\n" and captions(photos)["g.png.txt"] == "mine"
    assert not [name for name in content(photos) if name.endswith((".new", ".partial"))]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_made_only_where_there_is_none(tmp_path, monkeypatch, links):
    def no_links(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr("os.link", no_links)
    create_bytes(tmp_path / "new.txt", b"new")
    with pytest.raises(FileExistsError):
        create_bytes(tmp_path / "new.txt", b"newer")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        create_bytes(tmp_path / "link.txt", b"new")
    assert content(tmp_path) == {"new.txt": b"new"}


def test_wrong_models_are_refused_in_words(models, load, caption, photos, tmp_path):
    empty, adapter = tmp_path / "empty", tmp_path / "adapter"
    empty.mkdir()
    shutil.copytree(models["blip"], adapter)
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    no_chat = tmp_path / "no chat"
    shutil.copytree(models["chat"], no_chat)
    (no_chat / "chat_template.jinja").unlink()
    for name, words in {
        empty: "has no config.json. Expected a BLIP",
        tmp_path / "model.safetensors": "is a file, expected the folder",
        adapter: "is an adapter for another model",
        no_chat: "of the type qwen2_5_vl and has no chat template",
        "some/model": "is not in the hub's cache .*offline_mode is on",
    }.items():
        with pytest.raises(UserError, match=f"^--model: .*{words}"):
            load(name)
    with Image.open(photos / "a.png") as image, pytest.raises(UserError, match="can't describe an image"):
        # more than the model has places for
        load(models["blip"], "red " * 600).describe(image)
    for kind, words in {BertConfig: "type bert, expected", CLIPTextConfig: "expected"}.items():
        kind().save_pretrained(empty)
        with pytest.raises(UserError, match=words):
            load(empty)
    status, printed = caption("--config", str(photos / "none.json"))
    assert status == 1 and "error: " in printed and "none.json" in printed
    status, printed = caption(folder=photos / "a.png")
    assert status == 1 and "a.png is no folder" in printed


def test_no_code_of_a_model_is_run(models, load, photos, tmp_path):
    ran, folder = tmp_path / "CODE_RAN", tmp_path / "model"
    shutil.copytree(models["blip"], folder)
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('x')\nclass E:\n    pass\n")
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        described = json.loads((folder / file).read_text())
        codes = {"AutoConfig": "evil.E", "AutoModelForImageTextToText": "evil.E", "AutoImageProcessor": "evil.E"}
        described["auto_map"] = {**codes, "AutoProcessor": "evil.E", "AutoTokenizer": ["evil.E", None]}
        (folder / file).write_text(json.dumps(described))
    with Image.open(photos / "a.png") as image:
        assert load(folder).describe(image) == load(models["blip"]).describe(image)
    # what only its code could load
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(UserError, match="code that it brings along, which is never run"):
        load(folder)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (ran,))

    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be loaded"):
        load(folder)
    assert not ran.exists()


def test_a_model_comes_from_the_hub_once(models, load, tmp_path, monkeypatch):
    server = HubServer()
    try:
        server.add("some/blip", models["blip"])
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        hub = Hub(TrainConfig(huggingface_cache_dir=str(tmp_path / "hub")))
        load_captioner("some/blip", CPU, hub, Asked())
        asked = len(server.requests)
        load("some/blip")
        assert len(server.requests) == asked > 0
    finally:
        server.close()
