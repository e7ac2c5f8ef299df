"""The optimizer benchmark: the parameters are SDXL's, the peers do the same work, and the figures add up."""

import json
from collections import Counter

from benchmarks.optimizers.cases import FEATURES, cases, combined, matching
from benchmarks.optimizers.measure import OURS, PEER, TORCH, misses, quartiles, state_bytes
from benchmarks.optimizers.parameter_set import Layer, ParameterSet, lora_shapes, scaled_down, sdxl_layers
from benchmarks.optimizers.peers import NoPeer, build, spelled
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.roles import matrix_shape, parameter_info
from scaled_optim.rules.registry import RULES
from scaled_optim.scaling import COHERENT, rank_gain
from scripts.benchmark_optimizers import main

import torch

import pytest

CPU = torch.device("cpu")
# tall and wide enough that adv_optm's rules of thumb about shapes do not matter
LAYERS = [Layer("first", 24, 40), Layer("second", 40, 24), Layer("third", 24, 40)]
WITH_PEER = []
for row in cases(every_rule=True):
    try:
        spelled(row.rule, row.options, getattr(torch, row.dtype), row.lr)
        WITH_PEER.append(row)
    except NoPeer:
        pass
# What has the same equations, and no rounding by chance, in both: 1e-4 of a step's length is rounding over three steps.
# Others differ: scaled steps by definition, state at low precision by chance, Newton-Schulz by bfloat16; Prodigy's
# Nesterov and ADOPT's mix the gradient in otherwise, and their ADOPT takes its first second moment from the gradient
# before OrthoGrad; signs by chance; and their Sinkhorn, and OrthoGrad by rows and columns, depend on the size of
# gradients, which is 1e-3 here (tests/optim/test_peers.py has larger ones).
SAME_STEPS = [
    row
    for row in WITH_PEER
    if not {"scaled_optm", "state_precision", "factored_2nd"} & row.options.keys()
    and row.dtype == "float32"
    and row.rule not in ("MUON_ADV", "ADAMUON_ADV", "PRODIGY_ADV", "SINKSGD_ADV")
    and row.options.get("orthogonal_gradient") != "iterative"
    and "stochastic_sign" not in row.options
    and not (row.rule == "ADOPT_ADV" and row.options.keys() & {"nesterov", "use_atan2", "orthogonal_gradient"})
]


@pytest.fixture(scope="module")
def layers() -> tuple[Layer, ...]:
    return sdxl_layers()


def test_parameters_are_those_of_sdxl(layers):
    assert len(layers) == 743
    factors = lora_shapes(layers, 16)
    assert len(factors) == len({info.name for info, _ in factors}) == 1486
    assert Counter(info.role for info, _ in factors) == {"LORA_DOWN": 743, "LORA_UP": 743}
    # the text's keys and values come from both text encoders, 768 + 1280 wide
    text = [layer for layer in layers if layer.name.endswith("attn2.to_k")]
    assert len(text) == 70 and {layer.in_features for layer in text} == {2048}
    assert sum(rows * cols for _, (rows, cols) in factors) == 43_298_816


def test_small_parameters_have_the_same_mixture(layers):
    small = scaled_down(layers)
    assert len(lora_shapes(small, 8)) == 60
    assert len({(layer.in_features, layer.out_features) for layer in small}) >= 6
    assert min(min(layer.in_features, layer.out_features) for layer in small) > 8


def test_every_optimizer_starts_from_the_same_numbers():
    first, second = (ParameterSet(LAYERS, 4, CPU) for _ in range(2))
    ours, peers = first.parameters(), second.parameters()
    for a, b in zip(ours, peers, strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad) and a.abs().min() > 0
    with torch.no_grad():
        ours[0].zero_()
        ours[0].grad.zero_()
    assert not first.parameters()[0].eq(0).any()
    first.refill()
    assert torch.equal(ours[0].grad, peers[0].grad)
    assert ParameterSet(LAYERS, 4, CPU, torch.bfloat16).parameters()[0].grad.dtype == torch.bfloat16


def test_every_rule_and_every_feature_is_measured():
    rows = cases()
    assert len({row.name for row in rows}) == len(rows)
    assert {row.rule for row in rows if row.name.endswith(" plain")} == set(RULES)
    assert {row.rule for row in rows if row.name.endswith(" all on")} == set(RULES)
    for feature in FEATURES:
        assert [row for row in rows if row.name.endswith(f"_ADV {feature}")], feature
    assert len(cases(every_rule=True)) > len(rows)
    assert combined(RULES["SIGNSGD_ADV"])["nesterov"]
    assert combined(RULES["SIGNSGD_ADV"], ("freeze_on_flip", "normed_momentum")) == {"freeze_on_flip": True}


