"""The libraries that SPRig installs into Blender on request: exact versions and the hashes of their files.

Blender brings numpy; torch and its few pure-Python requirements, scipy, trimesh and safetensors are ours to add. A
wheel is named by SYSTEM-PYTHON (`linux-cp311`), by SYSTEM alone, or `any` when the same file serves everybody; where a
row has no hash for a machine, there is no tested build and nothing is downloaded (a folder of wheels still works).

PINNED is for processors (on macOS also for Metal); `builds` has those for graphics cards, which only differ in torch
and what that needs. What torch lists and does not import is left out: setuptools compiles extensions of torch, triton
compiles models, cuda-bindings annotates profiles.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

# Where builds of torch are published that the usual index does not have: it has the one for processors for Windows and
# macOS, and for Linux only the one that needs CUDA's libraries (some gigabytes).
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
ROCM_INDEX = "https://download.pytorch.org/whl/rocm7.1"


@dataclass(frozen=True)
class Wheel:
    """One project: version, a module to try it with, download size in MB, sha256 by machine, where else to look.

    `index`: address of a package index by system; the usual one serves where there is none.
    """

    project: str
    version: str
    module: str | None
    megabytes: float
    sha256: dict[str, str]
    index: dict[str, str] = field(default_factory=dict)

    def hash_for(self, machine: str) -> str | None:
        """The hash of the file for `machine` (see `this_machine`), None where there is no tested build."""
        system = machine.partition("-")[0]
        return self.sha256.get("any") or self.sha256.get(system) or self.sha256.get(machine)


def this_machine() -> str:
    """The key of this Python in the table below, such as `linux-cp311`."""
    system = {"linux": "linux", "win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    return f"{system}-cp{sys.version_info.major}{sys.version_info.minor}"


def indexes(wheels, machine: str) -> list[str]:
    """Package indexes besides the usual one that have some of the wheels."""
    system = machine.partition("-")[0]
    return sorted({wheel.index[system] for wheel in wheels if system in wheel.index})


def requirements(wheels, machine: str, hashed: bool = True) -> str:
    """The pins in the format of pip's requirement files, one line a project."""
    lines = []
    for wheel in wheels:
        suffix = f" --hash=sha256:{wheel.hash_for(machine)}" if hashed else ""
        lines.append(f"{wheel.project}=={wheel.version}{suffix}\n")
    return "".join(lines)


PINNED = (
    Wheel(
        "torch",
        "2.13.0",
        "torch",
        200,
        {
            "linux-cp311": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
            "linux-cp313": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
            "windows-cp311": "a0d8b11f16a48d60e2015d8213aa0390744cbebb98e58b62b3514dddc656e330",
            "windows-cp313": "49b58f1e2c52440abb6f17c28f0335fe6c6d01ad1a7f55b0183b81e4b34d64e6",
            "macos-cp311": "e76f9bcecc52b8ff711239a2f7547d5353df95878ab232f0773c1d95928b92f8",
            "macos-cp313": "33449899ce5496c1b84b4853179d94fd102028ae1407314d9fb956bb79e70d09",
        },
        {"linux": CPU_INDEX},
    ),
    Wheel(
        "scipy",
        "1.17.1",
        "scipy",
        35,
        {
            "linux-cp311": "43af8d1f3bea642559019edfe64e9b11192a8978efbd1539d7bc2aaa23d92de4",
            "linux-cp313": "581b2264fc0aa555f3f435a5944da7504ea3a065d7029ad60e7c3d1ae09c5464",
            "windows-cp311": "d30e57c72013c2a4fe441c2fcb8e77b14e152ad48b5464858e07e2ad9fbfceff",
            "windows-cp313": "37425bc9175607b0268f493d79a292c39f9d001a357bebb6b88fdfaff13f6448",
            "macos-cp311": "a3472cfbca0a54177d0faa68f697d8ba4c80bbdc19908c3465556d9f7efce9ee",
            "macos-cp313": "7ff200bf9d24f2e4d5dc6ee8c3ac64d739d3a89e2326ba68aaf6c4a2b838fd7d",
        },
    ),
    Wheel(
        "trimesh",
        "5.2.0",
        "trimesh",
        1,
        {"any": "04db2c7ec62afdd7763fb04c82bb5f257ddd984993a19ee83697f475fc58fd29"},
    ),
    Wheel(
        "safetensors",
        "0.8.0",
        "safetensors",
        0.5,
        {
            "linux": "fd6f3f93c9a0a7cc2788ee63fb763353d4bd2e89b0751bc78fcf7dda00bea774",
            "windows": "096ec1a98435df7beb08853bb5aa9081a84f23d0adc67ed1a0a10550f608373f",
            "macos": "c80201d22cbf405b80647a60ada77bba06c8fba2da2743ba1e89cdcc39a81f25",
        },
    ),
    Wheel(
        "typing_extensions",
        "4.16.0",
        "typing_extensions",
        0.1,
        {"any": "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8"},
    ),
    Wheel(
        "filelock",
        "4.2.11",
        "filelock",
        0.1,
        {"any": "020e229e4bb9d410fc799c07ddf45fa217cba970278f40b30751d94f309b69e2"},
    ),
    Wheel(
        "fsspec",
        "2026.9.0",
        "fsspec",
        0.2,
        {"any": "8dd6e646e99ea382bd85f97a45e6b526a442d79423a7dc673f1e2756d05fcb5f"},
    ),
    Wheel(
        "Jinja2",
        "3.1.6",
        "jinja2",
        0.1,
        {"any": "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67"},
    ),
    Wheel(
        "MarkupSafe",
        "3.0.4",
        "markupsafe",
        0.1,
        {
            "linux-cp311": "6da83a088f8ef93b2d483a8232a4dbf4d69d3d8496b568a03c56becac43e1808",
            "linux-cp313": "434139499bb20b502ed3baa1f169e618f924a97e7a777fea1a49446d80106cf6",
            "windows-cp311": "fdb4ca07ab75ffadab4a8b135ad59cdbb3156b99310f3d565370da74a15d6bd3",
            "windows-cp313": "1f1f9477e174582b0a1b583d60b66e1f2cf5d3fe12cee985e4aedf44766600e5",
            "macos-cp311": "7d3391b2188d18737cb2fa147028b1096236eaa7e156446c650a489fa2cadc91",
            "macos-cp313": "73e77980c7207854f00fc4e71fb1626868d5740ab4012623d55c7a99ad122a72",
        },
    ),
    Wheel(
        "networkx",
        "3.6.1",
        "networkx",
        2,
        {"any": "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"},
    ),
    Wheel(
        "sympy",
        "1.14.0",
        "sympy",
        6,
        {"any": "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"},
    ),
    Wheel(
        "mpmath",
        "1.3.0",
        "mpmath",
        0.5,
        {"any": "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c"},
    ),
)

