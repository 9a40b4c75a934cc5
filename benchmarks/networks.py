"""How long the networks take and how much memory, with untrained weights: a markdown table.

    python benchmarks/networks.py [--device cuda] [--full]

Each row is a process of its own, two threads: a creature's surface points are encoded, 60 joints are decoded greedily
(242 tokens, the grammar sees to it), and 8,192 points are weighted for 60 joints. "Peak" is the resident set less that
after the imports, on CUDA what torch allocated at most. `--full` adds Puppeteer's released sizes (3 GB of weights).
"""

import threads  # noqa: I001 - first, see there

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from clips import creature
from scaling import peak_megabytes
from sprig.backend.device import WAITS
from sprig.backend.points import UnitCube, sample_surface
from sprig.backend.puppeteer.skeleton import PuppeteerSkeleton
from sprig.backend.puppeteer.skeleton import SkeletonConfig as PuppeteerSkeletonConfig
from sprig.backend.puppeteer.skinning import PuppeteerSkinning
from sprig.backend.puppeteer.skinning import SkinningConfig as PuppeteerSkinningConfig
from sprig.backend.skeleton.generate import generate
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skinning.heat import heat_features
from sprig.backend.skinning.network import SkinningConfig, SkinningNetwork

POINTS, JOINTS = 8192, 60
NETWORKS = {
    "compact": (lambda: SkeletonNetwork(SkeletonConfig()), lambda: SkinningNetwork(SkinningConfig())),
    "Puppeteer": (
        lambda: PuppeteerSkeleton(PuppeteerSkeletonConfig()),
        lambda: PuppeteerSkinning(PuppeteerSkinningConfig()),
    ),
}


def frame():
    """One frame's vertices in the unit cube, its faces, and POINTS points on it."""
    sequence = creature(5_000, 3, JOINTS)
    vertices = UnitCube.of(sequence.vertices[0]).to_cube(sequence.vertices[0])
    return vertices, sequence.faces, sample_surface(vertices, sequence.faces, POINTS)


def seconds(function, device: str) -> float:
    """Of the second call."""
    for _ in range(2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    return spent


@torch.no_grad()
def measure(name: str, kind: str, device: str) -> dict:
    """Figures of one network in this process."""
    imports = peak_megabytes()
    torch.manual_seed(0)
    vertices, faces, samples = frame()
    points = torch.as_tensor(samples.at(vertices, faces), device=device)[None]
    make_skeleton, make_skinning = NETWORKS[name]
    network = (make_skeleton if kind == "skeleton" else make_skinning)().eval().to(device)
    found = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    if kind == "skeleton":
        found["encode"] = seconds(lambda: network.condition(points), device)
        whole = seconds(lambda: generate(network, points, joints=JOINTS), device)
        found["tokens_per_second"] = (4 * JOINTS + 2) / (whole - found["encode"])
    else:
        rng = np.random.default_rng(0)
        joints = torch.as_tensor(rng.uniform(-0.5, 0.5, (1, JOINTS, 3)), dtype=torch.float32, device=device)
        parents = torch.arange(-1, JOINTS - 1, device=device)[None]
        valid = torch.ones((1, JOINTS), dtype=torch.bool, device=device)

        def weigh():
            given = [points, joints, parents, valid]
            if name != "compact":
                return network(*given)
            heat = heat_features(vertices, faces, joints[0].cpu().numpy(), parents[0].cpu().numpy())
            return network.predict(*given, torch.as_tensor(samples.blend(heat, faces), device=device)[None])

        whole = seconds(weigh, device)
    found["seconds"] = whole
    found["peak"] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_megabytes() - imports
    return found


def in_child(name: str, kind: str, device: str) -> dict:
    command = [sys.executable, __file__, "--one", name, kind, "--device", device]
    settings = {**WAITS, **os.environ}  # as the program has them; this process loaded torch without
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--full", action="store_true", help="Puppeteer's sizes as well")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "KIND"), help="one row, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.device)))
        return
    print(f"{POINTS:,} points, {JOINTS} joints, one frame; {arguments.device}, {threads.THREADS} threads.\n")
    print("| network | parameters | seconds a frame | of it encoding | tokens a second | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in NETWORKS if arguments.full else list(NETWORKS)[:1]:
        for kind in ("skeleton", "skinning"):
            row = in_child(name, kind, arguments.device)
            encode = f"{row['encode']:.2f} | {row['tokens_per_second']:.0f}" if "encode" in row else " | "
            print(
                f"| {name} {kind} | {row['parameters'] / 1e6:.1f} M | {row['seconds']:.2f} | {encode} "
                f"| {row['peak']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