def test_filter():
    rows = cases()
    assert [row.name for row in matching(rows, ["lion_adv plain"])] == ["LION_ADV plain"]
    assert matching(rows, []) == rows
    with pytest.raises(ValueError, match="--cases: found 'nothing'"):
        matching(rows, ["plain", "nothing"])


@pytest.mark.parametrize("row", WITH_PEER, ids=lambda row: row.name)
def test_peer_takes_what_is_spelled(row):
    dtype = getattr(torch, row.dtype)
    parameter_set = ParameterSet(LAYERS, 8, CPU, dtype)
    parameters = parameter_set.parameters(RULES[row.rule].orthonormal_up)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = build(spelled(row.rule, row.options, dtype, row.lr), parameters)
    for _ in range(3):
        parameter_set.refill()
        optimizer.step()
    # bfloat16 has steps of 2⁻⁹ of a number, which a step of 1e-4 reaches only by chance
    moved = [not torch.equal(parameter, start) for parameter, start in zip(parameters, before, strict=True)]
    assert all(moved) if dtype == torch.float32 else any(moved)


@pytest.mark.parametrize("row", SAME_STEPS, ids=lambda row: row.name)
def test_peer_takes_the_same_steps(row):
    # a decay that float32 can take away in every step: a smaller one is paid in portions here, and rounded there
    decays = {name: 100 * value for name, value in row.options.items() if name in ("weight_decay", "centered_wd")}
    options, results = {**row.options, **decays}, []
    for which in (OURS, PEER):
        parameter_set = ParameterSet(LAYERS, 8, CPU)
        parameters = parameter_set.parameters(RULES[row.rule].orthonormal_up)
        start = [parameter.detach().clone() for parameter in parameters]
        if which == OURS:
            optimizer = BatchedOptimizer(parameters, row.rule, row.lr, **options)
        else:
            optimizer = build(spelled(row.rule, options, torch.float32, row.lr), parameters)
        for _ in range(3):
            parameter_set.refill()
            optimizer.step()
        results.append([parameter.detach() - old for parameter, old in zip(parameters, start, strict=True)])
    for parameter, ours, theirs in zip(parameters, *results, strict=True):
        stiefel = row.rule == "STIEFEL_LORA"
        if stiefel:
            role = str(parameter_info(parameter).role)
            theirs = theirs * rank_gain(role, *matrix_shape(tuple(parameter.shape)), COHERENT)
        # σ₁, by which Stiefel-LoRA divides, is estimated within 3.5 %
        assert (ours - theirs).norm() <= (0.035 if stiefel else 1e-4) * theirs.norm()


@pytest.mark.parametrize(
    ("rule", "options", "what"),
    [
        ("ADAMW_ADV", {"use_grams": True}, "AdamW_adv has no use_grams"),
        ("ADAMW_ADV", {"orthogonal_gradient": "per_rank"}, "each rank"),
        ("ADAMW_ADV", {"scaled_eps": True}, "eps 1"),
        ("ADAMW_ADV", {"state_precision": "fp16"}, "fp16"),
        ("LION_ADV", {"freeze_on_flip": True}, "Lion_adv has no freeze_on_flip"),
        ("LION_ADV", {"state_precision": "int8_sr"}, "Lion_adv keeps"),
        ("MUON_ADV", {"muon_adam_config": {"fisher_wd": True}}, "adam_fisher_wd"),
        ("MUON_ADV", {"muon_adam_config": {"normed_momentum": True}}, "adam_normed_momentum"),
        ("ADAMUON_ADV", {"factored_2nd": True}, "factored_2nd"),
    ],
)
def test_options_without_a_peer(rule, options, what):
    with pytest.raises(NoPeer, match=what):
        spelled(rule, options, torch.float32, 1e-4)


def test_spelling():
    spelling = spelled("ADAMW_ADV", {"scaled_optm": True, "centered_wd": 0.02, "beta2": 0.99}, torch.bfloat16, 0.5)
    assert spelling.kind == "AdamW_adv" and not spelling.by_role
    expected = {"lr": 0.5, "betas": (0.9, 0.99), "spectral_normalization": True, "weight_decay": 0.02,
                "state_precision": "fp32"}  # fmt: skip
    assert expected.items() <= spelling.arguments.items() and "centered_wd" not in spelling.arguments
    muon = spelled("MUON_ADV", {"weight_decay": 0.1, "muon_adam_config": {"beta1": 0.8}}, torch.float32, 1e-3)
    assert muon.by_role == {"LORA_DOWN": {"use_muon": False}, "LORA_UP": {"use_muon": True}}
    assert muon.arguments["adam_betas"] == (0.8, 0.99) and muon.arguments["adam_weight_decay"] == 0.1


