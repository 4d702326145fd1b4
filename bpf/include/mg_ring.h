/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every object shares: its configuration, the two rings, the counters and the aggregates.
 *
 * The rings, counters and sums are created once by the loader and lent to each object, so a session has one ring of
 * denials whatever wrote to it. No denial waits behind activity, and nothing is dropped without being counted.
 */
#ifndef MG_RING_H
#define MG_RING_H

#include "mg_abi.h"
#include "mg_kernel.h"

const volatile struct mg_config mg_config SEC(".rodata.config") = { .abi_version = MG_ABI_VERSION };

/* Sizes are placeholders: the loader lends maps of the real size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} mg_denials SEC(".maps"), mg_activity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mg_counters);
} mg_counters SEC(".maps");

static __always_inline struct mg_counters *mg_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&mg_counters, &zero);
}

static __always_inline void mg_fill_head(struct mg_head *head, __u32 kind)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	head->when_ns = bpf_ktime_get_ns();
	head->kind = kind;
	head->lost_before = 0;
	head->pid = BPF_CORE_READ(task, tgid);
	head->tid = BPF_CORE_READ(task, pid);
	head->ppid = BPF_CORE_READ(task, real_parent, tgid);
	head->reserved = 0;
	bpf_core_read(&head->comm, sizeof(head->comm), &task->comm);
}

/* Count one record that did not fit. */
static __always_inline void mg_lost(int denial)
{
	struct mg_counters *counters = mg_count();

	if (!counters)
		return;
	if (denial) {
		__sync_fetch_and_add(&counters->denials_lost, 1);
		__sync_fetch_and_add(&counters->denials_pending, 1);
	} else {
		__sync_fetch_and_add(&counters->activity_lost, 1);
		__sync_fetch_and_add(&counters->activity_pending, 1);
	}
}

/* The losses that the next record has to report; the exchange gives each loss to one record only. */
static __always_inline __u32 mg_take_lost(int denial)
{
	struct mg_counters *counters = mg_count();
	__u64 *pending;

	if (!counters)
		return 0;
	pending = denial ? &counters->denials_pending : &counters->activity_pending;
	return *pending ? __sync_lock_test_and_set(pending, 0) : 0;
}

/* A mask, so that a verifier that lost track of a sum sees a bound. */
enum { MG_LONGEST_RECORD = 16383 };

/* Send a record; a full ring gives the taken losses back and adds this one. */
static __always_inline void mg_send(void *record, __u64 size, int denial)
{
	struct mg_head *head = record;
	struct mg_counters *counters;
	long failed;

	head->lost_before = mg_take_lost(denial);
	barrier_var(size);
	size &= MG_LONGEST_RECORD;
	failed = denial ? bpf_ringbuf_output(&mg_denials, record, size, 0)
			: bpf_ringbuf_output(&mg_activity, record, size, 0);
	if (!failed)
		return;
	mg_lost(denial);
	counters = mg_count();
	if (counters && head->lost_before)
		__sync_fetch_and_add(denial ? &counters->denials_pending : &counters->activity_pending,
				     head->lost_before);
}

static __always_inline __u64 mg_next_series(void)
{
	struct mg_counters *counters = mg_count();

	return counters ? __sync_fetch_and_add(&counters->series, 1) + 1 : 0;
}

/* Count one more of `key`; returns how many a record sent now has to stand for, 0: send none.
 *
 * The first is sent at once, later ones when the total reaches a power of two. What was counted and not yet sent stays
 * in the map, for the final reading. A full map sends each one singly (series 0), so nothing goes uncounted.
 */
static __always_inline __u64 mg_tally(void *map, const void *key, __u64 *series)
{
	struct mg_sum fresh = { .total = 1, .reported = 1 };
	struct mg_sum *sum = bpf_map_lookup_elem(map, key);
	__u64 total, reported;

	if (!sum) {
		fresh.series = mg_next_series();
		*series = fresh.series;
		if (!bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST))
			return 1;
		*series = 0;
		sum = bpf_map_lookup_elem(map, key);
		if (!sum)
			return 1;
	}
	*series = sum->series;
	total = __sync_fetch_and_add(&sum->total, 1) + 1;
	if (total & (total - 1))
		return 0;
	reported = sum->reported;
	if (reported >= total || __sync_val_compare_and_swap(&sum->reported, reported, total) != reported)
		return 0; /* another CPU is reporting; what is left stays for the next power of two */
	return total - reported;
}

#endif
