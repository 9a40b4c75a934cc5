"""The libraries that SPRig installs into Blender on request: exact versions and the hashes of their files.

Blender brings numpy; torch and its few pure-Python requirements, scipy, trimesh and safetensors are ours to add. A
wheel is named by SYSTEM-PYTHON (`linux-cp311`), by SYSTEM alone, or `any` when the same file serves everybody; where a
row has no hash for a machine, there is no tested build and nothing is downloaded (a folder of wheels still works).
setuptools, which torch lists as well, is only needed to compile extensions of torch and is left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Where the CPU build of torch for Linux is published; the usual index only has the one that needs CUDA's libraries
# (some gigabytes). Windows and macOS find theirs on the usual index.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Wheel:
    """One project: version, the module it brings, download size in MB, sha256 by machine, where Linux looks besides."""

    project: str
    version: str
    module: str
    megabytes: float
    sha256: dict[str, str]
    linux_index: str | None = None

    def hash_for(self, machine: str) -> str | None:
        """The hash of the file for `machine` (see `this_machine`), None where there is no tested build."""
        system = machine.partition("-")[0]
        return self.sha256.get("any") or self.sha256.get(system) or self.sha256.get(machine)


def this_machine() -> str:
    """The key of this Python in the table below, such as `linux-cp311`."""
    system = {"linux": "linux", "win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    return f"{system}-cp{sys.version_info.major}{sys.version_info.minor}"


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
            "windows-cp311": "a0d8b11f16a48d60e2015d8213aa0390744cbebb98e58b62b3514dddc656e330",
            "windows-cp313": "49b58f1e2c52440abb6f17c28f0335fe6c6d01ad1a7f55b0183b81e4b34d64e6",
            "macos-cp311": "e76f9bcecc52b8ff711239a2f7547d5353df95878ab232f0773c1d95928b92f8",
            "macos-cp313": "33449899ce5496c1b84b4853179d94fd102028ae1407314d9fb956bb79e70d09",
        },
        CPU_INDEX,
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