def test_bytes_count_memory_once():
    shared = torch.zeros(10)
    state = {"state": {0: {"a": shared[:4], "b": [shared[4:], 3, None]}, 1: {"c": torch.zeros(2, dtype=torch.int8)}}}
    assert state_bytes(state) == 42
    parameters = ParameterSet(LAYERS, 4, CPU).parameters()
    optimizer = torch.optim.AdamW(parameters, fused=True)
    optimizer.step()
    assert state_bytes(optimizer.state_dict()) == 8 * sum(p.numel() for p in parameters) + 4 * len(parameters)


def test_quartiles():
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_command_writes_json(tmp_path, capsys):
    output = tmp_path / "results" / "optimizers.json"
    names = [
        "ADAMW_ADV plain",
        "ADAMW_ADV all on, factored_2nd",
        "ADAMW_ADV use_grams",
        "ADAMW_ADV bf16 parameters, int8",
    ]
    arguments = ["--small", "--rounds=3", "--warm-up=2", "--threads=1", "--json", str(output), "--cases", *names]
    assert main(arguments) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(result["versions"]) == {"torch", "adv_optm", "diffusers"}
    assert result["threads"] == 1 and result["processor"] and result["date"] and "commit" in result
    assert result["parameters"]["tensors"] == 60 and result["settings"]["rounds"] == 3
    rows = {row["name"]: row for row in result["cases"]}
    assert len(rows) == 4
    for row in rows.values():
        for contestant in filter(None, row["contestants"].values()):
            assert len(contestant["rounds"]) == 3 and min(contestant["rounds"]) > 0
            assert contestant["seconds"]["q1"] <= contestant["seconds"]["median"] <= contestant["seconds"]["q3"]
        ours = row["contestants"][OURS]
        ratio = row["ratios"][f"{OURS}/{TORCH}"]["median"]
        per_round = [a / b for a, b in zip(ours["rounds"], row["contestants"][TORCH]["rounds"], strict=True)]
        assert min(per_round) <= ratio <= max(per_round)
    plain = rows["ADAMW_ADV plain"]
    elements = result["parameters"]["elements"]
    assert plain["contestants"][OURS]["state_bytes"] == plain["contestants"][PEER]["state_bytes"] == 8 * elements
    assert plain["peer"]["kind"] == "AdamW_adv" and plain["no_peer"] is None
    grams = rows["ADAMW_ADV use_grams"]
    assert grams["peer"] is None and grams["contestants"][PEER] is None and "use_grams" in grams["no_peer"]
    assert grams["ratios"][f"{PEER}/{OURS}"] is None and grams["ratios"]["state_bytes"] is None
    assert rows["ADAMW_ADV bf16 parameters, int8_sr"]["dtype"] == "bfloat16"
    printed = capsys.readouterr().out
    assert "| ADAMW_ADV plain |" in printed and "| – |" in printed


def test_misses_name_what_is_short_of_the_goal():
    ratios = {f"{OURS}/{TORCH}": quartiles([1.5]), f"{PEER}/{OURS}": quartiles([4.0]), "state_bytes": 1.0}
    row = {"name": "ADAMW_ADV plain", "ratios": ratios}
    assert misses(row, CPU) == ["1.50x torch's time, goal 1.3x"]
    assert misses({**row, "name": "LION_ADV plain"}, CPU) == []
    assert len(misses({**row, "name": "LION_ADV plain"}, torch.device("cuda"))) == 1
    assert len(misses({**row, "ratios": {**ratios, f"{PEER}/{OURS}": quartiles([2.0]), "state_bytes": 1.01}}, CPU)) == 3


@pytest.mark.parametrize("arguments", [["--cases", "nothing"], ["--device", "mps"], ["--device", "sofa"]])
def test_wrong_arguments_are_one_line(arguments, capsys):
    assert main(["--small", "--threads=1", *arguments]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: ") and len(errors) == 1


def test_wrong_rounds(capsys):
    with pytest.raises(SystemExit):
        main(["--rounds=0"])
    assert "--rounds: found 0, expected at least 1" in capsys.readouterr().err
