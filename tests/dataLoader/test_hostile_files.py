"""What lies among images and is none: it is named and left out, and nobody waits for it."""

import os
import socket
import subprocess
import sys
import threading
import zlib

from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.png_notes import MOST_TEXT, without_notes
from modules.util.regular_file import is_regular, read_regular
from modules.viewModel.ConceptModel import read_caption, thumbnail

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture
def in_time():
    """Runs something in a thread, and fails where it does not come back: a pipe that is opened never does."""

    def run(work):
        results = []
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive(), "it waits for ever"
        return results[0]

    return run


def test_what_is_no_file_is_left_out(dataset, in_time):
    dataset.add("good.png")
    os.mkfifo(dataset.folder / "pipe.png")
    (dataset.folder / "folder.png").mkdir()
    os.symlink(dataset.folder / "nothing", dataset.folder / "link.png")
    os.symlink("/dev/zero", dataset.folder / "device.png")
    (dataset.folder / "empty.png").touch()
    with open(dataset.folder / "sparse.png", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    for name, beside in (("m.png", "m-masklabel.png"), ("n.png", "n.txt")):
        dataset.add(name, caption="x" if name == "m.png" else None)
        os.mkfifo(dataset.folder / beside)
    report = in_time(lambda: dataset.check(masked_training=True))
    assert [image.name for image in report.images] == ["good.png"]
    reasons = {os.path.basename(rejected.path): rejected.reason for rejected in report.rejected}
    expected = {
        "pipe.png": "it is a pipe", "folder.png": "it is a folder", "link.png": "it is a link to a file",
        "device.png": "it is a device", "empty.png": "the file is empty", "sparse.png": "the limit is 1,024 MiB",
        "m.png": "m-masklabel.png cannot be read: it is a pipe",
        "n.png": "n.txt cannot be read: it is a pipe",
    }  # fmt: skip
    assert set(reasons) == set(expected) and all(expected[name] in reasons[name] for name in expected)
    assert all(any(name in line for line in dataset.warnings) for name in expected)


def test_sockets(tmp_path, monkeypatch):
    # their paths must be short
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
        assert not is_regular("s.png")
        with pytest.raises(OSError, match="it is a socket"):
            read_regular("s.png", 10)


def test_folders_are_entered_where_subfolders_are(dataset):
    dataset.add("folder.png/a.png")
    report = dataset.check([dataset.concept(include_subdirectories=True)])
    assert [image.name for image in report.images] == ["folder.png/a.png"] and not report.rejected


def test_lists_of_tags_and_prompts(dataset, in_time):
    dataset.add("a.png")
    os.mkfifo(dataset.root / "list.txt")
    path = str(dataset.root / "list.txt")
    for text in (
        {"prompt_source": "concept", "prompt_path": path},
        {"tag_dropout_enable": True, "tag_dropout_special_tags": path},
    ):

        def check(text=text):
            with pytest.raises(Exception, match="list.txt cannot be read: it is a pipe") as caught:
                dataset.check([dataset.concept(text=text)])
            return type(caught.value).__name__

        assert in_time(check) == "UserError"


def test_the_window_does_not_wait_either(tmp_path, in_time):
    for name in ("a.png", "a.txt"):
        os.mkfifo(tmp_path / name)
    assert in_time(lambda: thumbnail(str(tmp_path / "a.png"), 32)) is None

    def read():
        with pytest.raises(Exception, match="it is a pipe"):
            read_caption(tmp_path / "a.txt")
        return True

    assert in_time(read)


# -- what is written beside pixels ------------------------------------------------------------------------------------


@pytest.fixture
def noise(picture) -> Image.Image:
    return picture(32, 24)


def png(image: Image.Image, tmp_path, notes=(), **options) -> bytes:
    info = PngInfo()
    for name, text, compressed in notes:
        info.add_text(name, text, zip=compressed)
    image.save(tmp_path / "a.png", pnginfo=info, **options)
    return (tmp_path / "a.png").read_bytes()


BIG = "text " * 400_000
NOTES = {
    "profile": ([], {"icc_profile": b"profile " * 260_000}),
    "bomb of a profile": ([], {"icc_profile": bytes(40_000_000)}),
    "compressed text": ([("workflow", BIG, True)], {}),
    "plain text": ([("workflow", BIG * 20, False)], {}),
    "many texts": ([(f"t{n}", "x" * 900_000, True) for n in range(80)], {}),
    "all": ([("a", BIG, True), ("b", "small", False)], {"icc_profile": bytes(3_000_000)}),
}


@pytest.mark.parametrize("kind", NOTES)
def test_large_notes_do_not_matter(noise, tmp_path, kind):
    notes, options = NOTES[kind]
    decoded = decode_image(png(noise, tmp_path, notes, **options))
    assert np.array_equal(np.asarray(decoded), np.asarray(noise))


def test_orientation_survives_large_notes(noise, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(png(noise, tmp_path, icc_profile=bytes(3_000_000), exif=exif)).size == (24, 32)


def test_small_texts_are_kept_and_bombs_are_not_unpacked(noise, tmp_path):
    data = png(noise, tmp_path, [("keep", "this", True), ("bomb", "x" * (4 * MOST_TEXT), True)], icc_profile=b"p" * 99)
    slim = without_notes(data)
    assert b"keep" in slim and b"bomb" not in slim and b"iCCP" not in slim
    assert without_notes(slim) is None and without_notes(b"GIF89a") is None
    broken = data.replace(zlib.compress(b"this"), b"\xff" * len(zlib.compress(b"this")))
    assert broken != data and b"keep" not in without_notes(broken)


def test_damage_to_the_pixels_is_still_damage(tmp_path):
    data = png(Image.effect_noise((64, 64), 80), tmp_path, icc_profile=bytes(3_000_000))
    with pytest.raises(ImageError, match="damaged|truncated"):
        decode_image(data[:-1000])


def test_memory_stays_bounded(noise, tmp_path):
    """Texts that unpack to 240 MB, and their reader allowed half of it beside what importing takes."""
    resource = pytest.importorskip("resource")
    png(noise, tmp_path, [(f"t{n}", "x" * 6_000_000, True) for n in range(40)])
    code = (
        "import resource, sys\n"
        "from modules.util.decode_image import decode_image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000,) * 2)\n"
        "print(decode_image(open(sys.argv[1], 'rb').read()).size)\n"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this system does not tell how much memory is used")
    assert resource.getpagesize()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)
    })  # fmt: skip
    assert done.stdout.strip() == "(32, 24)", done.stderr[-500:]


def test_programs_are_no_images():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"
    with pytest.raises(ImageError, match="no image that Pillow knows"):
        decode_image(postscript)
