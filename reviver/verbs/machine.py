"""The machine that reviver runs on: system, memory, disk, devices, libraries."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from reviver.editing.devices import host_memory
from reviver.files import free_bytes
from reviver.text import human_bytes, plural

LIBRARIES = ("reviver", "torch", "transformers", "safetensors", "huggingface-hub", "numpy", "typer", "rich")
EXTRAS = ("accelerate", "datasets", "lm-eval")

_LITTLE_DISK = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device to compute on; memory in bytes."""

    name: str
    kind: str
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """What reviver runs on.

    Attributes:
        system: the operating system and the processor's architecture.
        python: version.
        processors: how many this process may use.
        threads: how many torch computes with.
        memory, memory_free: bytes; None where the system does not tell.
        disk_free: bytes free where the workspace is, or would be.
        devices: the processor and every GPU.
        libraries: versions; None for what is not installed.
        offline: whether the Hub is switched off.
    """

    system: str
    python: str
    processors: int
    threads: int
    memory: int | None
    memory_free: int | None
    disk_free: int
    devices: tuple[Device, ...]
    libraries: Mapping[str, str | None]
    offline: bool


def look_at_machine(folder: Path) -> MachineReport:
    """Return what reviver runs on; `folder` names the disk."""
    from huggingface_hub import is_offline_mode

    total, free = host_memory()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = [Device(name=platform.processor() or platform.machine(), kind="cpu", memory=total)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(Device(name=properties.name, kind=f"cuda:{index}", memory=properties.total_memory))
    return MachineReport(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processors=processors,
        threads=torch.get_num_threads(),
        memory=total,
        memory_free=free,
        disk_free=free_bytes(folder.resolve()),
        devices=tuple(devices),
        libraries={name: _installed(name) for name in (*LIBRARIES, *EXTRAS)},
        offline=is_offline_mode(),
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine_verdict(machine: MachineReport) -> tuple[str, ...]:
    """Return in plain words what the machine is good for."""
    gpus = [device for device in machine.devices if device.kind != "cpu"]
    lines = []
    if gpus:
        names = ", ".join(f"{one.name} with {human_bytes(one.memory or 0)}" for one in gpus)
        lines.append(f"{plural(len(gpus), 'GPU')}: {names}")
    elif shutil.which("nvidia-smi"):
        lines.append("there is an NVIDIA driver, but this torch does not see a GPU: install torch's CUDA build")
    else:
        lines.append("no GPU: small models only, up to about a billion parameters with patience")
    if machine.disk_free < _LITTLE_DISK:
        lines.append(f"only {human_bytes(machine.disk_free)} are free on the disk")
    missing = [name for name in LIBRARIES if machine.libraries[name] is None]
    lines.append(f"missing: {', '.join(missing)}" if missing else "all that reviver needs is installed")
    return tuple(lines)
