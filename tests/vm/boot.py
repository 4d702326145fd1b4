"""One boot of one kernel in qemu, to run one command in it.

The processor is emulated in software, always. A /dev/kvm that exists proves nothing: in a cloud machine it may abort or
crawl, and a lane must mean the same everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import initrd
import kernels
from kernels import Kernel, LaneError

REPOSITORY = Path(__file__).parents[2]
SETUP = Path(__file__).with_name("setup.sh")
QEMU = "qemu-system-x86_64"
EMULATED = ("-accel", "tcg,thread=multi")
COUNTING = ("-accel", "tcg,thread=single", "-icount", "shift=0")
HOME = "/vmtmp/home"
# Where the guest has an empty tmpfs; the last is where the test worlds lie, of which /tmp may not be a part.
TMPFS = ("/tmp", "/var/tmp", "/vmtmp", f"{REPOSITORY}/.cache/worlds")
LSM_LISTS = {"bpf": "landlock,lockdown,yama,bpf", "plain": "landlock,lockdown,yama"}
PREEMPT = ("none", "voluntary", "full", "lazy")
# Modules that mount(2) would ask for by a program that need not exist here; those after a "?" where the kernel has them.
DISKS: dict[str, tuple[str, ...]] = {
    "tmpfs": (),
    "overlay": (),
    "ext4": ("?crc32c_generic", "virtio_blk", "ext4"),
    "btrfs": ("?crc32c_generic", "virtio_blk", "btrfs"),
}
# Folders can be encrypted, and a file has a version of its own only where there are no sums over it.
MAKERS: dict[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-O", "encrypt,^metadata_csum"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
DISK_BYTES = 512 * 1024 * 1024
# Quiet, without a moving base address and with no work for defects that an emulated processor does not have.
# rcu_expedited: one processor would wait for ticks at each attach and detach.
QUICK = "quiet nokaslr mitigations=off nowatchdog cryptomgr.notests no_timer_check random.trust_cpu=on"
ALWAYS = f"console=ttyS0 8250.nr_uarts=2 panic=-1 mcpguard.vm=1 rcupdate.rcu_expedited=1 {QUICK}"
# After the command's exit code has arrived, qemu gets this long to go by itself.
POWER_OFF_SECONDS = 20
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Machine:
    """What to boot.

    Attributes:
        kernel: a series such as 6.12, or the name of a kernel's package.
        lsm: "bpf" when the BPF LSM is active in the guest, "plain" when it is not.
        preempt: how the kernel preempts itself; "" leaves it to the kernel.
        disks: file systems to make and mount, of those in DISKS.
        load: kernel modules to load besides; those after a "?" where the kernel has them as modules.
        headers: whether programs can be compiled for this kernel in the guest, as BCC does.
        append: more words for the kernel's command line.
        counts: whether a nanosecond of the guest's clocks is one instruction that it executed, or waited for: what they say
            does not depend on the host, and not on what emulation makes dear.
        seconds: when this is over on the host's clock, the guest is ended.
    """

    kernel: str
    lsm: str = "bpf"
    preempt: str = "voluntary"
    disks: tuple[str, ...] = ()
    load: tuple[str, ...] = ()
    headers: bool = False
    append: str = ""
    counts: bool = False
    processors: int = 1
    memory: str = "2G"
    seconds: float = 600


@dataclass(frozen=True)
class Ended:
    """What became of a guest.

    Attributes:
        code: the command's exit code; None when the guest died or hung before there was one.
        why: what happened when there is no code.
        release: the kernel's release.
        seconds: how long it took, from the start of qemu to its end.
    """

    code: int | None
    why: str
    release: str
    seconds: float


def boot(
    machine: Machine,
    command: Sequence[str],
    *,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    results: Path | None = None,
    stop: threading.Event | None = None,
) -> Ended:
    """Boot, run the command in `folder` as root, and power off.

    Args:
        variables: the command's environment besides PATH, HOME and the like.
        output: where the command's output goes; to this process's own standard output by default.
        results: a folder of the host for what the command leaves in $MCPGUARD_LANE_OUT, and the console's log.
        stop: when set, the guest is ended.
    """
    if shutil.which(QEMU) is None:
        raise LaneError(f"{QEMU} is not installed: tools/packages.sh vm")
    kernel = kernels.fetch(machine.kernel)
    # A guest may leave a folder there that an ordinary user of the host cannot empty.
    with tempfile.TemporaryDirectory(prefix="mcpguard-vm-", ignore_cleanup_errors=True) as scratch:
        work = Path(scratch)
        control = work / "control"
        (control / "out").mkdir(parents=True)
        shutil.copy(SETUP, control)
        (control / "job").write_text(_job(machine, kernel, folder))
        (control / "command.sh").write_text(_script(command, variables or {}))
        (work / "initrd").write_bytes(initrd.build(kernel, kernels.busybox(), _modules(kernel, machine)))
        images = [_make_disk(work / f"{kind}.img", kind) for kind in machine.disks if kind in MAKERS]
        began = time.monotonic()
        with _started(_qemu(machine, kernel, work, images), output) as qemu:
            why = _wait(qemu, control, machine.seconds, stop or threading.Event())
        seconds = time.monotonic() - began
        code = int((control / "code").read_text()) if (control / "code").exists() else None
        console = (work / "console.log").read_text(errors="replace") if (work / "console.log").exists() else ""
        if code is None:
            why = f"{why}; the console's last lines:\n{console[-3000:]}"
        if results is not None:
            results.mkdir(parents=True, exist_ok=True)
            # A link that the guest made stays a link: it must not choose which of the host's files is copied.
            shutil.copytree(control / "out", results, dirs_exist_ok=True, symlinks=True)
            (results / "console.log").write_text(console)
    return Ended(code, "" if code is not None else why, kernel.release, seconds)


def _modules(kernel: Kernel, machine: Machine) -> list[str]:
    wanted = [name for kind in machine.disks for name in DISKS[kind]] + list(machine.load)
    return [name.lstrip("?") for name in wanted if not name.startswith("?") or kernel.has(name[1:])]


def _job(machine: Machine, kernel: Kernel, folder: Path) -> str:
    """Settings for setup.sh, as shell assignments."""
    settings = {
        "folder": str(folder),
        "repository": str(REPOSITORY),
        "tmpfs": " ".join(TMPFS),
        "home": HOME,
        "disks": " ".join(machine.disks),
        "headers": str(kernels.headers(kernel)) if machine.headers else "",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())


def _script(command: Sequence[str], variables: Mapping[str, str]) -> str:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": HOME,
        "USER": "root",
        "LOGNAME": "root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MCPGUARD_LANE_OUT": "/run/vm/control/out",
        **variables,
    }
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    return f"{exports}exec {shlex.join(command)}\n"


def _make_disk(image: Path, kind: str) -> Path:
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    maker = shutil.which(MAKERS[kind][0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if maker is None:
        raise LaneError(f"{MAKERS[kind][0]} is not installed: tools/packages.sh vm")
    subprocess.run([maker, *MAKERS[kind][1:], image], check=True, stdout=subprocess.DEVNULL)
    return image


def _qemu(machine: Machine, kernel: Kernel, work: Path, images: Sequence[Path]) -> list[str]:
    preempt = f"preempt={machine.preempt}" if machine.preempt else ""
    words = f"{ALWAYS} lsm={LSM_LISTS[machine.lsm]} {preempt} {machine.append}"
    command = [QEMU, *(COUNTING if machine.counts else EMULATED), "-cpu", "max", "-M", "pc"]
    command += ["-smp", str(machine.processors), "-m", machine.memory]
    # No default devices, and so no network: the guest has its loopback interface and nothing else.
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(kernel.vmlinux), "-initrd", str(work / "initrd"), "-append", " ".join(words.split())]
    command += ["-chardev", f"file,id=console,path={work}/console.log", "-serial", "chardev:console"]
    command += ["-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"]
    shares = {"root": "path=/,readonly=on,multidevs=remap", "control": f"path={work}/control"}
    for tag, options in shares.items():
        command += ["-fsdev", f"local,id={tag},security_model=none,{options}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    for number, image in enumerate(images):
        command += ["-drive", f"if=none,id=disk{number},file={image},format=raw,cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return command


def _die_with_parent() -> None:
    """Run in the child before it becomes qemu: a runner that is killed leaves no guest behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _started(command: Sequence[str], output: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    """The guest, which is gone at the end in any case."""
    sys.stdout.flush()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, preexec_fn=_die_with_parent)
    try:
        yield qemu
    finally:
        if qemu.poll() is None:
            qemu.kill()
        qemu.wait()


def _wait(qemu: subprocess.Popen[bytes], control: Path, seconds: float, stop: threading.Event) -> str:
    """Wait until the guest is gone, its time is over or it is to stop; says which it was."""
    deadline = time.monotonic() + seconds
    code_seen = False
    while time.monotonic() < deadline:
        if stop.is_set():
            return "the guest was ended from outside"
        if qemu.poll() is not None:
            return f"the guest died without an exit code (qemu's own is {qemu.returncode})"
        if not code_seen and (control / "code").exists():
            code_seen = True
            deadline = min(deadline, time.monotonic() + POWER_OFF_SECONDS)
        time.sleep(POLL_SECONDS)
    return f"the guest hung: not done after {seconds:.0f} s"
