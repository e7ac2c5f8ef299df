import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from modules.model.DeviceLink import DeviceLink, Transfer

import torch
from torch import Tensor

CPU = torch.device("cpu")


class SlowLink(DeviceLink):
    """A link whose copies take as long as their bytes say, in a thread for each direction; no device is needed.

    A copy holds nothing but NaN until it has arrived, and what is sent is read at the end of its time.

    Args:
        bytes_per_second: of either direction.
        overlaps: False: every copy is waited for where it begins.

    Attributes:
        most: bytes that were on their way at once.
        fetching, sending: seconds that each thread copied so far.
    """

    def __init__(self, bytes_per_second: float, overlaps: bool = True) -> None:
        super().__init__(CPU, CPU)
        self.bytes_per_second, self.overlaps, self.most = bytes_per_second, overlaps, 0
        self._fetching, self._sending = (ThreadPoolExecutor(1, thread_name_prefix="slow link") for _ in range(2))
        self.fetching, self.sending = 0.0, 0.0
        self._under_way, self._lock = 0, Lock()

    def fetch(self, tensors: Sequence[Tensor]) -> Transfer:
        return self._transfer(self._fetching, tensors)

    def send(self, tensor: Tensor) -> Transfer:
        return self._transfer(self._sending, [tensor], tensor)

    def close(self) -> None:
        """Ends both threads."""
        self._fetching.shutdown()
        self._sending.shutdown()

    def _transfer(
        self, thread: ThreadPoolExecutor, tensors: Sequence[Tensor], source: Tensor | None = None
    ) -> Transfer:
        copies = [torch.empty_like(tensor) for tensor in tensors]
        for copy in copies:
            copy.fill_(float("nan") if copy.is_floating_point() else 0)
        size = sum(tensor.nbytes for tensor in tensors)
        with self._lock:
            self._under_way += size
            self.most = max(self.most, self._under_way)
        work = thread.submit(self._copy, copies, [tensor.detach() for tensor in tensors], size, source is None)
        transfer = Transfer(copies, work.result, source)
        if not self.overlaps:
            transfer.wait()
        return transfer

    def _copy(self, copies: Sequence[Tensor], tensors: Sequence[Tensor], size: int, fetches: bool) -> None:
        start = time.perf_counter()
        time.sleep(size / self.bytes_per_second)
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)
        seconds = time.perf_counter() - start
        with self._lock:
            self.fetching += seconds * fetches
            self.sending += seconds * (not fetches)
            self._under_way -= size
