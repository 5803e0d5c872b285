# Guest profile `dax`: dax_hmem makes a device of every range of
# special-purpose memory. Each is printed as one line of key=value pairs.

fail() {
    echo "neap-job: $*"
    exit 125
}

for module in dax_hmem device_dax; do
    insmod "/lib/modules/$module.ko" || fail "$module did not load"
done

echo "neap-job: soft-reserved $(dmesg | grep -c 'BIOS-e820: .* soft reserved')"
grep -i 'soft reserved' /proc/iomem | while read -r line; do
    echo "neap-job: iomem $line"
done
count=0
for device in /sys/bus/dax/devices/dax*; do
    [ -e "$device" ] || continue
    name=${device##*/}
    node=absent
    [ -c "/dev/$name" ] && node=present
    echo "neap-job: dax name=$name dev=$node size=$(cat "$device/size")" \
        "resource=$(cat "$device/resource") align=$(cat "$device/align")" \
        "target_node=$(cat "$device/target_node")"
    count=$((count + 1))
done
echo "neap-job: dax-devices $count"
[ "$count" -gt 0 ] || fail "dax_hmem made no device"