# torch for Windows carries CUDA's libraries; for Linux they are projects of their own.
CUDA_TORCH = {
    "linux": Wheel(
        "torch",
        "2.13.0+cu130",
        "torch",
        530,
        {
            "linux-cp311": "794664c05a3470a5e738447b54495cc6bbf1efca48bf2794270a897d9f4356c4",
            "linux-cp313": "95bdbad2f0786bd448932e4b72a6404aa22290db6ec954e24edfa6d33c833c8f",
        },
        {"linux": CUDA_INDEX},
    ),
    "windows": Wheel(
        "torch",
        "2.13.0+cu130",
        "torch",
        1920,
        {
            "windows-cp311": "45e97bd9bc0416f4f4190b5098c55119a389fa5a7c8bbf2639f08f1d04e0a0dc",
            "windows-cp313": "cf23236e9deed7d3510d14d9b9592d75d272ef7b35bbfee31a02bea339c73971",
        },
        {"windows": CUDA_INDEX},
    ),
}
ROCM_TORCH = Wheel(
    "torch",
    "2.10.0+rocm7.1",
    "torch",
    5200,
    {"linux-cp313": "3f18b06f233d4871baaafdb8ba662ae69ff91ec11aa1bf76ca76dde31b43e9cd"},
    {"linux": ROCM_INDEX},
)
CUDA_LIBRARIES = tuple(
    Wheel(f"nvidia-{name}", version, None, megabytes, {"linux": digest})
    for name, version, megabytes, digest in (
        ("cublas", "13.1.1.3", 423, "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436"),
        ("cuda-cupti", "13.0.85", 11, "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
        ("cuda-nvrtc", "13.0.88", 90, "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
        ("cuda-runtime", "13.0.96", 2, "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
        ("cudnn-cu13", "9.20.0.48", 366, "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304"),
        ("cufft", "12.0.0.61", 214, "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
        ("cufile", "1.15.1.6", 1, "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
        ("curand", "10.4.0.35", 60, "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
        ("cusolver", "12.0.4.66", 200, "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
        ("cusparse", "12.6.3.3", 146, "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
        ("cusparselt-cu13", "0.8.1", 170, "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0"),
        ("nccl-cu13", "2.29.7", 206, "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d"),
        ("nvjitlink", "13.0.88", 40, "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
        ("nvshmem-cu13", "3.4.5", 60, "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
        ("nvtx", "13.0.85", 1, "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
    )
)


def builds(machine: str) -> dict[str, tuple[Wheel, ...]]:
    """What to install by the kind of device, "cpu", "cuda" or "rocm"; torch is first, and has no hash where the kind
    has no tested build for this machine."""
    system = machine.partition("-")[0]
    cuda = CUDA_TORCH.get(system, CUDA_TORCH["linux"])
    others = PINNED[1:]
    return {
        "cpu": PINNED,
        "cuda": (cuda, *(CUDA_LIBRARIES if system == "linux" else ()), *others),
        "rocm": (ROCM_TORCH, *others),
    }
