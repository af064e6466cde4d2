# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is taken away, what stays and what comes back, on a host that is a scratch directory."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import pwd
import threading

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, ServiceError, StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import DROP_IN
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install, records
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.uninstall import uninstall
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import fingerprint, generations
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import uninstall as neutral
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

UNIT = "ollama.service"
ME = pwd.getpwuid(os.geteuid()).pw_name


class FakeSystem:
    loaded, reloads = True, 0

    def show(self, unit):
        return {"LoadState": "loaded" if self.loaded else "not-found"}

    def reload(self):
        self.reloads += 1


class Host:
    """A prefix, a store and a unit; `uninstall()` takes away, `asked` is what the engine was to do."""

    def __init__(self, folder):
        self.folder, self.prefix, self.store = folder, folder / "usr", folder / "srv/models"
        self.unit, self.system = folder / "etc/ollama.service", FakeSystem()
        self.asked = None

    def write(self, path, text="x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def installed(self, vendor=False):
        """As after an installation of ours, over one of the vendor or on a bare host."""
        store = self.prefix / "lib/gpufleet"
        for name in ("ollama-1", "ollama-2"):
            self.write(store / name / "bin/ollama")
            (store / name / "lib/ollama").mkdir(parents=True)
        (self.prefix / "bin").mkdir()
        (self.prefix / "bin/ollama").symlink_to("../lib/gpufleet/ollama-2/bin/ollama")
        (self.prefix / "lib/ollama").symlink_to("gpufleet/ollama-2/lib/ollama")
        self.write(self.unit)
        if vendor:
            self.write(store / "ollama-before-1/bin/ollama", "vendor")
            self.write(store / "ollama-before-1/lib/ollama/libggml.so", "vendor")
        else:
            install_record.add("units", str(self.unit))
            install_record.add("users", ME)

    def uninstall(self, remove_models=False, check_mode=False, places=None, unit=UNIT):
        neutral.check([unit], install.layout(str(self.prefix)))
        return uninstall(
            unit, str(self.prefix), remove_models, ME, places or [str(self.store)], check_mode, self.system
        )

    def files(self):
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_symlink() or path.is_file()
        )


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(tmp_path / "host")

    def converge(change, steps=(), check_mode=False, system=None):
        host.asked = (change.state, change.started, change.enabled)
        for step in steps if not check_mode else ():
            if step.needed():
                step.apply()
        return Outcome(changed=bool(change.started is False or [step for step in steps if step.needed()]))

    monkeypatch.setattr(neutral.convergence, "converge", converge)
    monkeypatch.setattr(neutral.Installed, "other_users", lambda self, units, wanted: host.others)
    monkeypatch.setattr(records, "FOLDER", str(tmp_path / "records"))
    for part in (fingerprint, generations):
        monkeypatch.setattr(part, "FOLDER", str(tmp_path / "host/var" / part.__name__))
    monkeypatch.setattr(install, "HOME", str(tmp_path / "host/home"))
    host.others, host.commands = [], []
    monkeypatch.setattr(account, "run", lambda command: host.commands.append(" ".join(command)))
    return host


def put_model(host):
    host.write(host.store / "manifests/registry.ollama.ai/library/m8b/latest")
    host.write(host.store / ("blobs/sha256-" + "ab" * 32), "weights")


def test_from_a_bare_host_nothing_stays(host, remembered):
    host.installed()
    host.write(host.folder / "home/.ollama/id_ed25519")
    install_record.add("homes", str(host.folder / "home"))
    for part in (fingerprint, generations):
        host.write(pathlib.Path(part.place_of(UNIT)))
        host.write(pathlib.Path(part.FOLDER) / (".%s.json.new" % UNIT), "left by a kill")
    result = host.uninstall()
    assert host.asked == ("present", False, False), "stopped, disabled, without our override"
    assert result["changed"]
    assert result["msg"] == "ollama.service is uninstalled"
    assert host.files() == []
    assert not (host.prefix / "lib/gpufleet").exists()
    assert host.commands == ["userdel " + ME]
    assert host.system.reloads == 1
    assert not remembered.parent.exists()


def test_check_mode_foretells_and_touches_nothing(host):
    host.installed()
    before = host.files()
    result = host.uninstall(check_mode=True)
    assert result["changed"]
    assert result["msg"] == "ollama.service would be uninstalled"
    assert "%s/bin/ollama\n" % host.prefix in result["diff"]["before"]
    assert "user %s\n" % ME in result["diff"]["before"]
    assert host.files() == before
    assert host.commands == []
    assert install_record.remembered("units")


