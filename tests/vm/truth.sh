# shellcheck shell=bash
# Sourced in the guest: lets ftrace count what SWIOTLB does, apart from any BPF.
#
# truth_start sets it up. truth_stop DIR writes three histograms into DIR: `mapped`,
# attempts and bytes by device; `copied`, copies and bytes by direction; `refused`,
# attempts that found no room.
TRACING=/sys/kernel/tracing

# ftrace's own event $1 at probe $2 (as kprobe_events has it), counted by $3.
_truth_event() {
	echo "$2" >>$TRACING/kprobe_events
	echo "$3" >$TRACING/events/kprobes/"$1"/trigger
}

truth_start() {
	echo 'hist:keys=dev_name:vals=size' >$TRACING/events/swiotlb/swiotlb_bounced/trigger
	# The third and fourth arguments, in every kernel that has this function.
	_truth_event cct_copied 'p:cct_copied swiotlb_bounce size=$arg3:u64 dir=$arg4:u32' \
		'hist:keys=dir:vals=size'
	# DMA_MAPPING_ERROR, all bits set (include/linux/dma-mapping.h).
	_truth_event cct_refused 'r:cct_refused swiotlb_tbl_map_single ret=$retval:s64' \
		'hist:keys=ret if ret == -1'
}

truth_stop() {
	cat $TRACING/events/swiotlb/swiotlb_bounced/hist >"$1/mapped"
	cat $TRACING/events/kprobes/cct_copied/hist >"$1/copied"
	cat $TRACING/events/kprobes/cct_refused/hist >"$1/refused"
}
