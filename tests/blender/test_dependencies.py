"""The dependency manager on small wheels made here: real pip, real child processes, no network."""

import sys

import pytest

from sprig.backend.errors import Cancelled, SprigError
from sprig.sprig_blender import dependencies
from sprig.sprig_blender.dependencies import State
from sprig.sprig_blender.pinned_wheels import Wheel, builds, indexes, this_machine

from ..small_wheels import make_wheel


@pytest.fixture
def wheels(tmp_path):
    """A folder with two wheels, and their pins."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder, (make_wheel(folder, "sprigtinyone"), make_wheel(folder, "SprigTinyTwo"))


@pytest.fixture
def clean_path():
    """sys.path and what was found on it, put back after the test."""
    before = list(sys.path)
    yield
    dependencies.use_folder(None)
    assert sys.path == before
    dependencies.look_again()


def beside(folder):
    """Names of everything in the folder that holds installations."""
    return sorted(path.name for path in folder.parent.iterdir()) if folder.parent.exists() else []


def test_installs_from_a_folder_of_wheels(tmp_path, wheels, clean_path, monkeypatch):
    source, pins = wheels
    folder = tmp_path / "user" / "py-cpu"
    said = []
    dependencies.install(folder, source, lambda fraction, text: said.append((fraction, text)), pins)
    assert (folder / "sprigtinyone.py").is_file() and (folder / "sprigtinytwo.py").is_file()
    assert beside(folder) == ["py-cpu"]
    fractions = [fraction for fraction, _text in said]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] <= 1
    assert {"Preparing", "Unpacking the libraries", "Trying the libraries"} <= {text for _fraction, text in said}

    monkeypatch.setattr(dependencies, "REQUIRED", {"sprigtinyone": (1, 0), "sprigtinytwo": (2, 0)})
    dependencies.look_again()
    assert [library.state for library in dependencies.libraries()[1:]] == [State.MISSING, State.MISSING]
    assert not dependencies.ready() and "sprigtinyone and sprigtinytwo" in dependencies.what_is_wrong()
    dependencies.use_folder(str(folder))
    assert sys.path[-1] == str(folder)
    _numpy, one, two = dependencies.libraries()
    assert (one.state, one.detail) == (State.READY, "1.0")
    assert two.state is State.BROKEN and "too old" in two.detail and "2.0" in dependencies.what_is_wrong()


STAGES = ("Preparing", "Looking for the libraries", "Fetching", "Unpacking the libraries", "Trying the libraries")


@pytest.mark.parametrize(("stage", "had_one"), [*((stage, False) for stage in STAGES), (STAGES[-1], True)])
def test_cancelled_installation_leaves_nothing(tmp_path, wheels, stage, had_one):
    source, pins = wheels
    folder = tmp_path / "user" / "py-cpu"
    if had_one:
        folder.mkdir(parents=True)
        (folder / "earlier.py").write_text("")

    def cancel_there(_fraction, text):
        if text.startswith(stage):
            raise Cancelled

    with pytest.raises(Cancelled):
        dependencies.install(folder, source, cancel_there, pins)
    assert beside(folder) == (["py-cpu"] if had_one else [])
    if had_one:
        assert [path.name for path in folder.iterdir()] == ["earlier.py"]


def test_library_that_does_not_load_is_not_kept(tmp_path, wheels):
    source, pins = wheels
    pins += (make_wheel(source, "sprigbroken", source="raise OSError('libmissing.so: cannot open')\n"),)
    folder = tmp_path / "user" / "py-cpu"
    with pytest.raises(SprigError, match=r"do not load here \(OSError: libmissing.so: cannot open\); nothing was kept"):
        dependencies.install(folder, source, wheels=pins)
    assert "Traceback" in dependencies.log() and "libmissing.so" in dependencies.log()
    assert beside(folder) == []


def test_folder_without_the_wheels(tmp_path, wheels):
    source, pins = wheels
    (source / "sprigtinyone-1.0-py3-none-any.whl").unlink()
    folder = tmp_path / "user" / "py-cpu"
    with pytest.raises(SprigError, match=r"could not be installed from .*sprigtinyone==1\.0.*nothing was kept"):
        dependencies.install(folder, source, wheels=pins)
    assert beside(folder) == []


def test_downloads_are_checked_against_the_hashes(tmp_path, wheels, monkeypatch):
    """pip's usual search, directed at the folder instead of the network, takes the file we know and no other."""
    source, pins = wheels
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    folder = tmp_path / "user" / "py-cpu"
    dependencies.install(folder, wheels=pins)
    assert (folder / "sprigtinyone.py").is_file()
    make_wheel(source, "sprigtinyone", source="answer = 'changed by somebody else'\n")
    with pytest.raises(SprigError, match="could not be installed from the network"):
        dependencies.install(folder, wheels=pins)
    assert (folder / "sprigtinyone.py").read_text() == "answer = 42\n"