def test_models_stay_with_their_user_until_told_otherwise(host, remembered):
    for folder in (host.store.parent, host.store):
        install_record.add("directories", str(folder))
    host.installed()
    put_model(host)
    result = host.uninstall()
    assert result["msg"] == "ollama.service is uninstalled; its models stay in %s (1 model, 0.0 GB)" % host.store
    assert len(host.files()) == 2
    assert host.commands == []
    host.system.loaded = False
    # where the unit is gone, only what is remembered tells of the store
    assert not host.uninstall(places=["/nowhere"])["changed"]
    assert host.commands == []
    assert host.uninstall(remove_models=True, places=["/nowhere"])["changed"]
    assert host.files() == []
    assert not host.store.parent.exists(), "was made for them"
    assert host.commands == ["userdel " + ME]
    assert not host.uninstall(remove_models=True)["changed"]
    assert not remembered.exists()


def test_a_folder_that_was_there_stays(host):
    host.installed()
    put_model(host)
    host.uninstall(remove_models=True)
    assert host.store.is_dir()


def test_the_vendors_files_come_back(host):
    host.installed(vendor=True)
    result = host.uninstall()
    assert host.asked == ("absent", None, None)
    assert result["msg"] == "ollama.service: what was there before is in force again"
    assert (host.prefix / "bin/ollama").read_text() == "vendor"
    assert host.files() == ["etc/ollama.service", "usr/bin/ollama", "usr/lib/ollama/libggml.so"]
    assert host.commands == []


def test_a_program_without_a_unit_comes_back(host):
    """Somebody had unpacked a release; the unit is ours."""
    host.installed(vendor=True)
    install_record.add("units", str(host.unit))
    host.uninstall()
    assert host.asked == ("present", False, False)
    assert (host.prefix / "bin/ollama").read_text() == "vendor"
    assert host.files() == ["usr/bin/ollama", "usr/lib/ollama/libggml.so"]


def test_bringing_them_back_can_be_undone(host):
    host.installed(vendor=True)
    before = host.files()
    step = neutral.RestoreStep(neutral.Installed(install.layout(str(host.prefix))))
    step.apply()
    step.undo()
    assert host.files() == before


def test_upstreams_installer_has_come_over_ours(host):
    """Its files are in the place of our links: they, and its unit, go on."""
    host.installed()
    for path in (host.prefix / "bin/ollama", host.prefix / "lib/ollama"):
        path.unlink()
    host.write(host.prefix / "bin/ollama", "vendor")
    host.uninstall()
    assert host.asked == ("absent", None, None)
    assert host.files() == ["etc/ollama.service", "usr/bin/ollama"]


def test_a_persons_unit_without_a_program_is_stopped_and_left(host):
    host.installed()
    install_record.drop("units", str(host.unit))
    host.uninstall()
    assert host.asked == ("present", False, None)
    assert host.files() == ["etc/ollama.service"]


def test_an_installation_that_others_use_stays(host):
    host.installed()
    host.others = ["ollama@second.service"]
    before = host.files()
    with pytest.raises(Refused, match="is used by ollama@second.service as well; uninstall that first"):
        host.uninstall()
    assert host.files() == before


TEMPLATE, CHAT = "etc/ollama@.service", "ollama@chat.service"


@pytest.fixture
def instance(host):
    """An instance, its template ours, the program somebody's."""
    host.write(host.prefix / "bin/ollama", "vendor")
    host.write(host.folder / TEMPLATE)
    install_record.add("units", str(host.folder / TEMPLATE))
    install_record.add("users", ME)
    host.write(host.folder / "etc" / (CHAT + ".d") / DROP_IN)
    return host


def test_an_instance_of_somebodys_program_does_not_go_on(instance):
    """Without its override it would be one more server at the default port."""
    result = instance.uninstall(unit=CHAT)
    assert instance.asked == ("present", False, False)
    assert result["msg"] == CHAT + " is uninstalled"
    assert instance.files() == ["etc/ollama@chat.service.d/zz-gpufleet.conf", "usr/bin/ollama"], (
        "the engine's is the rest"
    )


