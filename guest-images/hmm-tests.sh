#!/bin/sh
# Builds the kernel's hmm-tests, static, from a kernel tree that it only
# reads.
#
# Usage: hmm-tests.sh TREE WORK OUT
#   TREE  kernel source tree, built or not
#   WORK  empty folder for a copy of what the kernel's user headers need
#   OUT   path of the program
set -eu

tree=$1 work=$2 out=$3
export LC_ALL=C
unset KBUILD_OUTPUT MAKEFLAGS ARCH CROSS_COMPILE || true

# `make headers` writes into the tree it runs in, so it runs in a copy of the
# few folders it uses, without what a build left in them.
echo "neap-step: making the kernel's user headers"
cd "$tree"
set -- Makefile scripts include/uapi include/asm-generic tools/include usr/include \
    arch/x86/Makefile arch/x86/include arch/x86/entry/syscalls arch/x86/tools
for optional in arch/x86/Makefile_32.cpu arch/x86/Makefile.um; do
    if [ -e "$optional" ]; then set -- "$@" "$optional"; fi
done
tar --create --file - --exclude=generated --exclude='*.o' --exclude='*.a' \
    --exclude='.*.cmd' "$@" | tar --extract --file - --directory "$work"
make -C "$work" -j"$(nproc)" ARCH=x86 headers

echo "neap-step: compiling hmm-tests"
cd tools/testing/selftests/mm
set -- hmm-tests.c
for helper in vm_util.c thp_settings.c; do
    if [ -e "$helper" ]; then set -- "$@" "$helper"; fi
done
gcc -O2 -static -isystem "$work/usr/include" -I "$tree" -I "$tree/tools/include/uapi" \
    -I "$tree/tools/testing/selftests" -D_GNU_SOURCE= -o "$out.unstripped" "$@" -lpthread -lrt
strip -o "$out" "$out.unstripped"
rm "$out.unstripped"
