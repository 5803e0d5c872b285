#!/bin/sh
# Builds the guest kernel and hmm-tests from a Debian kernel source tarball.
#
# Usage: kernel.sh TARBALL RECIPES WORK OUT
#   TARBALL  /usr/src/linux-source-*.tar.xz
#   RECIPES  folder with kernel.config and hmm-tests.sh
#   WORK     empty folder for the tree; the caller removes it
#   OUT      empty folder that receives bzImage, vmlinux (stripped), config,
#            version, modules/*.ko and hmm-tests
#
# Lines that begin with `neap-step:` tell the caller what goes on.
set -eu

tarball=$1 recipes=$2 work=$3 out=$4
jobs=$(nproc)
tree=$work/tree
fragment=$recipes/kernel.config

# The same source and fragment give the same image, whoever builds it.
export KBUILD_BUILD_USER=neap KBUILD_BUILD_HOST=neap
export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC'
export LC_ALL=C
unset KCONFIG_CONFIG KBUILD_OUTPUT MAKEFLAGS ARCH CROSS_COMPILE || true

echo "neap-step: unpacking the kernel source"
mkdir -p "$tree"
# The left-out files are a third of the tree, and no x86 build reads them.
tar --extract --file "$tarball" --directory "$tree" --strip-components=1 \
    --exclude='*/drivers/gpu/drm/amd/include/*' \
    --exclude='*/Documentation/devicetree/*' \
    --exclude='*/Documentation/translations/*' \
    --exclude='*/arch/*/boot/dts/*'
cd "$tree"

echo "neap-step: configuring the kernel"
make tinyconfig
scripts/kconfig/merge_config.sh -m .config "$fragment"
make olddefconfig

# A symbol that a dependency switched off is dropped without a word, so the
# result is compared with what was asked for, line by line.
lost=
while read -r line; do
    case $line in
        "# CONFIG_"*" is not set")
            symbol=${line#\# }
            symbol=${symbol%% *}
            if grep -q "^$symbol=" .config; then lost="$lost $symbol(on)"; fi
            ;;
        CONFIG_*)
            if ! grep -qxF "$line" .config; then lost="$lost ${line%%=*}"; fi
            ;;
    esac
done <"$fragment"
if [ -n "$lost" ]; then
    echo "the kernel's configuration does not keep what kernel.config asks for:$lost" >&2
    exit 1
fi

echo "neap-step: building the kernel"
make -j"$jobs" bzImage vmlinux modules

echo "neap-step: building hmm-tests"
mkdir "$work/hmm-tests"
sh "$recipes/hmm-tests.sh" "$tree" "$work/hmm-tests" "$out/hmm-tests"

echo "neap-step: collecting the kernel"
make -s kernelrelease >"$out/version"
cp arch/x86/boot/bzImage "$out/bzImage"
strip -o "$out/vmlinux" vmlinux
cp .config "$out/config"
mkdir "$out/modules"
for module in lib/test_hmm drivers/dax/device_dax drivers/dax/kmem drivers/dax/hmem/dax_hmem; do
    strip --strip-debug -o "$out/modules/${module##*/}.ko" "$module.ko"
done
