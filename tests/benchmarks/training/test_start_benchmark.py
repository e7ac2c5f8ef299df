"""The benchmark of starts tells what was opened, and when."""

from benchmarks.torture.miniature import save_pipeline
from benchmarks.training.backup_memory import measure_backups
from benchmarks.training.plan_pause import measure_plans
from benchmarks.training.start_benchmark import draw, one_start, weight_bytes, write_config


def test_a_second_start_opens_the_denoiser_alone(tmp_path):
    base = save_pipeline(tmp_path)
    draw(tmp_path / "images", 5)
    write_config(tmp_path, base, epochs=2)
    assert weight_bytes(base / "unet") > 10_000 and not weight_bytes(base / "tokenizer")
    first, second = one_start(tmp_path), one_start(tmp_path)
    assert first["opened"] == ["vae", "text_encoder", "unet"] and second["opened"] == ["unet"]
    for start in (first, second):
        clock, own = zip(*start["seconds"].values(), strict=True)
        assert list(clock) == sorted(clock) and list(own) == sorted(own)
        assert list(start["seconds"])[-2:] == ["ready", "first step"] and 0 <= start["planning"] < clock[-1]


def test_a_backup_takes_memory_once(tmp_path):
    found = measure_backups(tmp_path, matrices=8, optimizers=("ADAMW_ADV",))["ADAMW_ADV"]
    # 64 MiB of moments; what else a process takes meanwhile is small
    assert found["after reading"] < 16 and 56 < found["at the end"] < 80 and found["peak"] < 84


def test_plans_are_measured_both_ways():
    found = measure_plans(60, 3, loading=(0,))
    assert [case["name"] for case in found["cases"]] == ["drawn one by one", "drawn ahead"]
    assert all(case["clock"] >= 0 and case["process"] >= 0 for case in found["cases"])
