#!/bin/busybox sh
# The guest's first program, run in the initial archive: load modules, put the host's root below an overlay, go there.
#
# Any failure ends it, which stops the kernel and with it qemu; the console's last lines then tell what went wrong.
set -e
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sysfs /sys
while read -r module; do
    insmod "/modules/$module" || { echo "vm lane: module $module does not load"; exit 1; }
done </modules/order

# The host's root is read-only twice: qemu refuses writes, and the mount does. What the guest writes stays in its memory.
transport=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$transport,ro,cache=loose,noatime" root /host
mount -t 9p -o "$transport,cache=none" control /control
mount -t tmpfs -o mode=755,size=60% scratch /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /newroot

mount -t proc -o nosuid,nodev,noexec proc /newroot/proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /newroot/sys
mount -t devtmpfs devtmpfs /newroot/dev
mount -t tmpfs -o mode=755 run /newroot/run
mkdir -p /newroot/run/vm/control
cp /bin/busybox /newroot/run/vm/busybox
mount --move /control /newroot/run/vm/control
umount /sys
/bin/busybox umount /proc
exec /bin/busybox switch_root /newroot /run/vm/busybox sh /run/vm/control/setup.sh
