/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a session's records go through: two rings, the counters, the aggregates. Each session has its own.
 *
 * Whatever object writes, a session has one ring of denials. No denial waits behind activity, and nothing is dropped without
 * being counted.
 */
#ifndef MG_RING_H
#define MG_RING_H

#include "mg_abi.h"
#include "mg_kernel.h"
#include "mg_session.h"

/* The size is a placeholder: the loader makes rings of the real size. */
struct mg_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

struct mg_counters_of_one {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct mg_counters));
};

MG_PER_SLOT(mg_denials, struct mg_ring);
MG_PER_SLOT(mg_activity, struct mg_ring);
MG_PER_SLOT(mg_counters, struct mg_counters_of_one);

static __always_inline struct mg_counters *mg_count(const struct mg_session *session)
{
	void *counters = mg_of_slot(&mg_counters, session->slot);
	__u32 zero = 0;

	return counters ? bpf_map_lookup_elem(counters, &zero) : 0;
}

static __always_inline void mg_fill_head(struct mg_head *head, __u32 kind)
{
	__u64 task = bpf_get_current_task(), comm = task + bpf_core_field_offset(struct task_struct, comm);

	head->when_ns = bpf_ktime_get_ns();
	head->kind = kind;
	head->lost_before = 0;
	head->pid = MG_READ(struct task_struct, task, tgid);
	head->tid = MG_READ(struct task_struct, task, pid);
	head->ppid = MG_READ(struct task_struct, MG_READ(struct task_struct, task, real_parent), tgid);
	head->said = 0;
	if (MG_READS_FREELY) {
		((__u64 *)head->comm)[0] = MG_NUMBER_AT(comm);
		((__u64 *)head->comm)[1] = MG_NUMBER_AT(comm + sizeof(__u64));
	} else {
		bpf_probe_read_kernel(&head->comm, sizeof(head->comm), (void *)comm);
	}
}

/* One program in one process: a reused PID or another program in the same process starts new aggregates. */
static __always_inline __u64 mg_life(void)
{
	struct task_struct *task = mg_current_task();

	return task->group_leader->start_time + task->self_exec_id;
}

/* Count one record that did not fit. */
static __always_inline void mg_lost(const struct mg_session *session, int denial)
{
	struct mg_counters *counters = mg_count(session);

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
static __always_inline __u32 mg_take_lost(const struct mg_session *session, int denial)
{
	struct mg_counters *counters = mg_count(session);
	__u64 *pending;

	if (!counters)
		return 0;
	pending = denial ? &counters->denials_pending : &counters->activity_pending;
	return *pending ? __sync_lock_test_and_set(pending, 0) : 0;
}

/* A mask, so that a verifier that lost track of a sum sees a bound. */
enum { MG_LONGEST_RECORD = 16383 };

/* Send a record; a full ring gives the taken losses back and adds this one. */
static __always_inline void mg_send(const struct mg_session *session, void *record, __u64 size, int denial)
{
	void *ring = denial ? mg_of_slot(&mg_denials, session->slot) : mg_of_slot(&mg_activity, session->slot);
	struct mg_head *head = record;
	struct mg_counters *counters = mg_count(session);

	head->said = counters ? counters->said : 0;
	head->lost_before = mg_take_lost(session, denial);
	barrier_var(size);
	size &= MG_LONGEST_RECORD;
	if (ring && !bpf_ringbuf_output(ring, record, size, 0))
		return;
	mg_lost(session, denial);
	counters = mg_count(session);
	if (counters && head->lost_before)
		__sync_fetch_and_add(denial ? &counters->denials_pending : &counters->activity_pending,
				     head->lost_before);
}

static __always_inline __u64 mg_next_series(const struct mg_session *session)
{
	struct mg_counters *counters = mg_count(session);

	return counters ? __sync_fetch_and_add(&counters->series, 1) + 1 : 0;
}

/* Count one more of `key`; returns how many a record sent now has to stand for, 0: send none.
 *
 * The first is sent at once, later ones when the total reaches a power of two, and the first one after a message of MCP, so
 * that each call shows what it did. What was counted and not yet sent stays in the map, for the final reading. A full map sends each one singly (series 0), so nothing goes uncounted.
 *
 * `map` is the session's own, from mg_of_slot().
 */
static __always_inline __u64 mg_tally(const struct mg_session *session, void *map, const void *key, __u64 *series)
{
	struct mg_counters *counters = mg_count(session);
	struct mg_sum fresh = { .total = 1, .reported = 1 };
	__u64 total, reported, said = counters ? counters->said : 0;
	struct mg_sum *sum;

	*series = 0;
	if (!map)
		return 1;
	sum = bpf_map_lookup_elem(map, key);
	if (!sum) {
		fresh.series = mg_next_series(session);
		fresh.said = said;
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
	if (total & (total - 1) && sum->said == said)
		return 0;
	sum->said = said;
	reported = sum->reported;
	if (reported >= total || __sync_val_compare_and_swap(&sum->reported, reported, total) != reported)
		return 0; /* another CPU is reporting; what is left stays for the next power of two */
	return total - reported;
}

#endif
