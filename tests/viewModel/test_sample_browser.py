"""Which picture of a run is looked at."""

from pathlib import Path

from modules.viewModel.RunModel import RunModel, SamplePicture
from modules.viewModel.SampleBrowser import SampleBrowser

import pytest


def drawn(*pictures: tuple[str, int]) -> RunModel:
    model = RunModel()
    model.samples = [SamplePicture(step, Path(f"{prompt}/{step}.png"), prompt) for prompt, step in pictures]
    return model


@pytest.fixture
def browser():
    browser = SampleBrowser()
    browser.show(drawn(("0 a", 0), ("0 a", 6), ("1 b", 0), ("0 a", 12)))
    return browser


def test_before_the_first_picture_there_is_nothing_to_go_to():
    browser = SampleBrowser()
    browser.show(RunModel())
    browser.go(3)
    assert browser.picture is None and browser.prompt == "" and browser.last == -1
    assert not browser.can_go_back and not browser.can_go_on


def test_the_newest_is_followed_until_an_older_one_is_chosen(browser):
    assert (browser.prompt, browser.picture.step, browser.can_go_on) == ("0 a", 12, False)
    browser.show(drawn(("0 a", 0), ("0 a", 6), ("0 a", 12), ("0 a", 18)))
    assert browser.picture.step == 18
    browser.go(1)
    assert (browser.picture.step, browser.can_go_back, browser.can_go_on) == (6, True, True)
    browser.show(drawn(("0 a", 0), ("0 a", 6), ("0 a", 12), ("0 a", 18), ("0 a", 24)))
    assert browser.picture.step == 6, "what one looks at stays"
    browser.go(99)
    browser.show(drawn(("0 a", 0), ("0 a", 24), ("0 a", 30)))
    assert browser.picture.step == 30, "at the end it follows again"
    browser.go(-5)
    assert browser.picture.step == 0


def test_another_prompt_begins_with_its_newest(browser):
    browser.go(0)
    browser.choose("1 b")
    assert (browser.picture.prompt, browser.picture.step, browser.last) == ("1 b", 0, 0)


def test_a_run_without_the_prompt_shows_its_own_first(browser):
    browser.choose("1 b")
    browser.show(drawn(("0 c", 0), ("0 c", 5)))
    assert (browser.prompt, browser.picture.step) == ("0 c", 5)
    browser.show(RunModel())
    assert browser.prompt == "" and browser.picture is None
