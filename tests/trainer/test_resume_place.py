"""Where a resumed run goes on: by what it has seen, not by a number of steps."""

import shutil

from modules.trainer.Logger import RunEnd

import pytest

# seven images in four batches of two, three times
OPTIONS = {"epochs": 3, "batch_size": 2}
IMAGES = 7


@pytest.fixture
def seen(monkeypatch):
    """Paths of the images that are loaded for training, in their order."""
    from modules.dataLoader.Feed import Feed

    names, take = [], Feed.batch

    def taking(self, number):
        batch = take(self, number)
        names.extend(batch.names)
        return batch

    monkeypatch.setattr(Feed, "batch", taking)
    return names


def epochs_of(names):
    return [sorted(names[start : start + IMAGES]) for start in range(0, len(names), IMAGES)]


def changes_told(run):
    return [text for text in run.warnings() if text.startswith("Changed since the backup")]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_another_batch_size_after_whole_epochs_sees_every_image_once_an_epoch(make_run, seen, batch_size):
    run = make_run()
    run.train(stop_after=8, **OPTIONS)
    report = run.train(continue_last_backup=True, **{**OPTIONS, "batch_size": batch_size})
    assert report["finished"] and report["steps"] > 8
    assert epochs_of(seen) == [sorted(set(seen))] * 3
    assert changes_told(run) == [
        f"Changed since the backup: batch_size from 2 to {batch_size}. The run goes on in epoch 3 of 3 after 0 of its "
        f"7 samples, and ends at step {report['steps']}."
    ]


def test_accumulation_that_changes_within_an_epoch_loses_no_image(make_run, seen):
    run = make_run()
    run.train(stop_after=5, **OPTIONS)
    report = run.train(continue_last_backup=True, gradient_accumulation_steps=3, **OPTIONS)
    # of 12 batches 5 are done: steps of 3, 3 and 1
    assert report["finished"] and report["steps"] == 8
    assert "gradient_accumulation_steps from 1 to 3" in changes_told(run)[0] and "twice" not in changes_told(run)[0]
    before = list(seen)
    seen.clear()
    make_run("whole").train(**OPTIONS)
    assert seen == before


def test_within_an_epoch_it_goes_on_after_as_many_samples(make_run, seen):
    run = make_run()
    run.train(stop_after=6, **OPTIONS)
    done = len(seen) - IMAGES
    assert done in (3, 4)
    report = run.train(continue_last_backup=True, **{**OPTIONS, "batch_size": 1})
    assert len(seen) == 3 * IMAGES and report["steps"] == 6 + 2 * IMAGES - done
    assert len(set(seen[2 * IMAGES :])) == IMAGES
    (text,) = changes_told(run)
    assert f"batch_size from 2 to 1. The run goes on in epoch 2 of 3 after {done} of its 7 samples" in text
    assert "some of its images come twice and others not at all" in text


@pytest.mark.parametrize("added", [-2, 2])
def test_images_that_come_or_go_are_said_and_the_share_of_the_epoch_stays(make_run, seen, tmp_path, added):
    folder, run = tmp_path / "concept", make_run(own_cache=True)
    shutil.copytree(run.concept, folder)
    concepts = [{"path": str(folder)}]
    run.train(stop_after=6, concepts=concepts, **OPTIONS)
    images = sorted(folder.glob("*.png"))
    for path in images[:2]:
        if added > 0:
            shutil.copy(path, path.with_name(f"new-{path.name}"))
        else:
            path.unlink()
    seen.clear()
    report = run.train(continue_last_backup=True, concepts=concepts, **OPTIONS)
    assert report["finished"] and len(set(seen)) == IMAGES + added
    # about half of the second epoch, less than a batch more, and the third one
    assert abs(len(seen) - 1.5 * (IMAGES + added)) <= 2.5
    assert f"images from 7 to {IMAGES + added}" in changes_told(run)[0]


def test_balancing_that_changes_is_said(make_run, seen):
    run = make_run()
    concept = {"path": str(run.concept)}
    run.train(stop_after=8, concepts=[concept], **OPTIONS)
    run.train(continue_last_backup=True, concepts=[{**concept, "balancing": 2}], **OPTIONS)
    assert len(seen) == 4 * IMAGES and "samples of an epoch from 7 to 14" in changes_told(run)[0]


def test_a_run_that_is_over_says_so(make_run):
    run = make_run()
    run.train(backup_before_save=True, **OPTIONS)
    report = run.train(continue_last_backup=True, **{**OPTIONS, "epochs": 2})
    assert report["finished"] and report["steps"] == 12
    assert any("after 3 epochs, and the config has 2: nothing is left" in text for text in run.warnings())


def test_more_epochs_go_on_as_if_they_had_been_there_from_the_start(make_run):
    whole, resumed = make_run("whole"), make_run("resumed")
    whole.train(**{**OPTIONS, "epochs": 4})
    resumed.train(stop_after=6, **OPTIONS)
    resumed.train(continue_last_backup=True, **{**OPTIONS, "epochs": 4})
    assert resumed.digest() == whole.digest() and not changes_told(resumed)


def test_a_finished_run_that_goes_on_tells_of_no_change(make_run, seen):
    run = make_run()
    run.train(backup_before_save=True, **OPTIONS)
    report = run.train(continue_last_backup=True, **{**OPTIONS, "epochs": 4})
    assert report["steps"] == 16 and not changes_told(run) and len(seen) == 4 * IMAGES


def test_a_backup_of_an_older_version_keeps_its_place_over_a_second_stop(make_run, seen, monkeypatch):
    from modules.trainer import BackupWriter as writer_module

    run, whole = make_run(), make_run("whole")
    whole.train(**OPTIONS)
    seen.clear()
    # it knew neither its plan nor what it had seen
    write = writer_module.write_backup

    def older(folder, backup):
        backup.extra.pop("plan")
        backup.progress.update(seen=0, seen_batches=0)
        return write(folder, backup)

    monkeypatch.setattr(writer_module, "write_backup", older)
    run.train(stop_after=6, **OPTIONS)
    monkeypatch.setattr(writer_module, "write_backup", write)
    # no step of it is done, but a backup is written
    trainer = run.trainer(continue_last_backup=True, **OPTIONS)
    trainer._prepare()
    trainer._backup(at_once=True)
    trainer.log.end(RunEnd.FINISHED)
    trainer.held.release()
    report = run.train(continue_last_backup=True, **OPTIONS)
    assert report["steps"] == 12 and len(seen) == 3 * IMAGES and not changes_told(run)
    assert run.digest() == whole.digest()
