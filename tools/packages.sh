#!/usr/bin/env bash
# Install the Debian or Ubuntu packages that are missing, and only those.
#
# usage: tools/packages.sh build|test|vm|bench
#   build  what `make demo` needs: compiler for the BPF programs, loader libraries, Python's venv, git
#   test   the same, and what the suites drive: gcc, make, node, npm, ip, script, useradd, curl, wget, dig, musl-gcc,
#          tmux, bpftool
#   bench  the same as build, and what the benchmarks compare with or drive
#   vm     the same as build, and what tests/vm boots with: qemu, a kernel's decompressors, makers of file systems
# Each line names the package and the thing that proves it is there: a command, or a file below a library folder.
# Never uninstalls, never changes sources, never asks a question.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # an ordinary user's PATH lacks them; what lives there counts as present

have_command() { command -v "$1" >/dev/null 2>&1; }
have_file() { compgen -G "$1" >/dev/null; }

have_clang() {
    local name
    for name in clang clang-{30..14}; do have_command "$name" && return 0; done
    return 1
}

missing=()
need() { # need PACKAGE CHECK ARGUMENT...
    local package=$1
    shift
    "$@" || missing+=("$package")
}

libraries="/usr/lib/$(uname -m)-linux-gnu"
python=$(command -v /usr/bin/python3 || true)
version_ok() { [[ -n $python ]] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }
venv_ok() { [[ -n $python ]] && "$python" -c 'import ensurepip, venv' 2>/dev/null; }

need clang have_clang
need llvm have_file '/usr/bin/llvm-strip*'
need libbpf-dev have_file /usr/include/bpf/bpf_helpers.h
need linux-libc-dev have_file /usr/include/linux/bpf.h
need libbpf1 have_file "$libraries/libbpf.so.1"
need libelf1 have_file "$libraries/libelf.so.1"
need libseccomp2 have_file "$libraries/libseccomp.so.2"
need git have_command git
need ca-certificates have_file /etc/ssl/certs/ca-certificates.crt
if [[ -z $python ]]; then
    missing+=(python3 python3-venv)
elif version_ok; then
    need python3-venv venv_ok
elif ! have_command python3.13 && ! have_command python3.12 && ! have_command python3.11; then
    # Ubuntu 22.04 ships 3.10 as python3; 3.11 is in its universe section.
    missing+=(python3.11 python3.11-venv)
fi
if [[ ${1:-build} == test ]]; then
    need gcc have_command gcc
    need libc6-dev have_file /usr/include/stdio.h
    need make have_command make
    need nodejs have_command node
    need npm have_command npm
    need iproute2 have_command ip
    need bsdutils have_command script
    need sudo have_command sudo
    need passwd have_command useradd
    need curl have_command curl
    # Programs that ask for names, each in its own way.
    need wget have_command wget
    need musl-tools have_command musl-gcc
    need bind9-dnsutils have_command dig
    need golang-go have_command go
    need netcat-openbsd have_command nc
    need openssl have_command openssl
    need tmux have_command tmux
    need btrfs-progs have_command mkfs.btrfs
    # The layout of the records is compared with the compiled header's; Ubuntu ships the tool with its kernels.
    need "$(. /etc/os-release && [[ $ID == ubuntu ]] && echo linux-tools-common || echo bpftool)" have_command bpftool
fi

if [[ ${1:-build} == bench ]]; then
    need bubblewrap have_command bwrap
    need firejail have_command firejail
    need strace have_command strace
    need ripgrep have_command rg
    need socat have_command socat
    need npm have_command npm
    need gcc have_command gcc
    need libc6-dev have_file /usr/include/stdio.h
    need make have_command make
    need iproute2 have_command ip
fi

if [[ ${1:-build} == vm ]]; then
    # Kernels and a static busybox are only downloaded and unpacked, by tests/vm/kernels.py; nothing boots from them.
    need qemu-system-x86 have_command qemu-system-x86_64
    need zstd have_command zstd
    need xz-utils have_command xz
    need e2fsprogs have_command mkfs.ext4
    need btrfs-progs have_command mkfs.btrfs
    # What the guests' tests drive: a sandbox that agents use, another user, and the static actor.
    need bubblewrap have_command bwrap
    # A witness of opens that shares nothing with us; it compiles in the guest.
    need bpfcc-tools have_command opensnoop-bpfcc
    need sudo have_command sudo
    need passwd have_command useradd
    need gcc have_command gcc
    need libc6-dev have_file /usr/include/stdio.h
    need dpkg have_command dpkg-deb
fi

if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi
if ! have_command apt-get; then
    echo "mcpguard: missing: ${missing[*]} (Debian names); this host has no apt-get, install them by its own means" >&2
    exit 1
fi
as_root=()
if [[ $(id -u) -ne 0 ]]; then
    have_command sudo || { echo "mcpguard: missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing: ${missing[*]}"
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}
# Lists that are missing or older than a day name packages that are no longer there.
if [[ -z $(find /var/lib/apt/lists -name '*Packages*' -mmin -1440 -print -quit 2>/dev/null) ]]; then
    "${as_root[@]}" apt-get update -qq || echo "mcpguard: apt-get update failed; trying with the lists that are there" >&2
fi
install || { "${as_root[@]}" apt-get update -qq && install; }
