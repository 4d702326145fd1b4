# The guest's second program, run in the host's root: what a booted system has mounted, the asked file systems, the command.
#
# Run by busybox's shell, whose own tools come before those of the host. The file `job` beside it says what to do.
set -e
control=/run/vm/control
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. $control/job # folder, repository, tmpfs, home, disks, headers

mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    [ -e "/dev/${stream#*:}" ] || ln -s "/proc/self/fd/${stream%%:*}" "/dev/${stream#*:}"
done
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
mount -t securityfs -o nosuid,nodev,noexec securityfs /sys/kernel/security
mount -t tracefs -o nosuid,nodev,noexec tracefs /sys/kernel/tracing
mount -t debugfs -o nosuid,nodev,noexec debugfs /sys/kernel/debug
ip link set lo up
# An address that is not loopback, as every host has one; nobody answers there, and nothing else can be reached.
ip link set dummy0 up
ip address add 192.0.2.2/24 dev dummy0
ip -6 address add 2001:db8::2/64 dev dummy0
hostname vmlane
ulimit -Hn 524288

if [ -n "$headers" ]; then
    mkdir -p /lib/modules /usr/src
    ln -sfn "$headers"/lib/modules/* /lib/modules/
    ln -sfn "$headers"/usr/src/* /usr/src/
fi

# A tmpfs over a folder that holds the repository would hide it: it is bound aside and put back on top.
cover() {
    case $repository/ in
    "$1"/*)
        mkdir -p /run/vm/aside
        mount --bind "$repository" /run/vm/aside
        mount -t tmpfs -o mode=1777 tmpfs "$1"
        mkdir -p "$repository"
        mount --move /run/vm/aside "$repository"
        ;;
    *)
        mkdir -p "$1"
        mount -t tmpfs -o mode=1777 tmpfs "$1"
        ;;
    esac
}
for place in $tmpfs; do cover "$place"; done
mkdir -p "$home"

# Disks were attached in this order: the first is vda, the next vdb.
letters="a b c d"
next_disk() {
    disk=/dev/vd${letters%% *}
    letters=${letters#* }
}
for kind in $disks; do
    case $kind in
    ext4)
        next_disk
        mkdir -p /vmext4
        mount -t ext4 "$disk" /vmext4
        ;;
    btrfs)
        # Each subvolume has a device number of its own, and is mounted by itself, as / and /home of many hosts are.
        next_disk
        mkdir -p /run/vm/btrfs /vmbtrfs/a /vmbtrfs/b
        mount -t btrfs "$disk" /run/vm/btrfs
        for name in a b; do
            btrfs subvolume create "/run/vm/btrfs/$name" >/dev/null
            mount -t btrfs -o "subvol=$name" "$disk" "/vmbtrfs/$name"
        done
        umount /run/vm/btrfs
        ;;
    overlay)
        mkdir -p /run/vm/layers /vmoverlay
        mount -t tmpfs -o mode=755 layers /run/vm/layers
        mkdir /run/vm/layers/lower /run/vm/layers/upper /run/vm/layers/work
        echo "from the lower layer" >/run/vm/layers/lower/below
        mount -t overlay -o lowerdir=/run/vm/layers/lower,upperdir=/run/vm/layers/upper,workdir=/run/vm/layers/work \
            overlay /vmoverlay
        ;;
    esac
done
# Hosts with systemd share their mounts; programs that make private ones must be tried against that.
mount --make-rshared /

cd "$folder"
stty -F /dev/ttyS1 raw -echo
set +e
setsid /bin/sh $control/command.sh </dev/null >/dev/ttyS1 2>&1
echo $? >$control/code.part
mv $control/code.part $control/code
poweroff -f
