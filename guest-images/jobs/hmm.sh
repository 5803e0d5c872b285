# Guest profile `hmm`: test_hmm owns the device memory, and the kernel's own
# hmm-tests run on it. The arguments go to hmm-tests.
#
# Variables: SPM0 and SPM1, the guest-physical addresses of two windows of
# 256 MiB or more; both empty: private devices only.

fail() {
    echo "neap-job: $*"
    exit 125
}

kernel_log() {
    dmesg | tail -n 40 | sed 's/^/neap-job: kernel log: /'
}

# The tests of exclusive access map single pages and fail on huge ones.
if [ -f /sys/kernel/mm/transparent_hugepage/enabled ]; then
    echo never >/sys/kernel/mm/transparent_hugepage/enabled
fi
echo 64 >/proc/sys/vm/nr_hugepages
[ "$(cat /proc/sys/vm/nr_hugepages)" -eq 64 ] ||
    fail "only $(cat /proc/sys/vm/nr_hugepages) of 64 huge pages: give the guest more memory"

# A test_hmm that failed to load leaves device numbers behind, and the kernel
# oopses when they are opened: go no further then.
if ! insmod /lib/modules/test_hmm.ko \
    ${SPM0:+spm_addr_dev0=$SPM0} ${SPM1:+spm_addr_dev1=$SPM1}; then
    kernel_log
    fail "test_hmm did not load with windows at ${SPM0:-none} and ${SPM1:-none}"
fi

major=$(awk '$2 == "HMM_DMIRROR" { print $1 }' /proc/devices)
[ -n "$major" ] || fail "test_hmm registered no character device"
minors="0 1"
[ -n "$SPM0" ] && minors="0 1 2 3"
for minor in $minors; do
    [ -c "/dev/hmm_dmirror$minor" ] || mknod "/dev/hmm_dmirror$minor" c "$major" "$minor" ||
        fail "/dev/hmm_dmirror$minor cannot be made"
done

hmm-tests "$@"
status=$?
[ "$status" -eq 0 ] || kernel_log
exit "$status"
