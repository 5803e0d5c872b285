# Guest profile `node`: kmem puts the special-purpose memory online as
# ordinary memory of its own NUMA nodes. Every node is printed as lines of
# key=value pairs. Without SPM the job only prints.

fail() {
    echo "neap-job: $*"
    exit 125
}

# Movable, so that the memory could be taken offline again.
echo online_movable >/sys/devices/system/memory/auto_online_blocks
for module in dax_hmem kmem; do
    insmod "/lib/modules/$module.ko" || fail "$module did not load"
done

for device in /sys/bus/dax/devices/dax*; do
    [ -e "$device" ] || continue
    driver=$(readlink "$device/driver")
    echo "neap-job: dax name=${device##*/} driver=${driver##*/} size=$(cat "$device/size")" \
        "target_node=$(cat "$device/target_node")"
done

echo "neap-job: block-size $((0x$(cat /sys/devices/system/memory/block_size_bytes)))"
for node in /sys/devices/system/node/node[0-9]*; do
    number=${node##*/node}
    echo "neap-job: node=$number cpus=$(cat "$node/cpulist")" \
        "total_kb=$(awk '/MemTotal/ { print $4 }' "$node/meminfo")" \
        "distance=$(tr ' ' ',' <"$node/distance")"
    for access in "$node"/access[01]; do
        [ -d "$access/initiators" ] || continue
        line="neap-job: node=$number class=${access##*/}"
        for figure in read_latency write_latency read_bandwidth write_bandwidth; do
            [ -f "$access/initiators/$figure" ] &&
                line="$line $figure=$(cat "$access/initiators/$figure")"
        done
        initiators=
        for initiator in "$access"/initiators/node*; do
            [ -e "$initiator" ] && initiators="$initiators${initiators:+,}${initiator##*/node}"
        done
        echo "$line initiators=$initiators"
    done
done