@pytest.mark.parametrize("trace", ["etc/ollama@code.service.d/zz-gpufleet.conf", "etc/a.wants/ollama@code.service"])
def test_a_template_that_another_instance_has_stays(instance, trace):
    instance.write(instance.folder / trace)
    before = instance.files()
    with pytest.raises(Refused, match="ollama@chat.service: .* is used by ollama@code.service as well"):
        instance.uninstall(unit=CHAT)
    assert instance.files() == before
    neutral.check(["ollama@code.service", CHAT], install.layout(str(instance.prefix)))


def test_a_template_without_instances_goes_with_the_service_beside_it(host):
    """Its instances were taken away before, one by one; a template that still has one is not touched."""
    host.installed()
    template, other = host.folder / TEMPLATE, host.folder / "etc/ollama@code.service.d" / DROP_IN
    host.write(template)
    install_record.add("units", str(template))
    host.write(other)
    neutral.check([UNIT], install.layout(str(host.prefix)))
    assert str(template) not in host.uninstall(check_mode=True)["diff"]["before"]
    other.unlink()
    assert "%s\n" % template in host.uninstall(check_mode=True)["diff"]["before"]
    host.uninstall()
    assert host.files() == [] and install_record.remembered("units") == []


def test_a_template_goes_and_the_persons_service_beside_it_goes_on(host):
    host.installed(vendor=True)
    template = host.folder / TEMPLATE
    host.write(template)
    install_record.add("units", str(template))
    result = host.uninstall()
    assert host.asked == ("absent", None, None), "its override alone is taken away"
    assert result["msg"] == "ollama.service: what was there before is in force again"
    assert host.files() == ["etc/ollama.service", "usr/bin/ollama", "usr/lib/ollama/libggml.so"]
    assert host.system.reloads == 1 and install_record.remembered("units") == []


def test_where_nothing_is_installed(host):
    host.system.loaded = False
    result = host.uninstall(remove_models=True)
    assert not result["changed"]
    assert result["msg"] == "ollama.service: nothing of this collection is installed"


def test_what_cannot_be_removed_is_told(host, monkeypatch):
    def busy(command):
        raise StepError("userdel: user is currently used by process 7")

    host.installed()
    monkeypatch.setattr(account, "run", busy)
    with pytest.raises(ServiceError, match="not everything can be removed: .* process 7; run this again"):
        host.uninstall()


# --- what others can write, and a power cut


