"""Facts of GPUs, as their makers publish them: peaks of dense products, bandwidth, memory, and the way to main memory.

Half precision is bf16 or fp16 with float32 sums on tensor cores, without sparsity; single is float32 without TF32.
From NVIDIA's data sheets and architecture papers of each (T4, V100, A100, A10, L4, L40S, H100, H200: data sheets;
GeForce 20, 30, 40 and 50: the papers on Turing, GA102, Ada and Blackwell RTX, appendix of specifications).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from visionpeft.errors import ConfigError, did_you_mean

_TERA, _GIGA, _GIB = 1e12, 1e9, 1024**3
CONTEXT = 512 * 1024**2
"""What a CUDA context takes of a GPU outside of torch's own count, about: it depends on the driver."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: the maker's.
        half: operations a second in half precision.
        single: the same in float32.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        transfer: bytes a second from main memory, in one direction.
        bf16: whether it computes in bfloat16.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: int
    transfer: float
    bf16: bool = True


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: float, transfer: float, bf16: bool = True,
         ) -> Gpu:  # fmt: skip
    return Gpu(name, half * _TERA, single * _TERA, bandwidth * _GIGA, int(memory * _GIB), transfer * _GIGA, bf16)


# name, half and single TFLOP/s, memory GB/s, GiB, PCIe GB/s
GPUS: tuple[Gpu, ...] = (
    _gpu("NVIDIA H200", 989, 67, 4800, 140, 64),
    _gpu("NVIDIA H100 80GB HBM3", 989, 67, 3350, 80, 64),
    _gpu("NVIDIA H100 PCIe", 756, 51, 2000, 80, 64),
    _gpu("NVIDIA A100-SXM4-80GB", 312, 19.5, 2039, 80, 32),
    _gpu("NVIDIA A100-SXM4-40GB", 312, 19.5, 1555, 40, 32),
    _gpu("NVIDIA L40S", 362, 91.6, 864, 45, 32),
    _gpu("NVIDIA L4", 121, 30.3, 300, 22.5, 32),
    _gpu("NVIDIA A10", 125, 31.2, 600, 22.5, 32),
    _gpu("Tesla V100-SXM2-16GB", 125, 15.7, 900, 16, 16, bf16=False),
    _gpu("Tesla T4", 65, 8.1, 320, 15, 16, bf16=False),
    _gpu("NVIDIA GeForce RTX 5090", 209.5, 104.8, 1792, 32, 64),
    _gpu("NVIDIA GeForce RTX 4090", 165.2, 82.6, 1008, 24, 32),
    _gpu("NVIDIA GeForce RTX 4080", 97.5, 48.7, 717, 16, 32),
    _gpu("NVIDIA GeForce RTX 4070", 58.3, 29.1, 504, 12, 32),
    _gpu("NVIDIA GeForce RTX 4060", 30.2, 15.1, 272, 8, 16),
    _gpu("NVIDIA GeForce RTX 3090", 71, 35.6, 936, 24, 32),
    _gpu("NVIDIA GeForce RTX 3080", 59.5, 29.8, 760, 10, 32),
    _gpu("NVIDIA GeForce RTX 3060", 25.5, 12.7, 360, 12, 32),
    _gpu("NVIDIA GeForce RTX 2080 Ti", 53.8, 13.4, 616, 11, 16, bf16=False),
)


def gpu_named(name: str) -> Gpu:
    """Return the GPU of a name, of which a part is enough: "H200", "rtx 3060".

    Raises:
        ConfigError: there is none, and here is the nearest.
    """
    wanted = name.lower()
    found = [gpu for gpu in GPUS if wanted in gpu.name.lower()]
    exact = [gpu for gpu in found if gpu.name.lower().endswith(wanted)]
    if found:
        return (exact or found)[0]
    names = [gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for gpu in GPUS]
    near = did_you_mean(name, names)
    raise ConfigError(f"'{name}' is no GPU that is known here.{near} There are: {', '.join(names)}.")


def gpu_for(memory: int) -> Gpu:
    """Return the GPU whose memory is nearest to an amount: what is meant where only the amount is told."""
    return min(GPUS[::-1], key=lambda gpu: abs(gpu.memory - memory))


def known_gpu(product: str) -> Gpu | None:
    """Return the facts of the GPU that a driver names, or None where it is not known."""
    names = [gpu.name for gpu in GPUS]
    near = get_close_matches(product, names, n=1, cutoff=0.85)
    return next((gpu for gpu in GPUS if near and gpu.name == near[0]), None)
