"""Batches that are read ahead are those of the plan, in its order, whatever happens in the threads."""

import threading
import time

from modules.dataLoader.collate import stack
from modules.dataLoader.Entry import Entry
from modules.dataLoader.Feed import Feed
from modules.util.UserError import UserError

import torch

import pytest
from PIL import Image

CPU = torch.device("cpu")
MASKED = {"masked_training": True, "text_encoder": {"dropout_probability": 0.3}}


def fill(dataset):
    for number, size in enumerate([(64, 64), (100, 50), (50, 100), (64, 64), (80, 70), (64, 64), (64, 64)]):
        dataset.add(f"{number}.png", *size, caption=f"caption {number}")
    Image.effect_noise((100, 50), 99).save(dataset.folder / "1-masklabel.png")


def feed_of(data, threads=2, device=CPU, epochs=1):
    planned = [batch for epoch in range(epochs) for batch in data.plan(epoch)]
    return Feed(data, planned.__getitem__, len(planned), threads, device), planned


def everything(batch):
    """The values of a batch, tensors as lists."""
    own = dict(vars(batch))
    own |= {name: value.tolist() for name, value in own.items() if isinstance(value, torch.Tensor)}
    return own | {"text": batch.text and {name: value.tolist() for name, value in batch.text.items()}}


def read_again(data):
    feed, planned = feed_of(data)
    with feed:
        return [feed.batch(number) for number in range(len(planned))]


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("data")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("options", [{}, {"latent_caching": False}])
def test_batches_are_those_of_the_plan(dataset, threads, options):
    fill(dataset)
    data = dataset.prepare(memory_budget=0, **MASKED, **options)
    feed, planned = feed_of(data, threads, epochs=3)
    with feed:
        found = [everything(feed.batch(number)) for number in range(len(planned))]
    assert found == [everything(data.load(batch)) for batch in planned]
    assert {len(batch["names"]) for batch in found} == {1, 2}
    assert not data_threads() and feed.waited > 0


def test_a_place_that_is_not_the_next_is_found(dataset):
    fill(dataset)
    data = dataset.prepare()
    feed, planned = feed_of(data, epochs=2)
    with feed:
        for number in (0, 1, 5, 6, 2, 2):
            assert everything(feed.batch(number)) == everything(data.load(planned[number]))


def test_images_are_decoded_in_threads_and_encoded_where_the_step_runs(dataset, monkeypatch):
    fill(dataset)
    data = dataset.prepare(latent_caching=False)
    decoded, encoded, batches = set(), set(), []
    pixels, encode = type(data.source).pixels, type(dataset.model).encode_images
    monkeypatch.setattr(
        type(data.source), "pixels", lambda *a: decoded.add(threading.current_thread().name) or pixels(*a)
    )
    monkeypatch.setattr(
        type(dataset.model), "encode_images", lambda *a: encoded.add(threading.current_thread()) or encode(*a)
    )
    feed, planned = feed_of(data)
    with feed:
        batches = [feed.batch(number) for number in range(len(planned))]
    assert encoded == {threading.main_thread()} and batches
    assert decoded and all(name.startswith("data") for name in decoded)


def test_an_entry_that_is_damaged_in_the_run_is_encoded_again(dataset):
    fill(dataset)
    data = dataset.prepare(memory_budget=0)
    feed, planned = feed_of(data)
    wanted = [everything(data.load(batch)) for batch in planned]
    encoded = dataset.model.images
    for path in dataset.cached("latents"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not dataset.model.rests
    with feed:
        assert [everything(feed.batch(number)) for number in range(len(planned))] == wanted
    assert dataset.model.rests == len(planned), "what it has loaded to encode is put away after each"
    assert [everything(batch) for batch in read_again(data)] == wanted and dataset.model.rests == len(planned)
    assert dataset.model.images == encoded + 7 and sum("damaged" in text for text in dataset.warnings) == 1


@pytest.mark.parametrize(("caching", "ahead"), [(True, 8), (False, 4)])
def test_pictures_that_wait_to_be_encoded_count_as_large_as_they_are(dataset, monkeypatch, caching, ahead):
    for number in range(7):
        dataset.add(f"{number}.png")
    # of one batch: latents have 2 KB, pictures 98 KB
    monkeypatch.setattr("modules.dataLoader.Feed.AHEAD_BYTES", 400_000)
    feed, _ = feed_of(dataset.prepare(latent_caching=caching), threads=1, epochs=4)
    with feed:
        for number in range(2):
            feed.batch(number)
        assert len(feed._ahead) == ahead


def test_a_file_that_changes_stops_the_batch_that_needs_it(dataset):
    fill(dataset)
    data = dataset.prepare(latent_caching=False)
    feed, planned = feed_of(data, threads=4)
    place = 2
    path = data.source.images[planned[place].samples[0].image].path
    Image.new("RGB", (64, 64)).save(path)
    with feed:
        for number in range(place):
            feed.batch(number)
        time.sleep(0.2)
        with pytest.raises(UserError, match="changed after the dataset check") as found:
            feed.batch(place)
    assert path in str(found.value) and not data_threads()


def test_closing_waits_for_one_file_at_most(dataset, monkeypatch):
    for number in range(40):
        dataset.add(f"{number}.png")
    data = dataset.prepare(batch_size=20)
    read = Entry.read

    def slow(entry):
        time.sleep(0.2)
        read(entry)

    monkeypatch.setattr(Entry, "read", slow)
    feed, _ = feed_of(data)
    feed._read_ahead(0)
    time.sleep(0.05)
    started = time.perf_counter()
    feed.close()
    # whole batches would take 8 seconds
    assert time.perf_counter() - started < 4 and not data_threads()


def test_on_a_gpu_every_tensor_lies_in_pinned_memory(dataset, monkeypatch):
    fill(dataset)
    taken = []

    def pinned(size):
        taken.append(torch.empty(size, dtype=torch.uint8))
        return taken[-1]

    monkeypatch.setattr("modules.dataLoader.Feed.pinned", pinned)
    data = dataset.prepare(**MASKED)
    feed, _ = feed_of(data, device=torch.device("cuda"))
    with feed:
        batch = feed.batch(0)
    tensors = [batch.latents, batch.mask, batch.loss_weight, batch.placement, *batch.text.values()]
    assert {tensor.data_ptr() for tensor in tensors} <= {memory.data_ptr() for memory in taken}


def test_joining_keeps_bits_and_refuses_other_shapes():
    def take(size):
        return torch.empty(size, dtype=torch.uint8)

    for tensor in (
        torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
        torch.tensor(True),
        torch.zeros(0, 3),
    ):
        joined = stack([tensor, tensor.clone()], take)
        assert joined.dtype == tensor.dtype and joined.shape == (2, *tensor.shape)
        assert torch.equal(joined[1:].view(torch.uint8), tensor[None].view(torch.uint8))
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(stack([turned, turned], take)[1], turned)
    with pytest.raises(ValueError, match="differ"):
        stack([torch.zeros(2), torch.zeros(1)], take)
