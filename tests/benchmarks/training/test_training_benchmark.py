"""The benchmark of the training step runs, compares equal work, and adds up."""

import json
from pathlib import Path

from benchmarks.measuring import Stopwatch
from benchmarks.training.step_benchmark import OURS, PLAIN, BenchmarkSettings, Contest
from scripts.benchmark_training import main

import torch

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CHARACTERS = [chr(code) for code in range(33, 127)]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> Path:
    """A folder with a random Stable Diffusion pipeline of the smallest size, for 16 x 16 pixels."""
    torch.manual_seed(0)
    tokens = [*CHARACTERS, *(letter + "</w>" for letter in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=[], model_max_length=8)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            **blocks,
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=8, bos_token_id=len(tokenizer) - 2,
                eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("miniature base")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def concept(tmp_path_factory) -> Path:
    """Four pictures with captions."""
    folder = tmp_path_factory.mktemp("concept")
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 90, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("text_encoder", [False, True])
def test_loops_do_equal_work(miniature, concept, tmp_path, text_encoder):
    settings = BenchmarkSettings(
        str(miniature), (str(concept),), batch=2, resolution=16, rank=2, steps=2, blocks=1, warm_up=0, profile_steps=2,
        text_encoder=text_encoder,
    )  # fmt: skip
    contest = Contest(settings, tmp_path)
    before = contest.largest_difference()
    seconds = contest.block(2, contest.names)
    assert set(seconds) == {OURS, PLAIN, "plain_fused", "plain_uncached"} and all(
        min(pair) > 0 for pair in seconds.values()
    )
    assert contest.ours.trainer.progress.step == 2
    for loop in contest.plain.values():
        states = [loop.optimizer.state[parameter]["step"] for parameter in loop.parameters]
        assert all(step == 2 for step in states) and len(states) == len(contest.ours.trainer.parameters)
    # adapters large enough to matter, so that the comparison below says something
    unet = contest.ours.trainer.trained["unet"]
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    ours, theirs = (contest.prediction(model.unet) for model in (contest.ours.trainer.model, contest.plain[PLAIN]))
    assert (ours - theirs).abs().max() > 1e-2
    assert before < 1e-5 and contest.largest_difference() < 1e-4
    contest.close()


def test_command_writes_json(miniature, concept, tmp_path, capsys):
    output = tmp_path / "results" / "step.json"
    arguments = ["--model", str(miniature), "--concepts", str(concept), "--output", str(output)]
    numbers = {"batch": 2, "resolution": 16, "rank": 2, "steps": 2, "blocks": 2, "profile-steps": 2, "threads": 1}
    arguments += [f"--{name}={value}" for name, value in numbers.items()]
    assert main(arguments) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["script"] == "scripts/benchmark_training.py" and result["threads"] == 1
    assert set(result["versions"]) == {"torch", "diffusers", "transformers", "peft"}
    assert len(result["blocks"]) == 2 and result["settings"]["batch"] == 2
    first = result["blocks"][0]
    ratio = result["ratios"]["ours/plain"]
    assert ratio["min"] <= first[OURS] / first[PLAIN] <= ratio["max"]
    for seconds in result["breakdown_seconds"].values():
        phases = sum(value for phase, value in seconds.items() if phase != "whole step")
        assert phases == pytest.approx(seconds["whole step"])
        assert seconds["UNet forward"] > 0 and seconds["backward"] > 0 and seconds["optimizer"] > 0
    assert "| whole step |" in capsys.readouterr().out


def test_missing_model_is_one_line(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "nothing"), "--threads=1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: base_model_name")


def test_stopwatch_counts_inner_functions_once_and_restores():
    class Work:
        def outer(self):
            return self.inner() + 1

        def inner(self):
            return sum(range(20000))

    work = Work()
    with Stopwatch() as stopwatch:
        stopwatch.watch(work, "outer", "outer")
        stopwatch.watch(work, "inner", "inner")
        assert work.outer() == sum(range(20000)) + 1
    assert stopwatch.seconds["inner"] > stopwatch.seconds["outer"] > 0
    assert not vars(work)