def test_library_that_is_there_but_does_not_load(tmp_path):
    """A missing DLL: found and of the right version, but importing it fails wherever that is tried."""
    assert dependencies.ready()
    try:
        reason = "[WinError 1114] c10.dll did not initialise\nmore of that"
        error = dependencies.will_not_load("torch", reason)
        assert str(error).startswith(
            "torch does not work here: [WinError 1114] c10.dll did not initialise; install the"
        )
        states = {library.name: library.state for library in dependencies.libraries()}
        assert states.pop("torch") is State.BROKEN and set(states.values()) == {State.READY}
        with pytest.raises(SprigError, match="torch does not work here"):
            dependencies.check()
        assert dependencies.has_failed() and reason in dependencies.log()
        assert "torch: Broken [WinError 1114]" in dependencies.log() and "Python 3." in dependencies.log()

        dependencies.use_folder(str(tmp_path))
        dependencies.will_not_load("torch", reason)
        assert dependencies.what_to_do().endswith("; correct Existing Folder in the add-on's preferences")
    finally:
        dependencies.use_folder(None)
    assert dependencies.ready()
    dependencies.check()


def test_libraries_for_graphics_cards_come_from_the_folder_too(tmp_path, wheels):
    """torch for CUDA wants more than the pins say; numpy stays Blender's, whatever lies there."""
    source, pins = wheels
    for project in ("nvidia_sprigtiny_cu13", "triton", "numpy", "something_else"):
        make_wheel(source, project)
    make_wheel(source, "sprigtinyone", "1.0+cu130", source="answer = 'CUDA'\n")
    folder = tmp_path / "user" / "py-cpu"
    dependencies.install(folder, source, wheels=pins)
    modules = sorted(path.name for path in folder.glob("*.py"))
    assert modules == ["nvidia_sprigtiny_cu13.py", "sprigtinyone.py", "sprigtinytwo.py", "triton.py"]
    assert "CUDA" in (folder / "sprigtinyone.py").read_text()


def test_blender_with_another_python(tmp_path, monkeypatch):
    """After an upgrade of Blender the folder for the former Python is no installation, and the sentence says so."""
    monkeypatch.setattr(dependencies, "_own_root", tmp_path)
    monkeypatch.setattr(dependencies, "REQUIRED", {"sprigtinyone": (1, 0)})
    dependencies.look_again()
    try:
        assert dependencies.what_is_wrong().startswith("SPRig needs sprigtinyone")
        (tmp_path / "py39-cpu").mkdir()
        dependencies.use_folder("")
        assert not dependencies.is_installed()
        assert dependencies.what_is_wrong() == (
            "The libraries were installed for Python 3.9, and this Blender has another"
        )
        dependencies.own_folder().mkdir()
        assert dependencies.what_is_wrong().startswith("SPRig needs sprigtinyone")
    finally:
        monkeypatch.undo()
        dependencies.use_folder(None)


def test_machine_without_a_tested_build(tmp_path, wheels):
    pins = (*wheels[1], Wheel("elsewhere", "1.0", "elsewhere", 1.0, {"another-machine": "0" * 64}))
    with pytest.raises(SprigError, match=f"no tested build of elsewhere for {this_machine()}"):
        dependencies.install(tmp_path / "user" / "py-cpu", wheels=pins)


def test_unwritable_place(tmp_path, wheels):
    source, pins = wheels
    (tmp_path / "user").write_text("a file where the folder should be")
    with pytest.raises(SprigError, match="cannot be written"):
        dependencies.install(tmp_path / "user" / "py-cpu", source, wheels=pins)


@pytest.mark.parametrize("build", ["cpu", "cuda", "rocm"])
def test_table_of_pins(build):
    """Every hash is one, and a build is complete for every machine that has its torch."""
    machines = [f"{system}-{python}" for system in ("linux", "windows", "macos") for python in ("cp311", "cp313")]
    with_torch = []
    for machine in machines:
        wheels = builds(machine)[build]
        by_project = {wheel.project: wheel for wheel in wheels}
        assert len(by_project) == len(wheels) and set(dependencies.REQUIRED) <= {wheel.module for wheel in wheels}
        for wheel in wheels:
            assert all(len(bytes.fromhex(digest)) == 32 for digest in wheel.sha256.values())
            assert len(set(wheel.sha256.values())) == len(wheel.sha256), "one file, one hash"
        if wheels[0].hash_for(machine):
            with_torch.append(machine)
            assert all(wheel.hash_for(machine) for wheel in wheels), f"{build} lacks something for {machine}"
            assert all(index.endswith(("/cpu", "/cu130", "/rocm7.1")) for index in indexes(wheels, machine))
    expected = {"cpu": machines, "cuda": machines[:4], "rocm": machines[1:2]}
    assert with_torch == expected[build]


def test_one_build_at_a_time(tmp_path, monkeypatch):
    """Each has a folder of its own; what is installed last replaces the others."""
    monkeypatch.setattr(dependencies, "_own_root", tmp_path)
    cpu, cuda = dependencies.own_folder("cpu"), dependencies.own_folder("cuda")
    assert dependencies.own_folder() == cpu != cuda and not dependencies.is_installed()
    cpu.mkdir()
    assert dependencies.own_folder() == cpu and dependencies.is_installed()
    cuda.mkdir()
    (tmp_path / "students").mkdir()
    dependencies.keep_only(cuda)
    assert dependencies.own_folder() == cuda and sorted(tmp_path.iterdir()) == [cuda, tmp_path / "students"]


@pytest.mark.parametrize(("machine", "build"), [("linux-cp311", "rocm"), ("macos-cp313", "cuda")])
def test_build_without_a_tested_file(tmp_path, monkeypatch, machine, build):
    monkeypatch.setattr(dependencies, "this_machine", lambda: machine)
    with pytest.raises(SprigError, match=f"no tested build of torch for {machine}; install from a folder"):
        dependencies.install(tmp_path / "py-other", wheels=dependencies.wheels_for(build))
