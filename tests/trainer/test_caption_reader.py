"""How much of captions is read, told before a run from what is on the disk: as the run itself reads them."""

import shutil

from modules.model import hub
from modules.model.cut_text import LONGEST_TEXT
from modules.trainer.CaptionReader import CaptionReader, TextLength
from modules.trainer.checks import open_model
from modules.util.config.load import train_config_from_dict
from modules.util.UserError import UserError

import torch

import pytest

LONG = "a red shape, " * 9
XL = {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "nobody/has-this"}


@pytest.fixture(autouse=True)
def asks_nobody(monkeypatch):
    def ask(*arguments):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(hub, "ask", ask)


def reader(options: dict, **changes) -> CaptionReader:
    return CaptionReader(train_config_from_dict({**options, **changes}))


def test_it_counts_as_the_run_reads(mini_run):
    run = open_model(train_config_from_dict(mini_run.options()), torch.device("cpu"), pytest.fail)
    texts = ["", "a red shape", LONG, "Größe, 2 ☃"]
    found = reader(mini_run.options()).lengths([*texts, LONG])
    limit, counts = run.text_limits()["text_encoder"], run.count_tokens("text_encoder", texts)
    assert list(found) == texts and [(one.tokens, one.limit) for one in found.values()] == [
        (count, limit) for count in counts
    ]
    assert [one.is_cut for one in found.values()] == [count > limit for count in counts] == [False, False, True, False]
    # what is cut is what the encoder's ids lack
    ids = run.tokens("text_encoder", [LONG, LONG + "x"], None)
    assert found[LONG].tokens > ids.shape[1] and torch.equal(ids[0], ids[1])
    assert reader(mini_run.options(), prompt_chunks=3).lengths([LONG])[LONG].limit == 3 * limit


def test_no_weights_are_read(mini_run, tmp_path):
    bare = shutil.copytree(mini_run.base, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    found = reader(mini_run.options(), base_model_name=str(bare)).lengths([LONG])
    assert found == reader(mini_run.options()).lengths([LONG])


def test_models_that_all_read_alike_need_not_be_there():
    short, cut = reader(XL).lengths(["a red cat", "a red cat " * 30]).values()
    assert short == TextLength(3, 75) and cut == TextLength(90, 75, True, "prompt_chunks to 2")
    assert reader(XL, prompt_chunks=2).lengths(["a red cat " * 30])["a red cat " * 30] == TextLength(90, 150)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "FLUX_DEV_1"},
        {"model_type": "Z_IMAGE"},
        {"model_type": "STABLE_DIFFUSION_35", "base_model_name": "nobody/has-this-large"},
        {"additional_embeddings": [{"placeholder": "ohwx", "model_name": "nowhere.safetensors"}]},
    ],
)
def test_what_is_not_known_is_not_guessed(changes):
    with pytest.raises(UserError):
        reader(XL, **changes)


def test_a_base_that_is_there_and_broken_is_not_replaced(tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="model_index"):
        reader(XL, base_model_name=str(tmp_path / "base"))


@pytest.mark.parametrize("method", ["beside", "alone"])
def test_an_added_word_has_its_tokens(mini_run, method):
    word = {"placeholder": "ohwx", "token_count": 5}
    changes = {
        "beside": {"additional_embeddings": [word]}, "alone": {"training_method": "EMBEDDING", "embedding": word},
    }[method]  # fmt: skip
    found = reader(mini_run.options(), **changes).lengths(["ohwx", "a OHWX here", "ohwxy"])
    plain = reader(mini_run.options()).lengths(["a here", "ohwxy"])
    assert found["ohwx"].tokens == 5 and found["a OHWX here"].tokens == 5 + plain["a here"].tokens
    assert found["ohwxy"] == plain["ohwxy"]
    word |= {"token_count": None, "initial_embedding_text": "a here"}
    assert reader(mini_run.options(), **changes).lengths(["ohwx"])["ohwx"].tokens == plain["a here"].tokens
    with pytest.raises(UserError, match="initial_embedding_text is empty"):
        reader(mini_run.options(), additional_embeddings=[{**word, "initial_embedding_text": ""}])


def test_a_text_of_megabytes_is_cut(mini_run):
    text = " " * LONGEST_TEXT + "x"
    assert reader(mini_run.options()).lengths([text])[text].is_cut