def test_what_is_mounted_in_a_home_is_not_emptied(host, monkeypatch):
    """Nor is anything else: it is refused before the service is touched."""
    host.installed()
    home = host.folder / "home"
    host.write(home / "data/precious")
    install_record.add("homes", str(home))
    true_open = open

    def mounted(path, *more, **options):
        if path != "/proc/self/mountinfo":
            return true_open(path, *more, **options)
        line = "40 30 8:1 /x %s/a\\040b rw - ext4 /dev/sda1 rw\n" % home
        return io.StringIO("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + line)

    monkeypatch.setattr(neutral, "open", mounted, raising=False)
    before = host.files()
    with pytest.raises(Refused, match="is to be removed, but %s/a b is mounted: unmount it" % home):
        host.uninstall()
    assert host.files() == before and host.asked is None


def test_models_below_a_mount_are_not_confused_with_it(host):
    host.installed()
    put_model(host)
    host.uninstall(remove_models=True)  # / is mounted, after all
    assert not (host.store / "blobs").exists()


def test_links_in_a_home_lead_nowhere(host):
    host.installed()
    victim = host.folder / "victim"
    host.write(victim / "of-root")
    (host.folder / "home/.ollama").mkdir(parents=True)
    for name in (".ollama/id", "up"):
        (host.folder / "home" / name).symlink_to(victim)
    install_record.add("homes", str(host.folder / "home"))
    host.uninstall()
    assert host.files() == ["victim/of-root"]


def test_a_home_in_which_somebody_swaps_folders_for_links(memory):
    """A process of the user that still runs, against 200 removals."""
    victim, home, hidden = memory / "victim", memory / "home", memory / "hidden"
    for number in range(20):
        (victim / str(number)).mkdir(parents=True)
    before, ended = sorted(victim.rglob("*")), threading.Event()

    def swaps():
        while not ended.is_set():
            with contextlib.suppress(OSError):
                os.rename(home / "x", hidden)
                os.symlink(victim, home / "x")
                os.unlink(home / "x")
                os.rename(hidden, home / "x")
            with contextlib.suppress(OSError):
                os.rename(hidden, home / "x")

    thread = threading.Thread(target=swaps)
    thread.start()
    try:
        for _try in range(200):
            with contextlib.suppress(OSError):
                (home / "x").mkdir(parents=True)
            for number in range(5):
                with contextlib.suppress(OSError):
                    (home / "x" / ("of-him-%d" % number)).touch()
            with contextlib.suppress(OSError):
                neutral._remove([], [str(home)], "")
    finally:
        ended.set()
        thread.join()
    assert [path for path in sorted(victim.rglob("*")) if not path.name.startswith("of-him")] == before


def test_a_store_that_is_a_link_by_now(host):
    """What it leads to is not removed, whoever has put the link there."""
    host.installed()
    put_model(host)
    victim = host.folder / "victim"
    (host.store / "blobs").rename(victim)
    (host.store / "blobs").symlink_to(victim)
    host.uninstall(remove_models=True)
    assert list(victim.iterdir()) and not os.path.lexists(host.store / "blobs")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_store_behind_a_users_link_is_not_followed(host):
    host.installed()
    put_model(host)
    theirs = host.folder / "theirs"
    theirs.mkdir()
    (theirs / "models").symlink_to(host.store)
    os.chown(theirs, 1234, 1234)
    with pytest.raises(ServiceError, match="not everything can be removed: .*models is a symbolic link"):
        host.uninstall(remove_models=True, places=[str(theirs / "models")])
    assert list((host.store / "blobs").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folders_that_were_made_are_not_removed_through_a_link(host):
    """The user has put a link in the place of one of them: an empty folder of root's stays."""
    host.installed()
    (host.folder / "victim/models").mkdir(parents=True)
    home = host.folder / "theirs"
    home.mkdir()
    (home / "x").symlink_to(host.folder / "victim")
    os.chown(home, 1234, 1234)
    for folder in (home / "x", home / "x/models"):
        install_record.add("directories", str(folder))
    host.uninstall(places=[str(home / "x/models")])
    assert (host.folder / "victim/models").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_prefix_where_others_may_write_is_not_emptied(host):
    host.installed()
    os.chown(host.prefix, 1234, 1234)
    before = host.files()
    with pytest.raises(Refused, match="belongs to user 1234, and root would trust"):
        host.uninstall()
    assert host.files() == before


@pytest.mark.parametrize("vendor", [False, True])
@pytest.mark.parametrize("remove_models", [False, True])
def test_a_kill_between_any_two_changes(memory, host, power, monkeypatch, remembered, vendor, remove_models):
    """Uninstalling again ends it: nothing of ours is left, and what is not ours is there."""
    users = set()
    monkeypatch.setattr(account, "exists", lambda user: user in users)

    def userdel(command):
        os.rmdir(memory / "account")  # a change of the disk as others
        users.remove(command[-1])

    monkeypatch.setattr(account, "run", userdel)
    number, killed = 0, True
    while killed:
        host.folder = memory / str(number)
        host.prefix, host.store = host.folder / "usr", host.folder / "srv/models"
        monkeypatch.setattr(install, "HOME", str(host.folder / "home"))
        host.unit = host.folder / "etc/ollama.service"
        host.installed(vendor)
        put_model(host)
        host.write(host.folder / "home/.ollama/id")
        if not vendor:
            install_record.add("homes", str(host.folder / "home"))
            users.add(ME)
            (memory / "account").mkdir()
        killed = power.fails_after(number, lambda: host.uninstall(remove_models=remove_models))
        host.uninstall(remove_models=remove_models)
        left = host.files()
        models = [name for name in left if name.startswith("srv/models/")]
        assert len(models) == (0 if remove_models else 2), (number, left)
        rest = [name for name in left if name not in models]
        vendors = ["etc/ollama.service", "home/.ollama/id", "usr/bin/ollama", "usr/lib/ollama/libggml.so"]
        kept = [] if remove_models else ["home/.ollama/id"]
        assert rest == (vendors if vendor else kept), (number, rest)
        if vendor:
            assert (host.prefix / "bin/ollama").read_text() == "vendor", number
        assert not os.path.lexists(host.prefix / "lib/gpufleet"), number
        assert install_record.remembered("units") == []
        if remove_models:
            assert install_record.remembered("users") == install_record.remembered("homes") == [], number
        assert bool(users) == (not vendor and not remove_models), number
        if users:  # for the next round
            users.clear()
            install_record.drop("users", ME)
            install_record.drop("homes", str(host.folder / "home"))
            os.rmdir(memory / "account")
        for place in install_record.remembered("stores"):
            install_record.drop("stores", place)
        number += 1
    assert number >= 20
