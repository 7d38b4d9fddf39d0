#!/bin/sh
# Loads modules of the initramfs with what they depend on: "load NAME...", where NAME is one of the
# recipe's MODULES_ON_DEMAND; without a name, what each guest loads.

# As modprobe does it: "nvme.poll_queues=1" on the command line is nvme's parameter.
parameters() {
    for word in $(cat /proc/cmdline); do
        case $word in "$1".*) echo "${word#*.}" ;; esac
    done
}

load() {
    while read -r module; do
        name=$(basename "$module" .ko | tr - _)
        [ -e "/sys/module/$name" ] && continue
        # shellcheck disable=SC2046  # a word each
        insmod "/modules/$module" $(parameters "$name")
    done <"$1"
}

[ $# -gt 0 ] || load /modules/order
for wanted; do
    load "/modules/load.$wanted"
done
