"""How torch computes during a run: settings of the whole process, which are as before afterwards."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import TRAIN_DTYPES
from modules.util.enum.AttentionMechanism import AttentionMechanism
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError

import torch
from torch.backends.cuda import SDPAParams
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuBLAS reads it once, when it starts; with these values its sums have one order
WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
# what is tried where the chosen kernel can't, as with masks
_OTHERS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)
_KERNELS = {
    AttentionMechanism.FLASH: (SDPBackend.FLASH_ATTENTION, torch.backends.cuda.can_use_flash_attention),
    AttentionMechanism.CUDNN: (SDPBackend.CUDNN_ATTENTION, torch.backends.cuda.can_use_cudnn_attention),
}


def prepare_process(config: TrainConfig) -> None:
    """Sets what CUDA reads when it starts. To be called before anything is asked of a GPU."""
    if config.deterministic:
        os.environ.setdefault(WORKSPACE, WORKSPACES[0])


def device_problems(config: TrainConfig, device: torch.device) -> list[Problem]:
    """Settings that contradict each other, or that this device or installation lacks.

    Args:
        config: of the run.
        device: where it trains.
    """
    problems = _attention_problems(config, device)
    if not config.deterministic:
        return problems
    if config.cudnn_benchmark:
        text = "found true with deterministic, but which kernel is fastest differs from run to run. Set one to false"
        remedies = tuple(Remedy.of({key: False}) for key in ("cudnn_benchmark", "deterministic"))
        problems.append(Problem("cudnn_benchmark", text, remedies))
    if config.train_dtype == DataType.TFLOAT_32:
        text = (
            "found true with train_dtype TFLOAT_32, whose products have 10 bits. Set that to FLOAT_32, or this to false"
        )
        remedies = (Remedy.of({"train_dtype": "FLOAT_32"}), Remedy.of({"deterministic": False}))
        problems.append(Problem("deterministic", text, remedies))
    found = os.environ.get(WORKSPACE, WORKSPACES[0])
    if found not in WORKSPACES:
        text = (
            f"needs the environment variable {WORKSPACE} to be {' or '.join(WORKSPACES)}, found {found!r}. Unset it, "
            "or set this to false"
        )
        problems.append(Problem("deterministic", text, (Remedy.of({"deterministic": False}),)))
    return problems


@contextmanager
def device_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Meanwhile torch computes on a GPU as the config says. On other devices nothing changes.

    Raises:
        UserError: with `deterministic` an operation came that has no such kernel.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(_cuda_settings(config))
            stack.enter_context(_deterministic_words(config))
        yield


@contextmanager
def _cuda_settings(config: TrainConfig) -> Iterator[None]:
    matrix, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrix.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = _KERNELS.get(config.attention_mechanism)
    try:
        matrix.allow_tf32 = config.train_dtype == DataType.TFLOAT_32
        if config.train_dtype == DataType.FLOAT_32 or config.deterministic:
            cudnn.allow_tf32 = False
        elif config.train_dtype == DataType.TFLOAT_32:
            cudnn.allow_tf32 = True
        cudnn.benchmark, cudnn.deterministic = config.cudnn_benchmark, config.deterministic
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        with ExitStack() as stack:
            if chosen is not None:
                order = list(dict.fromkeys((chosen[0], *_OTHERS)))
                stack.enter_context(sdpa_kernel(order, set_priority=True))
            yield
    finally:
        matrix.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


@contextmanager
def _deterministic_words(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not config.deterministic or "does not have a deterministic implementation" not in str(error):
            raise
        raise UserError(
            f"deterministic: {str(error).split('.')[0]}. Set it to false.", Remedy.of({"deterministic": False})
        ) from error


def _attention_problems(config: TrainConfig, device: torch.device) -> list[Problem]:
    chosen = config.attention_mechanism
    if chosen == AttentionMechanism.SDP:
        return []
    if chosen == AttentionMechanism.FLEX:
        why = "torch's flex_attention is not supported yet"
    elif device.type != "cuda":
        why = f"this run trains on {device.type}, and the kernel is one of GPUs"
    elif chosen == AttentionMechanism.XFORMERS:
        why = "" if find_spec("xformers") else "the library xformers is not installed"
    else:
        why = _no_kernel(config, device)
    sdp = Remedy.of({"attention_mechanism": "SDP"})
    if why:
        text = f"found {chosen}, but {why}. Set it to SDP, which takes the best kernel that fits"
        return [Problem("attention_mechanism", text, (sdp,))]
    if config.deterministic and chosen == AttentionMechanism.XFORMERS:
        text = (
            "found XFORMERS with deterministic, but torch's deterministic algorithms do not cover that library's "
            "kernels. Set it to SDP, or deterministic to false"
        )
        return [Problem("attention_mechanism", text, (sdp, Remedy.of({"deterministic": False})))]
    return []


def _no_kernel(config: TrainConfig, device: torch.device) -> str:
    """Why torch has not the chosen kernel for this GPU and arithmetic; empty if it has."""
    _, can_use = _KERNELS[config.attention_mechanism]
    q = torch.empty(1, 8, 64, 64, device=device, dtype=TRAIN_DTYPES.get(config.train_dtype, torch.float32))
    if can_use(SDPAParams(q, q, q, None, 0.0, False, False), False):
        return ""
    return f"torch {torch.__version__} has no such kernel for this GPU and train_dtype {config.train_dtype}"
