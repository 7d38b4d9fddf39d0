#!/bin/sh
# The guest's init: loads the modules, mounts the disk with the programs, then runs what the lab
# sends through a virtio serial port (lab/agent.py has the other end), or a shell on the console
# when the kernel's command line says lab.shell.
export PATH=/usr/sbin:/usr/bin:/bin HOME=/root TERM=linux

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ln -s /proc/self/fd /dev/fd

load
for word in $(cat /proc/cmdline); do
    case $word in lab.modules=*) load $(echo "${word#*=}" | tr , ' ') ;; esac
done

wait_for() {
    tries=0
    until [ -e "$1" ] || [ $tries -ge 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
}
wait_for /dev/vda
mount -t ext4 -o ro,noload /dev/vda /programs

if grep -qw lab.shell /proc/cmdline; then
    echo "Type exit to power the guest off. The programs are those of tests/vm/lab/recipe.py."
    setsid cttyhack sh
    poweroff -f
fi

# A request is a line "ID BASE64-OF-A-SCRIPT", its answer "ID STATUS SIZE", then SIZE bytes, what
# the script wrote to its standard output and error. dash runs it, since busybox's shell prefers
# applets to the programs of the same name. The port reads as closed until QEMU has told the guest
# that the host's side is open.
port=/dev/vport0p1
for candidate in /sys/class/virtio-ports/*; do
    [ "$(cat "$candidate/name")" = lab ] && port=/dev/${candidate##*/}
done
wait_for "$port"
exec 3<>"$port"
echo "ready $(uname -r)" >&3
while :; do
    while read -r id script <&3; do
        echo "$script" | base64 -d >/tmp/lab.script
        dash /tmp/lab.script </dev/null >/tmp/lab.output 2>&1
        status=$?
        echo "$id $status $(stat -c %s /tmp/lab.output)" >&3
        cat /tmp/lab.output >&3
    done
    sleep 0.1
done
